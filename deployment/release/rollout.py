"""The roll-out: a state machine that gives a language's traffic to a new bundle, or leaves it where it was.

verify -> load -> warm -> probe -> canary -> full -> drained. `roll_out` verifies the bundle's digest and hears real
recordings with it here; puts it into the release document with share 0, so that every live replica loads and warms it;
asks each over HTTP for the same recordings (`deployment.release.probes`); gives it a share of the traffic and compares
its figures with the old version's (`deployment.release.trial`); gives it all; and waits until the old version's last
requests have ended. Whatever goes wrong on the way puts the former document back: `returned`, or `refused` when nothing
had been changed. Every step is in the history. The same holds for one process on a laptop and for many hosts that share
a data store.

The old version stays loaded in every replica as the standby. Going back to it is therefore quick, and skips the canary:
it has carried all the traffic before, and who goes back has no time. It is verified and probed like any other.

A roll-out that is killed leaves a bundle with share 0, or with its canary share, which replicas take back by themselves
when the trial's time is over. The next roll-out begins by returning from it, with a line in the history, and then
starts from the beginning. Two roll-outs of a language at once wait for each other (`deployment.release.turns`); one
that is not yet complete gives way to another bundle's, so that a rollback does not wait for a canary. One that slept
while another took over cannot write any more, and ends.

Not covered: a replica that starts after the probes is not probed itself; it verifies digests, warms the model, and
reports, and what it cannot load it does not serve.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from deployment.registry.shelf import Shelf
from deployment.release.canary import Canary, Figures
from deployment.release.document import (
    UNDER_WAY,
    LanguageRelease,
    ReleaseDocument,
    ReleaseDocumentError,
    Route,
    State,
)
from deployment.release.folder import LostTurn, ReleaseFolder
from deployment.release.history import Transition, utc_now
from deployment.release.life import POLL_S, Replicas, Tier, silence
from deployment.release.probes import ProbeResult, Probes, Unfit
from deployment.release.reports import LanguageReport, ReplicaReport
from deployment.release.trial import Trial
from deployment.release.turns import ReleaseBusy, Turn
from speech.store.objects import Objects, StoreError

PROBE_LATENCY_S = 10.0  # beyond this a first answer is a fault and not a slow machine
DRAIN_S = 30.0  # longest wait for requests on the old version; they are finished in any case
RETURN_S = 5.0  # longest wait until replicas say that they have gone back
TRIAL_MARGIN_S = 15.0  # how much longer than its canary a killed roll-out's share may last


class RolloutFailed(Exception):
    """A roll-out did not come through; the document is again what it was before.

    `transitions` are its steps, the last of which is `refused` or `returned`.
    """

    def __init__(self, message: str, transitions: tuple[Transition, ...] = ()) -> None:
        super().__init__(message)
        self.transitions = transitions


@dataclass(frozen=True)
class RolloutResult:
    """A roll-out that came through; `changed` is False when the bundle was being served already."""

    changed: bool
    replicas: tuple[str, ...]
    probes: tuple[ProbeResult, ...]
    previous: tuple[str, ...]
    seconds: float
    transitions: tuple[Transition, ...] = ()


def roll_out(
    store: ReleaseFolder | Objects,
    language: str,
    digest: str,
    golden: Sequence[Path],
    timeout_s: float = 60.0,
    *,
    model: str = "",
    version: str = "",
    canary: Canary | None = None,
    allow_no_replica: bool = False,
    latency_limit_s: float = PROBE_LATENCY_S,
    drain_s: float = DRAIN_S,
    superseded: Callable[[], str | None] = lambda: None,
) -> RolloutResult:
    """Give a language's traffic to a bundle, after every live replica has proved that it can serve it.

    Args:
        store: the data store, which holds `release/` and `bundles/`.
        digest: what the registry says the bundle's digest is.
        golden: recordings that every replica must answer with the bundle's own offline text.
        timeout_s: for another release to end, for loading, for warming, and again for switching.
        canary: the trial on a share of the traffic; None, a language's first version and its standby go without.
        allow_no_replica: with no live replica, prove the bundle in this process and leave the document for servers
            that start later.
        drain_s: longest wait for requests that began on the old version; none is cut off when it is over.
        superseded: says why the bundle may not be released any more (None: it may). Asked once nobody else releases the
            language, and again before it gets all the traffic: a decision that fell meanwhile must not be undone by a
            release that took longer.

    Raises:
        RolloutFailed: the document is again what it was before; the message says what went wrong.
    """
    folder = store if isinstance(store, ReleaseFolder) else ReleaseFolder(store)
    turn = Turn(folder.objects, language, digest)
    try:
        with turn.taken(timeout_s), Probes(language, golden, latency_limit_s) as probes:
            rollout = _Rollout(folder, turn, probes, Route(digest, 1.0, version, model), timeout_s, superseded)
            return rollout.run(canary, allow_no_replica, drain_s)
    except (ReleaseBusy, LostTurn, ReleaseDocumentError, StoreError) as error:
        raise RolloutFailed(str(error)) from error


@dataclass
class _Rollout:
    """One roll-out, from the first check to the switch or back."""

    folder: ReleaseFolder
    turn: Turn
    probes: Probes
    route: Route  # with all the traffic
    timeout_s: float
    superseded: Callable[[], str | None]
    replicas: Replicas = field(init=False)
    document: ReleaseDocument = field(init=False)  # as this attempt read or wrote it last
    before: LanguageRelease | None = None  # what is served where this attempt changes nothing
    written: bool = False
    figures: tuple[Figures, Figures] = (Figures(), Figures())  # of it and of the old version, for the next step
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    began: float = field(default_factory=time.monotonic)
    steps: list[Transition] = field(default_factory=list)

    def run(self, canary: Canary | None, allow_no_replica: bool, drain_s: float) -> RolloutResult:
        self.replicas = Replicas(self.folder)
        self.document = self.folder.usable()
        self._return_from_a_killed_one()
        tier = self.replicas.settled()
        self.before = self._served_before(tier.live)
        previous = self.before.serving if self.before else ()
        changed = previous != (self.route,) or self._entry is None
        live, probed = bool(tier.live), tuple[ProbeResult, ...]()
        try:
            self._require_current()
            self._enter("verify")
            self.probes.hear(Shelf(self.folder.objects), self.route.digest)
            unheard = self._unheard(tier, allow_no_replica)
            if live:
                probed = self._load_and_probe()
            why = self._why_no_canary(changed, live, canary)
            if why is None and canary is not None:
                self._canary(canary)
                why = "the canary passed"
            self._require_current()
            if changed:
                self._write(self._served())
            if live:
                self._wait("switch to it", lambda report: dict(report.active) == {self.route.digest: 1.0})
            self._enter("full", 1.0, "; ".join(filter(None, (why, unheard))))
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self._go_back(reason, wait=isinstance(error, Exception))
            if not isinstance(error, Exception):
                raise
            raise RolloutFailed(
                f"bundle {self.route.digest[:12]} for '{self.turn.language}' was not released: {reason}",
                tuple(self.steps),
            ) from error
        if changed and live:
            self._drain(drain_s)  # from here on nothing goes back, not even when this run is cancelled
        return RolloutResult(
            changed=changed,
            replicas=tuple(report.replica for report in self.replicas.live()),
            probes=probed,
            previous=tuple(other.digest for other in previous),
            seconds=round(time.monotonic() - self.began, 3),
            transitions=tuple(self.steps),
        )

    # --- what is written ----------------------------------------------------------------------------------------------

    @property
    def _entry(self) -> LanguageRelease | None:
        return self.document.languages.get(self.turn.language)

    def _enter(self, state: State, share: float = 0.0, reason: str = "") -> None:
        """Record a step of this attempt, with the figures that led to it."""
        figures, against = (figures.summary() for figures in self.figures)
        self.figures = (Figures(), Figures())
        step = self._step(self.name, state, self.route, share, reason)
        self.steps.append(replace(step, figures=figures, against=against))
        self.folder.record(self.steps[-1])

    def _step(self, rollout: str, state: State, route: Route, share: float, reason: str) -> Transition:
        return Transition(
            time=utc_now(),
            rollout=rollout,
            language=self.turn.language,
            state=state,
            digest=route.digest,
            model=route.model,
            version=route.version,
            share=share,
            seconds=round(time.monotonic() - self.began, 3),
            replicas=tuple(report.replica for report in self.replicas.live()),
            reason=reason,
        )

    def _write(self, release: LanguageRelease) -> None:
        self.written = True
        release = replace(release, rollout=self.name)
        self.document = self.folder.set_language(self.turn.language, release, self.document)

    def _under_way(self, state: State, share: float, trial_s: float | None = None) -> LanguageRelease:
        """The document with the candidate beside what was there."""
        former = self.before.routes if self.before else ()
        kept = [replace(r, share=r.share * (1 - share)) for r in former if r.digest != self.route.digest]
        routes = (*kept, replace(self.route, share=share))
        return LanguageRelease(routes, state, former, candidate=self.route.digest, trial_s=trial_s)

    def _served(self) -> LanguageRelease:
        """The document of a release that came through: the bundle, and as standby what was served before it."""
        served, standby = (self.before.serving, self.before.standby) if self.before else ((), ())
        older = [replace(r, share=0.0) for r in (*served, *standby) if r.digest != self.route.digest]
        return LanguageRelease((self.route, *older[:1]), "full", served)

    def _served_before(self, live: Sequence[ReplicaReport]) -> LanguageRelease | None:
        """What the document says is served, without what a killed roll-out of this bundle had loaded.

        Where it does not name the language: what replicas serve; a trial's larger share counts as all of it.
        """
        if self._entry is not None:
            routes = (*self._entry.serving, *self._entry.standby)
            return replace(self._entry, routes=routes, candidate="", trial_s=None)
        found = [route for replica in live for route in self._report_of(replica).routes]
        served = max(found, key=lambda route: route.share, default=None)
        return LanguageRelease((replace(served, share=1.0),)) if served and served.share > 0 else None

    def _return_from_a_killed_one(self) -> None:
        """Undo what a roll-out left that was killed in the middle; what it had loaded for this bundle stays loaded."""
        left = self._entry
        if left is None or left.state not in UNDER_WAY:
            return
        digest = self.route.digest
        mine = left.candidate == digest and digest not in {route.digest for route in left.previous}
        kept = [replace(route, share=0.0) for route in left.routes if mine and route.digest == digest]
        self._write(LanguageRelease((*left.previous, *kept), "returned", candidate=digest if kept else ""))
        self.written = False
        candidate = next((r for r in left.routes if r.digest == left.candidate), Route(left.candidate, 0.0))
        reason = f"the process that released it ended in the middle of '{left.state}'; found by roll-out {self.name}"
        self.folder.record(replace(self._step(left.rollout, "returned", candidate, 0.0, reason), seconds=0.0))

    def _go_back(self, reason: str, *, wait: bool) -> None:
        """Put the former document back; replicas have that bundle loaded, so they follow within a second."""
        if not self.written:
            self._enter("refused", 0.0, reason)
            return
        with suppress(LostTurn):  # whoever took over has returned from this one
            self._write(replace(self.before or LanguageRelease(()), state="returned"))
            served = self.before is not None and self.route.digest in {route.digest for route in self.before.serving}
            deadline = time.monotonic() + RETURN_S
            while wait and time.monotonic() < deadline:
                live = self.replicas.live()
                still = [r for r in live if not served and self.route.digest in self._report_of(r).active]
                if not still and all(r.revision >= self.document.revision for r in live):
                    break
                time.sleep(POLL_S)
        self._enter("returned", 0.0, reason)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def _require_current(self) -> None:
        if reason := self.superseded():
            raise Unfit(reason)

    def _unheard(self, tier: Tier, allow_no_replica: bool) -> str:
        """What to say of replicas that neither answer nor have ended; with no other, they stop the release."""
        unheard = silence(tier.silent)
        if not tier.live and unheard:
            raise Unfit(f"{unheard}; then release again")
        if not tier.live and not allow_no_replica:
            raise Unfit(
                f"no replica of the serving tier is alive (it would report in {self.folder.objects.home}): start one "
                "with `soundstage serve`, or allow a release without replicas"
            )
        return unheard

    def _load_and_probe(self) -> tuple[ProbeResult, ...]:
        """Have every replica load the bundle, unless it has, and ask each for all recordings."""
        known = {replace(other, share=1.0) for other in self._entry.routes} if self._entry else set()
        if self.route not in known or not self._loaded():
            self._load()
        self._enter("probe")
        places = range(len(self.probes.golden))
        probed = tuple(
            self.probes.prove(replica, place, self.route.digest) for replica in self.replicas.live() for place in places
        )
        if not probed:
            raise Unfit("no replica is alive any more to be probed")
        self.figures = sum((Figures().counting(probe.latency_s) for probe in probed), Figures()), Figures()
        return probed

    def _loaded(self) -> bool:
        return all(self.route.digest in self._report_of(replica).loaded for replica in self.replicas.live())

    def _load(self) -> None:
        digest = self.route.digest
        if self.before and any(other.digest == digest for other in self.before.serving):
            if self._loaded():
                return  # it serves; only its name changes, with the switch
            # the new revision has replicas try at once what they could not load when they started
            routes = (replace(self.route, share=r.share) if r.digest == digest else r for r in self.before.routes)
            self._write(replace(self.before, routes=tuple(routes)))
        else:
            self._write(self._under_way("load", 0.0))
        self._enter("load")
        self._wait(
            "load it",
            lambda report: digest in report.loaded or report.loading.get(digest) == "warm",
            still_loading=True,
        )
        self._enter("warm")
        self._wait("warm it", lambda report: digest in report.loaded)

    def _why_no_canary(self, changed: bool, live: bool, canary: Canary | None) -> str | None:
        """Why the trial is left out, as the history will say; None when it is not."""
        if not changed:
            return "it was served already"
        if not live:
            return "no replica runs yet; the first one that starts verifies and serves it"
        if self.before is None or not self.before.serving:
            return "the language's first version, so there is nothing to compare it with"
        if any(route.digest == self.route.digest for route in self.before.serving):
            return "the same bundle under another name"
        if any(route.digest == self.route.digest for route in self.before.standby):
            return "it was on standby: it has served all requests before, so no canary"
        return "without a canary" if canary is None or canary.share <= 0 else None

    def _canary(self, canary: Canary) -> None:
        """Give it a share of the traffic, and compare."""
        assert self.before is not None
        digest, longest_s = self.route.digest, canary.seconds + self.timeout_s
        self._write(self._under_way("canary", canary.share, longest_s + TRIAL_MARGIN_S))
        self._enter("canary", canary.share)
        self._wait("take its share", lambda report: report.active.get(digest, 0) > 0)
        old = max(self.before.serving, key=lambda other: other.share).digest
        trial = Trial(canary, self.probes, self.replicas, digest, old)
        try:
            trial.run(longest_s, self._require_trial)
        finally:
            self.figures = trial.figures(digest), trial.figures(old)

    def _require_trial(self) -> None:
        """End a trial that another bundle's release waits for, or whose replicas are all gone or cannot serve it."""
        self._give_way()
        live = self.replicas.live()
        if not live:
            raise Unfit("in its canary, no replica is alive any more")
        for replica in live:
            self._require_no_error(replica, "load it")

    def _require_no_error(self, replica: ReplicaReport, what: str) -> None:
        error = self._report_of(replica).errors.get(self.route.digest)
        if error and replica.revision >= self.document.revision:
            raise Unfit(f"replica {replica.replica} cannot {what}: {error}")

    def _drain(self, drain_s: float) -> None:
        """Wait until no request is under way on another version; a release that waits is not kept waiting."""
        deadline = time.monotonic() + drain_s
        while any(set(self._report_of(replica).draining) - {self.route.digest} for replica in self.replicas.live()):
            if time.monotonic() > deadline or self.turn.waiting() is not None:
                return  # `full` stays the last word; the requests are finished and the replicas let go by themselves
            time.sleep(POLL_S)
        standby = [route.title for route in self._entry.standby] if self._entry else []
        self._enter("drained", 1.0, f"{', '.join(standby)} stays warm on standby" if standby else "")

    def _give_way(self) -> None:
        if self.turn.lost:
            raise LostTurn("another release took its turn: this one said nothing for too long")
        other = self.turn.waiting()
        if other is not None and other != self.route.digest:
            raise Unfit(f"it gave way to the release of bundle {other[:12]}")

    def _report_of(self, replica: ReplicaReport) -> LanguageReport:
        return replica.languages.get(self.turn.language, LanguageReport())

    def _wait(self, what: str, done: Callable[[LanguageReport], bool], *, still_loading: bool = False) -> None:
        """Wait until all live replicas report; one that says it cannot, or nobody left, ends the roll-out.

        With `still_loading`, what a replica says before it follows the document counts as well.
        """
        deadline = time.monotonic() + self.timeout_s
        while True:
            live, waiting = self.replicas.live(), []
            for replica in live:
                followed = replica.revision >= self.document.revision  # else it speaks of an older document
                if (still_loading or followed) and done(self._report_of(replica)):
                    continue
                self._require_no_error(replica, what)
                waiting.append(f"{replica.replica} ({replica.error})" if replica.error else replica.replica)
            if not live:
                raise Unfit(f"no replica is alive any more to {what}")
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise Unfit(f"{', '.join(waiting)} did not {what} within {self.timeout_s:g} s")
            self._give_way()
            time.sleep(POLL_S)
