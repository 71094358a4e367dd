"""Promotion: a person's decision about a version, under the team's rules, and what waits for one.

An alias in MLflow can be moved by anyone with a browser, remembers nobody, and is not what a deployment may rest on. So
a decision is first written to the ledger of its language (`deployment.promotion.ledger`), after the rules allow it
(`deployment.promotion.rules`), and only then are the registry's aliases moved (`deployment.promotion.aliases`). A
process killed in between leaves an alias that the next decision, or `reconcile`, repairs from the ledger.

Every step forward, roll-back included, reads the persisted verdict for exactly the bundle in question again, and
compares the registry's bytes with its digest. An entry names the very bytes of the verdict that were judged for it.

What a person can decide about a version that waits: `approve`, `reject` (final for that bundle), `request_changes`
(closed until it is judged again). The system closes what waited too long (`expire`). Under the two-person rule an
approval by the person who launched the training is one `voice`, and another approver has to approve.

A bundle that failed gates reaches production only through two entries: `override`, about exactly this bundle and
verdict, which lets it be registered, and an approval that repeats which gates were overridden. Roll-back and release
honour that approval for exactly that bundle and verdict. A missing, altered, stale or foreign verdict, an expired
challenger or a bundle whose bytes differ cannot be overridden.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from deployment.promotion.actions import CLOSING, PRODUCTION, Action
from deployment.promotion.aliases import STATUS_TAG, Aliases, AliasState
from deployment.promotion.ledger import (
    GENESIS,
    Decision,
    Ledger,
    champion_in_force,
    every_champion,
    line_of_champions,
)
from deployment.promotion.rules import (
    PromotionRefused,
    Rules,
    about,
    closed_sentence,
    instant,
    labels,
    points,
    require_language,
    require_still_passed,
)
from deployment.registry.models import ModelVersion, Registry
from evaluation.gates import GateRefused, load_verdict
from evaluation.results import BENCHMARK, Interval
from speech.bundle import ModelBundle
from speech.store.objects import LostRace, Objects
from speech.store.records import TRIES, pause

P = ParamSpec("P")
T = TypeVar("T")
SYSTEM = "soundstage"  # who closes what waited too long


@dataclass(frozen=True)
class Waiting:
    """A version that waits for a decision, with what the person who decides needs to know.

    Attributes:
        benchmark: WER on the frozen benchmark with its 95 % interval, as judged.
        difference: WER minus the champion's on the benchmark, paired, with its 95 % interval.
        champion: `model/version` in force, or empty.
        approvers: who may approve; None: anyone with a name.
        expires_at: when it is closed if nobody decides.
        obstacle: why an approval would be refused as things stand, or None.
        launchers: who launched the training, by the version's tag or by what was noted beside the ledger.
    """

    version: ModelVersion
    benchmark: Interval | None
    difference: Interval | None
    champion: str
    approvers: tuple[str, ...] | None
    expires_at: datetime | None
    obstacle: str | None
    launchers: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Who has to do what, with the figures."""
        name = f"{self.version.name} version {self.version.version}"
        if self.obstacle:
            return f"{name} waits but cannot be approved: {self.obstacle}"
        who = "anyone" if self.approvers is None else " or ".join(self.approvers) or "nobody yet (name an approver)"
        wer = f"; WER {_span(self.benchmark)} on the benchmark" if self.benchmark else ""
        against = ""
        if self.champion:
            theirs = self.version.metrics.get("champion_benchmark_wer")
            against = f"; champion {self.champion}" + (f" has {_percent(theirs)}" if theirs is not None else "")
            against += f", the difference is {points(self.difference)} points" if self.difference else ""
        until = f" until {self.expires_at:%Y-%m-%d}" if self.expires_at else ""
        return f"{name} waits for {who} to approve, reject or ask for changes{until}{wer}{against}"


