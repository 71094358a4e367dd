"""Importers for the shapes in which speech corpora arrive: Kaldi, tables, Common Voice, NeMo and Lhotse manifests.

Importers stream: they yield an :class:`Utterance` for each good row and a :class:`RejectedRow` for each bad one, so
that one broken line never stops a quarter and nothing is dropped silently. Only a source that cannot be read at all
(no such folder, a table without a header) raises :class:`ManifestError`. What an importer does not do is open the
audio: durations, digests and quality stay unknown until the recording is decoded.
"""

import csv
import datetime as dt
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from speech.corpus.manifest import UNKNOWN_DOMAIN, RejectedRow, Utterance, age_band, primary_language
from speech.corpus.rows import (
    BadLine,
    ManifestError,
    PathLike,
    as_optional_seconds,
    as_quality,
    as_seconds,
    as_split,
    as_text_mapping,
    cell_text,
    is_uri,
    numbered_lines,
    numbered_objects,
    parse_date,
    reason_of,
    required_field,
    text_field,
)

TABLE_NAMES = ("transcripts.tsv", "transcripts.csv", "metadata.csv", "metadata.tsv")
COLUMN_ALIASES: Mapping[str, tuple[str, ...]] = {
    "audio": ("path", "file", "audio", "file_name", "filename", "audio_path", "audio_filepath", "wav"),
    "text": ("text", "transcript", "sentence", "transcription"),
    "id": ("id", "utt_id", "utterance_id", "utterance"),
    "speaker": ("speaker", "client_id", "speaker_id", "spk_id"),
    "language": ("language", "locale", "lang"),
    "domain": ("domain", "sentence_domain"),
    "recorded_at": ("recorded_at", "date", "recorded_on", "recording_date"),
    "gender": ("gender", "sex"),
    "age": ("age",),
    "age_band": ("age_band",),
    "accent": ("accent", "accents"),
    "offset": ("offset", "offset_s", "start"),
    "duration": ("duration", "duration_s"),
    "split": ("split",),
}
_ALIAS_TO_COLUMN = {alias: column for column, aliases in COLUMN_ALIASES.items() for alias in aliases}
_LANGUAGE_NAMES = {  # some corpora name the language in English instead of by its tag
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "dutch": "nl", "polish": "pl", "russian": "ru", "japanese": "ja", "korean": "ko", "mandarin": "zh",
    "chinese": "zh", "arabic": "ar", "hindi": "hi", "turkish": "tr", "ukrainian": "uk", "swedish": "sv",
}  # fmt: skip
_DECADES = {  # Common Voice gives decades, of which two straddle our bands and keep their own
    "teens": "13-19", "twenties": "18-29", "thirties": "30-44", "fourties": "40-49", "forties": "40-49",
    "fifties": "45-59", "sixties": "60+", "seventies": "60+", "eighties": "60+", "nineties": "60+",
}  # fmt: skip
MAX_QUOTED_LINES = 20  # a quoted CSV field that runs on for longer was never closed
MAX_ID_BYTES = 180  # leaves room for a suffix within the 255 bytes of a file name


@dataclass(frozen=True)
class Defaults:
    """What to assume where a source has no such column or leaves it empty."""

    language: str | None = None
    domain: str = UNKNOWN_DOMAIN
    recorded_at: dt.date | None = None
    speaker: str | None = None


Imported = Utterance | RejectedRow
Importer = Callable[[PathLike, Defaults], Iterator[Imported]]


