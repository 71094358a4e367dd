"""The roll-out: a state machine that gives a language's traffic to a new bundle, or leaves it where it was.

verify -> load -> warm -> probe -> canary -> full -> drained. `release` verifies the bundle's digest and hears real
recordings with it here; puts it into the release document with share 0, so that every live replica loads and warms it;
asks each over HTTP for the same recordings; gives it a share of the traffic and compares its figures with the old
version's (`deployment.release.canary`); gives it all; and waits until the old version's last requests have ended.
Whatever goes wrong on the way puts the former document back: `returned`, or `refused` when nothing had been changed.
Every step is a line in the history. The same holds for one process on a laptop and for many hosts that share the
folder.

The old version stays loaded in every replica as the standby. Going back to it is therefore quick, and skips the canary:
it has carried all the traffic before, and who goes back has no time. It is verified and probed like any other.

A roll-out that is killed leaves a bundle with share 0, or with its canary share, which replicas take back by themselves
when the trial's time is over. The next roll-out begins by returning from it, with a line in the history, and then
starts from the beginning. Two roll-outs of a language at once wait for each other; one that is not yet complete gives
way to another bundle's, so that a rollback does not wait for a canary.

Not covered: a replica that starts after the probes is not probed itself; it verifies digests, warms the model, and
reports, and what it cannot load it does not serve.
"""

import itertools
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deployment.release.canary import Canary, Figures
from deployment.release.document import UNDER_WAY, LanguageRelease, ReleaseDocumentError, Route, State
from deployment.release.folder import POLL_S, Queue, ReleaseBusy, ReleaseFolder
from deployment.release.history import Transition, utc_now
from deployment.release.life import Replicas, silence
from deployment.release.reports import (
    BUNDLE_HEADER,
    TIMING_HEADER,
    WORK_TIMING,
    LanguageReport,
    ReplicaReport,
)
from speech.bundle import BundleError, ModelBundle

if TYPE_CHECKING:
    import httpx
    import numpy as np

PROBE_LATENCY_S = 10.0  # beyond this a first answer is a fault and not a slow machine
DRAIN_S = 30.0  # longest wait for requests on the old version; they are finished in any case
RETURN_S = 5.0  # longest wait until replicas say that they have gone back
REPORT_LAG_S = 1.5  # what replicas have counted is in their reports after this
TRIAL_MARGIN_S = 15.0  # how much longer than its canary a killed roll-out's share may last
NOT_READY = frozenset({404, 502, 503, 504})  # a replica that restarts or is busy; says nothing about the bundle


class RolloutFailed(Exception):
    """A roll-out did not come through; the document is again what it was before.

    `transitions` are its steps, the last of which is `refused` or `returned`.
    """

    def __init__(self, message: str, transitions: tuple[Transition, ...] = ()) -> None:
        super().__init__(message)
        self.transitions = transitions


@dataclass(frozen=True)
class GoldenUtterance:
    """A real recording that a new bundle must transcribe in place before it gets traffic.

    `expected` is the bundle's own offline text; None: it is computed from the bundle here.
    """

    audio: Path
    reference: str
    expected: str | None = None


@dataclass(frozen=True)
class ProbeResult:
    """One recording answered by one replica."""

    replica: str
    audio: str
    text: str
    latency_s: float


@dataclass(frozen=True)
class RolloutResult:
    """A roll-out that came through; `changed` is False when the bundle was being served already."""

    language: str
    digest: str
    revision: int
    changed: bool
    replicas: tuple[str, ...]
    probes: tuple[ProbeResult, ...]
    previous: tuple[str, ...]
    seconds: float
    transitions: tuple[Transition, ...] = ()


