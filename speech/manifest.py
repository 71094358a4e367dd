"""Utterances and the manifests that hold them, and importers for the shapes in which speech corpora arrive.

A manifest is a JSON-lines file that NVIDIA NeMo can read as it is (``audio_filepath``, ``duration``, ``text``,
``offset``), with our own keys beside those. Manifests pass between steps instead of audio: by reference, never by
value.

Importers stream: they yield an :class:`Utterance` for each good row and a :class:`RejectedRow` for each bad one, so
that one broken line never stops a quarter and nothing is dropped silently. Only a source that cannot be read at all
(no such folder, a table without a header) raises :class:`ManifestError`. What an importer does not do is open the
audio: durations, digests and quality stay unknown until the recording is decoded.
"""

import contextlib
import csv
import datetime as dt
import gzip
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from speech.conditioning import Quality

SPLITS = ("train", "dev", "test")
UNKNOWN_DOMAIN = "unknown"
MAX_LINE_BYTES = 4 * 2**20  # a transcript row is a few hundred bytes; a longer "line" is a file of another kind
MAX_QUOTED_LINES = 20  # a quoted CSV field that runs on for longer was never closed
MAX_ID_BYTES = 180  # leaves room for a suffix within the 255 bytes of a file name
EARLIEST_DATE = dt.date(1900, 1, 1)
AGE_BANDS = ((0, 12), (13, 17), (18, 29), (30, 44), (45, 59), (60, None))  # years, inclusive

PathLike = str | os.PathLike[str]


class ManifestError(Exception):
    """A manifest or corpus that cannot be used; says which file, which row (from 1) and why."""

    def __init__(self, path: PathLike, row: int | None, reason: str) -> None:
        self.path = str(path)
        self.row = row
        self.reason = reason
        place = f"{self.path}, row {row}" if row is not None else self.path
        super().__init__(f"{place}: {reason}" if place else reason)

    def __reduce__(self) -> tuple[type["ManifestError"], tuple[str, int | None, str]]:
        """Errors cross process boundaries with their fields."""
        return type(self), (self.path, self.row, self.reason)


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech and what was said in it."""

    id: str  # unique in its partition, and safe as a file name
    audio: str  # path (absolute, or relative to the manifest's folder) or URI
    duration_s: float | None  # None until measured
    text: str  # reference transcript in the written form it was delivered in
    speaker: str
    language: str  # BCP-47 primary tag: "en"
    domain: str  # "call-centre", "assistant", ...; "unknown" when not given
    recorded_at: dt.date  # decides the quarter
    digest: str = ""  # sha256 of the audio content the row came from; "" until known
    offset_s: float = 0.0  # where the utterance starts inside the file
    split: str | None = None  # "train" | "dev" | "test"
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)  # "gender", "age_band", "accent", ...
    quality: "Quality | None" = field(default=None, hash=False)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-ready values; keys that NeMo knows carry NeMo's names."""
        row: dict[str, Any] = {
            "id": self.id,
            "audio_filepath": self.audio,
            "duration": self.duration_s,
            "text": self.text,
            "offset": self.offset_s,
            "speaker": self.speaker,
            "language": self.language,
            "domain": self.domain,
            "recorded_at": self.recorded_at.isoformat(),
            "digest": self.digest,
            "split": self.split,
            "attributes": dict(sorted(self.attributes.items())),
        }
        if self.quality is not None:
            row["quality"] = self.quality.to_dict()
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Utterance":
        """The utterance that :meth:`to_json` wrote. Raises ManifestError for a row that is not one."""
        try:
            return cls(
                id=_required(row, "id"),
                audio=_required(row, "audio_filepath"),
                duration_s=_optional_seconds(row.get("duration"), "duration", positive=True),
                text=_string(row, "text"),
                speaker=_required(row, "speaker"),
                language=_required(row, "language"),
                domain=_string(row, "domain") or UNKNOWN_DOMAIN,
                recorded_at=parse_date(_required(row, "recorded_at")),
                digest=_string(row, "digest"),
                offset_s=_optional_seconds(row.get("offset"), "offset") or 0.0,
                split=_split(row.get("split")),
                attributes=_string_mapping(row.get("attributes")),
                quality=_quality(row.get("quality")),
            )
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ManifestError("", None, f"is not an utterance: {_reason(error)}") from error


@dataclass(frozen=True)
class RejectedRow:
    """A row that did not become an utterance; it goes to quarantine with its reason."""

    source: str  # the file that the row is in
    row: int  # counted from 1; 0 where the fault is a missing row
    reason: str
    id: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return {"source": self.source, "row": self.row, "reason": self.reason, "id": self.id}


@dataclass(frozen=True)
class Defaults:
    """What to assume where a source has no such column or leaves it empty."""

    language: str | None = None
    domain: str = UNKNOWN_DOMAIN
    recorded_at: dt.date | None = None
    speaker: str | None = None


Imported = Utterance | RejectedRow
Importer = Callable[[PathLike, Defaults], Iterator[Imported]]


# ------------------------------------------------------------------------------------------------ manifests


def read_manifest(path: PathLike) -> Iterator[Utterance]:
    """The utterances of a manifest, one at a time. Raises ManifestError at the first row that is not one."""
    for number, line in _lines(Path(path)):
        if isinstance(line, _BadLine):
            raise ManifestError(path, number, line.reason)
        if not line.strip():
            continue
        try:
            row = _json_object(line)
            yield Utterance.from_json(row)
        except ManifestError as error:
            raise ManifestError(path, number, error.reason) from error
        except ValueError as error:
            raise ManifestError(path, number, _reason(error)) from error


def write_manifest(path: PathLike, utterances: Iterable[Utterance]) -> int:
    """Write a manifest and return its number of rows.

    The same utterances give the same bytes, and a reader sees the old file or the whole new one, never a part.
    Raises ManifestError for an id that comes twice or a value that JSON or UTF-8 cannot hold.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            for number, utterance in enumerate(utterances, start=1):
                if utterance.id in seen:
                    raise ManifestError(path, number, f"id {utterance.id!r} comes twice; ids must be unique")
                seen.add(utterance.id)
                try:
                    line = json.dumps(utterance.to_json(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
                    out.write(line.encode() + b"\n")
                except (TypeError, ValueError) as error:
                    raise ManifestError(path, number, f"cannot be written as JSON: {_reason(error)}") from error
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return len(seen)


def audio_location(utterance: Utterance, manifest: PathLike) -> str:
    """Where the utterance's audio is, given the manifest that the row was read from: an absolute path or a URI."""
    if _is_uri(utterance.audio):
        return utterance.audio
    return str(Path(os.path.abspath(manifest)).parent / utterance.audio)


# ------------------------------------------------------------------------------------- quarters and splits


def quarter_of(date: dt.date) -> str:
    """The key of the quarter that a day belongs to: its first month, as in "2024-04"."""
    return f"{date.year:04d}-{(date.month - 1) // 3 * 3 + 1:02d}"


def quarter_title(quarter: str) -> str:
    """A quarter's key as people read it: "2024-04" is "2024 Q2". Raises ValueError for any other month."""
    found = re.fullmatch(r"(\d{4})-(01|04|07|10)", quarter)
    if not found:
        raise ValueError(f"{quarter!r} is not a quarter; write its first month, such as 2024-04")
    return f"{found[1]} Q{(int(found[2]) + 2) // 3}"


def split_of_speaker(speaker: str, dev_share: float = 0.1, test_share: float = 0.1, salt: str = "soundstage") -> str:
    """The set that a speaker belongs to, from the speaker's name alone.

    The name is hashed to a number in [0, 1): the first ``test_share`` of the range is the test set, the last
    ``dev_share`` is the dev set, so that changing one share never moves a speaker of the other set.
    """
    if dev_share < 0 or test_share < 0 or dev_share + test_share > 1:
        raise ValueError(f"shares of {dev_share} dev and {test_share} test do not fit into one corpus")
    digest = hashlib.sha256(f"{salt}\0{speaker}".encode(errors="surrogatepass")).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    if position < test_share:
        return "test"
    return "dev" if position >= 1 - dev_share else "train"


def assign_splits(
    utterances: Iterable[Utterance],
    dev_share: float = 0.1,
    test_share: float = 0.1,
    salt: str = "soundstage",
    *,
    minimum_speakers: int = 0,
) -> list[Utterance]:
    """The utterances with a speaker-disjoint split that is the same in every run and every quarter.

    A speaker's set follows from a hash of the name (:func:`split_of_speaker`). It depends on nothing else: not on who
    else is in the data, not on the order, not on which quarter runs first. That matters more than exact shares, because
    a model is fine-tuned on a window of quarters and scored on a benchmark that outlives them; a speaker who was a test
    speaker in spring and is a training speaker in autumn makes the score a lie that nobody sees. The shares therefore
    hold for many speakers, and a small corpus may miss them, even leave a set empty.

    ``minimum_speakers`` is for a corpus that small: each of dev and test that falls short takes the training speakers
    whose hashes come first. Ranks depend on who is present, so a later, larger corpus could place such a speaker
    otherwise; keep the result (rows that carry a split keep it, see below) to hold them where they are.

    A row that already carries a split keeps it, and pulls its speaker's other rows along. Raises ManifestError where a
    speaker's rows carry different splits, or where the minimum would leave no training speaker.
    """
    rows = list(utterances)
    placed: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row.split is None:
            continue
        if row.split not in SPLITS:
            raise ManifestError("", number, f"split {row.split!r} of {row.id} is none of {', '.join(SPLITS)}")
        if placed.setdefault(row.speaker, row.split) != row.split:
            raise ManifestError(
                "",
                number,
                f"speaker {row.speaker} is in {placed[row.speaker]} and in {row.split} ({row.id}); "
                "give all rows of a speaker one split, or none",
            )
    fixed = set(placed)
    for row in rows:
        if row.speaker not in placed:
            placed[row.speaker] = split_of_speaker(row.speaker, dev_share, test_share, salt)
    for name in ("test", "dev"):
        missing = minimum_speakers - sum(split == name for split in placed.values())
        movable = [speaker for speaker, split in placed.items() if split == "train" and speaker not in fixed]
        if missing > 0:
            if len(movable) <= missing:
                raise ManifestError(
                    "", None, f"{len(placed)} speakers are too few for {minimum_speakers} in each of dev and test"
                )
            movable.sort(key=lambda speaker: hashlib.sha256(f"{salt}\0{name}\0{speaker}".encode()).digest())
            placed.update(dict.fromkeys(movable[:missing], name))
    return [row if row.split == placed[row.speaker] else replace(row, split=placed[row.speaker]) for row in rows]


