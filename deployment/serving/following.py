"""A replica follows the release document: loads, switches and lets go as it says, and reports what it runs.

A thread looks at the document four times a second. What it names must have been approved (`serving.approval`), is
verified byte by byte against its digest, opened and warmed before any request sees it. Bundles are loaded beside each
other, each in a thread of its own, so no language waits for another's, and going back to a bundle that is loaded waits
for none. What may not or cannot be loaded is reported and tried again, and what was served before goes on being
served: a bad release never takes a language down, and neither does a document that cannot be read, that somebody
removed, edited or put back to an older one, or that no longer names the language. Looking and reporting have threads of
their own: a data store that does not answer keeps nothing else waiting.

Memory holds at most three bundles a language: the active one, the standby, and one that is coming. A further one is
not loaded before a bundle that was taken out has finished its requests.

A canary's share is a loan: when the document's trial is over and nobody wrote another, the replica gives it back.
"""

import itertools
import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from deployment.release.document import LanguageRelease, Route
from deployment.release.folder import ReleaseFolder
from deployment.release.history import utc_now
from deployment.release.reports import LanguageReport, ReplicaReport
from deployment.serving.routing import LoadedModel, Routes, Table

POLL_S = 0.25
REPORT_S = 1.0
RETRY_S = 5.0  # a bundle that could not be loaded may still be on its way to this host
MOST_BUNDLES = 3  # of a language in memory: active, standby, and one that is coming

log = logging.getLogger(__name__)


@dataclass
class _Load:
    """One attempt at a bundle: under way, until `model` or `error` is there."""

    route: Route
    revision: int
    stage: str = "verify"
    model: LoadedModel | None = None
    error: str = ""
    again_at: float = float("inf")

    @property
    def ended(self) -> bool:
        return bool(self.model or self.error)


