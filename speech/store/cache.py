"""Local copies of objects that must be files: audio being decoded, bundles being loaded.

The folder mirrors the keys, so that files which belong together lie together. It holds only objects that never change,
and may be removed at any time. Several processes of one machine share it without a lock: a copy appears whole by a
rename, and whoever notices that the folder is over its limit removes what was asked for longest ago.

What was asked for within the last hour stays even above the limit: somebody may be about to open it. So the limit is
one of what is kept, and a run that needs more at once takes more.
"""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

CACHE_BYTES = 20 * 2**30
KEPT_S = 3600.0
LOOKS = 16  # the folder is measured anew each time that a process has added this part of the limit
PARTIAL = ".partial-"


def default_cache() -> Path:
    """Where copies are kept unless settings say otherwise: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soundstage"


class LocalCache:
    """Files below `root`, about `limit_bytes` of them."""

    def __init__(self, root: Path, limit_bytes: int, kept_s: float = KEPT_S) -> None:
        self.root = root.absolute()
        self.limit_bytes = limit_bytes
        self.kept_s = kept_s
        self._added: int | None = None  # bytes since the folder was measured; never yet

    def file(self, key: str, fetch: Callable[[BinaryIO], None]) -> Path:
        """The copy of an object; made by `fetch`, which writes it, if there is none yet."""
        path = self.root / key
        with suppress(FileNotFoundError):
            os.utime(path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                fetch(file)
                size = file.tell()
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise
        self._added = None if self._added is None else self._added + size
        if self._added is None or self._added > self.limit_bytes / LOOKS:
            self.shrink()
            self._added = 0
        return path

    def shrink(self) -> None:
        """Bring the folder below its limit, as far as nobody needs what it holds."""
        files = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(OSError):  # another process removed it
                    found = os.stat(os.path.join(folder, name))
                    files.append((found.st_mtime, found.st_size, Path(folder, name)))
        total = sum(size for _, size, _ in files)
        needed = time.time() - self.kept_s  # the same machine wrote these times
        for used, size, path in sorted(files):
            if used > needed or (total <= self.limit_bytes and not path.name.startswith(PARTIAL)):
                continue
            with suppress(OSError):
                path.unlink()
                total -= size
                path.parent.rmdir()
