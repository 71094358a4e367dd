"""A source read once: its rows by quarter and language, kept in the data store until its manifest changes.

Every partition of a corpus asks its sources for the rows of its own quarter and language. Read anew each time, a
manifest of a million rows would be read as often as there are quarters. The first partition that asks reads the source
to its end and files each row under its quarter and language; the others read only their file.

A source has changed when a file of its manifest has another size or was written since. Where recordings are missing is
no part of the index: they may arrive without a word in the manifest, so whoever reads a partition looks again.

Memory is bounded by the batch that is written at a time. Of the processes of one machine one builds and the others
wait; two machines that start together both build, and publish the same bytes.
"""

import fcntl
import hashlib
import json
import os
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from speech.corpus.importers import FILES, IMPORTERS, Defaults, file_of_rows
from speech.corpus.manifest import RejectedRow, Utterance, quarter_of, read_manifest, row_line
from speech.corpus.rows import ManifestError, is_uri, numbered_objects
from speech.store.outputs import DataStore, StoreError, write_json

EDITION = 5  # counted up when an importer reads rows otherwise, or the index keeps them otherwise
ASSET = "source_index"
SUMMARY = "index.json"
REJECTED = "rejected.jsonl"
BATCH_BYTES = 8 << 20  # of rows waiting to be written


@dataclass(frozen=True)
class SourceIndex:
    """A source's rows by quarter and language."""

    folder: Path
    counts: Mapping[tuple[str, str], int]  # rows by quarter and language
    rejected: int  # rows that no importer could read
    source: tuple[str, str, Defaults]  # kind, path, and what its rows do not say

    @property
    def read(self) -> int:
        """How many rows the source has, whatever became of them."""
        return sum(self.counts.values()) + self.rejected

    def rows(self, quarter: str, language: str) -> Iterator[Utterance]:
        """The rows of a partition, in the order of the source."""
        if (quarter, language) in self.counts:
            yield from read_manifest(self.folder / _file_of(quarter, language))

    def rejections(self) -> Iterator[RejectedRow]:
        """The rows that no importer could read, with what is known of where they belong."""
        for _, row in numbered_objects(self.folder / REJECTED):
            if isinstance(row, dict):
                yield RejectedRow(**row)

    def placed(self, refused: Sequence[RejectedRow]) -> list[RejectedRow]:
        """Refusals of its rows by their ids, each with the file and the row to look at; 0 where it is gone since.

        The source is read anew for them: an index that kept the number of every row would be the larger for all, and
        few are refused once they were imported.
        """
        if not refused:
            return []
        kind, path, defaults = self.source
        named = {each.id for each in refused}
        file = file_of_rows(kind, path)
        rows = (row for row in IMPORTERS[kind](path, defaults) if isinstance(row, Utterance))
        places = {row.id: row.row for row in rows if row.id in named}
        return [replace(each, source=file, row=places.get(each.id or "", 0)) for each in refused]


def index_of(store: DataStore, kind: str, path: str, defaults: Defaults) -> SourceIndex:
    """The index of a source as it is now, built where there is none yet.

    Raises:
        ManifestError: the source cannot be read, or was changed while it was.
    """
    source = json.dumps([kind, path, defaults.model_dump(include=set(Defaults.model_fields))], default=str)
    name = hashlib.sha256(source.encode()).hexdigest()[:16]
    state = _state(kind, path, source)
    opened = partial(_opened, source=(kind, path, defaults))
    if (found := _current(store, name, state, opened)) is not None:
        return found
    with _one_of_this_machine(f"{store.home}\0{name}"):
        if (found := _current(store, name, state, opened)) is not None:
            return found
        with store.replace(ASSET, name) as staging:
            summary = _build(staging.path, kind, path, defaults)
            if _state(kind, path, source) != state:
                raise ManifestError(path, None, "was changed while it was read; run again when it is delivered whole")
            write_json(staging.path / SUMMARY, {"state": state, **summary})
        return opened(staging.published.path, summary)


