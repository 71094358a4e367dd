"""Receipts of uploads: written once, under the hour in which each was received.

An upload is received in three steps, each of which can be repeated after a kill, by whomever: its bytes are copied
under their SHA-256; a note under its id settles its hour, from which on the upload itself is not needed any more; and
its receipt is filed under that hour. Whoever else receives the same upload finds the note, and files the same receipt.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from deployment.batch.settings import HOUR_FORMAT
from speech.plain import from_plain, to_plain
from speech.store.objects import LostRace, Missing, Objects, StoreError
from speech.store.outputs import parse_json, to_json

RECEIPTS, NOTES, FIRST_OF, ORIGINALS = "arrivals/hours", "arrivals/ids", "arrivals/digests", "originals"
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")  # how tools name what they still write

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The receipt of an upload."""

    id: str  # names the upload: its name and what it was when it was seen
    name: str  # relative to where uploads come in, with slashes
    digest: str  # SHA-256 of its bytes, under which the data store keeps them
    size: int  # bytes
    received_at: datetime  # UTC
    language: str | None  # as its first folder says
    same_as: str | None  # id of the receipt that had these bytes first
    tries: int = 1  # of transcribing these bytes, with this one; more than 1: a dead letter that was put back

    @property
    def recording(self) -> str:
        """The id of its recording: the beginning of its digest."""
        return self.digest[:32]

    @property
    def key(self) -> str:
        """Where its bytes are in the data store."""
        return original(self.digest)


class Unreadable(Exception):
    """The bytes of an upload are refused to us."""


@dataclass(frozen=True, kw_only=True)
class Upload:
    """Something that was found where uploads come in."""

    id: str
    name: str
    language: str | None
    fetch: Callable[[BinaryIO], bool]  # writes its bytes; False: it is not what was seen any more


def original(digest: str) -> str:
    """The key of an upload's bytes."""
    return f"{ORIGINALS}/{digest}"


def named(*identity: str | int) -> str:
    """The id of what all this together identifies."""
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]


def hour_of(moment: datetime) -> str:
    """The key of the hour, UTC, that a moment lies in."""
    return moment.astimezone(UTC).strftime(HOUR_FORMAT)


def language_of(name: str, languages: Iterable[str]) -> str | None:
    """The language that the first folder of a name says."""
    first, _, rest = name.partition("/")
    return first if rest and first in languages else None


def is_hidden_or_unfinished(name: str) -> bool:
    """Whether a name, or a folder in it, is one that nobody means as an upload."""
    return name.lower().endswith(UNFINISHED) or any(part.startswith(".") for part in name.split("/"))


def received(
    uploads: Iterable[Upload], objects: Objects, now: datetime, refused: Callable[[str], None] = log.warning
) -> list[Arrival]:
    """Receive the uploads that have no receipt yet; returns the new receipts.

    One whose bytes are refused, such as to a role that may list it and not read it, stops no other: `refused` is told.

    Raises:
        StoreError: the data store refuses.
        StoreUnavailable: the data store, or where uploads come in, does not answer.
    """
    known, new = finished(objects)
    for upload in uploads:
        if upload.id not in known:
            try:
                arrival = keep(upload, objects, now)
            except Unreadable as error:
                refused(f"{upload.name} could not be received, and is looked at again: {error}")
            else:
                new += [arrival] if arrival is not None else []
    return new


def finished(objects: Objects) -> tuple[set[str], list[Arrival]]:
    """The ids of all that was received, and the receipts of what somebody who was killed had begun, now filed."""
    filed = {PurePosixPath(item.key).stem for item in objects.list(RECEIPTS)}
    noted = {PurePosixPath(item.key).stem for item in objects.list(NOTES)}
    begun = [from_plain(Arrival, parse_json(objects.read(_note(name)).data)) for name in sorted(noted - filed)]
    return noted | filed, [file(arrival, objects) for arrival in begun]


def keep(upload: Upload, objects: Objects, now: datetime) -> Arrival | None:
    """Copy an upload and file its receipt; None where it is not what was seen any more, and so another upload.

    Raises:
        Unreadable: its bytes are refused.
    """
    with tempfile.TemporaryDirectory(prefix="soundstage-upload-") as folder:
        copy = Path(folder, "upload")
        with copy.open("wb") as target:
            try:
                if not upload.fetch(target):
                    return None
            except (StoreError, PermissionError) as error:
                raise Unreadable(str(error)) from error
        digest, size = kept(copy, objects), copy.stat().st_size
    arrival = Arrival(
        id=upload.id,
        name=upload.name,
        digest=digest,
        size=size,
        received_at=now,
        language=upload.language,
        same_as=None,
    )
    return file(arrival, objects)


def kept(path: Path, objects: Objects) -> str:
    """Keep the bytes of a file under their SHA-256, which is returned."""
    with path.open("rb") as data:
        digest = hashlib.file_digest(data, "sha256").hexdigest()
    with suppress(LostRace):  # the same bytes are there
        objects.upload(path, original(digest))
    return digest


def file(arrival: Arrival, objects: Objects) -> Arrival:
    """File the receipt of an upload whose bytes are kept, unless it has one; returns the one that counts."""
    try:
        objects.put_if_absent(_note(arrival.id), to_json(to_plain(arrival)))
    except LostRace:
        arrival = from_plain(Arrival, parse_json(objects.read(_note(arrival.id)).data))
    if arrival.tries == 1:
        arrival = replace(arrival, same_as=_first_with(arrival.digest, arrival.id, objects))
    with suppress(LostRace):
        objects.put_if_absent(_receipt(arrival), to_json(to_plain(arrival)))
    return arrival


def arrival_of(name: str, objects: Objects) -> Arrival | None:
    """The receipt of an upload, by its id; None where it was not received yet."""
    try:
        noted = from_plain(Arrival, parse_json(objects.read(_note(name)).data))
        return from_plain(Arrival, parse_json(objects.read(_receipt(noted)).data))
    except Missing:
        return None


def is_noted(name: str, objects: Objects) -> bool:
    """Whether an upload was received, or will be without its bytes' being asked for again."""
    try:
        objects.read(_note(name))
    except Missing:
        return False
    return True


def arrivals_of(objects: Objects, hour: str) -> tuple[Arrival, ...]:
    """The receipts of an hour, by name."""
    found = [
        from_plain(Arrival, parse_json(objects.read(item.key).data)) for item in objects.list(f"{RECEIPTS}/{hour}")
    ]
    return tuple(sorted(found, key=lambda arrival: (arrival.name, arrival.id)))


def hours_with_arrivals(objects: Objects) -> tuple[str, ...]:
    """The hours that anything arrived in, in order."""
    return objects.folders(RECEIPTS)


def _note(name: str) -> str:
    return f"{NOTES}/{name}.json"


def _receipt(arrival: Arrival) -> str:
    return f"{RECEIPTS}/{hour_of(arrival.received_at)}/{arrival.id}.json"


def _first_with(digest: str, name: str, objects: Objects) -> str | None:
    """The id of the receipt that has had these bytes before; None where it is this one."""
    key = f"{FIRST_OF}/{digest}"
    try:
        objects.put_if_absent(key, name.encode())
    except LostRace:
        first = objects.read(key).data.decode()
        return first if first != name else None
    return None