def import_kaldi(directory: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A Kaldi data directory: ``wav.scp`` and ``text``, with whatever of the optional files is there.

    Read: segments, utt2spk, spk2gender, spk2age, utt2lang, utt2dom, utt2date. Paths in ``wav.scp`` are
    relative to the directory. A ``wav.scp`` entry that is a command (``sox ... |``) is refused, never run.
    The side tables are held in memory; utterances stream in the order of ``segments`` or ``wav.scp``.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ManifestError(root, None, "is not a folder; give the Kaldi data directory that holds wav.scp and text")
    for name in ("wav.scp", "text"):
        if not (root / name).is_file():
            raise ManifestError(root / name, None, "is missing; a Kaldi data directory needs wav.scp and text")

    tables: dict[str, dict[str, tuple[int, str]]] = {}
    side_tables = ("text", "utt2spk", "spk2gender", "spk2age", "utt2lang", "utt2dom", "utt2date")
    segmented = (root / "segments").is_file()
    for name in (*side_tables, "wav.scp") if segmented else side_tables:
        tables[name] = {}
        if not (root / name).is_file():
            continue
        for number, key, value in _kaldi_rows(root / name):
            if isinstance(value, BadLine):
                yield RejectedRow(str(root / name), number, value.reason, key or None)
            elif key in tables[name]:
                yield RejectedRow(str(root / name), number, f"{key} comes twice; the first row counts", key)
            else:
                tables[name][key] = (number, value)

    intake = _Intake(defaults, root)
    main = root / ("segments" if segmented else "wav.scp")
    used: set[str] = set()
    for number, key, value in _kaldi_rows(main):
        if isinstance(value, BadLine):
            yield RejectedRow(str(main), number, value.reason, key or None)
            continue
        used.add(key)
        try:
            location, offset, duration = value, "", ""
            if segmented:
                parts = value.split()
                if len(parts) < 3:
                    raise ValueError("a segment needs four columns: utterance, recording, start and end")
                recording, start, end = parts[0], as_seconds(parts[1], "start"), float(parts[2])
                if recording not in tables["wav.scp"]:
                    raise ValueError(f"recording {recording} is not in wav.scp")
                if end != -1 and not end > start:
                    raise ValueError(f"the segment ends at {end} s, which is not after its start at {start} s")
                location, offset = tables["wav.scp"][recording][1], str(start)
                duration = "" if end == -1 else repr(round(end - start, 6))
            refuse_command(location)
            speaker = tables["utt2spk"].get(key, (0, ""))[1]
            cells = {
                "id": key,
                "audio": location,
                "text": tables["text"].get(key, (0, ""))[1],
                "speaker": speaker,
                "language": tables["utt2lang"].get(key, (0, ""))[1],
                "domain": tables["utt2dom"].get(key, (0, ""))[1],
                "recorded_at": tables["utt2date"].get(key, (0, ""))[1],
                "gender": tables["spk2gender"].get(speaker, (0, ""))[1],
                "age": tables["spk2age"].get(speaker, (0, ""))[1],
                "offset": offset,
                "duration": duration,
            }
            yield intake.utterance(cells)
        except ValueError as error:
            yield RejectedRow(str(main), number, reason_of(error), key)
    for key, (number, _) in tables["text"].items():
        if key not in used:
            yield RejectedRow(str(root / "text"), number, f"the transcript has no audio in {main.name}", key)


def import_table(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A TSV or CSV table of transcripts with a header, or a folder that holds one.

    Columns go by any of the usual names (:data:`COLUMN_ALIASES`); a path and a text column must be there. Paths are
    absolute or relative to the table. In a folder the table is the first of :data:`TABLE_NAMES`.
    """
    table = Path(path)
    if table.is_dir():
        found = [table / name for name in TABLE_NAMES if (table / name).is_file()]
        if not found:
            raise ManifestError(table, None, f"holds no transcripts; put one of {', '.join(TABLE_NAMES)} there")
        table = found[0]
    yield from _import_columns(table, table.parent, defaults)


def import_common_voice(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A Common Voice TSV (``validated.tsv``, ``train.tsv``, ...), its recordings in the folder ``clips`` beside it."""
    table = Path(path)
    if table.is_dir():
        table = table / "validated.tsv"
    yield from _import_columns(table, table.parent / "clips", defaults)


def import_nemo(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A NeMo JSON-lines manifest, plain or gzipped; our own manifests come back complete."""
    manifest = Path(path)
    if not manifest.is_file():
        raise ManifestError(manifest, None, "is missing; give a JSON-lines manifest")
    intake = _Intake(defaults, manifest.parent)
    for number, row in numbered_objects(manifest):
        identity: str | None = None
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            identity = cell_text(row.get("id")) or None
            cells: dict[str, Any] = {_ALIAS_TO_COLUMN.get(str(key).lower(), str(key)): row[key] for key in row}
            utterance = intake.utterance(cells)
            yield replace(
                utterance,
                digest=text_field(row, "digest"),
                attributes={**as_text_mapping(row.get("attributes")), **utterance.attributes},
                quality=as_quality(row.get("quality")),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield RejectedRow(str(manifest), number, reason_of(error), identity)


def import_lhotse(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """Lhotse supervisions (JSON lines, plain or gzipped) with their recordings beside them.

    ``<prefix>supervisions<suffix>`` pairs with ``<prefix>recordings<suffix>``; given a folder, its only
    supervisions file is read. Recordings produced by a command or kept in memory are refused, as are supervisions of
    one channel among several: mixing the channels would put other people's words under the transcript.
    """
    supervisions = Path(path)
    if supervisions.is_dir():
        found = sorted(supervisions.glob("*supervisions*.jsonl")) + sorted(supervisions.glob("*supervisions*.jsonl.gz"))
        if len(found) != 1:
            raise ManifestError(supervisions, None, f"holds {len(found)} supervision files; name the one to import")
        supervisions = found[0]
    if not supervisions.is_file():
        raise ManifestError(supervisions, None, "is missing; give a Lhotse supervisions file")
    name = supervisions.name.removesuffix(".gz").replace("supervisions", "recordings")
    candidates = [supervisions.with_name(name), supervisions.with_name(name + ".gz")]
    recordings_path = next((c for c in candidates if c != supervisions and c.is_file()), None)
    if recordings_path is None:
        raise ManifestError(supervisions, None, f"has no recordings beside it; expected {name} or {name}.gz")

    recordings: dict[str, Mapping[str, Any]] = {}
    for number, row in numbered_objects(recordings_path):
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            recordings.setdefault(required_field(row, "id"), row)
        except (ValueError, TypeError) as error:
            yield RejectedRow(str(recordings_path), number, reason_of(error), None)

    intake = _Intake(defaults, supervisions.parent)
    for number, row in numbered_objects(supervisions):
        identity: str | None = None
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            identity = cell_text(row.get("id")) or None
            recording_id = required_field(row, "recording_id")
            if recording_id not in recordings:
                raise ValueError(f"recording {recording_id} is not in {recordings_path.name}")
            custom = row.get("custom") if isinstance(row.get("custom"), dict) else {}
            known = {_ALIAS_TO_COLUMN.get(str(key).lower(), ""): value for key, value in (custom or {}).items()}
            cells: dict[str, Any] = {
                **{key: known[key] for key in ("domain", "recorded_at", "age", "accent", "gender") if key in known},
                "id": row.get("id"),
                "audio": _lhotse_source(recordings[recording_id], row.get("channel", 0)),
                "text": row.get("text"),
                "speaker": row.get("speaker"),
                "language": row.get("language"),
                "offset": row.get("start"),
                "duration": row.get("duration"),
            }
            if row.get("gender"):
                cells["gender"] = row["gender"]
            yield intake.utterance(cells)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield RejectedRow(str(supervisions), number, reason_of(error), identity)


IMPORTERS: Mapping[str, Importer] = {
    "kaldi": import_kaldi,
    "table": import_table,
    "nemo": import_nemo,
    "lhotse": import_lhotse,
    "common_voice": import_common_voice,
}


class _Intake:
    """Turns the cells of one row into an utterance, and knows which ids an import has already given out."""

    def __init__(self, defaults: Defaults, base: Path) -> None:
        self.defaults = defaults
        self.base = Path(os.path.abspath(base))
        self._audio_of_id: dict[str, tuple[str, float]] = {}

    def utterance(self, cells: Mapping[str, Any]) -> Utterance:
        """The utterance. Raises ValueError with one sentence for a row that cannot be one."""
        values = {column: cell_text(cells.get(column)) for column in COLUMN_ALIASES}
        for column, value in values.items():
            if "\x00" in value:
                raise ValueError(f"column {column} holds a NUL character")
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise ValueError(f"column {column} is not UTF-8")
        if not values["audio"]:
            raise ValueError("there is no audio path")
        if not values["text"]:
            raise ValueError("there is no transcript")
        speaker = values["speaker"] or self.defaults.speaker
        if not speaker:
            raise ValueError("there is no speaker; add the column, or name a speaker for the whole source")
        if values["recorded_at"]:
            recorded_at = parse_date(values["recorded_at"])
        elif self.defaults.recorded_at is not None:
            recorded_at = self.defaults.recorded_at
        else:
            raise ValueError(
                "there is no recording date; add the column, or name a date for the whole source (recorded_at)"
            )
        named = values["language"] or self.defaults.language
        if not named:
            raise ValueError("there is no language; add the column, or name a language for the whole source")
        language, locale = _language(named)
        duration = as_optional_seconds(values["duration"] or None, "duration", positive=True)
        offset = as_optional_seconds(values["offset"] or None, "offset") or 0.0
        split = as_split(values["split"] or None)
        audio = self._locate(values["audio"])
        attributes = {
            **_gender(values["gender"]),
            **_age(values["age"], values["age_band"]),
            **({"accent": values["accent"]} if values["accent"] else {}),
            **({"locale": locale} if locale else {}),
        }
        return Utterance(
            id=self._identity(values["id"], values["audio"], audio, offset),
            audio=audio,
            duration_s=duration,
            text=values["text"],
            speaker=speaker,
            language=language,
            domain=values["domain"] or self.defaults.domain,
            recorded_at=recorded_at,
            offset_s=offset,
            split=split,
            attributes=attributes,
        )

    def _locate(self, location: str) -> str:
        """The audio's absolute path, or its URI; a local file must be there."""
        if location.lower().startswith("file://"):
            location = unquote(urlparse(location).path)
        elif is_uri(location):
            return location
        path = os.path.normpath(self.base / location)
        try:
            present = os.path.isfile(path)
        except (OSError, ValueError):
            present = False
        if not present:
            raise ValueError(f"there is no audio file {path}")
        return path

    def _identity(self, given: str, location: str, audio: str, offset: float) -> str:
        """The given id made safe as a file name, or one from the audio's path; raises ValueError where it is taken."""
        source = (audio, offset)
        if given:
            identity = _safe_name(given)
            if identity in self._audio_of_id:
                raise ValueError(f"id {given} comes twice; the first row counts")
        else:
            relative = os.path.relpath(audio, self.base) if not is_uri(audio) else location
            relative = Path(audio).name if relative.startswith("..") else relative
            mark = f"@{offset:.3f}" if offset else ""
            identity = _safe_name(os.path.splitext(relative)[0] + mark)
            taken = self._audio_of_id.get(identity)
            if taken is not None and taken != source:
                identity = _safe_name(f"{relative}{mark}-{hashlib.sha256(audio.encode()).hexdigest()[:8]}")
                taken = self._audio_of_id.get(identity)
            if taken is not None:
                raise ValueError(f"the audio {location} comes twice; the first row counts")
        self._audio_of_id[identity] = source
        return identity


def refuse_command(location: str) -> None:
    """Raise ValueError for a location that would have to be run or unpacked instead of opened."""
    stripped = location.strip()
    if stripped.endswith("|") or stripped.startswith("|"):
        raise ValueError("the audio is a command; commands are never run, write its output to a file")
    if stripped == "-":
        raise ValueError("the audio is standard input; give a file")
    if re.search(r"\.ark:\d+$", stripped):
        raise ValueError("the audio lies inside a Kaldi archive; extract it to a file")


def _safe_name(name: str) -> str:
    safe = re.sub(r"[\s/\\:*?\"<>|\x00-\x1f\x7f]+", "-", name).strip("-.") or "utterance"
    encoded = safe.encode()
    if len(encoded) > MAX_ID_BYTES:
        mark = hashlib.sha256(encoded).hexdigest()[:12]
        safe = f"{encoded[: MAX_ID_BYTES - 13].decode(errors='ignore')}-{mark}"
    return safe


def _language(tag: str) -> tuple[str, str]:
    """(primary tag, whole tag where it says more)."""
    tag = _LANGUAGE_NAMES.get(tag.strip().lower(), tag.strip()).replace("_", "-")
    primary = primary_language(tag)
    if primary is None:
        raise ValueError(f"{tag!r} is not a language; write a tag such as en or de-CH")
    return primary, tag if "-" in tag else ""


def _gender(value: str) -> dict[str, str]:
    word = value.strip().lower()
    if not word:
        return {}
    if word in ("m", "male", "man", "male_masculine"):
        return {"gender": "male"}
    if word in ("f", "female", "woman", "female_feminine"):
        return {"gender": "female"}
    return {"gender": word}


def _age(value: str, band: str) -> dict[str, str]:
    """Attributes from an age in years, a decade in words or a band; an age that is none of these is left out."""
    word = value.strip().lower()
    if word in _DECADES:
        return {"age_band": _DECADES[word]}
    try:
        years = float(word)
    except ValueError:
        years = math.nan
    if 0 <= years <= 130:
        return {"age": f"{years:g}", "age_band": band or age_band(years)}
    return {"age_band": band} if band else {}


def _lhotse_source(recording: Mapping[str, Any], channel: Any) -> str:
    if recording.get("transforms"):
        raise ValueError("the recording is transformed on the fly; export its audio to files")
    wanted = set(channel) if isinstance(channel, list) else {channel}
    sources = [source for source in recording.get("sources") or [] if wanted <= set(source.get("channels") or [0])]
    if not sources:
        raise ValueError(f"recording {recording.get('id')} has no source for channel {channel}")
    source = sources[0]
    if len(set(source.get("channels") or [0])) > len(wanted):
        raise ValueError(f"the transcript covers channel {channel} of several in one file; split the file by channel")
    if source.get("type") not in ("file", "url"):
        raise ValueError(f"the recording is of type {source.get('type')!r}, which is never run; give a file")
    location = cell_text(source.get("source"))
    refuse_command(location)
    return location


def _kaldi_rows(path: Path) -> Iterator[tuple[int, str, "str | BadLine"]]:
    """(row, key, rest of the line) of a Kaldi table."""
    for number, line in numbered_lines(path):
        if isinstance(line, BadLine):
            yield number, "", line
            continue
        parts = line.split(None, 1)
        if not parts:
            continue
        if len(parts) == 1 and path.name != "text":
            yield number, parts[0], BadLine(f"{path.name} needs a key and a value; this row has only {parts[0]!r}")
        else:
            yield number, parts[0], parts[1].strip() if len(parts) > 1 else ""


def _import_columns(table: Path, base: Path, defaults: Defaults) -> Iterator[Imported]:
    if not table.is_file():
        raise ManifestError(table, None, "is missing; give a table of transcripts")
    lines = numbered_lines(table)
    number, header = next(lines, (0, ""))
    if isinstance(header, BadLine):
        raise ManifestError(table, 1, header.reason)
    delimiter = "\t" if "\t" in header else ";" if header.count(";") > header.count(",") else ","
    names = [name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter), [])]
    columns: list[str] = [_ALIAS_TO_COLUMN.get(name, "") for name in names]
    for needed in ("audio", "text"):
        if columns.count(needed) == 0:
            raise ManifestError(table, 1, f"has no column {' or '.join(COLUMN_ALIASES[needed])}; add a header row")
    for column in set(columns) - {""}:
        if columns.count(column) > 1:
            twice = [name for name, known in zip(names, columns, strict=True) if known == column]
            raise ManifestError(table, 1, f"has the columns {' and '.join(twice)} for the same thing; keep one")

    intake = _Intake(defaults, base)
    for number, cells in _records(lines, delimiter, len(columns)):
        if isinstance(cells, BadLine):
            yield RejectedRow(str(table), number, cells.reason)
            continue
        row = {column: cell for column, cell in zip(columns, cells, strict=True) if column}
        try:
            refuse_command(row["audio"])
            yield intake.utterance(row)
        except ValueError as error:
            yield RejectedRow(str(table), number, reason_of(error), row.get("id") or None)


def _records(
    lines: Iterator[tuple[int, "str | BadLine"]], delimiter: str, width: int
) -> Iterator[tuple[int, "list[str] | BadLine"]]:
    """The rows of a table.

    A CSV field in quotes may hold line breaks. One that is never closed would swallow the rows after it, so it costs
    only its own line: reading goes on at the next one.
    """
    waiting: list[tuple[int, str | BadLine]] = []
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
        if number == 0:
            return
        if isinstance(line, BadLine):
            yield number, line
            continue
        if not line.strip():
            continue
        if delimiter == "\t":
            cells = [_unquoted(cell) for cell in line.split("\t")]
        else:
            taken = 0
            parsed = _parse_csv(line, delimiter)
            joined = line
            while parsed is None and taken < MAX_QUOTED_LINES:
                if taken == len(waiting):
                    following = next(lines, None)
                    if following is None:
                        break
                    waiting.append(following)
                addition = waiting[taken][1]
                if isinstance(addition, BadLine):
                    break
                taken += 1
                joined += "\n" + addition
                parsed = _parse_csv(joined, delimiter)
            if parsed is None or (taken and len(parsed) != width):
                yield number, BadLine("a quote is opened and not closed")
                continue
            del waiting[:taken]
            cells = parsed
        if len(cells) != width:
            yield number, BadLine(f"the row has {len(cells)} columns where the header has {width}")
            continue
        yield number, cells


def _parse_csv(text: str, delimiter: str) -> list[str] | None:
    """The cells, or None while a quoted field is still open."""
    if '"' not in text:
        return text.split(delimiter)
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        if "unexpected end" in str(error):
            return None
    try:
        return next(csv.reader([text], delimiter=delimiter))
    except (csv.Error, StopIteration):
        return None


def _unquoted(cell: str) -> str:
    """A TSV cell without the quotes that some exporters put around cells that hold quotes."""
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell
