"""The models of one replica: loaded, switched and let go as the release document says.

A thread looks at the document four times a second. What it names must have been approved (`serving.approval`), is
verified byte by byte against its digest, opened and warmed before any request sees it; then the table of routes is
replaced in one step. A request holds a lease on its bundle, so the old one stays until the last request on it has
ended. What may not or cannot be loaded is reported and tried again, and what was served before goes on being served: a
bad release never takes a language down, and neither does a document that cannot be read, or that somebody removed,
edited or put back to an older one: after the one that is followed only a later revision is.

Memory holds at most three bundles a language: the active one, the standby, and one that is coming. A further one is
not loaded before a bundle that was taken out has finished its requests.

A canary's share is a loan: when the document's trial is over and nobody wrote another, the replica gives it back.
"""

import bisect
import itertools
import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from deployment.release.canary import Figures
from deployment.release.document import (
    LanguageRelease,
    LanguageReport,
    ReleaseDocument,
    ReleaseDocumentError,
    ReleaseFolder,
    ReplicaReport,
    Route,
)
from deployment.serving.approval import require_approved
from speech.bundle import BundleError, ModelBundle
from speech.recognition.offline import Recognizer

POLL_S = 0.25
HEARTBEAT_S = 1.0
RETRY_S = 5.0  # a bundle that could not be loaded may still be on its way to this host
MOST_BUNDLES = 3  # of a language in memory: active, standby, and one that is coming
WARM_S = 2.0  # seconds of noise that every recogniser hears before its first request
GOLDEN_RATIO = (5**0.5 - 1) / 2

log = logging.getLogger(__name__)


class NoModel(Exception):
    """There is no bundle to serve a request with; `known` tells whether the language is served at all."""

    def __init__(self, message: str, *, known: bool) -> None:
        super().__init__(message)
        self.known = known


@dataclass(eq=False)
class LoadedModel:
    """A bundle ready to serve: verified, opened once per worker, warmed."""

    route: Route
    language: str
    bundle: ModelBundle
    _idle: "queue.SimpleQueue[Recognizer]" = field(repr=False)
    leases: int = 0
    figures: Figures = field(default_factory=Figures)  # of the traffic that was routed here

    @classmethod
    def load(
        cls,
        route: Route,
        language: str,
        folder: ReleaseFolder,
        workers: int,
        threads: int,
        entering: Callable[[str], None] = lambda stage: None,
    ) -> "LoadedModel":
        """Verify, open and warm a route's bundle; `entering` is told `verify`, `load` and `warm`.

        Raises:
            NotApproved: nobody put this bundle into production, or its verdict does not let it pass.
            BundleError: it is not the bundle that the document names, or not for this language.
        """
        if "://" in route.bundle:
            raise BundleError(f"{route.bundle}: a replica reads bundles from a folder; mount or copy it there")
        entering("verify")
        require_approved(folder.home, language, route.digest)
        bundle = ModelBundle.load(folder.resolve(route), route.digest)
        if bundle.language != language:
            raise BundleError(f"{bundle.path}: the bundle is for '{bundle.language}', not for '{language}'")
        entering("load")
        recognizers = [Recognizer(bundle, threads=threads) for _ in range(workers)]
        entering("warm")
        idle: queue.SimpleQueue[Recognizer] = queue.SimpleQueue()
        noise = np.random.default_rng(0).normal(0, 0.01, round(WARM_S * bundle.sample_rate)).astype(np.float32)
        for recognizer in recognizers:
            try:
                recognizer.transcribe(noise)
            except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
                raise BundleError(f"{bundle.path}: the network fails on {WARM_S:g} s of noise ({error})") from error
            idle.put(recognizer)
        return cls(route, language, bundle, idle)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.bundle.digest

    @property
    def version(self) -> str:
        """The registered version, or the beginning of the digest when it was released without a registry."""
        return self.route.version or self.digest[:12]

    @property
    def name(self) -> str:
        """The registered model's name, or the bundle's own when it was released without a registry."""
        return self.route.model or self.bundle.name

    @contextmanager
    def recognizer(self) -> Iterator[Recognizer]:
        """A recogniser for one thread; there is one for every worker."""
        recognizer = self._idle.get()
        try:
            yield recognizer
        finally:
            self._idle.put(recognizer)