def roll_out(
    store: ReleaseFolder | Path | str,
    language: str,
    bundle_path: Path,
    digest: str,
    golden: Sequence[GoldenUtterance],
    timeout_s: float = 60.0,
    *,
    model: str = "",
    version: str = "",
    canary: Canary | None = None,
    allow_no_replica: bool = False,
    latency_limit_s: float = PROBE_LATENCY_S,
    drain_s: float = DRAIN_S,
    superseded: Callable[[], str | None] | None = None,
) -> RolloutResult:
    """Give a language's traffic to a bundle, after every live replica has proved that it can serve it.

    Args:
        store: the home folder, which holds `release/`.
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
    try:
        with folder.exclusive(language, digest, timeout_s):
            folder.require_usable()
            return _Rollout(
                folder,
                language,
                bundle_path,
                digest,
                model,
                version,
                tuple(golden),
                timeout_s,
                latency_limit_s,
                superseded or (lambda: None),
            ).run(canary, allow_no_replica, drain_s)
    except (ReleaseBusy, ReleaseDocumentError) as error:
        raise RolloutFailed(str(error)) from error


@dataclass
class _Rollout:
    """One roll-out, from the first check to the switch or back."""

    folder: ReleaseFolder
    language: str
    bundle_path: Path
    digest: str
    model: str
    version: str
    golden: tuple[GoldenUtterance, ...]
    timeout_s: float
    latency_limit_s: float
    superseded: Callable[[], str | None]
    replicas: Replicas = field(init=False)
    queue: Queue = field(init=False)
    unheard: str = ""  # of replicas that neither answer nor have ended, shown with the last step
    name: str = field(default_factory=lambda: secrets.token_hex(4))
    began: float = field(default_factory=time.monotonic)
    steps: list[Transition] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)  # of the trial, shown with the step that follows from it
    against: Figures = field(default_factory=Figures)

    def __post_init__(self) -> None:
        self.replicas, self.queue = Replicas(self.folder), Queue(self.folder, self.language)

    def run(self, canary: Canary | None, allow_no_replica: bool, drain_s: float) -> RolloutResult:
        self._return_from_a_killed_one()
        tier = self.replicas.settled()
        before = self.folder.read().languages.get(self.language) or _running(self.language, tier.live)
        if before is not None:  # without what a killed one of this bundle had loaded
            before = replace(before, routes=(*before.serving, *before.standby), candidate="", trial_s=None)
        previous = before.serving if before else ()
        route = Route(self.digest, self.folder.relative(self.bundle_path), 1.0, self.version, self.model)
        changed = previous != (route,) or self.language not in self.folder.read().languages
        written = False
        probes: tuple[ProbeResult, ...] = ()
        try:
            self._require_current()
            self._enter("verify")
            expected = self._expected_texts()
            live = bool(tier.live)
            self.unheard = silence(tier.silent)
            if not live and self.unheard:
                raise RolloutFailed(f"{self._name} was not released: {self.unheard}; then release again")
            if not live and not allow_no_replica:
                raise RolloutFailed(
                    f"no replica of the serving tier is alive (reports in {self.folder.replicas}): start one with "
                    "`soundstage serve`, or allow a release without replicas"
                )
            if live:
                if not self._everywhere(route):
                    written = True
                    self._load(before, route)
                self._enter("probe")
                probes = self._probe_all(expected)
                self.figures = _figures([probe.latency_s for probe in probes])
            why = self._why_no_canary(before, changed, live, canary)
            if why is None:
                assert canary is not None
                assert before is not None
                written = True
                self._canary(canary, before, route, expected)
                why = "the canary passed"
            self._require_current()
            if changed:
                written = True
                self._write(self._served(before, route))
            if live:
                self._wait("switch to it", lambda report: dict(report.active) == {self.digest: 1.0})
            self._enter("full", 1.0, "; ".join(filter(None, (why, self.unheard))))
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self._go_back(before, reason, written, wait=isinstance(error, Exception))
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, RolloutFailed):
                reason = f"{self._name} was not released: {reason}"
            raise RolloutFailed(reason, tuple(self.steps)) from error
        if changed and live:
            self._drain(drain_s)  # from here on nothing goes back, not even when this run is cancelled
        return RolloutResult(
            language=self.language,
            digest=self.digest,
            revision=self.folder.read().revision,
            changed=changed,
            replicas=tuple(report.replica for report in self.replicas.live()),
            probes=probes,
            previous=tuple(other.digest for other in previous),
            seconds=round(time.monotonic() - self.began, 3),
            transitions=tuple(self.steps),
        )

    @property
    def _name(self) -> str:
        return f"bundle {self.digest[:12]} for '{self.language}'"

    # --- what is written ----------------------------------------------------------------------------------------------

    def _enter(self, state: State, share: float = 0.0, reason: str = "") -> None:
        """Record a step; figures that led to it are shown once."""
        step = Transition(
            time=utc_now(),
            rollout=self.name,
            language=self.language,
            state=state,
            digest=self.digest,
            model=self.model,
            version=self.version,
            share=share,
            seconds=round(time.monotonic() - self.began, 3),
            replicas=tuple(report.replica for report in self.replicas.live()),
            reason=reason,
            figures=self.figures.summary() if self.figures.requests else {},
            against=self.against.summary() if self.against.requests else {},
        )
        self.figures = self.against = Figures()
        self.steps.append(step)
        self.folder.record(step)

    def _write(self, release: LanguageRelease) -> None:
        self.folder.set_language(self.language, release)

    def _under_way(self, state: State, before: LanguageRelease | None, route: Route) -> LanguageRelease:
        """The document with the candidate beside what was there."""
        share = route.share
        kept = [
            replace(other, share=other.share * (1 - share))
            for other in (before.routes if before else ())
            if other.digest != self.digest
        ]
        return LanguageRelease(
            (*kept, route), state, before.routes if before else (), rollout=self.name, candidate=self.digest
        )

    def _served(self, before: LanguageRelease | None, route: Route) -> LanguageRelease:
        """The document of a release that came through: the bundle, and as standby what was served before it."""
        served, standby = (before.serving, before.standby) if before else ((), ())
        older = [replace(other, share=0.0) for other in (*served, *standby) if other.digest != self.digest]
        return LanguageRelease((route, *older[:1]), "full", served, rollout=self.name)

    def _return_from_a_killed_one(self) -> None:
        """Undo what a roll-out left that was killed in the middle; what it had loaded for this bundle stays loaded."""
        left = self.folder.read().languages.get(self.language)
        if left is None or left.state not in UNDER_WAY:
            return
        mine = left.candidate == self.digest and self.digest not in {route.digest for route in left.previous}
        kept = [replace(route, share=0.0) for route in left.routes if mine and route.digest == self.digest]
        returned = LanguageRelease(
            (*left.previous, *kept), "returned", rollout=left.rollout, candidate=self.digest if kept else ""
        )
        self._write(returned)
        candidate = next((route for route in left.routes if route.digest == left.candidate), None)
        self.folder.record(
            Transition(
                time=utc_now(),
                rollout=left.rollout,
                language=self.language,
                state="returned",
                digest=left.candidate,
                model=candidate.model if candidate else "",
                version=candidate.version if candidate else "",
                share=0.0,
                seconds=0.0,
                replicas=tuple(report.replica for report in self.replicas.live()),
                reason=f"the process that released it ended in the middle of '{left.state}'; found by roll-out "
                f"{self.name}",
            )
        )

    def _go_back(self, before: LanguageRelease | None, reason: str, written: bool, *, wait: bool) -> None:
        """Put the former document back; replicas have that bundle loaded, so they follow within a second."""
        if not written:
            self._enter("refused", 0.0, reason)
            return
        self._write(replace(before or LanguageRelease(()), state="returned", rollout=self.name))
        served = before is not None and any(route.digest == self.digest for route in before.serving)
        revision = self.folder.read().revision
        deadline = time.monotonic() + RETURN_S
        while wait and time.monotonic() < deadline:
            live = self.replicas.live()
            if all(r.revision >= revision and (served or self.digest not in self._report_of(r).active) for r in live):
                break
            time.sleep(POLL_S)
        self._enter("returned", 0.0, reason)

    # --- the steps ----------------------------------------------------------------------------------------------------

    def _expected_texts(self) -> tuple[str, ...]:
        """The bundle's own offline text of each golden recording; verifies and loads the bundle."""
        if not self.golden:
            raise RolloutFailed(f"{self._name} was not released: without golden recordings it cannot be probed")
        try:
            bundle = ModelBundle.load(self.bundle_path, self.digest)
            if bundle.language != self.language:
                raise RolloutFailed(f"{self._name} was not released: the bundle is for '{bundle.language}'")
            from speech.recognition.offline import Recognizer

            recognizer = Recognizer(bundle)
        except BundleError as error:
            raise RolloutFailed(f"{self._name} was not released: {error}") from error
        texts = []
        for utterance in self.golden:
            text = recognizer.transcribe(_samples(utterance.audio)).text
            if not text:
                raise RolloutFailed(f"{self._name} was not released: it hears nothing in {utterance.audio}")
            if utterance.expected is not None and utterance.expected != text:
                raise RolloutFailed(
                    f"{self._name} was not released: in {utterance.audio} it hears '{text}' here, but "
                    f"'{utterance.expected}' when it was evaluated"
                )
            texts.append(text)
        return tuple(texts)

    def _everywhere(self, route: Route) -> bool:
        """Whether all replicas have it loaded already, as the standby or with the traffic."""
        language = self.folder.read().languages.get(self.language)
        known = {replace(other, share=1.0) for other in language.routes} if language else set()
        return route in known and self._loaded()

    def _loaded(self) -> bool:
        return all(self.digest in self._report_of(replica).loaded for replica in self.replicas.live())

    def _load(self, before: LanguageRelease | None, route: Route) -> None:
        if before and any(other.digest == self.digest for other in before.serving):
            if self._loaded():
                return  # it serves; only its name or its folder changes, with the switch
            # the new revision has replicas try at once what they could not load when they started
            routes = (replace(route, share=r.share) if r.digest == self.digest else r for r in before.routes)
            self._write(replace(before, routes=tuple(routes)))
        else:
            self._write(self._under_way("load", before, replace(route, share=0.0)))
        self._enter("load")
        self._wait(
            "load it",
            lambda report: self.digest in report.loaded or report.loading.get(self.digest) == "warm",
            still_loading=True,
        )
        self._enter("warm")
        self._wait("warm it", lambda report: self.digest in report.loaded)

    def _why_no_canary(
        self, before: LanguageRelease | None, changed: bool, live: bool, canary: Canary | None
    ) -> str | None:
        """Why the trial is left out, as the history will say; None when it is not."""
        if not changed:
            return "it was served already"
        if not live:
            return "no replica runs yet; the first one that starts verifies and serves it"
        if before is None or not before.serving:
            return "the language's first version, so there is nothing to compare it with"
        if any(route.digest == self.digest for route in before.serving):
            return "the same bundle under another name"
        if any(route.digest == self.digest for route in before.standby):
            return "it was on standby: it has served all requests before, so no canary"
        return "without a canary" if canary is None or canary.share <= 0 else None

    def _canary(self, canary: Canary, before: LanguageRelease, route: Route, expected: Sequence[str]) -> None:
        """Give it a share of the traffic and compare; what customers do not ask within the time is asked here."""
        import httpx

        longest_s = canary.seconds + self.timeout_s
        trial = self._under_way("canary", before, replace(route, share=canary.share))
        self._write(replace(trial, trial_s=longest_s + TRIAL_MARGIN_S))
        self._enter("canary", canary.share)
        self._wait("take its share", lambda report: report.active.get(self.digest, 0) > 0)
        old = max(before.serving, key=lambda other: other.share).digest
        watch = _Watch(self.replicas, self.language)
        own = {self.digest: Figures(), old: Figures()}
        turns = itertools.count()
        began = time.monotonic()
        with httpx.Client(timeout=self.latency_limit_s, trust_env=False) as client:
            while True:
                seconds = time.monotonic() - began
                over = self._enough(canary, watch, own, old, seconds)
                if over:
                    time.sleep(REPORT_LAG_S)
                watch.look()
                self.figures = watch.of(self.digest) + own[self.digest]
                self.against = watch.of(old) + own[old]
                for asked, (new_ones, old_ones) in self._evidence(watch, own, old).items():
                    fault = canary.fault(new_ones, old_ones, over=over)
                    if fault:
                        raise RolloutFailed(f"{self._name} was returned from its canary: asked by {asked}, {fault}")
                if over:
                    return
                if seconds > longest_s:
                    raise RolloutFailed(
                        f"{self._name} was returned from its canary: {self.figures.answers} of {self.figures.requests} "
                        f"requests answered within {longest_s:g} s are too few to judge it by"
                    )
                self._require_trial()
                elapsed = min(1.0, (seconds + POLL_S) / canary.seconds)
                until = time.monotonic() + POLL_S
                while time.monotonic() < until:
                    total = watch.of(self.digest).requests + own[self.digest].requests
                    if total < canary.requests * elapsed or own[self.digest].answers < canary.least * elapsed:
                        self._ask_both(client, next(turns), old, own, expected)
                    else:
                        time.sleep(max(0.0, until - time.monotonic()))

    def _evidence(self, watch: "_Watch", own: dict[str, Figures], old: str) -> dict[str, tuple[Figures, Figures]]:
        """Figures of the new and the old version, by who asked; judged apart, since the recordings are others."""
        return {
            "customers": (watch.of(self.digest), watch.of(old)),
            "the release itself": (own[self.digest], own[old]),
        }

    def _enough(self, canary: Canary, watch: "_Watch", own: dict[str, Figures], old: str, seconds: float) -> bool:
        """Whether the trial has lasted long enough, with enough answers of both versions from the same askers."""
        asked = watch.of(self.digest).requests + own[self.digest].requests
        pairs = self._evidence(watch, own, old).values()
        comparable = any(min(new_ones.answers, old_ones.answers) >= canary.least for new_ones, old_ones in pairs)
        return comparable and (seconds >= canary.seconds or asked >= canary.requests)

    def _require_trial(self) -> None:
        """End a trial that another bundle's release waits for, or whose replicas are all gone or cannot serve it."""
        self._give_way()
        live = self.replicas.live()
        if not live:
            raise RolloutFailed(f"{self._name} was returned from its canary: no replica is alive any more")
        for replica in live:
            report = self._report_of(replica)
            if self.digest in report.errors and replica.revision >= self.folder.read().revision:
                raise RolloutFailed(
                    f"{self._name} was returned from its canary: replica {replica.replica} cannot load it: "
                    f"{report.errors[self.digest]}"
                )

    def _ask_both(
        self, client: "httpx.Client", turn: int, old: str, own: dict[str, Figures], expected: Sequence[str]
    ) -> None:
        """Ask one replica for one golden recording with the new and with the old version."""
        import httpx

        live = self.replicas.live()
        if not live:
            time.sleep(POLL_S)
            return
        replica = live[turn % len(live)]
        place = turn // len(live) % len(self.golden)
        utterance = self.golden[place]
        for digest in (self.digest, old) if turn % 2 else (old, self.digest):
            began = time.monotonic()
            try:
                answer = self._ask(client, replica, utterance, digest)
            except httpx.TimeoutException:
                own[digest] = own[digest].counting(None)
                continue
            except httpx.HTTPError:  # the replica has gone; others go on, and its report grows old
                time.sleep(POLL_S)
                return
            if answer.status_code in NOT_READY:
                time.sleep(POLL_S)
                return
            if answer.status_code != 200:
                own[digest] = own[digest].counting(None)
                continue
            text = str(answer.json().get("text", ""))
            own[digest] = own[digest].counting(_work_s(answer.headers, time.monotonic() - began), empty=not text)
            if digest == self.digest and text != expected[place]:
                raise RolloutFailed(
                    f"{self._name} was returned from its canary: replica {replica.replica} heard '{text}' in "
                    f"{utterance.audio.name}, the bundle by itself '{expected[place]}'"
                )

    def _drain(self, drain_s: float) -> None:
        """Wait until no request is under way on another version; a release that waits is not kept waiting."""
        deadline = time.monotonic() + drain_s
        while True:
            busy = [
                f"{replica.replica} ({', '.join(digest[:12] for digest in self._report_of(replica).draining)})"
                for replica in self.replicas.live()
                if set(self._report_of(replica).draining) - {self.digest}
            ]
            served = self.folder.read().languages.get(self.language)
            standby = [route.title for route in served.standby] if served else []
            kept = f"{', '.join(standby)} stays warm on standby" if standby else ""
            if not busy:
                self._enter("drained", 1.0, kept)
                return
            if time.monotonic() > deadline or self.queue.waiting() is not None:
                return  # `full` stays the last word; the requests are finished and the replicas let go by themselves
            time.sleep(POLL_S)

    def _require_current(self) -> None:
        reason = self.superseded()
        if reason is not None:
            raise RolloutFailed(f"{self._name} was not released: {reason}")

    def _give_way(self) -> None:
        other = self.queue.waiting()
        if other is not None and other != self.digest:
            raise RolloutFailed(f"{self._name} was not released: it gave way to the release of bundle {other[:12]}")

    def _report_of(self, replica: ReplicaReport) -> LanguageReport:
        return replica.languages.get(self.language, LanguageReport())

    def _wait(self, what: str, done: Callable[[LanguageReport], bool], *, still_loading: bool = False) -> None:
        """Wait until all live replicas report; one that says it cannot, or nobody left, ends the roll-out.

        With `still_loading`, what a replica says before it follows the document counts as well.
        """
        deadline = time.monotonic() + self.timeout_s
        revision = self.folder.read().revision
        while True:
            live = self.replicas.live()
            waiting = []
            for replica in live:
                report = self._report_of(replica)
                if still_loading and done(report):
                    continue
                if replica.revision < revision:  # what it says is about an older document
                    waiting.append(_with_reason(replica))
                    continue
                if self.digest in report.errors:
                    raise RolloutFailed(
                        f"{self._name} was not released: replica {replica.replica} cannot {what}: "
                        f"{report.errors[self.digest]}"
                    )
                if not done(report):
                    waiting.append(_with_reason(replica))
            if not live:
                raise RolloutFailed(f"{self._name} was not released: no replica is alive any more to {what}")
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise RolloutFailed(
                    f"{self._name} was not released: {', '.join(waiting)} did not {what} within {self.timeout_s:g} s"
                )
            self._give_way()
            time.sleep(POLL_S)

    def _probe_all(self, expected: Sequence[str]) -> tuple[ProbeResult, ...]:
        import httpx

        probes = []
        with httpx.Client(timeout=self.latency_limit_s, trust_env=False) as client:
            for replica in self.replicas.live():
                for utterance, text in zip(self.golden, expected, strict=True):
                    probes.append(self._probe(client, replica, utterance, text))
        if not probes:
            raise RolloutFailed(f"{self._name} was not released: no replica is alive any more to be probed")
        return tuple(probes)

    def _probe(
        self, client: "httpx.Client", replica: ReplicaReport, utterance: GoldenUtterance, expected: str
    ) -> ProbeResult:
        """Ask one replica for one recording, by the bundle's digest."""
        import httpx

        failed = f"{self._name} was not released: replica {replica.replica} at {replica.url}"
        began = time.monotonic()
        try:
            answer = self._ask(client, replica, utterance, self.digest)
            latency_s = time.monotonic() - began
            if answer.status_code != 200:
                raise RolloutFailed(
                    f"{failed} answered {answer.status_code} to {utterance.audio.name}: {answer.text[:300]}"
                )
            body = answer.json()
            served, text = body["model"]["digest"], body["text"]
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            raise RolloutFailed(f"{failed} could not be probed: {type(error).__name__}: {error}") from error
        if served != self.digest:
            raise RolloutFailed(f"{failed} answered with bundle {served[:12]}")
        if text != expected:
            raise RolloutFailed(f"{failed} heard '{text}' in {utterance.audio.name}, the bundle by itself '{expected}'")
        if latency_s > self.latency_limit_s:
            raise RolloutFailed(f"{failed} took {latency_s:.1f} s, more than {self.latency_limit_s:g} s")
        return ProbeResult(replica.replica, utterance.audio.name, text, round(latency_s, 4))

    def _ask(
        self, client: "httpx.Client", replica: ReplicaReport, utterance: GoldenUtterance, digest: str
    ) -> "httpx.Response":
        with utterance.audio.open("rb") as audio:
            return client.post(
                f"{replica.url}/v1/transcribe",
                params={"language": self.language, "format": "json"},
                content=audio,
                headers={BUNDLE_HEADER: digest, "Content-Type": "application/octet-stream"},
            )