class Follower:
    """Keeps a replica's routes as the release document says.

    Args:
        folder: where the release document and the reports are.
        replica: this replica's name, unique among those that share the folder.
        url: where others reach this replica: by it a release asks whether it lives and what it hears.
        threads: threads of one recognition.
        ledger_key: with which decisions have to be signed; None: they need not be.
        on_change: called after the tables changed, with all loaded models.
    """

    def __init__(
        self,
        folder: ReleaseFolder,
        replica: str,
        url: str,
        threads: int = 1,
        on_change: Callable[[tuple[LoadedModel, ...]], None] | None = None,
        ledger_key: bytes | None = None,
    ) -> None:
        self.routes = Routes()
        self._folder = folder
        self._replica = replica
        self._url = url
        self._threads = threads
        self._ledger_key = ledger_key
        self._on_change = on_change
        self._lock = threading.RLock()
        self._asked: dict[str, LanguageRelease] = {}  # of every language, by the last document that named it
        self._loads: dict[tuple[str, str], _Load] = {}  # (language, digest)
        self._trials: dict[str, tuple[str, float]] = {}  # language -> the attempt on trial, and when that is over
        self._revision = -1  # never looked
        self._tag: str | None = None  # of the document that was seen last
        self._unreadable = ""  # why it is not followed
        self._waiting = ""  # what doing as it says has to wait for
        self._again_at = float("inf")
        self._process = secrets.token_hex(8)
        self._beats = itertools.count(1)
        self._started_at = utc_now()
        self._stop = threading.Event()
        self._due = threading.Event()  # the document changed or a load has ended, so there is something to do
        self._news = threading.Event()  # there is something to report
        self._threads_running: list[threading.Thread] = []

    def start(self) -> None:
        """Follow the document in the background and report."""
        for name, loop in (("look", self._look), ("follow", self._follow), ("report", self._report)):
            thread = threading.Thread(target=loop, name=f"{name}-release", daemon=True)
            thread.start()
            self._threads_running.append(thread)

    def stop(self) -> None:
        """End following and remove this replica's report."""
        for event in (self._stop, self._due, self._news):
            event.set()
        for thread in self._threads_running:
            thread.join(timeout=5)
        self._folder.forget(self._replica)

    def report(self) -> ReplicaReport:
        """What this replica really runs."""
        with self._lock:
            tables = self.routes.tables()
            languages = {}
            for language in sorted({*tables, *(at for at, _ in self._loads)}):
                table, held = tables.get(language, Table()), self.routes.held(language)
                active = {model.digest: share for model, share in table.traffic}
                languages[language] = LanguageReport(
                    active=active,
                    loaded=tuple(sorted(table.by_digest)),
                    draining=tuple(digest for digest, model in held.items() if model.leases and digest not in active),
                    loading={d: x.stage for (at, d), x in self._loads.items() if at == language and not x.ended},
                    errors=dict(table.errors),
                    versions={digest: model.route.version for digest, model in held.items()},
                    figures={digest: model.figures for digest, model in held.items()},
                    routes=tuple(replace(m.route, share=active.get(d, 0.0)) for d, m in table.by_digest.items()),
                )
            return ReplicaReport(
                self._replica,
                self._url,
                self._revision,
                languages,
                self._process,
                next(self._beats),
                self._started_at,
                self._unreadable or self._waiting,
            )

    def look(self) -> None:
        """Read the document; one that cannot be followed changes nothing."""
        document, unreadable = None, ""
        try:
            stored = self._folder.look()
            tag = stored.tag if stored else None
            if self._revision < 0 or tag != self._tag:
                document = self._folder.parsed(stored.data if stored else None, max(self._revision, 0))
                self._tag = tag
        except Exception as error:  # whatever it is, the replica goes on with what it has
            unreadable = str(error) or type(error).__name__
        with self._lock:
            if document is not None:
                self._asked.update(document.languages)
                self._revision = document.revision
                self._due.set()
            if unreadable and unreadable != self._unreadable:
                log.error("the release document is not followed: %s", unreadable)
            self._unreadable = unreadable

    def act(self) -> None:
        """Do what the document says, as far as something is due."""
        if not self._due.is_set() and time.monotonic() < self._again_at:
            return
        self._due.clear()
        with self._lock:
            self._waiting = self._apply()
        self._news.set()

    def _apply(self) -> str:
        """Do what is asked; returns what it has to wait for, or nothing."""
        now = time.monotonic()
        before, waiting = _summary(self.routes.tables()), []
        again = []
        for language, asked in self._asked.items():
            release = self._on_trial(language, asked)
            missing = self._switch(language, release)
            if missing and (reason := self._too_many(language, release, missing)):
                waiting.append(reason)
                again.append(now + POLL_S)
                continue
            for route in missing:
                self._begin(language, route)
        again += [load.again_at for load in self._loads.values()]
        again += [ends for _, ends in self._trials.values() if ends > now]
        self._again_at = min(again, default=float("inf"))
        if (after := _summary(self.routes.tables())) != before:
            log.info("revision %d: %s", self._revision, after)
        if self._on_change:
            self._on_change(self.routes.loaded())
        return "; ".join(waiting)

    def _on_trial(self, language: str, release: LanguageRelease) -> LanguageRelease:
        """The release as it holds now: one whose trial is over is as it was before, with the candidate loaded."""
        if release.trial_s is None:
            self._trials.pop(language, None)
            return release
        attempt, ends = self._trials.get(language, ("", 0.0))
        if attempt != release.rollout:
            ends = time.monotonic() + release.trial_s
            self._trials[language] = (release.rollout, ends)
        if time.monotonic() < ends:
            return release
        log.error("the trial in '%s' is over and nobody ended it: the traffic goes back to what was before", language)
        former = {route.digest for route in release.previous}
        candidate = tuple(replace(route, share=0.0) for route in release.routes if route.digest not in former)
        return replace(release, routes=(*release.previous, *candidate))

    def _switch(self, language: str, release: LanguageRelease) -> list[Route]:
        """Serve the language as far as it is loaded; returns the routes whose bundles are to be loaded now.

        The traffic stays with the former bundles while one that shall have some is not there.
        """
        former, held = self.routes.tables().get(language, Table()), self.routes.held(language)
        by_digest: dict[str, LoadedModel] = {}
        errors: dict[str, str] = {}
        missing = []
        for route in release.routes:
            load = self._loads.get((language, route.digest))
            found = [held.get(route.digest), load.model if load else None]
            model = next((model for model in found if model and model.answers_for(route)), None)
            if model:
                by_digest[route.digest] = model
                continue
            if load and load.error and load.revision == self._revision:
                errors[route.digest] = load.error
            again = load and load.error and (load.revision != self._revision or load.again_at <= time.monotonic())
            if not load or load.model or again:
                missing.append(route)
        wanted = {route.digest for route in release.routes}
        for key, load in list(self._loads.items()):
            if key[0] == language and (load.model or (load.error and key[1] not in wanted)):
                del self._loads[key]
        if any(route.digest not in by_digest for route in release.serving) and former.traffic:
            traffic = former.traffic
            by_digest.update((model.digest, model) for model, _ in traffic)
        else:
            traffic = tuple((by_digest[r.digest], r.share) for r in release.serving if r.digest in by_digest)
        self.routes.replace(language, Table(traffic, by_digest, errors))
        return missing

    def _too_many(self, language: str, release: LanguageRelease, missing: list[Route]) -> str:
        """Why bundles cannot be loaded yet: others that were taken out still have requests or come; or nothing."""
        wanted = {route.digest for route in release.routes}
        serving = {model.digest for model, _ in self.routes.tables()[language].traffic}
        coming = {route.digest for route in missing}
        held = {*self.routes.held(language), *(d for at, d in self._loads if at == language)} - coming
        leaving = held - wanted - serving
        if not leaving or len(held | coming) <= MOST_BUNDLES:
            return ""
        return (
            f"waits with loading {', '.join(sorted(d[:12] for d in coming))} for '{language}' until the requests on "
            f"{', '.join(sorted(d[:12] for d in leaving))} have ended"
        )

    def _begin(self, language: str, route: Route) -> None:
        """Load a bundle in a thread of its own."""
        load = self._loads[language, route.digest] = _Load(route, self._revision)

        def entering(stage: str) -> None:
            load.stage = stage
            self._news.set()  # whoever waits for it sees the next report

        def work() -> None:
            try:
                model = LoadedModel.load(
                    route, language, self._folder.objects, self._threads, entering, self._ledger_key
                )
            except Exception as error:  # whatever it is, the replica goes on serving what it has
                reason = str(error) or type(error).__name__
                log.error("bundle %s for '%s' is not served: %s", route.digest[:12], language, reason)
                with self._lock:
                    load.again_at, load.error = time.monotonic() + RETRY_S, reason
                    self._due.set()
            else:
                with self._lock:
                    load.model = model
                    self._due.set()

        threading.Thread(target=work, name=f"load-{language}-{route.digest[:12]}", daemon=True).start()

    def _look(self) -> None:
        while not self._stop.is_set():
            self.look()
            self._stop.wait(POLL_S)

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self.act()
            except Exception:  # whatever it is must not end the following
                log.exception("following the release document failed; trying again")
                self._stop.wait(POLL_S)
                self._due.set()
            self._due.wait(POLL_S)

    def _report(self) -> None:
        while not self._stop.is_set():
            self._news.clear()
            try:
                self._folder.report(self.report())
            except Exception:
                log.exception("the replica's report was not written; trying again")
            self._news.wait(REPORT_S)


def _summary(tables: Mapping[str, Table]) -> str:
    parts = []
    for language, table in sorted(tables.items()):
        routes = [f"{model.digest[:12]} x {share:g}" for model, share in table.traffic]
        routes += [f"{d[:12]} on request" for d in table.by_digest if d not in {m.digest for m, _ in table.traffic}]
        parts.append(f"{language}: {', '.join(routes) or 'nothing'}")
    return "; ".join(parts) or "nothing is released"
