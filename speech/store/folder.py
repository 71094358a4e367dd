"""Objects in a folder, which may be shared by many hosts.

An object is the file of its key. Writers never replace a file that others may read: a new object is written aside and
then linked to its name, which fails where the name is taken, on NFS as on a local disk. Locks, by contrast, outlive
hosts that die, and what breaks them compares clocks.

A document that is replaced (`put_if_unchanged`) gets a file a version: `release.json@00000002` is linked by whoever
is first to replace the first version, and so on; a number that was taken is never free again, so a writer that slept
for a day loses like any other. The highest number counts. `release.json` itself then is a symbolic link to it, for
people and as a place to start looking from: it is never ahead, and may be behind for a moment.

Not covered: file systems that have no hard links, or whose names ignore case or rewrite accents.
"""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from speech.store.objects import INCOMING, VERSION, Listed, LostRace, Missing, Objects, Stored, StoreError, checked

STAGING = ".staging-"
HIDDEN = (INCOMING, STAGING, ".nfs")  # .nfs*: files that somebody still has open on NFS though they were removed
ABANDONED_AFTER_S = 86_400.0
T = TypeVar("T")
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}


class FolderObjects(Objects):
    """Objects below a folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.home = str(self.root)

    def read(self, key: str) -> Stored:
        path = self._path(key)
        number, data = self._last(path)
        return Stored(data, _tag(number, data))

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        with self.local(key).open("rb") as file:
            yield file

    def list(self, prefix: str = "") -> Iterator[Listed]:
        found = []
        for folder, below, names in os.walk(self._folder(prefix)):
            below[:] = [name for name in below if not name.startswith(HIDDEN)]
            for name in names:
                if not name.startswith(HIDDEN) and not VERSION.fullmatch(name[-9:]):
                    with suppress(OSError, Missing):  # removed meanwhile
                        path = self._version(Path(folder, name))
                        found.append(Listed(Path(folder, name).relative_to(self.root).as_posix(), path.stat().st_size))
        yield from sorted(found, key=lambda item: item.key)

    def folders(self, prefix: str = "") -> tuple[str, ...]:
        with suppress(FileNotFoundError), os.scandir(self._folder(prefix)) as entries:
            return tuple(sorted(e.name for e in entries if e.is_dir() and not e.name.startswith(HIDDEN)))
        return ()

    def put_if_absent(self, key: str, data: bytes) -> str:
        with self._written(data) as file:
            self._add(file, key)
        return _tag(1, data)

    def put_if_unchanged(self, key: str, data: bytes, tag: str) -> str:
        path = self._path(key)
        try:
            number, before = self._last(path)
        except Missing:
            raise LostRace(f"{key} is gone from {self.home}") from None
        changed = LostRace(f"{key} in {self.home} was changed by another writer: read it again")
        if tag != _tag(number, before):
            raise changed
        with self._written(data) as file:
            if not self._link(file, _numbered(path, number + 1)):
                raise changed
        self._show(path, number + 1)
        return _tag(number + 1, data)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        if _numbered(path, 2).exists():
            raise StoreError(f"{key} in {self.home} has several writers: it cannot be written without looking")
        with self._written(data) as file:
            self._into_folder(path, lambda: os.replace(file, path))

    def upload(self, path: Path, key: str) -> None:
        staged = path.is_relative_to(self.root) and any(part.startswith(STAGING) for part in path.parts)
        if staged and not path.is_symlink():
            path.chmod(0o644)  # machines that share a data store need not share a user
            return self._add(path, key)
        with path.open("rb") as source, self._incoming() as (target, copy):
            shutil.copyfileobj(source, target)
            target.flush()
            self._add(copy, key)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._path(key)
            if path.is_symlink():
                raise StoreError(f"{key} in {self.home} is a document that writers replace: it cannot be removed")
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                for folder in path.relative_to(self.root).parents[:-1]:
                    (self.root / folder).rmdir()

    def local(self, key: str) -> Path:
        path = self._path(key)
        last = self._version(path)
        if not last.is_file():
            raise self._missing(key)
        return last

    def local_folder(self, prefix: str) -> Path:
        folder = self._folder(prefix)
        if not folder.is_dir():
            raise Missing(f"there is nothing below {prefix} in the data store {self.home}")
        return folder

    @contextmanager
    def staging(self, prefix: str) -> Iterator[Path]:
        folder = self._folder(prefix)
        self._clear_abandoned(folder.glob(f"{STAGING}*"))
        staging = Path(self._into_folder(folder / STAGING, lambda: tempfile.mkdtemp(dir=folder, prefix=STAGING)))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def now(self) -> float:
        with self._incoming() as (_, path):
            return path.stat().st_mtime  # set by the machine that has the disk

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*checked(key).split("/"))

    def _folder(self, prefix: str) -> Path:
        return self._path(prefix) if prefix else self.root

    def _missing(self, key: str) -> Missing:
        return Missing(f"{key} is not in the data store {self.home}")

    def _version(self, path: Path) -> Path:
        """The file of the last version of `path`."""
        return _numbered(path, self._number(path))

    def _number(self, path: Path) -> int:
        number = 1
        with suppress(OSError, ValueError):  # no link: only one version, or a copy of a store made by other tools
            number = int(os.readlink(path).rpartition("@")[2])
        if number > 1 and not _numbered(path, number).exists():
            number = 1
        while _numbered(path, number + 1).exists():
            number += 1
        return number

    def _last(self, path: Path) -> tuple[int, bytes]:
        number = self._number(path)
        try:
            return number, _numbered(path, number).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise self._missing(path.relative_to(self.root).as_posix()) from None

    def _add(self, file: Path, key: str) -> None:
        path = self._path(key)
        if _numbered(path, 2).exists() or not self._link(file, path):
            if path.is_dir():
                raise StoreError(f"{path} is a folder: {key} cannot be an object as well")
            raise LostRace(f"{key} is in the data store {self.home} already")

    def _link(self, file: Path, path: Path) -> bool:
        """Give a file its name; False when the name was taken."""

        def link() -> None:
            with suppress(FileExistsError):
                os.link(file, path)

        try:
            self._into_folder(path, link)
        except OSError as error:
            if error.errno in NO_LINKS:
                raise StoreError(
                    f"{self.home} is on a file system without hard links ({error.strerror}): choose another for `home`"
                ) from error
            raise
        # An answer that NFS sent twice may say "exists" to the winner; some clients say "done" to the loser.
        with suppress(FileNotFoundError):
            if not os.path.samestat(file.stat(), path.lstat()):
                return False
        _flush(path.parent)
        return True

    def _into_folder(self, path: Path, act: Callable[[], T]) -> T:
        """Do something to a name in its folder, which another process may just be making or removing."""
        for _ in range(100):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                return act()
            except FileNotFoundError:
                continue
            except (NotADirectoryError, FileExistsError):
                raise StoreError(f"{path.parent} is an object: nothing can be stored below it") from None
            except IsADirectoryError:
                raise StoreError(f"{path} is a folder: it cannot be an object as well") from None
        raise StoreError(f"{path.parent} is removed by another program again and again")

    def _show(self, path: Path, number: int) -> None:
        """Let the plain name lead to the last version."""
        with suppress(OSError), self._incoming() as (_, aside):
            while True:
                link = aside.with_suffix(".link")
                os.symlink(_numbered(path, number).name, link)
                os.replace(link, path)
                if not _numbered(path, number + 1).exists():
                    return
                number = self._number(path)

    @contextmanager
    def _written(self, data: bytes) -> Iterator[Path]:
        with self._incoming() as (file, path):
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            yield path

    @contextmanager
    def _incoming(self) -> Iterator[tuple[BinaryIO, Path]]:
        """An empty file on the same disk, removed afterwards."""
        folder = self.root / INCOMING
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o644)  # machines that share a data store need not share a user
                yield file, Path(name)
        finally:
            with suppress(OSError):
                os.unlink(name)

    def _clear_abandoned(self, left: Iterable[Path]) -> None:
        """Remove what writers that were killed left behind; a living one is never a day old."""
        now = None
        for path in (*left, *(self.root / INCOMING).glob("*")):
            with suppress(OSError):
                now = self.now() if now is None else now
                if now - path.lstat().st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _numbered(path: Path, number: int) -> Path:
    return path if number == 1 else path.with_name(f"{path.name}@{number:08d}")


def _tag(number: int, data: bytes) -> str:
    return f"{number}-{hashlib.sha256(data).hexdigest()[:16]}"


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