# ------------------------------------------------------------------------------------------------ importers


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
            if isinstance(value, _BadLine):
                yield RejectedRow(str(root / name), number, value.reason, key or None)
            elif key in tables[name]:
                yield RejectedRow(str(root / name), number, f"{key} comes twice; the first row counts", key)
            else:
                tables[name][key] = (number, value)

    intake = _Intake(defaults, root)
    main = root / ("segments" if segmented else "wav.scp")
    used: set[str] = set()
    for number, key, value in _kaldi_rows(main):
        if isinstance(value, _BadLine):
            yield RejectedRow(str(main), number, value.reason, key or None)
            continue
        used.add(key)
        try:
            location, offset, duration = value, "", ""
            if segmented:
                parts = value.split()
                if len(parts) < 3:
                    raise ValueError("a segment needs four columns: utterance, recording, start and end")
                recording, start, end = parts[0], _seconds(parts[1], "start"), float(parts[2])
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
            yield RejectedRow(str(main), number, _reason(error), key)
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
    for number, line in _lines(manifest):
        identity: str | None = None
        try:
            if isinstance(line, _BadLine):
                raise ValueError(line.reason)
            if not line.strip():
                continue
            row = _json_object(line)
            identity = _cell(row.get("id")) or None
            cells: dict[str, Any] = {_ALIAS_TO_COLUMN.get(str(key).lower(), str(key)): row[key] for key in row}
            utterance = intake.utterance(cells)
            yield replace(
                utterance,
                digest=_string(row, "digest"),
                attributes={**_string_mapping(row.get("attributes")), **utterance.attributes},
                quality=_quality(row.get("quality")),
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield RejectedRow(str(manifest), number, _reason(error), identity)


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
    for number, line in _lines(recordings_path):
        try:
            if isinstance(line, _BadLine):
                raise ValueError(line.reason)
            if line.strip():
                row = _json_object(line)
                recordings.setdefault(_required(row, "id"), row)
        except (ValueError, TypeError) as error:
            yield RejectedRow(str(recordings_path), number, _reason(error), None)

    intake = _Intake(defaults, supervisions.parent)
    for number, line in _lines(supervisions):
        identity: str | None = None
        try:
            if isinstance(line, _BadLine):
                raise ValueError(line.reason)
            if not line.strip():
                continue
            row = _json_object(line)
            identity = _cell(row.get("id")) or None
            recording_id = _required(row, "recording_id")
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
            yield RejectedRow(str(supervisions), number, _reason(error), identity)


IMPORTERS: Mapping[str, Importer] = {
    "kaldi": import_kaldi,
    "table": import_table,
    "nemo": import_nemo,
    "lhotse": import_lhotse,
    "common_voice": import_common_voice,
}

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


# ------------------------------------------------------------------------------------ one row, checked


class _Intake:
    """Turns the cells of one row into an utterance, and knows which ids an import has already given out."""

    def __init__(self, defaults: Defaults, base: Path) -> None:
        self.defaults = defaults
        self.base = Path(os.path.abspath(base))
        self._audio_of_id: dict[str, tuple[str, float]] = {}

    def utterance(self, cells: Mapping[str, Any]) -> Utterance:
        """The utterance. Raises ValueError with one sentence for a row that cannot be one."""
        values = {column: _cell(cells.get(column)) for column in COLUMN_ALIASES}
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
        duration = _optional_seconds(values["duration"] or None, "duration", positive=True)
        offset = _optional_seconds(values["offset"] or None, "offset") or 0.0
        split = _split(values["split"] or None)
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
        elif _is_uri(location):
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
            relative = os.path.relpath(audio, self.base) if not _is_uri(audio) else location
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


def parse_date(value: str) -> dt.date:
    """A calendar day from an ISO date or time stamp, from 2024/05/31, or from 31.05.2024.

    Raises ValueError for anything else; 05/06/2024 means two different days and is therefore refused.
    """
    value = value.strip()
    dotted = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})", value)
    slashed = re.fullmatch(r"(\d{4})/(\d{1,2})/(\d{1,2})", value)
    try:
        if dotted:
            date = dt.date(int(dotted[3]), int(dotted[2]), int(dotted[1]))
        elif slashed:
            date = dt.date(int(slashed[1]), int(slashed[2]), int(slashed[3]))
        elif re.match(r"\d{4}-?\d\d-?\d\d(?:$|[T ])", value):
            date = dt.datetime.fromisoformat(value).date()
        else:
            raise ValueError
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write it as 2024-05-31") from None
    if date < EARLIEST_DATE:
        raise ValueError(f"{value!r} is before there were recordings like this one")
    return date


def age_band(years: float) -> str:
    """The band that an age falls into, as in "18-29"."""
    for low, high in AGE_BANDS:
        if high is None or years < high + 1:
            return f"{low}+" if high is None else f"{low}-{high}"
    raise AssertionError("the last band is open")


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
    found = re.fullmatch(r"([A-Za-z]{2,3})((?:-[A-Za-z0-9]{1,8})*)", tag)
    if not found:
        raise ValueError(f"{tag!r} is not a language; write a tag such as en or de-CH")
    return found[1].lower(), tag if found[2] else ""


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
    location = _cell(source.get("source"))
    refuse_command(location)
    return location


# ----------------------------------------------------------------------------------- files, line by line


@dataclass(frozen=True)
class _BadLine:
    reason: str


