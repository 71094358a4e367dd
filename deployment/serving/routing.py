"""Which bundle a request gets: by its share of the traffic, or by its digest, and held until the request has ended.

A request holds a lease on its bundle, so one that is taken out stays until the last request on it has ended. What a
language serves is one table, which `serving.following` replaces as a whole.
"""

import bisect
import itertools
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from deployment.registry.shelf import Shelf
from deployment.release.canary import Figures
from deployment.release.document import Route
from deployment.serving.approval import require_approved
from speech.bundle import BundleError, ModelBundle
from speech.recognition.offline import Recognizer
from speech.store.objects import Objects

WARM_S = 2.0  # seconds of noise that a recogniser hears before its first request
GOLDEN_RATIO = (5**0.5 - 1) / 2


class NoModel(Exception):
    """There is no bundle to serve a request with; `known` tells whether the language is served at all."""

    def __init__(self, message: str, *, known: bool) -> None:
        super().__init__(message)
        self.known = known


@dataclass(eq=False)
class LoadedModel:
    """A bundle ready to serve: verified, opened once for all threads, warmed."""

    route: Route
    language: str
    bundle: ModelBundle
    recognizer: Recognizer = field(repr=False)
    leases: int = 0
    figures: Figures = field(default_factory=Figures)  # of the traffic that was routed here

    @classmethod
    def load(
        cls,
        route: Route,
        language: str,
        objects: Objects,
        threads: int,
        entering: Callable[[str], None] = lambda stage: None,
        ledger_key: bytes | None = None,
    ) -> "LoadedModel":
        """Verify, open and warm a route's bundle; `entering` is told `verify`, `load` and `warm`.

        Raises:
            NotApproved: nobody put this bundle into production, or its verdict does not let it pass.
            BundleError: it is not in the data store as the document names it, or not for this language.
        """
        entering("verify")
        require_approved(objects, language, route.digest, ledger_key)
        bundle = Shelf(objects).load(route.digest)
        if bundle.language != language:
            raise BundleError(f"{bundle.path}: the bundle is for '{bundle.language}', not for '{language}'")
        entering("load")
        recognizer = Recognizer(bundle, threads=threads)
        entering("warm")
        noise = np.random.default_rng(0).normal(0, 0.01, round(WARM_S * bundle.sample_rate)).astype(np.float32)
        try:
            recognizer.transcribe(noise)
        except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
            raise BundleError(f"{bundle.path}: the network fails on {WARM_S:g} s of noise ({error})") from error
        return cls(route, language, bundle, recognizer)

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

    def answers_for(self, route: Route) -> bool:
        """Whether it is the bundle of a route, under the name that the route gives it."""
        mine = self.route
        return (mine.digest, mine.model, mine.version) == (route.digest, route.model, route.version)


@dataclass(frozen=True)
class Table:
    """What one language serves; replaced as a whole, never changed."""

    traffic: tuple[tuple[LoadedModel, float], ...] = ()
    by_digest: Mapping[str, LoadedModel] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)

    def pick(self, turn: float) -> LoadedModel:
        """The model for a point in [0, 1)."""
        reached = list(itertools.accumulate(share for _, share in self.traffic))
        return self.traffic[min(bisect.bisect_right(reached, turn * reached[-1]), len(reached) - 1)][0]


class Routes:
    """The tables of all languages, and who holds what; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tables: dict[str, Table] = {}
        self._held: dict[tuple[str, str], LoadedModel] = {}  # (language, digest) of all in memory, draining ones too
        self._turn = random.random()

    def languages(self) -> tuple[str, ...]:
        """Languages with a bundle that gets traffic."""
        with self._lock:
            return tuple(sorted(language for language, table in self._tables.items() if table.traffic))

    def loaded(self) -> tuple[LoadedModel, ...]:
        """All models that requests can reach."""
        with self._lock:
            return tuple(model for _, table in sorted(self._tables.items()) for model in table.by_digest.values())

    def tables(self) -> dict[str, Table]:
        """What each language serves."""
        with self._lock:
            return dict(self._tables)

    def held(self, language: str) -> dict[str, LoadedModel]:
        """All bundles of a language in memory, by digest: those in the table, and those whose requests go on."""
        with self._lock:
            return {digest: model for (at, digest), model in sorted(self._held.items()) if at == language}

    def replace(self, language: str, table: Table) -> None:
        """Serve a language by this table from now on."""
        with self._lock:
            self._tables[language] = table
            self._held.update(((language, digest), model) for digest, model in table.by_digest.items())
            self._drop_unused()

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

    def _choose(self, language: str, digest: str | None) -> LoadedModel:
        table = self._tables.get(language, Table())
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
        traffic = self._tables.get(language, Table()).traffic
        share = sum(share for model, share in traffic if model is failed)
        model, largest = max(traffic, key=lambda entry: entry[1], default=(failed, 0.0))
        if model is failed or largest <= share:
            raise NoModel(f"no other model serves '{language}'", known=True)
        return model

    def _drop_unused(self) -> None:
        """Let go of bundles that are in no table and have no request; the caller holds the lock."""
        used = {id(model) for table in self._tables.values() for model in table.by_digest.values()}
        self._held = {key: model for key, model in self._held.items() if id(model) in used or model.leases}
