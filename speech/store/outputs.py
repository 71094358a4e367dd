"""The data store's outputs: what every asset partition keeps, by reference, immutable and named by its content.

Layout: `<asset>/<part>/.../<number>-<digest>/...` holds published outputs, and the document `current` beside them, the
pointer, says which is in force and which are kept. Everything is written aside and uploaded before the pointer moves,
by compare-and-swap; so a reader sees the old output or the new one, whole, a process killed half way changes nothing,
and of two that publish at once one is told that it lost. The same content published again is the same output: digests
are what Dagster shows as data versions.

An output's number is that of the publication that made it, and only that publication may point to its folder first.
So a folder which the pointer does not list, and whose number has been reached, is never pointed to again: a removal
that was killed half way, or the remains of a publisher that was, are removed by the next, and no name comes back.

Superseded outputs are kept for who still reads them: the last `KEEP_OUTPUTS` by publication, and each for `KEPT_S`
after it was superseded, by the store's own clock.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import msgspec

from speech.plain import from_plain, to_plain
from speech.store.objects import REFERENCE, LostRace, Missing, Objects, StoreError, checked, open_objects

KEEP_OUTPUTS = 3  # published outputs kept per partition: the one in force and two before it
KEPT_S = 86_400.0  # a run that started with an output is over in a day
DIGEST = re.compile(r"[0-9a-f]{64}")  # SHA-256, as hex
DIGEST_CHARS = 16  # 64 bits of SHA-256 name a folder; the full digest is recorded beside it
POINTER = "current"
log = logging.getLogger(__name__)


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_tree(folder: Path) -> str:
    """SHA-256 over the relative names and contents of all files below `folder`, as hex."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{digest_file(path)}\n".encode())
    return total.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well; readers see the old content or the new, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # machines that share a data store need not share a user
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step, flushed to disk; readers see the old content or the new, whole."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def to_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys, which people can read, too."""
    return (json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, atomically."""
    write_atomically(path, to_json(value))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from a file that anyone may have written; ValueError for whatever is none."""
    try:
        try:
            return msgspec.json.decode(text)
        except ValueError:
            return json.loads(text)  # the NaN and Infinity that Python writes, which JSON does not know
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@dataclass(frozen=True)
class Published:
    """A published output: the prefix of its objects, and the digest of its content."""

    objects: Objects
    key: str
    digest: str

    @property
    def path(self) -> Path:
        """All of it as a local folder."""
        return self.objects.local_folder(self.key)

    def file(self, name: str) -> Path:
        """One of its files as a local file; `name` is relative, with slashes."""
        return self.objects.local(f"{self.key}/{name}")

    def reference(self, name: str) -> str:
        """How manifests name one of its files: by its key, so that every machine finds it."""
        return f"{REFERENCE}{self.key}/{name}"

    def read(self, name: str) -> bytes:
        """The content of one of its files."""
        return self.objects.read(f"{self.key}/{name}").data


@dataclass
class Staging:
    """An output being written into the folder `path`."""

    path: Path
    _published: Published | None = field(default=None)

    @property
    def published(self) -> Published:
        """What became of it; there once the block has ended well."""
        if self._published is None:
            raise StoreError(f"{self.path} is not published yet: leave the block that writes it first")
        return self._published


@dataclass(frozen=True)
class _Output:
    folder: str
    digest: str
    superseded_at: float | None = None  # by the store's clock; None while it is in force


@dataclass(frozen=True)
class _Pointer:
    """`number` publications there have been; `outputs` are kept, the one in force first, then by publication."""

    number: int = 0
    outputs: tuple[_Output, ...] = ()

    def after(self, published: _Output, now: float, keep: int, kept_s: float) -> "_Pointer":
        """The pointer once an output has been published, without the outputs that nobody reads any more."""
        before = [
            replace(old, superseded_at=now if old.superseded_at is None else old.superseded_at)
            for old in self.outputs
            if old.folder != published.folder
        ]
        kept = [old for n, old in enumerate(before, 1) if n < keep or now - (old.superseded_at or now) < kept_s]
        return _Pointer(self.number + 1, (replace(published, superseded_at=None), *kept))

    def to_json(self) -> bytes:
        """As the document that is stored; the digest in force stands first, for people."""
        return (json.dumps({"digest": self.outputs[0].digest, **to_plain(self)}, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> "_Pointer":
        """From the stored document; ValueError for anything else."""
        pointer = from_plain(cls, parse_json(data))
        if not pointer.outputs:
            raise ValueError("it names no output")
        return pointer


class DataStore:
    """Outputs of asset partitions under one home, a folder or `s3://bucket/prefix`.

    Args:
        home: where, or the objects there.
        keep: how many outputs of a partition are kept, the one in force included.
        kept_s: how long a superseded one is kept in any case.
    """

    def __init__(self, home: Path | str | Objects, *, keep: int = KEEP_OUTPUTS, kept_s: float = KEPT_S) -> None:
        self.objects = home if isinstance(home, Objects) else open_objects(home)
        self.home = self.objects.home
        self.keep, self.kept_s = keep, kept_s

    def key(self, *parts: str) -> str:
        """The key of an asset's partition, or of any other place below the home."""
        for part in parts:
            if "/" in part:
                raise StoreError(f"'{part}' cannot be a folder's name in the data store: use a plain name")
        return checked("/".join(parts))

    @contextmanager
    def replace(self, *parts: str) -> Iterator[Staging]:
        """Write a new output of `parts` into the staging folder given; it is published when the block ends well.

        Raises:
            LostRace: somebody else published another output of `parts` since the block began.
        """
        key = self.key(*parts)
        pointer, tag = self._pointer(key)
        with self.objects.staging(key) as folder:
            staging = Staging(folder)
            yield staging
            staging._published = self._publish(key, folder, pointer, tag)

    def current(self, *parts: str) -> Published:
        """The output in force.

        Raises:
            Missing: nothing was published there.
            StoreError: its pointer cannot be read, or leads nowhere.
        """
        key = self.key(*parts)
        pointer, _ = self._pointer(key)
        if not pointer.outputs:
            raise Missing(f"{key} is not in the data store {self.home}: materialise it first")
        found = pointer.outputs[0]
        if found.folder not in self.objects.folders(key):
            raise StoreError(f"{key}/{found.folder} is gone though {key} points to it: materialise {key} again")
        return Published(self.objects, f"{key}/{found.folder}", found.digest)

    def exists(self, *parts: str) -> bool:
        """Whether an output of `parts` is in force."""
        try:
            self.current(*parts)
        except StoreError:
            return False
        return True

    def _pointer(self, key: str) -> tuple[_Pointer, str | None]:
        try:
            stored = self.objects.read(f"{key}/{POINTER}")
        except Missing:
            return _Pointer(), None
        try:
            return _Pointer.from_json(stored.data), stored.tag
        except ValueError as error:
            raise StoreError(
                f"{key}/{POINTER} in {self.home} cannot be read ({error}): remove {key} and materialise it again"
            ) from error

    def _publish(self, key: str, folder: Path, pointer: _Pointer, tag: str | None) -> Published:
        digest = digest_tree(folder)
        known = next((o for o in pointer.outputs if o.digest == digest and o.folder in self.objects.folders(key)), None)
        output = known or _Output(f"{pointer.number + 1:06d}-{digest[:DIGEST_CHARS]}", digest)
        if known is None:
            self._upload(folder, f"{key}/{output.folder}")
        after = pointer.after(output, self.objects.now(), self.keep, self.kept_s)
        try:
            if tag is None:
                self.objects.put_if_absent(f"{key}/{POINTER}", after.to_json())
            else:
                self.objects.put_if_unchanged(f"{key}/{POINTER}", after.to_json(), tag)
        except LostRace:
            won = self.current(*key.split("/"))
            if won.digest != digest:
                raise LostRace(
                    f"{key} in {self.home} was published by another run meanwhile: see which of the two should be in "
                    "force, and run that one again"
                ) from None
            return won
        with suppress(StoreError, OSError):  # the next publication goes on
            self._sweep(key, after)
        return Published(self.objects, f"{key}/{output.folder}", digest)

    def _upload(self, folder: Path, key: str) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        if not files:
            raise StoreError(f"{key} has no file: an output that holds nothing cannot be published")

        def upload(path: Path) -> None:
            with suppress(LostRace):  # the same content, by a publisher that was killed, or is as far as this one
                self.objects.upload(path, f"{key}/{path.relative_to(folder).as_posix()}")

        self.objects.each(upload, files)

    def _sweep(self, key: str, pointer: _Pointer) -> None:
        """Remove the outputs that the pointer does not list and never will."""
        listed = {output.folder for output in pointer.outputs}
        for folder in self.objects.folders(key):
            number, _, rest = folder.partition("-")
            ours = number.isdecimal() and len(rest) == DIGEST_CHARS
            if ours and folder not in listed and int(number) <= pointer.number:
                self.objects.delete([item.key for item in self.objects.list(f"{key}/{folder}")])
