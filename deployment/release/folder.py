"""`release/` in the data store: the release document, the replicas' reports, and the history.

What should be served is one document, `release.json`. What each replica really runs stands in `replicas/<name>.json`.
What was tried and how it ended is an object a step, in `history/<language>/`.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import PurePosixPath

from deployment.release.document import LanguageRelease, ReleaseDocument, ReleaseDocumentError
from deployment.release.history import Transition, utc_now
from deployment.release.reports import ReplicaReport
from speech.plain import from_plain, to_plain
from speech.store.objects import Missing, Objects, Stored
from speech.store.outputs import parse_json, to_json
from speech.store.records import Document, Records

DOCUMENT = "release/release.json"
REPORTS = "release/replicas"
RESTORE = "restore it, or move it away (all `release.json*`) and launch `serving_release` for each language in Dagster"
_READERS = 8


class LostTurn(Exception):
    """Another roll-out has changed what is served for the language; nothing was written."""


class ReleaseFolder:
    """What is kept about releases in one data store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.document = f"{objects.home}/{DOCUMENT}"  # for people
        self._document = Document(objects, DOCUMENT)

    def look(self) -> Stored | None:
        """The document as it is stored; None where there is none. Its tag tells whether it changed."""
        return self._document.read()

    def read(self) -> ReleaseDocument:
        """The document; raises as `parsed` does."""
        return self.parsed(_data(self.look()))

    def parsed(self, data: bytes | None, at_least: int = 0) -> ReleaseDocument:
        """What the stored document says; an empty one when nothing was released yet.

        Args:
            at_least: the revision that is followed already: with one, a missing or older document is an error as well.

        Raises:
            ReleaseDocumentError: it is not valid, was edited, or is older.
        """
        if data is None:
            if at_least:
                raise ReleaseDocumentError(
                    f"{self.document} is missing: restore it, or launch `serving_release` for each language in Dagster"
                )
            return ReleaseDocument()
        try:
            document = ReleaseDocument.read(data)
            if document.revision < at_least:
                raise ReleaseDocumentError(
                    f"it is revision {document.revision}, older than revision {at_least}, which is followed"
                )
        except ReleaseDocumentError as error:
            raise ReleaseDocumentError(f"{self.document} cannot be followed: {error}: {RESTORE}") from error
        return document

    def usable(self) -> ReleaseDocument:
        """The document that `set_language` builds upon; raises as it does. A lost one may be written anew."""
        return self._built_upon(_data(self.look()))[0]

    def set_language(
        self, language: str, release: LanguageRelease, before: ReleaseDocument | None = None
    ) -> ReleaseDocument:
        """Replace what is served for a language in one step; returns the new document. Others stay as they are.

        Its revision is above the former one's and above all that replicas report, so that they follow it also after the
        document was lost.

        Args:
            before: what the attempt found; with it, what another attempt wrote since is not replaced.

        Raises:
            LostTurn: another attempt wrote.
            ReleaseDocumentError: the document is not valid, was edited, or is older than what replicas follow.
        """
        written = ReleaseDocument()

        def change(data: bytes | None) -> bytes:
            nonlocal written
            document, followed = self._built_upon(data)
            now = document.languages.get(language)
            own = now is not None and release.rollout != "" and now.rollout == release.rollout
            if before is not None and not own and now != before.languages.get(language):
                raise LostTurn(f"another release of '{language}' took over and changed what is served")
            revision = max(document.revision, followed, 0) + 1
            written = ReleaseDocument(revision, {**document.languages, language: release}, utc_now())
            return written.write()

        self._document.change(change)
        return written

    def _built_upon(self, data: bytes | None) -> tuple[ReleaseDocument, int]:
        """The document to be changed, and the highest revision that replicas follow."""
        followed = max((report.revision for report in self.reports()), default=0)
        return (ReleaseDocument() if data is None else self.parsed(data, followed)), followed

    def reports(self) -> tuple[ReplicaReport, ...]:
        """What replicas wrote last, dead ones too (`life.Replicas` tells); one that is not valid says nothing."""

        def read(key: str) -> ReplicaReport | None:
            with suppress(Missing, ValueError):
                report = from_plain(ReplicaReport, parse_json(self.objects.read(key).data))
                return report if report.replica == PurePosixPath(key).stem else None
            return None

        keys = [item.key for item in self.objects.list(REPORTS)]
        with ThreadPoolExecutor(_READERS) as threads:
            return tuple(report for report in threads.map(read, keys) if report)

    def report(self, report: ReplicaReport) -> None:
        """Write a replica's report."""
        self.objects.put(f"{REPORTS}/{report.replica}.json", to_json(to_plain(report)))

    def forget(self, replica: str) -> None:
        """Remove a replica's report: it has ended. One that has not writes it again."""
        self.objects.delete([f"{REPORTS}/{replica}.json"])

    def record(self, transition: Transition) -> None:
        """Add a step to the history of its language."""
        reason = transition.reason.encode(errors="replace").decode()  # it may hold a file's name that is not valid text
        self._history(transition.language).add(to_json(to_plain(replace(transition, reason=reason))))

    def history(self, language: str, count: int = 100) -> tuple[Transition, ...]:
        """The last steps of a language's roll-outs, oldest first; what cannot be read is left out."""
        steps = []
        for data in self._history(language).last(count):
            with suppress(ValueError):
                steps.append(from_plain(Transition, parse_json(data)))
        return tuple(steps)

    def _history(self, language: str) -> Records:
        return Records(self.objects, f"release/history/{language}")


def _data(stored: Stored | None) -> bytes | None:
    return stored.data if stored else None
