"""The rules of promotion: what a decision needs before it may be written, asked for again before anything rests on it.

Every step forward, roll-back included, re-reads the persisted verdict for exactly the bundle in question. Whatever is
missing is a refusal: a missing, altered, stale or foreign verdict, a closed or expired version, too few people.

Under the two-person rule an approval by the person who launched the training is one voice, and another approver has
to approve (`deployment.promotion.signatures` says who that was).
"""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from deployment.promotion.actions import CLOSING
from deployment.promotion.ledger import BETTER, Decision, champion_in_force
from deployment.promotion.settings import PromotionSettings
from deployment.promotion.signatures import UNSIGNED, Launchers
from deployment.registry.models import ModelVersion
from evaluation.gates import GateRefused, GateSettings, Verdict, load_verdict, verdict_key
from evaluation.results import Interval
from speech.store.objects import Missing, Objects

# Control characters but tab and line feed, those that turn the direction of writing, and halves of surrogate pairs.
_UNFIT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class PromotionRefused(Exception):
    """A decision that may not be taken: no such approver, no reason, or nothing to go back to."""


@dataclass(frozen=True)
class Rules:
    """What a team asks of a decision about production.

    Attributes:
        objects: the data store, with the verdicts and the notes of who launched a bundle's training.
        asked: who may decide, and what a decision needs.
        gates: the thresholds in force; a verdict judged by others is stale.
    """

    objects: Objects
    asked: PromotionSettings
    gates: GateSettings

    @property
    def launchers(self) -> Launchers:
        """Who launched a bundle's training."""
        return Launchers(self.objects)

    def require_person(self, approver: str, reason: str) -> tuple[str, str]:
        """The name and the reason, trimmed, if that person may decide.

        Raises:
            PromotionRefused: no name, one that is not on the list, no reason, or a text that cannot be printed.
        """
        approver, reason = approver.strip(), reason.strip()
        if not approver:
            raise PromotionRefused("a decision needs the name of the person who takes it")
        if approver not in self.asked.approvers:
            raise PromotionRefused(f"'{approver}' may not decide about production ({self.allowed})")
        if not any(character.isalnum() for character in reason):  # a full stop alone says nothing
            raise PromotionRefused("a decision needs a reason that others can read later")
        if unfit := _UNFIT.search(approver + reason):
            raise PromotionRefused(f"the character U+{ord(unfit[0]):04X} does not print as it reads: leave it out")
        return approver, reason

    @property
    def allowed(self) -> str:
        """Who may decide, for a sentence."""
        return f"allowed: {', '.join(sorted(self.asked.approvers)) or 'nobody yet: name approvers in the settings'}"

    def require_override_allowed(self) -> None:
        """Refuse an override where the team has not switched them on."""
        if not self.asked.allow_override:
            raise PromotionRefused(
                "overriding gates is switched off: a team that wants it sets promotion.allow_override in its settings"
            )

    def require_eligible(
        self, entries: Sequence[Decision], candidate: ModelVersion, override: bool
    ) -> tuple[Verdict, tuple[str, ...]]:
        """What an approval needs, whoever gives it; returns the verdict and the labels of its gates to be overridden.

        Raises:
            PromotionRefused: the version was closed, expired or is no better than the champion.
            GateRefused: no passing, current verdict for exactly this bundle.
        """
        if closed := self.closed(entries, candidate):
            raise PromotionRefused(closed_sentence(closed))
        now = champion_in_force(entries)
        verdict = load_verdict(self.objects, candidate.digest)
        accepted = self.overridden(entries, candidate.digest, verdict.file_sha256) if override else ()
        self._require_passed(entries, verdict, candidate.tags.get("language", ""), accepted)
        name = f"{candidate.name} version {candidate.version}"
        self._require_fresh(verdict, name)
        used = labels(verdict)
        if self.asked.require_better and now and not verdict.improves:
            found = f"{points(verdict.comparison)} points of WER" if verdict.comparison else "no paired comparison"
            if not override:
                raise PromotionRefused(
                    f"{name} is not shown to be better than champion {now.model}/{now.version} ({found} on the "
                    "benchmark; the whole interval must lie below zero): keep the champion, or train on more"
                )
            used += (BETTER,)
        return verdict, used

    def obstacle(self, entries: Sequence[Decision], candidate: ModelVersion) -> str | None:
        """Why an approval would be refused as things stand, and whether an override would help."""
        try:
            self.require_eligible(entries, candidate, override=False)
        except (GateRefused, PromotionRefused) as refused:
            try:
                self.require_eligible(entries, candidate, override=self.asked.allow_override)
            except (GateRefused, PromotionRefused):
                return str(refused)
            return f"{refused} `promote` approves it all the same with `override_gates`."
        return None

    def require_overridable(self, entries: Sequence[Decision], digest: str, language: str) -> Verdict:
        """The verdict of a bundle, if that it failed gates is all that stands in its way.

        Raises:
            PromotionRefused: its verdict expired, or every gate was passed.
            GateRefused: the verdict is missing, altered, stale or foreign, which nobody can override.
        """
        verdict = load_verdict(self.objects, digest)
        self._require_passed(entries, verdict, language, labels(verdict))
        self._require_fresh(verdict, verdict.model_name)
        if not verdict.failures:
            raise PromotionRefused(f"{verdict.model_name} ({digest[:12]}) passed every gate: nothing to override")
        return verdict

    def overridden(self, entries: Sequence[Decision], digest: str, verdict_sha256: str) -> tuple[str, ...]:
        """Labels of the gates that people accepted for exactly this bundle and verdict."""
        made = (e for e in reversed(entries) if (e.action, e.digest) == ("override", digest))
        last = next(made, None)
        return last.overridden if last and last.verdict_sha256 == verdict_sha256 else ()

    def closed(self, entries: Sequence[Decision], version: ModelVersion) -> Decision | None:
        """The decision that keeps a version from being approved: a rejection for good, others until it is rejudged."""
        closing = [entry for entry in reversed(entries) if entry.action in CLOSING and about(entry, version)]
        if not closing:
            return None
        if rejected := next((entry for entry in closing if entry.action == "reject"), None):
            return rejected
        last = closing[0]
        return last if last.verdict_sha256 == self.verdict_sha256(version.digest) else None

    def expires_at(self, version: ModelVersion) -> datetime | None:
        """When a version that nobody decides about is closed; None where it is not known how long it waits."""
        try:
            judged = instant(load_verdict(self.objects, version.digest).judged_at)
        except GateRefused:
            judged = None
        since = judged or version.created_at
        return since + timedelta(days=self.asked.challenger_expires_days) if since else None

    def overdue(self, version: ModelVersion) -> bool:
        """Whether a version waited longer than the rules allow."""
        deadline = self.expires_at(version)
        return deadline is not None and datetime.now(UTC) > deadline

    def voices(self, entries: Sequence[Decision], version: ModelVersion, verdict_sha256: str) -> dict[str, Decision]:
        """Approvals of a version on that verdict that were not enough by themselves, by approver.

        Only of people who may still decide: whoever left the list has no say in what goes into production now.
        """
        return {
            e.approver: e
            for e in entries
            if e.action == "voice"
            and about(e, version)
            and e.verdict_sha256 == verdict_sha256
            and e.approver in self.asked.approvers
        }

    def suffices(self, entries: Sequence[Decision], version: ModelVersion, verdict_sha256: str, approver: str) -> bool:
        """Whether an approval by this person is enough: by another than the launcher, or as the second voice."""
        launchers = self._launchers(version)
        if not self.asked.two_person or (UNSIGNED not in launchers and approver.casefold() not in launchers):
            return True
        voices = self.voices(entries, version, verdict_sha256)
        return any(name.casefold() != approver.casefold() for name in voices)

    def who_may_approve(self, version: ModelVersion) -> tuple[str, ...]:
        """Whose approval would be enough, or would be one of two."""
        alone = self._launchers(version) if self.asked.two_person else set()
        return tuple(sorted(name for name in self.asked.approvers if name.casefold() not in alone))

    def _launchers(self, version: ModelVersion) -> set[str]:
        return {name.casefold() for name in self.launchers.of(version.digest)} or {UNSIGNED}

    def verdict_sha256(self, digest: str) -> str:
        """SHA-256 of a bundle's verdict as it is now; empty without one."""
        try:
            return hashlib.sha256(self.objects.read(verdict_key(digest)).data).hexdigest()
        except (GateRefused, Missing):
            return ""

    def _require_passed(
        self, entries: Sequence[Decision], verdict: Verdict, language: str, overridden: Collection[str]
    ) -> None:
        now = champion_in_force(entries)
        verdict.require_passed(
            language=language,
            settings=self.gates,
            champion_digest=now.digest if now else None,
            overridden=overridden,
        )

    def _require_fresh(self, verdict: Verdict, name: str) -> None:
        judged, days = instant(verdict.judged_at), self.asked.challenger_expires_days
        if judged is None or datetime.now(UTC) - judged > timedelta(days=days):
            when = f"on {judged:%Y-%m-%d}" if judged else "at an unknown time"
            raise PromotionRefused(
                f"{name} expired: it was judged {when}, and a verdict holds for {days} days; "
                "evaluate and judge it again, then register it again"
            )