def with_audio(rows: Iterable[Utterance]) -> Iterator[Utterance | RejectedRow]:
    """The rows, those refused whose file is not there now (`placed` says where); a URI's shows when it is opened.

    A file that is there under another spelling of its name is the file: with letters and their marks apart, as a Mac
    packs them, or with the backslashes of Windows.
    """
    there: dict[str, str | None] = {}
    for row in rows:
        if row.audio not in there:
            there[row.audio] = _place_of(row.audio)
        if (place := there[row.audio]) is not None:
            yield row if place == row.audio else replace(row, audio=place)
        else:
            reason = f"there is no audio file {row.audio}: if paths are relative to another folder, set audio_root"
            yield RejectedRow(row.audio, row.row, reason, row.id)


def _place_of(audio: str) -> str | None:
    """Where the file of a row is, whichever way its name is spelt; None where it is not."""
    if is_uri(audio) or os.path.isfile(audio):
        return audio
    parts = audio.replace("\\", "/").split("/")
    spellings = (
        "/".join([*parts[:kept], *(unicodedata.normalize(form, part) for part in parts[kept:])])
        for form in ("NFC", "NFD")
        for kept in range(len(parts))
    )
    return next((place for place in dict.fromkeys(spellings) if os.path.isfile(place)), None)


def _state(kind: str, path: str, source: str) -> str:
    """A digest of what a source is and of when its files were written last."""
    files: list[Any] = []
    for file in FILES[kind](path):
        try:
            seen = file.stat()
            files.append((file.name, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
        except OSError:
            files.append((file.name, None))
    return hashlib.sha256(json.dumps([EDITION, source, files]).encode()).hexdigest()


def _current(
    store: DataStore, name: str, state: str, opened: Callable[[Path, Mapping[str, Any]], SourceIndex]
) -> SourceIndex | None:
    try:
        folder = store.current(ASSET, name).path
        summary = json.loads((folder / SUMMARY).read_text())
        return opened(folder, summary) if summary["state"] == state else None
    except (StoreError, OSError, ValueError, KeyError, TypeError):
        return None  # there is none, or it is of an older form: built anew


def _opened(folder: Path, summary: Mapping[str, Any], source: tuple[str, str, Defaults]) -> SourceIndex:
    counts = {(quarter, language): rows for quarter, language, rows in summary["counts"]}
    return SourceIndex(folder, counts, summary["rejected"], source)


def _build(folder: Path, kind: str, path: str, defaults: Defaults) -> dict[str, Any]:
    waiting: dict[str, list[bytes]] = defaultdict(list)
    held = rejected = 0
    counts: Counter[tuple[str, str]] = Counter()
    (folder / REJECTED).touch()
    for row in IMPORTERS[kind](path, defaults):
        if isinstance(row, RejectedRow):
            file, line = REJECTED, msgspec.json.encode(row) + b"\n"
            rejected += 1
        else:
            partition = quarter_of(row.recorded_at), row.language
            file, line = _file_of(*partition), row_line(row)
            counts[partition] += 1
        waiting[file].append(line)
        held += len(line)
        if held > BATCH_BYTES:
            _append(folder, waiting)
            held = 0
    _append(folder, waiting)
    return {"counts": [[*partition, rows] for partition, rows in sorted(counts.items())], "rejected": rejected}


def _append(folder: Path, waiting: dict[str, list[bytes]]) -> None:
    for name, lines in waiting.items():
        with (folder / name).open("ab") as file:
            file.writelines(lines)
    waiting.clear()


def _file_of(quarter: str, language: str) -> str:
    return f"{quarter}-{language}.jsonl"


@contextmanager
def _one_of_this_machine(name: str) -> Iterator[None]:
    """One process of this user on this machine at a time; the lock goes with the process that holds it."""
    mark = hashlib.sha256(name.encode()).hexdigest()[:16]
    with open(Path(tempfile.gettempdir(), f"soundstage-{os.getuid()}-{mark}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