class _Watch:
    """What each version answered since now, over replicas that come, go and start again with empty counts."""

    def __init__(self, replicas: Replicas, language: str) -> None:
        self._replicas = replicas
        self._language = language
        self._last: dict[tuple[str, str, str], Figures] = {}
        self.look()
        self._first = dict(self._last)

    def look(self) -> None:
        """Read the reports again; what a replica that has gone said last is kept."""
        for replica in self._replicas.live():
            report = replica.languages.get(self._language, LanguageReport())
            for digest, figures in report.figures.items():
                self._last[replica.replica, replica.started_at, digest] = figures

    def of(self, digest: str) -> Figures:
        """Figures of a version since the watch began."""
        total = Figures()
        for key, figures in self._last.items():
            if key[2] == digest:
                total += figures - self._first.get(key, Figures())
        return total


def _running(language: str, live: Sequence[ReplicaReport]) -> LanguageRelease | None:
    """What replicas serve where the document does not name the language; a trial's larger share counts as all of it."""
    routes = [route for replica in live for route in replica.languages.get(language, LanguageReport()).routes]
    served = max(routes, key=lambda route: route.share, default=None)
    return LanguageRelease((replace(served, share=1.0),)) if served and served.share > 0 else None


def _with_reason(replica: ReplicaReport) -> str:
    return f"{replica.replica} ({replica.error})" if replica.error else replica.replica


def _work_s(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds of work that a replica says an answer took; waiting, which hits both versions alike, would hide it."""
    said = re.search(rf"\b{WORK_TIMING};dur=([0-9.]+)", headers.get(TIMING_HEADER, ""))
    return float(said.group(1)) / 1000 if said else otherwise


def _figures(latencies_s: Sequence[float]) -> Figures:
    figures = Figures()
    for seconds in latencies_s:
        figures = figures.counting(seconds)
    return figures


def _samples(path: Path) -> "np.ndarray":
    from speech.audio.decode import AudioError, decode

    try:
        return decode(path).samples
    except (AudioError, OSError) as error:
        raise RolloutFailed(f"golden recording {path} cannot be used: {error}") from error
