"""Promotion: a person's decision about a version, under the team's rules, and what waits for one.

A decision is written to the ledger of its language (`deployment.promotion.ledger`) after the rules allow it
(`deployment.promotion.rules`), and only then are the registry's aliases moved (`deployment.promotion.aliases`). A
process killed in between leaves an alias that the next decision, or `reconcile`, sets right.

A bundle that failed gates reaches production only through two entries: `override`, about exactly this bundle and
verdict, which lets it be registered, and an approval that repeats which gates were overridden. Roll-back and release
honour that approval for exactly that bundle and verdict.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, Self, TypeVar

from deployment.promotion.actions import CLOSING, PRODUCTION, Action
from deployment.promotion.aliases import STATUS_TAG, Aliases
from deployment.promotion.ledger import (
    GENESIS,
    Decision,
    Ledger,
    LedgerError,
    champion_in_force,
    line_of_champions,
)
from deployment.promotion.rules import (
    PromotionRefused,
    Rules,
    about,
    closed_sentence,
    labels,
    points,
    require_language,
    require_still_passed,
)
from deployment.registry.models import ModelVersion, Registry, RegistryError
from evaluation.gates import GateRefused, Verdict, load_verdict
from evaluation.results import BENCHMARK
from speech.bundle import BundleError, ModelBundle
from speech.store.objects import LostRace, Objects, StoreError
from speech.store.records import TRIES, pause

if TYPE_CHECKING:
    from deployment.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")
SYSTEM = "soundstage"  # who closes what waited too long
REFUSALS = (PromotionRefused, GateRefused, BundleError, LedgerError, RegistryError, StoreError)  # no decision


@dataclass(frozen=True)
class Waiting:
    """A version that waits for a decision, with what the person who decides needs to know.

    Attributes:
        verdict: the judgement of its bundle; None where there is none that can be read.
        champion: `model/version` in force, or empty.
        approvers: who may approve.
        launchers: who launched the training, as far as anybody signed for it.
        expires_at: when it is closed if nobody decides.
        obstacle: why an approval would be refused as things stand, or None.
    """

    version: ModelVersion
    verdict: Verdict | None
    champion: str
    approvers: tuple[str, ...]
    launchers: tuple[str, ...]
    expires_at: datetime | None
    obstacle: str | None

    @property
    def sentence(self) -> str:
        """Who has to do what, with the figures."""
        name = f"{self.version.name} version {self.version.version}"
        if self.obstacle:
            return f"{name} waits but cannot be approved: {self.obstacle}"
        who = " or ".join(self.approvers) or "nobody yet (name an approver)"
        until = f" until {self.expires_at:%Y-%m-%d}" if self.expires_at else ""
        said = [f"{name} waits for {who} to approve, reject or ask for changes{until}"]
        gates = self.verdict.gates if self.verdict else ()
        wer = next((gate for gate in gates if (gate.name, gate.test_set) == ("wer", BENCHMARK)), None)
        if wer and wer.interval:
            interval = f"95 % interval {_percent(wer.interval.low)} to {_percent(wer.interval.high)}"
            said.append(f"WER {_percent(wer.value)} ({interval}) on the benchmark")
        if self.champion:
            theirs = self.version.metrics.get("champion_benchmark_wer")
            has = "" if theirs is None else f" has {_percent(theirs)}"
            difference = points(self.verdict.comparison if self.verdict else None)
            said.append(f"champion {self.champion}{has}" + (difference and f", the difference is {difference} points"))
        return "; ".join(said)


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


@dataclass(frozen=True)
class _Turn:
    """Somebody's turn to decide, on a ledger as it was read."""

    ledger: Ledger
    entries: tuple[Decision, ...]
    approver: str
    reason: str

    @property
    def now(self) -> Decision | None:
        return champion_in_force(self.entries)


