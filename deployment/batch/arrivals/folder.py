"""Uploads that come into a folder."""

import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from deployment.batch.arrivals.receipts import Unreadable, Upload, is_hidden_or_unfinished, language_of, named

SETTLED_S = 2.0  # an upload that was written to more lately is still on its way


def found_in_folder(folder: Path, languages: Collection[str], now_s: float) -> Iterator[Upload]:
    """The files of a folder and those below it, without those that are still being written."""
    for place, below, names in os.walk(folder):
        below[:] = sorted(below)
        for file in sorted(names):
            path = Path(place, file)
            parts = [os.fsencode(part).decode(errors="replace") for part in path.relative_to(folder).parts]
            name = "/".join(parts)
            if is_hidden_or_unfinished(name):
                continue
            with suppress(OSError):  # it went away meanwhile
                seen = path.stat()
                outside = path.is_symlink() and not path.resolve().is_relative_to(folder.resolve())
                if path.is_file() and now_s - seen.st_mtime >= SETTLED_S:
                    identity = named(*parts, seen.st_size, seen.st_mtime_ns)
                    yield Upload(
                        id=identity,
                        name=name,
                        language=language_of(name, languages),
                        fetch=_led_outside if outside else partial(_copied, path, seen),
                    )


def _led_outside(target: BinaryIO) -> bool:
    raise Unreadable("it is a link to a place outside the folder of uploads: copy the file itself")


def _copied(path: Path, seen: os.stat_result, target: BinaryIO) -> bool:
    """Copy a file; False where it is still being written: the next look finds it whole."""
    try:
        with path.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        after = path.stat()
    except FileNotFoundError:
        return False
    return (after.st_size, after.st_mtime_ns) == (seen.st_size, seen.st_mtime_ns)
