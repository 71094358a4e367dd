"""The data store: one folder (or `s3://` prefix) where every asset partition keeps its output, by reference.

Layout: `<root>/<asset>/<part>/.../<digest>/...` holds published outputs, each immutable and named by the digest of
its content, and `current` beside them names the one in force. Publishing writes to a staging folder first and then
moves the pointer, so a reader sees the old output or the new one, whole, and a process killed half way changes
nothing. The same content published twice is the same folder: digests are what Dagster shows as data versions.

Superseded outputs are kept (`keep`), so that a run that still reads one is not cut off; older ones are removed.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

KEEP_OUTPUTS = 3  # published outputs kept per partition: the one in force and two before it
DIGEST = re.compile(r"[0-9a-f]{64}")  # SHA-256, as hex
DIGEST_CHARS = 16  # 64 bits of SHA-256 name a folder; the full digest is recorded beside it
POINTER = "current"
STAGING = ".staging-"
ABANDONED_AFTER_S = 86_400.0


class StoreError(Exception):
    """An output that should be in the data store is missing or cannot be written."""


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON with sorted keys, atomically."""
    write_atomically(path, json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True) + "\n")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text from a file that anyone may have written; ValueError for whatever is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@dataclass(frozen=True)
class Published:
    """A published output: its folder and the digest of its content."""

    path: Path
    digest: str


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


class DataStore:
    """Outputs of asset partitions under one root folder."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()

    def path(self, *parts: str) -> Path:
        """The folder of an asset's partition, or any other place below the root."""
        for part in parts:
            if not part or part in {".", ".."} or "/" in part or "\\" in part:
                raise StoreError(f"'{part}' cannot be a folder's name in the data store: use a plain name")
        return self.root.joinpath(*parts)

    @contextmanager
    def replace(self, *parts: str) -> Iterator[Staging]:
        """Write a new output of `parts` into the staging folder given; it is published when the block ends well."""
        folder = self.path(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        self._clear_abandoned(folder)
        staging = Staging(Path(tempfile.mkdtemp(dir=folder, prefix=STAGING)))
        try:
            yield staging
            digest = digest_tree(staging.path)
            target = folder / digest[:DIGEST_CHARS]
            if not target.exists():
                staging.path.chmod(0o755)
                os.replace(staging.path, target)
            write_json(folder / POINTER, {"digest": digest})
            staging._published = Published(target, digest)
            self._prune(folder, target)
        finally:
            shutil.rmtree(staging.path, ignore_errors=True)

    def current(self, *parts: str) -> Published:
        """The output in force.

        Raises:
            StoreError: nothing was published there, or the output was removed by hand.
        """
        folder = self.path(*parts)
        name = "/".join(parts)
        try:
            digest = parse_json((folder / POINTER).read_text())["digest"]
        except FileNotFoundError:
            raise StoreError(f"{name} is not in the data store {self.root}: materialise it first") from None
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{folder / POINTER} cannot be read ({error}): materialise {name} again") from error
        target = folder / str(digest)[:DIGEST_CHARS]
        if not target.is_dir():
            raise StoreError(f"{target} is gone though {name} points to it: materialise {name} again")
        return Published(target, digest)

    def exists(self, *parts: str) -> bool:
        """Whether an output of `parts` is in force."""
        try:
            self.current(*parts)
        except StoreError:
            return False
        return True

    def _clear_abandoned(self, folder: Path) -> None:
        """Remove what writers that were killed left behind; a living one is never a day old."""
        for left in folder.glob(f"{STAGING}*"):
            if time.time() - left.stat().st_mtime > ABANDONED_AFTER_S:
                shutil.rmtree(left, ignore_errors=True)

    def _prune(self, folder: Path, current: Path) -> None:
        outputs = [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".") and p != current]
        outputs.sort(key=lambda p: p.stat().st_mtime, reverse=True)
        for old in outputs[KEEP_OUTPUTS - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
