"""From what people call a recording to its transcripts: an upload's name, a digest, or the id of a transcript."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deployment.batch.arrivals import arrivals_of, hours_with_arrivals
from deployment.batch.hour import Hour
from deployment.batch.versions import RECORDING_CHARS, Version, Versions, in_force
from speech.store.objects import Objects
from speech.store.outputs import DataStore, parse_json
from speech.transcript import Transcript, TranscriptError

NAMED = re.compile(r"([0-9a-f]{32})(?:[0-9a-f]{32}|-([1-9][0-9]*))?")  # a recording, its digest, or a transcript of it


class Unknown(Exception):
    """There is no such recording, or no transcript of it; the message says where was looked."""


def recording_called(name: str, objects: Objects, hour: str | None = None) -> str:
    """The id of the recording that people call so.

    Args:
        name: of an upload, below the folder of uploads; a recording's digest or its beginning; or a transcript's id.
        objects: the data store.
        hour: in which it arrived; None: the last hour in which something of that name did.

    Raises:
        Unknown: nothing is called so.
        StoreError: the data store refuses.
    """
    if found := NAMED.fullmatch(name):
        return found[1]
    hours = hours_with_arrivals(objects) if hour is None else (hour,)
    for each in reversed(hours):
        for arrival in arrivals_of(objects, each):
            if arrival.name == name:
                return arrival.recording
    where = f"in the hour {hour}" if hour else f"in {len(hours)} hours of {objects.home}"
    raise Unknown(f"no upload called '{name}' has arrived {where}: names are as below the folder of uploads")


def versions_of(name: str, objects: Objects, hour: str | None = None) -> tuple[Version, ...]:
    """All versions of the transcript of a recording; arguments and errors as `recording_called`."""
    recording = recording_called(name, objects, hour)
    found = Versions(objects).of(recording)
    if not found:
        raise Unknown(f"{name} has no transcript in {objects.home}: transcribe its hour, or look at its dead letters")
    return found


def version_called(name: str, objects: Objects, hour: str | None = None) -> Version:
    """The version that an id names, else the one in force; arguments and errors as `recording_called`."""
    versions = versions_of(name, objects, hour)
    named = NAMED.fullmatch(name)
    if named is None or named[2] is None:
        found = in_force(versions)
        assert found is not None  # there are versions
        return found
    if int(named[2]) > len(versions):
        raise Unknown(f"{name}: {name[:RECORDING_CHARS]} has {len(versions)} versions")
    return versions[int(named[2]) - 1]


def transcripts_called(
    names: Iterable[str], objects: Objects, hour: str | None = None
) -> Iterator[tuple[Transcript, tuple[str, ...]]]:
    """Those of files, or of recordings that are called so; without a name those of the hour.

    With each come sentences about what its file says otherwise than its own words and fields: it was edited.

    Raises:
        Unknown: nothing is called so.
        TranscriptError: a file holds something else than transcripts.
        StoreError, OSError: the data store refuses, or a file cannot be read.
    """
    names = list(names)
    for name in names:
        if Path(name).is_file():
            yield from _in_file(Path(name))
        else:
            yield version_called(name, objects, hour).transcript, ()
    if not names and hour is not None:
        for transcript in Hour(DataStore(objects), hour).transcripts():
            yield transcript, ()


def _in_file(path: Path) -> Iterator[tuple[Transcript, tuple[str, ...]]]:
    """A transcript, or one a line."""
    text = path.read_bytes()
    try:
        rows = [parse_json(text)]
    except ValueError:
        rows = [line for line in text.splitlines() if line.strip()]
    if not rows:
        raise TranscriptError(f"{path} holds no transcript")
    for number, row in enumerate(rows, 1):
        try:
            said = parse_json(row) if isinstance(row, bytes) else row
            transcript = Transcript.from_json(said)
            yield transcript, tuple(_edits(said, transcript.to_json(), "")) if said["schema_version"] == 2 else ()
        except (ValueError, TranscriptError) as error:
            place = f"{path}, line {number}" if len(rows) > 1 else path
            raise TranscriptError(f"{place}: {error}") from None


def _edits(written: Any, follows: Any, place: str) -> Iterator[str]:
    """What a document says that nothing reads, or that follows otherwise from what is read."""
    if isinstance(written, dict) and isinstance(follows, dict):
        for name, value in written.items():
            inner = f"{place}.{name}" if place else str(name)
            if name not in follows:
                yield f"{inner}: no transcript has such a field"
            else:
                yield from _edits(value, follows[name], inner)
    elif isinstance(written, list) and isinstance(follows, list) and len(written) == len(follows):
        for number, (one, other) in enumerate(zip(written, follows, strict=True)):
            yield from _edits(one, other, f"{place}[{number}]")
    elif written != follows:
        yield f"{place}: '{written}' is written, '{follows}' follows from the words"