def _again(
    decide: Callable[Concatenate["Promotions", str, P], T],
) -> Callable[Concatenate["Promotions", str, P], T]:
    """Decide again, on the ledger as it is then, where somebody else's decision was recorded first."""

    @functools.wraps(decide)
    def decided(self: "Promotions", language: str, *arguments: P.args, **options: P.kwargs) -> T:
        for attempt in range(TRIES):
            try:
                return decide(self, language, *arguments, **options)
            except LostRace:
                pause(attempt)
        raise PromotionRefused(f"others decide about '{language}' without end: see what they decided, then try again")

    return decided


class Promotions:
    """Decisions about champions.

    Args:
        registry: where versions and aliases are.
        objects: the data store, which has the ledgers.
        rules: what a decision needs.
        key: with which entries are signed; None: they are not.
    """

    def __init__(self, registry: Registry, objects: Objects, rules: Rules, key: bytes | None = None) -> None:
        self._key = key
        self.registry = registry
        self.rules = rules
        self._objects = objects
        self._aliases = Aliases(registry, rules)

    @_again
    def approve(
        self, language: str, model: str, version: str, approver: str, reason: str, *, override_gates: bool = False
    ) -> Decision:
        """Make a version the champion. Repeating an approval that is in force repairs the alias and adds nothing.

        With `override_gates`, gates that failed and that the ledger says were overridden for exactly this bundle and
        verdict do not stand in the way, nor does a model that is not better than the champion. Under the two-person
        rule the entry may be a `voice`, after which the champion is as before.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, the version was closed, expired or is
                no better than the champion, or an override is not allowed.
            GateRefused: no passing, current verdict for exactly this bundle.
            BundleError: the registry's bytes are not those that were registered.
            RegistryError, LedgerError: no such version; the ledger is broken.
        """
        approver, reason = self.rules.require_person(approver, reason)
        if override_gates:
            self.rules.require_override_allowed()
        ledger = self.ledger(language)
        entries = ledger.entries()
        now = champion_in_force(entries)
        candidate = require_language(self.registry.verify(model, version), language)
        if now and (now.model, now.version, now.digest) == (candidate.name, candidate.version, candidate.digest):
            same = (now.action, now.approver, now.reason) == ("approve", approver, reason)
            self._aliases.finish(ledger)
            if same:
                return now  # the process that took this decision died after recording it
            raise PromotionRefused(
                f"{model} version {candidate.version} is the champion of '{language}' since {now.time}, decided by "
                f"{now.approver}: there is nothing to approve"
            )
        verdict, overridden = self.rules.require_eligible(entries, candidate, override_gates)
        sha = verdict.file_sha256
        action: Action = "approve"
        if not self.rules.suffices(entries, candidate, sha, approver):
            action = "voice"
            before = self.rules.voices(entries, candidate, sha).get(approver)
            if before and before.reason == reason:
                self._aliases.finish(ledger)
                return before
            if before:
                raise PromotionRefused(
                    f"'{approver}' has approved {model} version {candidate.version} on {before.time[:10]}: two "
                    f"people are asked for, so another approver has to decide ({self.rules.allowed})"
                )
        return self._decide(ledger, entries, action, candidate, sha, approver, reason, overridden)

    def reject(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Record that a version shall not go to production, for good; it stops being the challenger.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or the version is the champion.
            RegistryError, LedgerError: no such version; the ledger is broken.
        """
        return self._close(language, "reject", model, version, approver, reason)

    def request_changes(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Record what is to be changed first: the version waits no longer, until it was judged and offered again.

        Raises:
            PromotionRefused, RegistryError, LedgerError: as for `reject`.
        """
        return self._close(language, "request_changes", model, version, approver, reason)

    @_again
    def expire(self, language: str, model: str) -> Decision | None:
        """Close the challenger if it waited too long; None when there is nothing to close.

        Raises:
            RegistryError, LedgerError: the registry cannot be used; the ledger is broken.
        """
        ledger = self.ledger(language)
        candidate = self.registry.challenger(model)
        if candidate is None:
            return None
        sha = self.rules.verdict_sha256(candidate.digest)  # before its age is read: of no newer verdict
        if not self.rules.overdue(candidate):
            return None
        entries = ledger.entries()
        if closed := self.rules.closed(entries, candidate):
            self._aliases.finish(ledger)  # the process that closed it died before it moved the alias
            return closed
        reason = f"waited longer than {self.rules.expires_days} days for a decision: evaluate and judge it again"
        return self._decide(ledger, entries, "expire", candidate, sha, SYSTEM, reason)

    def overdue(self, model: str) -> ModelVersion | None:
        """The challenger, if it waited too long."""
        candidate = self.registry.challenger(model)
        return candidate if candidate and self.rules.overdue(candidate) else None

    @_again
    def override(self, language: str, model: str, bundle: Path, digest: str, approver: str, reason: str) -> Decision:
        """Accept the failed gates of exactly this bundle and verdict, so that it can be registered and approved.

        Raises:
            PromotionRefused: overriding is switched off, the approver may not decide, there is no reason, or every
                gate was passed.
            GateRefused: the verdict is missing, altered, stale or foreign, which nobody can override.
            BundleError: the bundle is not the one of that digest.
            LedgerError: the ledger is broken.
        """
        approver, reason = self.rules.require_person(approver, reason)
        self.rules.require_override_allowed()
        ModelBundle.load(bundle, digest)
        ledger = self.ledger(language)
        entries = ledger.entries()
        verdict = self.rules.require_overridable(entries, digest, language)
        sha = verdict.file_sha256
        last = entries[-1] if entries else None
        if last and (last.action, last.digest) == ("override", digest) and _repeats(last, sha, approver, reason):
            self._aliases.finish(ledger)
            return last
        self.registry.ensure_model(model, language)
        unregistered = ModelVersion(model, "", digest)
        return self._decide(ledger, entries, "override", unregistered, sha, approver, reason, labels(verdict))

    def overridden(self, language: str, digest: str) -> tuple[str, ...]:
        """Labels of the gates that people accepted for exactly this bundle and its present verdict.

        Raises:
            LedgerError: the ledger is broken.
        """
        if not self.rules.allow_override:
            return ()
        sha = self.rules.verdict_sha256(digest)
        return self.rules.overridden(self.ledger(language).entries(), digest, sha)

    def offer(self, language: str, version: ModelVersion) -> Waiting | None:
        """Note in the registry what a registered version waits for; one judged anew after it was closed waits again.

        Returns what waits, when that is news: nothing when the version was offered so before or is closed.

        Raises:
            LedgerError: the ledger is broken.
        """
        ledger = self.ledger(language)
        entries = ledger.entries()
        decided = {entry.action for entry in entries if about(entry, version)}
        if self.rules.closed(entries, version) or not decided.isdisjoint(PRODUCTION):
            return None
        if not decided.isdisjoint(CLOSING):
            self.registry.offer(version.name, version.version, again=True)
        waiting = self.waiting(language, version.name)
        if waiting is None:
            return None
        self._aliases.supersede(entries, waiting.version)
        if waiting.version.version != version.version or waiting.version.tags.get(STATUS_TAG) == waiting.sentence:
            return None
        self.registry.set_version_tag(version.name, version.version, STATUS_TAG, waiting.sentence)
        return waiting

    def waiting(self, language: str, model: str) -> Waiting | None:
        """The challenger and what has to happen with it; None when nobody has to decide.

        Raises:
            LedgerError: the ledger is broken.
        """
        challenger = self.registry.challenger(model)
        if challenger is None:
            return None
        entries = self.ledger(language).entries()
        now = champion_in_force(entries)
        obstacle = benchmark = difference = None
        try:
            verdict = load_verdict(self.rules.verdicts, challenger.digest)
            wer = next((gate for gate in verdict.gates if (gate.name, gate.test_set) == ("wer", BENCHMARK)), None)
            benchmark = replace(wer.interval, estimate=wer.value) if wer and wer.interval else None
            difference = verdict.comparison
            obstacle = self.rules.obstacle(entries, challenger)
        except GateRefused as refused:
            obstacle = str(refused)
        return Waiting(
            challenger,
            benchmark,
            difference,
            f"{now.model}/{now.version}" if now else "",
            self.rules.who_may_approve(challenger),
            self.rules.expires_at(challenger),
            obstacle,
            self.rules.launchers.of(challenger),
        )

    @_again
    def rollback(
        self,
        language: str,
        approver: str,
        reason: str,
        version: str | None = None,
        model: str | None = None,
        since: datetime | None = None,
    ) -> Decision:
        """Go back to the champion before this one, or to a named earlier champion.

        `since` is when the caller first tried: the same roll-back recorded after that is the caller's own, of a try
        whose answer was lost, and is not taken a second time.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or no such earlier champion.
            GateRefused, BundleError, RegistryError, LedgerError: as for `approve`.
        """
        approver, reason = self.rules.require_person(approver, reason)
        ledger = self.ledger(language)
        entries = ledger.entries()
        line = line_of_champions(entries)
        if not line:
            raise PromotionRefused(f"'{language}' has no champion yet: there is nothing to roll back")
        now, last = line[-1], entries[-1]
        if (last.action, last.approver, last.reason) == ("rollback", approver, reason) and (
            self._aliases.interrupted(last) or last.version == str(version) or _made_since(last, since)
        ):
            self._aliases.finish(ledger)  # the process that took this decision died after recording it
            return last
        earlier = [
            entry
            for entry in (line[:-1] if version is None else every_champion(entries))
            if (entry.model, entry.version) != (now.model, now.version)
            and (version is None or entry.version == str(version))
            and (model is None or entry.model == model)
        ]
        if not earlier:
            wanted = f"earlier champion of version {version}" if version else "earlier champion"
            raise PromotionRefused(f"'{language}' has no {wanted} to roll back to; approve a version instead")
        back = earlier[-1]
        target = require_language(self.registry.verify(back.model, back.version), language)
        if target.digest != back.digest:
            raise PromotionRefused(
                f"{back.model} version {back.version} is now bundle {target.digest[:12]}, but {back.digest[:12]} "
                "was approved: someone replaced it; approve a version instead"
            )
        closed = self.rules.closed(entries, target)
        if closed and closed.action == "reject":
            raise PromotionRefused(closed_sentence(closed))
        sha = require_still_passed(self.rules.verdicts, back).file_sha256
        try:
            return self._decide(ledger, entries, "rollback", target, sha, approver, reason, back.overridden)
        except LostRace:
            meanwhile = champion_in_force(ledger.entries())
            if meanwhile and meanwhile.sequence > now.sequence:
                raise PromotionRefused(
                    f"{meanwhile.approver} made {meanwhile.model} version {meanwhile.version} the champion of "
                    f"'{language}' meanwhile ({meanwhile.action}): see whether there is still something to roll back"
                ) from None
            raise

    def releasable(self, language: str) -> Decision:
        """The decision in force, if what it put into production may be served: its verdict is read again.

        The registry's alias plays no part. Failed gates are accepted only as far as that very decision says.

        Raises:
            PromotionRefused: there is no champion.
            GateRefused: no passing verdict for exactly this bundle.
            LedgerError: the ledger is broken or cut off.
        """
        ledger = self.ledger(language)
        now = champion_in_force(ledger.entries())
        if now is None:
            raise PromotionRefused(f"'{language}' has no champion yet: approve a version with the job `promote`")
        self._aliases.require_whole(ledger, now.model)
        require_still_passed(self.rules.verdicts, now)
        return now

    def current(self, language: str) -> Decision | None:
        """The decision that put the present champion into production, from the ledger; None without a champion."""
        return champion_in_force(self.ledger(language).entries())

    def history(self, language: str) -> tuple[Decision, ...]:
        """All decisions of a language, oldest first, verified."""
        return self.ledger(language).entries()

    def verify(self, language: str, model: str | None = None) -> str | None:
        """None when the ledger is intact, else a sentence that names what is broken.

        With `model`, the ledger's end is compared with what the registry notes of it: entries may be missing there.
        """
        ledger = self.ledger(language)
        if broken := ledger.verify():
            return broken
        return self._aliases.why_cut_off(ledger, model) if model else None

    def check_alias(self, language: str, model: str) -> AliasState:
        """Whether the registry's alias and its note of the ledger's head agree with the ledger.

        Raises:
            LedgerError: the ledger is broken.
        """
        return self._aliases.check(self.ledger(language), model)

    def reconcile(self, language: str, model: str, approver: str, reason: str) -> AliasState:
        """Set the aliases and the registry's note to what the ledger says; returns what was found before.

        Raises:
            PromotionRefused: the approver may not decide, or there is no reason.
            LedgerError: the ledger is broken or was cut off: the alias is then left as it is.
        """
        self.rules.require_person(approver, reason)
        ledger = self.ledger(language)
        before = self._aliases.check(ledger, model)
        self._aliases.finish(ledger, model)
        return before

    def ledger(self, language: str) -> Ledger:
        """The ledger of a language."""
        return Ledger(self._objects, language, self._key)

    def _decide(
        self,
        ledger: Ledger,
        entries: tuple[Decision, ...],
        action: Action,
        target: ModelVersion,
        verdict_sha256: str,
        approver: str,
        reason: str,
        overridden: tuple[str, ...] = (),
    ) -> Decision:
        """Record a decision that the rules allow on that verdict, then have the registry follow it."""
        self._aliases.require_whole(ledger, target.name)
        now = champion_in_force(entries)
        recorded = ledger.append(
            Decision(
                sequence=len(entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                action=action,
                language=ledger.language,
                model=target.name,
                version=target.version,
                digest=target.digest,
                verdict_sha256=verdict_sha256,
                approver=approver,
                reason=reason,
                previous_champion=f"{now.model}/{now.version}" if now else "",
                previous_digest=now.digest if now else "",
                previous_hash=entries[-1].hash if entries else GENESIS,
                overridden=overridden,
                launched_by=", ".join(self.rules.launchers.of(target)),
            )
        )
        self._aliases.follow(ledger)
        return recorded

    @_again
    def _close(self, language: str, action: Action, model: str, version: str, approver: str, reason: str) -> Decision:
        approver, reason = self.rules.require_person(approver, reason)
        ledger = self.ledger(language)
        entries = ledger.entries()
        now = champion_in_force(entries)
        candidate = require_language(self.registry.version(model, version), language)
        sha = self.rules.verdict_sha256(candidate.digest)
        if now and about(now, candidate):
            raise PromotionRefused(
                f"{model} version {candidate.version} is the champion of '{language}': roll back instead"
            )
        last = next((entry for entry in reversed(entries) if about(entry, candidate)), None)
        if last and last.action == action and _repeats(last, sha, approver, reason):
            self._aliases.finish(ledger)
            return last
        return self._decide(ledger, entries, action, candidate, sha, approver, reason)


def _repeats(last: Decision, verdict_sha256: str, approver: str, reason: str) -> bool:
    """Whether a decision of one kind is the same again: its process died after recording it."""
    return (last.verdict_sha256, last.approver, last.reason) == (verdict_sha256, approver, reason)


def _made_since(entry: Decision, since: datetime | None) -> bool:
    made = instant(entry.time)
    return since is not None and made is not None and made >= since


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _span(interval: Interval) -> str:
    return f"{_percent(interval.estimate)} (95 % interval {_percent(interval.low)} to {_percent(interval.high)})"
