"""Kaldi data directories."""

import re
from collections.abc import Iterator
from pathlib import Path

from speech.audio.decode import AudioError, probe
from speech.corpus.importers.intake import Imported, Intake
from speech.corpus.lookup import Lookup
from speech.corpus.rows import BadLine, ManifestError, PathLike, as_channel, as_seconds, numbered_lines, reason_of
from speech.corpus.sources import Defaults

SIDES = "reco2file_and_channel"
_SIDE_TABLES = ("text", "utt2spk", "spk2gender", "spk2age", "utt2lang", "utt2dom", "utt2date", SIDES)


def files(directory: PathLike) -> list[Path]:
    """The files of a data directory that are read, of those that may be there; the first that is has its rows."""
    return [Path(directory) / name for name in ("segments", "wav.scp", *_SIDE_TABLES)]


def import_kaldi(directory: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A Kaldi data directory: ``wav.scp`` and ``text``, with whatever of the optional files is there.

    Read: segments, reco2file_and_channel, utt2spk, spk2gender, spk2age, utt2lang, utt2dom, utt2date. Paths in
    ``wav.scp`` are relative to ``audio_root`` (a recipe's are relative to where it is run), else to the directory. A
    ``wav.scp`` entry that is a command (``sox ... |``) is refused, never run. Utterances stream in the order of
    ``segments`` or ``wav.scp``.

    The fifth column of ``segments`` is a channel counted from 0. In ``reco2file_and_channel`` a channel is a letter, or
    a number that counts from 1 as in NIST's formats, unless a 0 is among them; it is the side of the call that a
    recording is of, so that a file with a single channel holds nothing else.
    """
    root = Path(directory)
    if not root.is_dir():
        raise ManifestError(root, None, "is not a folder; give the Kaldi data directory that holds wav.scp and text")
    for name in ("wav.scp", "text"):
        if not (root / name).is_file():
            raise ManifestError(root / name, None, "is missing; a Kaldi data directory needs wav.scp and text")

    intake = Intake(defaults, root)
    tables: dict[str, Lookup] = {}
    segmented = (root / "segments").is_file()
    sides_from = 1
    for name in (*_SIDE_TABLES, "wav.scp") if segmented else _SIDE_TABLES:
        tables[name] = Lookup()
        if not (root / name).is_file():
            continue
        for number, key, value in _rows(root / name):
            if isinstance(value, BadLine):
                yield intake.refused(root / name, number, value.reason, key)
            elif not tables[name].add(key, number, value):
                yield intake.refused(root / name, number, f"'{key}' comes twice; the first row counts", key)
            elif name == SIDES and value.split()[-1] == "0":
                sides_from = 0

    def said(key: str) -> dict[str, str]:
        return {"language": tables["utt2lang"].text(key), "recorded_at": tables["utt2date"].text(key)}

    main = root / ("segments" if segmented else "wav.scp")
    used = Lookup()
    for number, key, value in _rows(main):
        if isinstance(value, BadLine):
            yield intake.refused(main, number, value.reason, key, said(key))
            continue
        used.add(key, number)
        try:
            recording, times, channel = _segment(value) if segmented else (key, {}, None)
            location = tables["wav.scp"].text(recording) if segmented else value
            if not location:
                raise ValueError(f"recording '{recording}' is not in wav.scp")
            speaker = tables["utt2spk"].text(key)
            cells = {
                "id": key,
                "audio": location,
                "text": tables["text"].text(key),
                "speaker": speaker,
                "domain": tables["utt2dom"].text(key),
                "gender": tables["spk2gender"].text(speaker),
                "age": tables["spk2age"].text(speaker),
                "channel": channel,
                **said(key),
                **times,
            }
            if channel is None and (side := tables[SIDES].text(recording)):
                cells["channel"] = _side(side, sides_from, intake.locate(location))
            yield intake.utterance(cells, number)
        except ValueError as error:
            yield intake.refused(main, number, reason_of(error), key, said(key))
    for key, number in tables["text"]:
        if key not in used:
            yield intake.refused(root / "text", number, f"the transcript has no audio in {main.name}", key, said(key))


def _segment(value: str) -> tuple[str, dict[str, float], str | None]:
    """Recording, times and channel of a row of ``segments``; an end of -1 is the end of the recording."""
    parts = value.split()
    if len(parts) < 3:
        raise ValueError("a segment needs four columns: utterance, recording, start and end")
    times = {"offset": as_seconds(parts[1], "start")}
    if not re.fullmatch(r"-1(\.0*)?", parts[2]):
        times["end"] = as_seconds(parts[2], "end")
    return parts[0], times, parts[3] if len(parts) > 3 else None


def _side(value: str, counted_from: int, audio: str) -> int | None:
    """The channel of a recording's file, from its row of ``reco2file_and_channel``."""
    name = value.split()[-1]
    channel = as_channel(name)
    if channel is not None and name.isdigit():
        channel -= counted_from
    if channel:
        try:
            if probe(audio).channels == 1:
                return None
        except AudioError:
            pass  # normalisation meets the same file and says why
    return channel


def _rows(path: Path) -> Iterator[tuple[int, str, "str | BadLine"]]:
    """(row, key, rest of the line) of a Kaldi table."""
    for number, line in numbered_lines(path):
        if isinstance(line, BadLine):
            yield number, "", line
            continue
        parts = line.split(None, 1)
        if not parts:
            continue
        if len(parts) == 1 and path.name != "text":
            yield number, parts[0], BadLine(f"{path.name} needs a key and a value; this row has only '{parts[0]}'")
        else:
            yield number, parts[0], parts[1].strip() if len(parts) > 1 else ""
