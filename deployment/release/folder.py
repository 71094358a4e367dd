"""`<home>/release`: the release document, the replicas' reports, the history, and whose turn it is to release.

What should be served is one file, `release.json`. What each replica really runs stands in `replicas/<name>.json`. What
was tried and how it ended is one line a step in `history/<language>.jsonl`. `Files` is all that knows of a file system.
"""

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from deployment.release.document import LanguageRelease, ReleaseDocument, ReleaseDocumentError, Route
from deployment.release.history import Transition, utc_now
from deployment.release.reports import ReplicaReport
from speech.store.outputs import parse_json, write_atomically

DOCUMENT = "release.json"
RESTORE = "restore it, or move it away and launch `serving_release` for each language"
POLL_S = 0.2
_FILE_PROBLEMS = (OSError, ValueError, ReleaseDocumentError)


class ReleaseBusy(Exception):
    """Another roll-out of the language is under way and did not end in time."""


class Files:
    """Small files under keys of one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: str) -> Path:
        """Where a key's file lies."""
        return self._root / key

    def read(self, key: str) -> bytes:
        """A file, whole. Raises FileNotFoundError."""
        return self.path(key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Write a file; readers see the old one or the new, whole."""
        write_atomically(self.path(key), data)

    def update(self, key: str, change: Callable[[bytes | None], bytes]) -> None:
        """Write what `change` makes of the file (None: there is none); nobody writes in between."""
        with self.lock(f"{key}.lock"):
            try:
                before: bytes | None = self.read(key)
            except FileNotFoundError:
                before = None
            self.put(key, change(before))

    def delete(self, key: str) -> None:
        """Remove a file, or nothing."""
        self.path(key).unlink(missing_ok=True)

    def names(self, folder: str, suffix: str) -> list[str]:
        """Names in a folder that end so, without the suffix, in order."""
        return sorted(path.name.removesuffix(suffix) for path in self.path(folder).glob(f"*{suffix}"))

    def append(self, key: str, line: str) -> None:
        """Append a line, flushed to disk; one that a dying machine cut before is ended first."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            os.write(handle, (("\n" if torn else "") + line + "\n").encode(errors="replace"))
            os.fsync(handle)
        finally:
            os.close(handle)

    def changed(self, key: str) -> tuple[int, int, int] | None:
        """What differs after the file was written; None when there is none."""
        with suppress(OSError):
            status = self.path(key).stat()
            return status.st_mtime_ns, status.st_ino, status.st_size
        return None

    @contextmanager
    def lock(self, key: str, refused: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a lock, which the kernel frees when its holder dies; `refused` is called before each further try."""
        self._root.mkdir(parents=True, exist_ok=True)
        with self.path(key).open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    refused()
                time.sleep(0.005)
            yield


class ReleaseFolder:
    """What is kept about releases in one data store."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "release"
        self.files = Files(self.root)
        self.document = self.files.path(DOCUMENT)
        self.replicas = self.files.path("replicas")

    def read(self, *, at_least: int = 0) -> ReleaseDocument:
        """The document; an empty one when nothing was released yet.

        Args:
            at_least: the revision that is followed already: with one, a missing or older document is an error as well.

        Raises:
            ReleaseDocumentError: it cannot be read, was edited, or is older.
        """
        try:
            return self._parsed(self.files.read(DOCUMENT), at_least)
        except FileNotFoundError:
            if at_least:
                raise ReleaseDocumentError(
                    f"{self.document} is missing: restore it, or launch `serving_release` for each language"
                ) from None
            return ReleaseDocument()
        except OSError as error:
            raise ReleaseDocumentError(f"{self.document} cannot be read ({error}): {RESTORE}") from error

    def set_language(self, language: str, release: LanguageRelease) -> ReleaseDocument:
        """Replace what is served for a language in one step; returns the new document. Others stay as they are.

        Its revision is above the former one's and above all that replicas report, so that they follow it also after the
        document was lost.

        Raises:
            ReleaseDocumentError: the document cannot be read, was edited, or is older than what replicas follow.
        """
        written = ReleaseDocument()

        def change(before: bytes | None) -> bytes:
            nonlocal written
            followed = max((report.revision for report in self.reports()), default=0)
            document = ReleaseDocument() if before is None else self._parsed(before, followed)
            revision = max(document.revision, followed, 0) + 1
            written = ReleaseDocument(revision, {**document.languages, language: release}, utc_now())
            return (json.dumps(written.to_dict(), ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()

        self.files.update(DOCUMENT, change)
        return written

    def require_usable(self) -> None:
        """Raise ReleaseDocumentError where `set_language` would."""
        with suppress(FileNotFoundError):
            self._parsed(self.files.read(DOCUMENT), max((report.revision for report in self.reports()), default=0))

    def _parsed(self, content: bytes, at_least: int) -> ReleaseDocument:
        try:
            document = ReleaseDocument.from_dict(parse_json(content))
            if document.revision < at_least:
                raise ReleaseDocumentError(
                    f"it is revision {document.revision}, older than revision {at_least}, which is followed"
                )
        except (ValueError, ReleaseDocumentError) as error:
            raise ReleaseDocumentError(f"{self.document} cannot be followed: {error}: {RESTORE}") from error
        return document

    def resolve(self, route: Route) -> Path:
        """The folder of a route's bundle."""
        return self.home / route.bundle

    def relative(self, bundle: Path) -> str:
        """How a bundle's folder is written in the document."""
        absolute = bundle.absolute()
        return str(absolute.relative_to(self.home) if absolute.is_relative_to(self.home) else absolute)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """What replicas wrote last, dead ones too (`life.Replicas` tells); what cannot be read says nothing."""
        found = []
        for name in self.files.names("replicas", ".json"):
            with suppress(*_FILE_PROBLEMS):
                report = ReplicaReport.from_dict(parse_json(self.files.read(f"replicas/{name}.json")))
                found += [report] * (report.replica == name)
        return tuple(found)

    def report(self, report: ReplicaReport) -> None:
        """Write a replica's report."""
        self.files.put(f"replicas/{report.replica}.json", json.dumps(report.to_dict(), indent=1).encode())

    def forget(self, replica: str) -> None:
        """Remove a replica's report: it has ended. One that has not writes it again."""
        self.files.delete(f"replicas/{replica}.json")

    def record(self, transition: Transition) -> None:
        """Append to the history of the language, flushed to disk."""
        line = json.dumps(asdict(transition), sort_keys=True, ensure_ascii=False)
        self.files.append(f"history/{_plain(transition.language)}.jsonl", line)

    def history(self, language: str) -> tuple[Transition, ...]:
        """The steps of all roll-outs of a language, oldest first; what cannot be read is left out.

        It is shown and nothing rests on it: a line that a dying machine cut or somebody edited stops no release.
        """
        steps = []
        with suppress(OSError):
            for line in self.files.read(f"history/{_plain(language)}.jsonl").split(b"\n"):
                with suppress(ValueError, ReleaseDocumentError):
                    steps.append(Transition.from_dict(parse_json(line)))
        return tuple(steps)

    @contextmanager
    def exclusive(self, language: str, digest: str = "", wait_s: float = 0.0) -> Iterator[None]:
        """Hold the right to release a language; the kernel frees it when the holder dies.

        A roll-out that waits says for which bundle, again and again, so that the one under way can give way (`Queue`).

        Raises:
            ReleaseBusy: another roll-out did not end within `wait_s`.
        """
        deadline = time.monotonic() + wait_s
        note = _note(language)

        def refused() -> None:
            if time.monotonic() >= deadline:
                raise ReleaseBusy(
                    f"another release of '{language}' is under way: wait until it has ended, then release again"
                )
            self.files.put(note, json.dumps({"digest": digest, "said": secrets.token_hex(8)}).encode())
            time.sleep(POLL_S)

        with self.files.lock(f"{_plain(language)}.lock", refused):
            self.files.delete(note)
            yield


class Queue:
    """Which bundle's roll-out waits for the one under way; one instance watches over time.

    Who waits says so again and again. A note that was left behind by a process that died does not change any more.
    """

    def __init__(self, folder: ReleaseFolder, language: str) -> None:
        self._files = folder.files
        self._note = _note(language)
        self._first: bytes | None = None

    def waiting(self) -> str | None:
        """Digest of the bundle that waits; None: nobody does, or not for long enough to be sure."""
        try:
            said = self._files.read(self._note)
        except OSError:
            self._first = None
            return None
        if self._first in (None, said):
            self._first = said
            return None
        with suppress(ValueError, KeyError, TypeError):
            return str(parse_json(said)["digest"])
        return None


def _note(language: str) -> str:
    return f"{_plain(language)}.waiting.json"


def _plain(language: str) -> str:
    """A language as part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
        raise ReleaseDocumentError(f"'{language}' is not a language tag such as 'en'")
    return language
