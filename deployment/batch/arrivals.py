"""What has come in: a receipt for each upload, written once, under the hour in which it was received.

An upload belongs to the hour in which somebody looked and found it whole, by the looker's clock; what its sender says
of its age plays no part, so a late file is simply of a later hour. Its bytes are copied into the data store under their
SHA-256, after which the upload may go. Receipts are objects that never change: whoever receives the same upload twice,
also after a kill, writes the same one.

The same bytes uploaded again, under whatever name, are received and not transcribed again: the first receipt has them,
and the others say whose they are.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

from deployment.batch.settings import HOUR_FORMAT
from speech.plain import from_plain, to_plain
from speech.store.objects import LostRace, Objects
from speech.store.outputs import parse_json, to_json

RECEIPTS, FIRST_OF, ORIGINALS = "arrivals/hours", "arrivals/digests", "originals"
SETTLED_S = 2.0  # an upload that was written to more lately is still on its way
UNFINISHED = (".part", ".partial", ".tmp", ".crdownload", ".filepart")  # how tools name what they still write


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """The receipt of an upload."""

    id: str  # names the upload: its name and what it was when it was seen
    name: str  # relative to the folder of uploads, with slashes
    digest: str  # SHA-256 of its bytes, under which the data store keeps them
    size: int  # bytes
    received_at: datetime  # UTC
    language: str | None  # as its first folder says
    same_as: str | None  # id of the receipt that had these bytes first

    @property
    def recording(self) -> str:
        """The id of its recording: the beginning of its digest."""
        return self.digest[:32]

    @property
    def key(self) -> str:
        """Where its bytes are in the data store."""
        return original(self.digest)


def original(digest: str) -> str:
    """The key of an upload's bytes."""
    return f"{ORIGINALS}/{digest}"


def hour_of(moment: datetime) -> str:
    """The key of the hour, UTC, that a moment lies in."""
    return moment.astimezone(UTC).strftime(HOUR_FORMAT)


def receive(uploads: Path, objects: Objects, languages: Iterable[str], now: datetime | None = None) -> list[Arrival]:
    """Receive what has come into the folder and has no receipt yet; returns the new receipts.

    Args:
        uploads: the folder; one that is not there holds nothing.
        objects: the data store.
        languages: that the first folder of a name may say.
        now: the moment, whose hour they are filed under; None: the present.

    Raises:
        StoreError: the data store refuses.
    """
    now = now or datetime.now(UTC)
    known = {PurePosixPath(item.key).stem for item in objects.list(RECEIPTS)}
    spoken = frozenset(languages)
    return [
        arrival
        for path in _whole_files(uploads, now.timestamp())
        if (arrival := _received(path, uploads, objects, now, spoken, known)) is not None
    ]


def arrivals_of(objects: Objects, hour: str) -> tuple[Arrival, ...]:
    """The receipts of an hour, by name."""
    found = [
        from_plain(Arrival, parse_json(objects.read(item.key).data)) for item in objects.list(f"{RECEIPTS}/{hour}")
    ]
    return tuple(sorted(found, key=lambda arrival: (arrival.name, arrival.id)))


def hours_with_arrivals(objects: Objects) -> tuple[str, ...]:
    """The hours that anything arrived in, in order."""
    return objects.folders(RECEIPTS)


def _whole_files(uploads: Path, now_s: float) -> Iterator[Path]:
    for folder, folders, names in os.walk(uploads):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if name.startswith(".") or name.lower().endswith(UNFINISHED):
                continue
            with suppress(OSError):  # it went away meanwhile
                if path.is_file() and now_s - path.stat().st_mtime >= SETTLED_S:
                    yield path


def _received(
    path: Path,
    uploads: Path,
    objects: Objects,
    now: datetime,
    languages: frozenset[str],
    known: set[str],
) -> Arrival | None:
    """The receipt of a file; None where it has one already, or is still being written."""
    parts = [os.fsencode(part).decode(errors="replace") for part in path.relative_to(uploads).parts]
    seen = path.stat()
    identity = json.dumps([*parts, seen.st_size, seen.st_mtime_ns])
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    if name in known:
        return None
    with tempfile.TemporaryDirectory(prefix="soundstage-upload-") as folder:
        copy = Path(folder, "upload")
        digest = hashlib.sha256()
        with path.open("rb") as source, copy.open("wb") as target:
            while data := source.read(1 << 20):
                digest.update(data)
                target.write(data)
        after = path.stat()
        if (after.st_size, after.st_mtime_ns) != (seen.st_size, seen.st_mtime_ns):
            return None  # the next look finds it whole
        with suppress(LostRace):  # the same bytes are there
            objects.upload(copy, original(digest.hexdigest()))
    arrival = Arrival(
        id=name,
        name="/".join(parts),
        digest=digest.hexdigest(),
        size=seen.st_size,
        received_at=now,
        language=parts[0] if len(parts) > 1 and parts[0] in languages else None,
        same_as=_first_with(digest.hexdigest(), name, objects),
    )
    with suppress(LostRace):
        objects.put_if_absent(f"{RECEIPTS}/{hour_of(now)}/{name}.json", to_json(to_plain(arrival)))
    return arrival


def _first_with(digest: str, name: str, objects: Objects) -> str | None:
    """The id of the receipt that has had these bytes before; None where it is this one."""
    key = f"{FIRST_OF}/{digest}"
    try:
        objects.put_if_absent(key, name.encode())
    except LostRace:
        first = objects.read(key).data.decode()
        return first if first != name else None
    return None