def require_still_passed(verdicts: Objects, entry: Decision) -> Verdict:
    """The verdict of a decided bundle must still open the way, or that very decision accepted its failures.

    They are accepted only on the verdict that the decision was taken on.

    Raises:
        GateRefused: no passing verdict for exactly this bundle.
    """
    verdict = load_verdict(verdicts, entry.digest)
    accepted = entry.overridden if verdict.file_sha256 == entry.verdict_sha256 else ()
    verdict.require_passed(language=entry.language, overridden=accepted)
    return verdict


def labels(verdict: Verdict) -> tuple[str, ...]:
    """The gates that a verdict failed, as decisions name them."""
    return tuple(dict.fromkeys(gate.label for gate in verdict.failures))


def require_language(version: ModelVersion, language: str) -> ModelVersion:
    """The same version, if it is for that language."""
    found = version.tags.get("language", "")
    if found != language:
        raise PromotionRefused(
            f"{version.name} version {version.version} is for language '{found}', not for '{language}'"
        )
    return version


def about(entry: Decision, version: ModelVersion) -> bool:
    """Whether a decision is about a version."""
    return (entry.model, entry.version) == (version.name, version.version)


def closed_sentence(closed: Decision) -> str:
    """Why a closed version cannot be approved, and what would have to happen first."""
    final, again = "that is final for this bundle, so train another", "evaluate, judge and register it again first"
    todo = final if closed.action == "reject" else again
    return f"{closed.model} version {closed.version} was closed ({closed.done}); {todo}"


def instant(text: str) -> datetime | None:
    """A point in time from ISO 8601; None if it is none."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def points(interval: Interval | None) -> str:
    """A difference of WER in points, with its interval."""
    if interval is None:
        return ""
    return f"{interval.estimate * 100:+.2f} ({interval.low * 100:+.2f} to {interval.high * 100:+.2f})"
