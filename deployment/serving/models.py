"""The models of one replica: loaded, switched and let go as the release document says.

A thread looks at the document twice a second. What it names is verified byte by byte against its digest, opened and
warmed before any request sees it; then the table of routes is replaced in one step. A request holds a lease on its
bundle, so the old one stays until the last request on it has ended. What cannot be loaded is reported and tried again,
and what was served before goes on being served: a bad release never takes a language down.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from deployment.rollout import (
    LanguageReport,
    ReleaseDocument,
    ReleaseDocumentError,
    ReleaseFolder,
    ReplicaReport,
    Route,
)
from speech.bundle import BundleError, ModelBundle
from speech.recognition import Recognizer

POLL_S = 0.5
HEARTBEAT_S = 1.0
RETRY_S = 5.0  # a bundle that could not be loaded may still be on its way to this host

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

    @classmethod
    def load(cls, route: Route, language: str, folder: ReleaseFolder, workers: int, threads: int) -> "LoadedModel":
        """Verify and open a route's bundle.

        Raises:
            BundleError: it is not the bundle that the document names, or not for this language.
        """
        if "://" in route.bundle:
            raise BundleError(f"{route.bundle}: a replica reads bundles from a folder; mount or copy it there")
        bundle = ModelBundle.load(folder.resolve(route), route.digest)
        if bundle.language != language:
            raise BundleError(f"{bundle.path}: the bundle is for '{bundle.language}', not for '{language}'")
        idle: queue.SimpleQueue[Recognizer] = queue.SimpleQueue()
        for _ in range(workers):
            idle.put(Recognizer(bundle, threads=threads))
        return cls(route, language, bundle, idle)

    @property
    def digest(self) -> str:
        """The bundle's digest."""
        return self.bundle.digest

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

    def pick(self) -> LoadedModel:
        models, shares = zip(*self.traffic, strict=True)
        return random.choices(models, shares)[0]


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
        self._revision = -1
        self._error = ""
        self._seen: tuple[int, int, int] | None = None
        self._retry_at = float("inf")
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
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
    def lease(self, language: str, digest: str | None = None) -> Iterator[LoadedModel]:
        """The model for one request: by its share of the traffic, or exactly the one asked for.

        Raises:
            NoModel: nothing serves the language, or not with that digest.
        """
        with self._lock:
            model = self._choose(language, digest)
            model.leases += 1
        try:
            yield model
        finally:
            with self._lock:
                model.leases -= 1
                self._drop_unused()

    def require(self, language: str, digest: str | None = None) -> None:
        """Raise NoModel when a lease would not be granted."""
        with self._lock:
            self._choose(language, digest)

    def report(self) -> ReplicaReport:
        """What this replica really runs."""
        with self._lock:
            languages = {}
            for language in sorted({*self._tables, *(language for language, _ in self._held)}):
                table = self._tables.get(language, _Table())
                languages[language] = LanguageReport(
                    active={model.digest: share for model, share in table.traffic},
                    loaded=tuple(sorted(table.by_digest)),
                    draining=tuple(sorted(d for at, d in self._held if at == language and d not in table.by_digest)),
                    errors=dict(table.errors),
                )
            return ReplicaReport(
                self._replica, self._url, self._revision, time.time(), languages, self._started_at, self._error
            )

    def refresh(self) -> bool:
        """Look at the document once and do what it says; returns whether anything was done."""
        seen = self._signature()
        if self._revision >= 0 and seen == self._seen and time.monotonic() < self._retry_at:
            return False
        try:
            document = self._folder.read()
        except ReleaseDocumentError as error:
            self._error = str(error)
            self._seen, self._retry_at = seen, time.monotonic() + RETRY_S
            log.error("the release document is not followed: %s", error)
            return True
        self._apply(document)
        self._seen, self._error = seen, ""
        return True

    def _apply(self, document: ReleaseDocument) -> None:
        tables = {language: self._table(language, document) for language in document.languages}
        failed = False
        for language, table in tables.items():
            for digest, error in table.errors.items():
                failed = True
                log.error("bundle %s for '%s' is not served: %s", digest[:12], language, error)
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
            self._revision = document.revision
            self._retry_at = time.monotonic() + RETRY_S if failed else float("inf")
        if self._on_change:
            self._on_change(self.loaded())

    def _table(self, language: str, document: ReleaseDocument) -> _Table:
        """What a language shall serve; the traffic stays with the former bundles when a new one cannot be loaded."""
        former = self._tables.get(language, _Table())
        by_digest: dict[str, LoadedModel] = {}
        errors: dict[str, str] = {}
        for route in document.languages[language].routes:
            held = self._held.get((language, route.digest))
            if held is not None and (held.route.model, held.route.version) == (route.model, route.version):
                by_digest[route.digest] = held
                continue
            try:
                by_digest[route.digest] = LoadedModel.load(route, language, self._folder, self._workers, self._threads)
            except Exception as error:  # whatever it is, the replica goes on serving what it has
                errors[route.digest] = str(error) or type(error).__name__
        serving = document.languages[language].serving
        if any(route.digest in errors for route in serving) and former.traffic:
            traffic = former.traffic
            by_digest.update((model.digest, model) for model, _ in traffic)
        else:
            traffic = tuple((by_digest[r.digest], r.share) for r in serving if r.digest in by_digest)
        return _Table(traffic, by_digest, errors)

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
        return table.pick()

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