@dataclass(frozen=True)
class _Table:
    """What one language serves; replaced as a whole, never changed."""

    traffic: tuple[tuple[LoadedModel, float], ...] = ()
    by_digest: Mapping[str, LoadedModel] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    def pick(self, turn: float) -> LoadedModel:
        """The model for a point in [0, 1)."""
        reached = list(itertools.accumulate(share for _, share in self.traffic))
        return self.traffic[min(bisect.bisect_right(reached, turn * reached[-1]), len(reached) - 1)][0]


class Models:
    """All models of a replica.

    Args:
        folder: where the release document and the reports are.
        replica: this replica's name, unique among those that share the folder.
        url: where this replica is reached by a roll-out's probes.
        workers: requests transcribed at the same time.
        threads: threads of one recognition.
        on_change: called after the tables changed, with all loaded models.
    """

    def __init__(
        self,
        folder: ReleaseFolder,
        replica: str,
        url: str,
        workers: int = 2,
        threads: int = 1,
        on_change: Callable[[tuple[LoadedModel, ...]], None] | None = None,
    ) -> None:
        self._folder = folder
        self._replica = replica
        self._url = url
        self._workers = workers
        self._threads = threads
        self._on_change = on_change
        self._lock = threading.Lock()
        self._tables: dict[str, _Table] = {}
        self._held: dict[tuple[str, str], LoadedModel] = {}  # (language, digest) of all in memory, draining ones too
        self._loading: dict[tuple[str, str], str] = {}
        self._trials: dict[str, tuple[str, float]] = {}  # language -> the attempt on trial, and when that is over
        self._turn = random.random()
        self._revision = -1
        self._content = ""
        self._followed = ReleaseDocument()
        self._error = ""
        self._seen: tuple[int, int, int] | None = None
        self._retry_at = float("inf")
        self._started_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._stop = threading.Event()
        self._reporting = threading.Lock()
        self._followers: list[threading.Thread] = []

    def start(self) -> None:
        """Follow the document in the background and report."""
        for name, loop in (("follow-release", self._follow), ("heartbeat", self._beat)):
            thread = threading.Thread(target=loop, name=name, daemon=True)
            thread.start()
            self._followers.append(thread)

    def stop(self) -> None:
        """End following and remove this replica's report."""
        self._stop.set()
        for thread in self._followers:
            thread.join(timeout=5)
        with self._reporting:
            self._folder.forget(self._replica)

    def languages(self) -> tuple[str, ...]:
        """Languages with a bundle that gets traffic."""
        with self._lock:
            return tuple(sorted(language for language, table in self._tables.items() if table.traffic))

    def loaded(self) -> tuple[LoadedModel, ...]:
        """All models that requests can reach."""
        with self._lock:
            return tuple(model for _, table in sorted(self._tables.items()) for model in table.by_digest.values())

    @contextmanager
    def lease(
        self, language: str, digest: str | None = None, *, instead_of: LoadedModel | None = None
    ) -> Iterator[LoadedModel]:
        """The model for one request: by its share of the traffic, or exactly the one asked for.

        Shares are kept to within a request or two by walking [0, 1) in steps of the golden ratio, an equidistributed
        sequence: no client always meets the same version, whatever the rhythm of its requests.

        Args:
            instead_of: a model that failed on the request; the one with the largest share answers in its place.

        Raises:
            NoModel: nothing serves the language, or not with that digest, or nothing else than what failed.
        """
        with self._lock:
            self._turn = (self._turn + GOLDEN_RATIO) % 1.0
            model = self._choose(language, digest) if instead_of is None else self._other(language, instead_of)
            model.leases += 1
        try:
            yield model
        finally:
            with self._lock:
                model.leases -= 1
                self._drop_unused()

    def count(self, model: LoadedModel, seconds: float | None, *, empty: bool = False) -> None:
        """Note how a model answered a request that was routed to it; None: not at all."""
        with self._lock:
            model.figures = model.figures.counting(seconds, empty=empty)

    def require(self, language: str, digest: str | None = None) -> None:
        """Raise NoModel when a lease would not be granted."""
        with self._lock:
            self._choose(language, digest)

    def report(self) -> ReplicaReport:
        """What this replica really runs."""
        with self._lock:
            languages = {}
            for language in sorted({*self._tables, *(at for at, _ in self._held), *(at for at, _ in self._loading)}):
                table = self._tables.get(language, _Table())
                held = {digest: model for (at, digest), model in sorted(self._held.items()) if at == language}
                active = {model.digest: share for model, share in table.traffic}
                languages[language] = LanguageReport(
                    active=active,
                    loaded=tuple(sorted(table.by_digest)),
                    draining=tuple(digest for digest, model in held.items() if model.leases and digest not in active),
                    loading={digest: stage for (at, digest), stage in self._loading.items() if at == language},
                    errors=dict(table.errors),
                    versions={digest: model.route.version for digest, model in held.items()},
                    figures={digest: model.figures for digest, model in held.items()},
                    routes=tuple(replace(m.route, share=active.get(d, 0.0)) for d, m in table.by_digest.items()),
                )
            return ReplicaReport(
                self._replica,
                self._url,
                self._revision,
                time.time(),
                languages,
                self._started_at,
                self._error,
                self._content,
            )

    def refresh(self) -> bool:
        """Look at the document once and do what it says; returns whether anything was done."""
        seen = self._signature()
        if self._revision >= 0 and seen == self._seen and time.monotonic() < self._retry_at:
            return False
        try:
            document = self._read()
        except ReleaseDocumentError as error:
            log.error("the release document is not followed: %s", error)
            if self._followed.revision > 0:  # a trial ends all the same, and what could not be loaded is tried again
                self._apply(self._followed)
            self._error = str(error)
            self._seen, self._retry_at = seen, min(self._retry_at, time.monotonic() + RETRY_S)
            return True
        self._error = self._apply(document)
        self._followed, self._seen = document, seen
        return True

    def _read(self) -> ReleaseDocument:
        """The document, which must be the one that is followed or a later one.

        Raises:
            ReleaseDocumentError: it is not, or cannot be read.
        """
        followed = self._followed
        document = self._folder.read(expected=followed.revision > 0)
        if followed.revision > 0 and not document.succeeds(followed.revision, followed.content):
            raise ReleaseDocumentError(
                f"{self._folder.document} has revision {document.revision} and is neither revision "
                f"{followed.revision}, which is followed, nor a later one: it was edited or put back; launch "
                "`serving_release`, which writes it again as the replicas run it"
            )
        return document

    def _apply(self, document: ReleaseDocument) -> str:
        """Follow a document; returns what it has to wait for, or nothing."""
        again: list[float] = []
        waiting: list[str] = []
        tables: dict[str, _Table] = {}
        for language, asked in document.languages.items():
            release = self._on_trial(language, asked)
            if reason := self._too_many(language, release):
                waiting.append(reason)
                tables[language] = self._tables.get(language, _Table())
                again.append(time.monotonic() + POLL_S)
                continue
            tables[language] = table = self._table(language, release)
            for digest, error in table.errors.items():
                again.append(time.monotonic() + RETRY_S)
                log.error("bundle %s for '%s' is not served: %s", digest[:12], language, error)
        self._trials = {language: trial for language, trial in self._trials.items() if language in document.languages}
        again += [ends for _, ends in self._trials.values() if ends > time.monotonic()]
        with self._lock:
            if tables != self._tables:
                log.info("revision %d: %s", document.revision, _summary(tables))
            self._tables = tables
            self._held.update(
                ((language, digest), model)
                for language, table in tables.items()
                for digest, model in table.by_digest.items()
            )
            self._drop_unused()
            if not waiting:
                self._revision, self._content = document.revision, document.content
            self._retry_at = min(again, default=float("inf"))
        if self._on_change:
            self._on_change(self.loaded())
        return "; ".join(waiting)

    def _on_trial(self, language: str, release: LanguageRelease) -> LanguageRelease:
        """The release as it holds now: one whose trial is over is as it was before, with the candidate loaded."""
        if release.trial_s is None:
            self._trials.pop(language, None)
            return release
        attempt, ends = self._trials.get(language, ("", 0.0))
        if attempt != release.release:
            ends = time.monotonic() + release.trial_s
            self._trials[language] = (release.release, ends)
        if time.monotonic() < ends:
            return release
        log.error("the trial in '%s' is over and nobody ended it: the traffic goes back to what was before", language)
        former = {route.digest for route in release.previous}
        candidate = tuple(replace(route, share=0.0) for route in release.routes if route.digest not in former)
        return replace(release, routes=(*release.previous, *candidate))

    def _too_many(self, language: str, release: LanguageRelease) -> str:
        """Why a bundle cannot be loaded yet: others that were taken out still have requests; or nothing.

        Lets go of what the release no longer names and what nobody uses, before anything is loaded.
        """
        wanted = {route.digest for route in release.routes}
        coming = {route.digest for route in release.routes if self._loaded_as(language, route) is None}
        with self._lock:
            table = self._tables.get(language, _Table())
            serving = {model.digest for model, _ in table.traffic}
            if coming:
                kept = {digest: model for digest, model in table.by_digest.items() if digest in wanted | serving}
                self._tables[language] = replace(table, by_digest=kept)
                self._drop_unused()
            held = {digest for at, digest in self._held if at == language}
            leaving = held - wanted - serving
            if not coming or not leaving or len(held | coming) <= MOST_BUNDLES:
                return ""
        return (
            f"waits with loading {', '.join(sorted(d[:12] for d in coming))} for '{language}' until the requests on "
            f"{', '.join(sorted(d[:12] for d in leaving))} have ended"
        )

    def _loaded_as(self, language: str, route: Route) -> LoadedModel | None:
        held = self._held.get((language, route.digest))
        same = held is not None and (held.route.model, held.route.version) == (route.model, route.version)
        return held if same else None

    def _table(self, language: str, release: LanguageRelease) -> _Table:
        """What a language shall serve; the traffic stays with the former bundles when a new one cannot be loaded."""
        former = self._tables.get(language, _Table())
        by_digest: dict[str, LoadedModel] = {}
        errors: dict[str, str] = {}
        for route in release.routes:
            held = self._loaded_as(language, route)
            try:
                by_digest[route.digest] = held or self._load(language, route)
            except Exception as error:  # whatever it is, the replica goes on serving what it has
                errors[route.digest] = str(error) or type(error).__name__
        if any(route.digest in errors for route in release.serving) and former.traffic:
            traffic = former.traffic
            by_digest.update((model.digest, model) for model, _ in traffic)
        else:
            traffic = tuple((by_digest[r.digest], r.share) for r in release.serving if r.digest in by_digest)
        return _Table(traffic, by_digest, errors)

    def _load(self, language: str, route: Route) -> LoadedModel:
        key = (language, route.digest)

        def entering(stage: str) -> None:
            with self._lock:
                self._loading[key] = stage
            with suppress(OSError):  # whoever waits for it sees the next report
                self._write_report()

        try:
            return LoadedModel.load(route, language, self._folder, self._workers, self._threads, entering)
        finally:
            with self._lock:
                self._loading.pop(key, None)

    def _choose(self, language: str, digest: str | None) -> LoadedModel:
        table = self._tables.get(language, _Table())
        if digest is not None:
            model = table.by_digest.get(digest)
            if model is None:
                raise NoModel(f"bundle '{digest[:64]}' is not loaded for '{language}'", known=bool(table.traffic))
            return model
        if not table.traffic:
            why = "; ".join(table.errors.values())
            raise NoModel(f"no model serves '{language}'" + (f": {why}" if why else ""), known=bool(why))
        return table.pick(self._turn)

    def _other(self, language: str, failed: LoadedModel) -> LoadedModel:
        """What answers in place of a canary that failed."""
        traffic = self._tables.get(language, _Table()).traffic
        share = sum(share for model, share in traffic if model is failed)
        model, largest = max(traffic, key=lambda entry: entry[1], default=(failed, 0.0))
        if model is failed or largest <= share:
            raise NoModel(f"no other model serves '{language}'", known=True)
        return model

    def _drop_unused(self) -> None:
        """Let go of bundles that are in no table and have no request; the caller holds the lock."""
        used = {(language, digest) for language, table in self._tables.items() for digest in table.by_digest}
        for key in [key for key, model in self._held.items() if key not in used and model.leases == 0]:
            del self._held[key]

    def _signature(self) -> tuple[int, int, int] | None:
        with suppress(OSError):
            status = self._folder.document.stat()
            return status.st_mtime_ns, status.st_ino, status.st_size
        return None

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                if self.refresh():
                    self._write_report()
            except Exception:  # a full disk must not end the following
                log.exception("following the release document failed; trying again")
            self._stop.wait(POLL_S)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                self._write_report()
            except Exception:
                log.exception("the replica's report was not written; trying again")

    def _write_report(self) -> None:
        with self._reporting:
            if not self._stop.is_set():
                self._folder.report(self.report())


def _summary(tables: Mapping[str, _Table]) -> str:
    parts = []
    for language, table in sorted(tables.items()):
        routes = [f"{model.digest[:12]} x {share:g}" for model, share in table.traffic]
        routes += [f"{d[:12]} on request" for d in table.by_digest if d not in {m.digest for m, _ in table.traffic}]
        parts.append(f"{language}: {', '.join(routes) or 'nothing'}")
    return "; ".join(parts) or "nothing is released"