def _lines(path: Path) -> Iterator[tuple[int, "str | _BadLine"]]:
    """Numbered lines of a text file, plain or gzipped; a line that is not text comes as its reason."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE_BYTES):
                number += 1
                if number == 1:
                    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise ManifestError(path, None, "is UTF-16; save it as UTF-8")
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    yield number, _BadLine(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
                    continue
                line = line.rstrip(b"\r\n")
                try:
                    text = line.decode()
                except UnicodeDecodeError:
                    yield number, _BadLine("the line is not UTF-8")
                    continue
                yield number, _BadLine("the line holds a NUL character") if "\x00" in text else text
    except FileNotFoundError:
        raise ManifestError(path, None, "is missing") from None
    except (OSError, EOFError) as error:  # EOFError and BadGzipFile: a damaged .gz
        raise ManifestError(path, None, f"cannot be read ({_reason(error)})") from error


def _kaldi_rows(path: Path) -> Iterator[tuple[int, str, "str | _BadLine"]]:
    """(row, key, rest of the line) of a Kaldi table."""
    for number, line in _lines(path):
        if isinstance(line, _BadLine):
            yield number, "", line
            continue
        parts = line.split(None, 1)
        if not parts:
            continue
        if len(parts) == 1 and path.name != "text":
            yield number, parts[0], _BadLine(f"{path.name} needs a key and a value; this row has only {parts[0]!r}")
        else:
            yield number, parts[0], parts[1].strip() if len(parts) > 1 else ""


def _import_columns(table: Path, base: Path, defaults: Defaults) -> Iterator[Imported]:
    if not table.is_file():
        raise ManifestError(table, None, "is missing; give a table of transcripts")
    lines = _lines(table)
    number, header = next(lines, (0, ""))
    if isinstance(header, _BadLine):
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
        if isinstance(cells, _BadLine):
            yield RejectedRow(str(table), number, cells.reason)
            continue
        row = {column: cell for column, cell in zip(columns, cells, strict=True) if column}
        try:
            refuse_command(row["audio"])
            yield intake.utterance(row)
        except ValueError as error:
            yield RejectedRow(str(table), number, _reason(error), row.get("id") or None)


def _records(
    lines: Iterator[tuple[int, "str | _BadLine"]], delimiter: str, width: int
) -> Iterator[tuple[int, "list[str] | _BadLine"]]:
    """The rows of a table.

    A CSV field in quotes may hold line breaks. One that is never closed would swallow the rows after it, so it costs
    only its own line: reading goes on at the next one.
    """
    waiting: list[tuple[int, str | _BadLine]] = []
    while True:
        number, line = waiting.pop(0) if waiting else next(lines, (0, ""))
        if number == 0:
            return
        if isinstance(line, _BadLine):
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
                if isinstance(addition, _BadLine):
                    break
                taken += 1
                joined += "\n" + addition
                parsed = _parse_csv(joined, delimiter)
            if parsed is None or (taken and len(parsed) != width):
                yield number, _BadLine("a quote is opened and not closed")
                continue
            del waiting[:taken]
            cells = parsed
        if len(cells) != width:
            yield number, _BadLine(f"the row has {len(cells)} columns where the header has {width}")
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


# ------------------------------------------------------------------------------------------ single values


def _json_object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("the line is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("the line is not a JSON object")
    return row


def _is_uri(location: str) -> bool:
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value).strip()
    raise ValueError(f"{value!r} is neither text nor a number")


def _string(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{key} is not text")
    return value


def _required(row: Mapping[str, Any], key: str) -> str:
    value = _string(row, key)
    if not value:
        raise ValueError(f"{key} is missing")
    return value


def _seconds(value: Any, name: str) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} {value!r} is not a number of seconds") from None
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} {value!r} is not a number of seconds")
    return seconds


def _optional_seconds(value: Any, name: str, *, positive: bool = False) -> float | None:
    if value is None:
        return None
    seconds = _seconds(value, name)
    if positive and seconds == 0:
        raise ValueError(f"{name} is zero")
    return seconds


def _split(value: Any) -> str | None:
    if value is None:
        return None
    name = str(value).lower()
    name = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "test"}.get(name, name)
    if name not in SPLITS:
        raise ValueError(f"split {value!r} is none of {', '.join(SPLITS)}")
    return name


def _string_mapping(value: Any) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("attributes is not an object")
    return {str(key): _cell(item) for key, item in value.items()}


def _quality(value: Any) -> "Quality | None":
    if value is None:
        return None
    from speech.conditioning import Quality

    return Quality.from_dict(value)


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, ManifestError) else str(error).strip("'\"") or type(error).__name__


__all__: Sequence[str] = (
    "AGE_BANDS", "COLUMN_ALIASES", "IMPORTERS", "SPLITS", "TABLE_NAMES", "UNKNOWN_DOMAIN", "Defaults", "Imported",
    "Importer", "ManifestError", "RejectedRow", "Utterance", "age_band", "assign_splits", "audio_location",
    "import_common_voice", "import_kaldi", "import_lhotse", "import_nemo", "import_table", "parse_date", "quarter_of",
    "quarter_title", "read_manifest", "refuse_command", "split_of_speaker", "write_manifest",
)  # fmt: skip