class Promotions:
    """Decisions about champions. Each raises LedgerError where the ledger of its language is broken or was cut off.

    Args:
        registry: where versions and aliases are.
        rules: what a decision needs, and the data store, which has the ledgers.
    """

    def __init__(self, registry: Registry, rules: Rules) -> None:
        self.registry = registry
        self.rules = rules
        self._aliases = Aliases(registry, rules)

    @classmethod
    def of(cls, settings: "Settings", objects: Objects) -> Self:
        """Those of a deployment, with the approvers, rules and thresholds of its settings."""
        return cls(Registry(settings.tracking_uri, objects), Rules(objects, settings.promotion, settings.gates))

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
            RegistryError: no such version.
        """
        turn = self._turn(language, approver, reason)
        if override_gates:
            self.rules.require_override_allowed()
        candidate = require_language(self.registry.verify(model, version), language)
        if made := self._repeated(turn, "approve", candidate):
            return made
        name = f"{model} version {candidate.version}"
        if turn.now and about(turn.now, candidate) and turn.now.digest == candidate.digest:
            raise PromotionRefused(
                f"{name} is the champion of '{language}' since {turn.now.time}, decided by {turn.now.approver}: there "
                "is nothing to approve"
            )
        verdict, overridden = self.rules.require_eligible(turn.entries, candidate, override_gates)
        sha = verdict.file_sha256
        if self.rules.suffices(turn.entries, candidate, sha, turn.approver):
            return self._decide(turn, "approve", candidate, sha, overridden)
        if made := self._repeated(turn, "voice", candidate):
            return made
        if before := self.rules.voices(turn.entries, candidate, sha).get(turn.approver):
            raise PromotionRefused(
                f"'{turn.approver}' has approved {name} on {before.time[:10]}: two people are asked for, so another "
                f"approver has to decide ({self.rules.allowed})"
            )
        return self._decide(turn, "voice", candidate, sha, overridden)

    @_again
    def close(
        self,
        language: str,
        action: Literal["reject", "request_changes"],
        model: str,
        version: str,
        approver: str,
        reason: str,
    ) -> Decision:
        """Record that a version waits no longer: for good, or until it was judged and offered again.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or the version is the champion.
            RegistryError: no such version.
        """
        turn = self._turn(language, approver, reason)
        candidate = require_language(self.registry.version(model, version), language)
        if turn.now and about(turn.now, candidate):
            raise PromotionRefused(
                f"{model} version {candidate.version} is the champion of '{language}': roll back instead"
            )
        made = self._repeated(turn, action, candidate)
        return made or self._decide(turn, action, candidate, self.rules.verdict_sha256(candidate.digest))

    @_again
    def expire(self, language: str, model: str) -> Decision | None:
        """Close the challenger if it waited too long; None when there is nothing to close."""
        candidate = self.registry.challenger(model)
        if candidate is None:
            return None
        sha = self.rules.verdict_sha256(candidate.digest)  # before its age is read: of no newer verdict
        if not self.rules.overdue(candidate):
            return None
        ledger = self.ledger(language)
        days = self.rules.asked.challenger_expires_days
        reason = f"waited longer than {days} days for a decision: evaluate and judge it again"
        turn = _Turn(ledger, ledger.entries(), SYSTEM, reason)
        if closed := self.rules.closed(turn.entries, candidate):
            self._aliases.finish(ledger)  # the process that closed it died before it moved the alias
            return closed
        return self._decide(turn, "expire", candidate, sha)

    @_again
    def override(self, language: str, model: str, bundle: Path, digest: str, approver: str, reason: str) -> Decision:
        """Accept the failed gates of exactly this bundle and verdict, so that it can be registered and approved.

        Raises:
            PromotionRefused: overriding is switched off, the approver may not decide, there is no reason, or every
                gate was passed.
            GateRefused: the verdict is missing, altered, stale or foreign, which nobody can override.
            BundleError: the bundle is not the one of that digest.
        """
        turn = self._turn(language, approver, reason)
        self.rules.require_override_allowed()
        ModelBundle.load(bundle, digest)
        verdict = self.rules.require_overridable(turn.entries, digest, language)
        unregistered = ModelVersion(model, "", digest)
        if made := self._repeated(turn, "override", unregistered):
            return made
        self.registry.ensure_model(model, language)
        return self._decide(turn, "override", unregistered, verdict.file_sha256, labels(verdict))

    def overridden(self, language: str, digest: str) -> tuple[str, ...]:
        """Labels of the gates that people accepted for exactly this bundle and its present verdict."""
        if not self.rules.asked.allow_override:
            return ()
        sha = self.rules.verdict_sha256(digest)
        return self.rules.overridden(self.history(language), digest, sha)

    def offer(self, language: str, version: ModelVersion) -> Waiting | None:
        """Note in the registry what a registered version waits for; one judged anew after it was closed waits again.

        Returns what waits, when that is news: nothing when the version was offered so before or is closed.
        """
        entries = self.history(language)
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
        """The challenger and what has to happen with it; None when nobody has to decide."""
        challenger = self.registry.challenger(model)
        if challenger is None:
            return None
        entries = self.history(language)
        now = champion_in_force(entries)
        try:
            verdict = load_verdict(self.rules.objects, challenger.digest)
        except GateRefused:
            verdict = None
        return Waiting(
            challenger,
            verdict,
            f"{now.model}/{now.version}" if now else "",
            self.rules.who_may_approve(challenger),
            self.rules.launchers.of(challenger.digest),
            self.rules.expires_at(challenger),
            self.rules.obstacle(entries, challenger),
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
            GateRefused, BundleError, RegistryError: as for `approve`.
        """
        turn = self._turn(language, approver, reason)
        line = line_of_champions(turn.entries)
        if not line:
            raise PromotionRefused(f"'{language}' has no champion yet: there is nothing to roll back")
        now, last = line[-1], turn.entries[-1]
        lost = last.version == version or (since and datetime.fromisoformat(last.time) >= since)
        same = (last.action, last.approver, last.reason) == ("rollback", turn.approver, turn.reason)
        if same and (lost or self._aliases.interrupted(last)):
            self._aliases.finish(turn.ledger)  # the process that took this decision died after recording it
            return last
        earlier = [
            entry
            for entry in (line[:-1] if version is None else turn.entries)
            if entry.action in PRODUCTION
            and (entry.model, entry.version) != (now.model, now.version)
            and (version is None or entry.version == version)
            and (model is None or entry.model == model)
        ]
        if not earlier:
            wanted = f"earlier champion of version {version}" if version else "earlier champion"
            raise PromotionRefused(f"'{language}' has no {wanted} to roll back to; approve a version instead")
        back = earlier[-1]
        target = ModelVersion(back.model, back.version, back.digest)
        self.registry.obtain(back.digest, back.model, back.version)  # whatever its version says or was deleted since
        closed = self.rules.closed(turn.entries, target)
        if closed and closed.action == "reject":
            raise PromotionRefused(closed_sentence(closed))
        sha = require_still_passed(self.rules.objects, back).file_sha256
        try:
            return self._decide(turn, "rollback", target, sha, back.overridden)
        except LostRace:
            meanwhile = self.current(language)
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
        """
        ledger = self.ledger(language)
        now = champion_in_force(ledger.entries())
        if now is None:
            raise PromotionRefused(f"'{language}' has no champion yet: approve a version with the job `promote`")
        self._aliases.require_whole(ledger, now.model)
        require_still_passed(self.rules.objects, now)
        return now

    def current(self, language: str) -> Decision | None:
        """The decision that put the present champion into production, from the ledger; None without a champion."""
        return champion_in_force(self.history(language))

    def history(self, language: str) -> tuple[Decision, ...]:
        """All decisions of a language, oldest first, verified."""
        return self.ledger(language).entries()

    def whole(self, language: str, model: str) -> tuple[Decision, ...]:
        """All decisions of a language, if none is missing that the registry notes about a model."""
        ledger = self.ledger(language)
        self._aliases.require_whole(ledger, model)
        return ledger.entries()

    def check_alias(self, language: str, model: str) -> str | None:
        """What the registry shows otherwise than the ledger says, in a sentence; None where they agree."""
        return self._aliases.check(self.ledger(language), model)

    def reconcile(self, language: str, model: str, approver: str, reason: str) -> str | None:
        """Set the aliases and the registry's note to what the ledger says; returns what `check_alias` said before.

        Raises:
            PromotionRefused: the approver may not decide, or there is no reason.
        """
        ledger = self._turn(language, approver, reason).ledger
        before = self._aliases.check(ledger, model)
        self._aliases.finish(ledger, model)
        return before

    def ledger(self, language: str) -> Ledger:
        """The ledger of a language."""
        return Ledger(self.rules.objects, language, self.rules.asked.signing_key)

    def _turn(self, language: str, approver: str, reason: str) -> _Turn:
        approver, reason = self.rules.require_person(approver, reason)
        ledger = self.ledger(language)
        return _Turn(ledger, ledger.entries(), approver, reason)

    def _decide(
        self, turn: _Turn, action: Action, target: ModelVersion, verdict_sha256: str, overridden: tuple[str, ...] = ()
    ) -> Decision:
        """Record a decision that the rules allow on that verdict, then have the registry follow it."""
        self._aliases.require_whole(turn.ledger, target.name)
        recorded = turn.ledger.append(
            Decision(
                sequence=len(turn.entries) + 1,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                action=action,
                language=turn.ledger.language,
                model=target.name,
                version=target.version,
                digest=target.digest,
                verdict_sha256=verdict_sha256,
                approver=turn.approver,
                reason=turn.reason,
                previous_champion=f"{turn.now.model}/{turn.now.version}" if turn.now else "",
                previous_digest=turn.now.digest if turn.now else "",
                previous_hash=turn.entries[-1].hash if turn.entries else GENESIS,
                overridden=overridden,
                launched_by=", ".join(self.rules.launchers.of(target.digest)),
            )
        )
        self._aliases.follow(turn.ledger)
        return recorded

    def _repeated(self, turn: _Turn, action: Action, target: ModelVersion) -> Decision | None:
        """The same decision again, where it is the last about its target and holds: its process died after it."""
        last = next((e for e in reversed(turn.entries) if about(e, target) and e.digest == target.digest), None)
        if last is None or (last.action, last.approver, last.reason) != (action, turn.approver, turn.reason):
            return None
        if action in PRODUCTION:
            holds = last == turn.now
        else:
            holds = last.verdict_sha256 == self.rules.verdict_sha256(target.digest)
        if holds:
            self._aliases.finish(turn.ledger)
        return last if holds else None


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")
