"""The data store's ground: whole objects under keys, in a folder (`folder.py`) or in S3 (`s3.py`).

Both keep the same promises, and everything above (`outputs.py`, `records.py`) is written once on them:

- an object appears whole or not at all, whatever is killed;
- of several writers of a key one wins, and every other is told so (`LostRace`);
- what was confirmed can be read by everyone from then on.

Nothing here locks, renames an object or compares the clocks of two machines. So nobody has to be waited for, and
nothing has to be unlocked after a machine died. That is why there are no leases either: who wants to be the only one
to do something writes that into a document, and goes on only as long as writing it again does not lose.

A key is parts between slashes, such as `utterances/2024-04/en/current`. A key that was deleted may be used again only
by who knows that nobody still means the old one.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

MAX_KEY_BYTES = 900  # S3 takes 1,024 in UTF-8, and a prefix comes before it
MAX_PART_BYTES = 200  # file systems take 255, and versions and temporary names are longer than the part
INCOMING = ".incoming"  # below it lies what the makers need for themselves
REFERENCE = "store://"  # before a key where audio may lie outside of the data store, too
T = TypeVar("T")
VERSION = re.compile(r"@\d{8}")  # ends the names of a document's later versions in a folder


class StoreError(Exception):
    """The data store cannot do what was asked; the message says what to do."""


class Missing(StoreError):
    """There is no object of that key."""


class LostRace(StoreError):
    """Another writer was first; nothing was written. Read again, and decide again."""


class StoreUnavailable(OSError):
    """The data store does not answer, though it was asked several times; no refusal: later it may."""


@dataclass(frozen=True)
class Stored:
    """An object's bytes, and the tag that `put_if_unchanged` wants; a tag says nothing to anyone else."""

    data: bytes
    tag: str


@dataclass(frozen=True)
class Listed:
    """An object in a list: its whole key and its size in bytes."""

    key: str
    size: int


class Objects(ABC):
    """Objects below one home.

    Every method raises `StoreError` for a key that both makers could not hold, and for a store that refuses;
    `StoreUnavailable` where it does not answer.
    """

    home: str  # as people write it: a folder, or s3://bucket/prefix

    @abstractmethod
    def read(self, key: str) -> Stored:
        """An object, whole; for small ones. Raises `Missing`."""

    @abstractmethod
    def open(self, key: str) -> AbstractContextManager[BinaryIO]:
        """An object as a stream, of any size and never of two versions. Raises `Missing`."""

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Listed]:
        """All objects below a prefix, by key; a prefix ends where a part ends, so `runs/1` does not list `runs/10`."""

    @abstractmethod
    def folders(self, prefix: str = "") -> tuple[str, ...]:
        """The next part of all keys below a prefix that have more parts after it, sorted."""

    @abstractmethod
    def put_if_absent(self, key: str, data: bytes) -> str:
        """Write a new object; returns its tag. Raises `LostRace` where there is one already."""

    @abstractmethod
    def put_if_unchanged(self, key: str, data: bytes, tag: str) -> str:
        """Replace the object that was read or written with this tag; returns the new tag.

        Raises `LostRace` where it has changed since, or is gone.
        """

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Write an object that only one writer ever writes, such as a report of itself; nobody can lose."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """`put_if_absent` of a file of any size. The file must not be written to afterwards."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects that are not replaced any more; those that are not there are no error."""

    @abstractmethod
    def local(self, key: str) -> Path:
        """A file with the object's content, for what must be a file; only for objects that never change.

        In a folder it is the object itself. Else it comes from a cache that may drop it: ask again rather than keep
        the path for long. Raises `Missing`.
        """

    def located(self, location: str) -> str:
        """Where what `location` names can be opened: a local file for `store://` and a key, else the location itself.

        Raises `Missing` for a key that is not there.
        """
        key = location.removeprefix(REFERENCE)
        return location if key == location else str(self.local(key))

    @abstractmethod
    def local_folder(self, prefix: str) -> Path:
        """A folder with all objects below a prefix as files, as `local` does for one. Raises `Missing` for none."""

    @abstractmethod
    def staging(self, prefix: str) -> AbstractContextManager[Path]:
        """An empty local folder to write files into before they are uploaded below the prefix; removed afterwards."""

    def each(self, act: Callable[[T], object], items: Iterable[T]) -> None:
        """Do something with each item, as many at once as answer soonest here; raises what one of them raises."""
        for item in items:
            act(item)

    @abstractmethod
    def now(self) -> float:
        """Seconds by the store's own clock: comparable with what this store said before, and with nothing else."""


def open_objects(home: Path | str, cache: Path | None = None, cache_bytes: int | None = None) -> Objects:
    """The objects of a home: a folder, or `s3://bucket/prefix`.

    Where S3 is and who asks is said as to every AWS tool: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, a profile, a role.

    Args:
        home: where the data store is.
        cache: folder for local copies of what is in S3; by default below the user's cache folder.
        cache_bytes: how much that may take.
    """
    if "://" not in str(home):
        from speech.store.folder import FolderObjects

        return FolderObjects(home)
    url = urlsplit(str(home))
    if url.scheme != "s3" or not url.netloc or url.query or url.fragment:
        raise StoreError(f"home '{home}' is neither a folder nor s3://bucket/prefix")
    from speech.store.cache import CACHE_BYTES, LocalCache, default_cache
    from speech.store.s3 import S3Objects

    prefix = "/".join(part for part in url.path.split("/") if part)
    folder = (cache or default_cache()) / url.netloc / prefix
    return S3Objects(url.netloc, prefix, LocalCache(folder, CACHE_BYTES if cache_bytes is None else cache_bytes))


def checked(key: str, *, empty: bool = False) -> str:
    """The key, if a folder and S3 can both hold it.

    Raises:
        StoreError: it has a part that a file's name cannot be, one that tools stumble over, or is too long.
    """
    if empty and not key:
        return key
    if key.split("/")[0] == INCOMING:
        raise StoreError(f"'{key}' cannot be a key of the data store: it begins like its temporary files")
    for part in key.split("/"):
        if not part or part in {".", ".."} or "\\" in part or not part.isprintable():
            raise StoreError(f"'{key}' cannot be a key of the data store: '{part}' is not a plain name")
        if VERSION.fullmatch(part[-9:]):
            raise StoreError(f"'{key}' cannot be a key of the data store: names ending in {part[-9:]} are versions")
        try:
            size = len(part.encode())
        except UnicodeEncodeError:
            raise StoreError(f"{key!r} cannot be a key of the data store: its name is not valid text") from None
        if size > MAX_PART_BYTES:
            raise StoreError(f"'{part[:60]}...' is {size} bytes long; a name in the data store has {MAX_PART_BYTES}")
    if len(key.encode()) > MAX_KEY_BYTES:
        raise StoreError(f"'{key[:60]}...' is too long for a key of the data store ({MAX_KEY_BYTES} bytes)")
    return key
