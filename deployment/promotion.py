"""Promotion: a person's decision about a version, under the team's rules, and the registry's aliases that follow it.

An alias in MLflow can be moved by anyone with a browser, remembers nobody, and is not what a deployment may rest on. So
a decision is first written to the ledger of its language (`deployment.ledger`), and only then is the alias `champion`
moved; a process killed in between leaves an alias that `reconcile` repairs from the ledger. The ledger's head is noted
at the model in the registry, against which two things show (`check_alias`): entries that were cut off at the end, and
an entry that no decision finished. The latter is followed only after what its decision needs was asked again.

Every step forward, roll-back included, re-reads the persisted verdict for exactly the bundle in question and compares
the registry's bytes with its digest. Whatever is missing is a refusal.

What a person can decide about a version that waits: `approve`, `reject` (final for that bundle), `request_changes`
(closed until it is judged again). The system closes what waited too long (`expire`). Under the two-person rule an
approval by the person who launched the training is one `voice`, and another approver has to approve.

A bundle that failed gates reaches production only through two entries: `override`, about exactly this bundle and
verdict, which lets it be registered, and an approval that repeats which gates were overridden. Roll-back and release
honour that approval for exactly that bundle and verdict, and only as far as the override before it covers. A missing,
altered, stale or foreign verdict, an expired challenger or a bundle whose bytes differ cannot be overridden.

Who launched a training is kept beside the ledger as well as in a tag, since a tag can be edited by anyone.

Not covered: names are taken as given, from the launchpad and from tags alike; whoever can reach Dagster or MLflow can
write another's, unless a proxy in front of them signs people in.
"""

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deployment.ledger import (
    BETTER,
    CLOSING,
    GENESIS,
    PRODUCTION,
    Action,
    Decision,
    Ledger,
    LedgerError,
    accepted_gates,
    champion_in_force,
    every_champion,
    line_of_champions,
)
from deployment.registry import CHALLENGER, CHAMPION, LAUNCHED_BY_TAG, ModelVersion, Registry, RegistryError
from evaluation.gates import (
    UNCHECKED,
    GateRefused,
    GateSettings,
    Verdict,
    load_verdict,
    require_passed,
)
from evaluation.scoring import BENCHMARK, Interval
from speech.bundle import BundleError, ModelBundle
from speech.store import write_json

HEAD_TAG = "ledger_head"
SYSTEM = "soundstage"  # who closes what waited too long
UNSIGNED = "unknown"  # stands among a version's launchers for a training whose run named nobody

STATUS_TAG = "soundstage.status"  # on a version: who has to do what until when, or what was decided

_HEAD = re.compile(r"[0-9]{1,9}:[0-9a-f]{64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class PromotionRefused(Exception):
    """A decision that may not be taken: no such approver, no reason, or nothing to go back to."""


@dataclass(frozen=True)
class AliasState:
    """How the registry's alias stands to the ledger; `explanation` is one sentence for people."""

    agrees: bool
    ledger_version: str | None
    alias_version: str | None
    explanation: str


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
            against += f", the difference is {_points(self.difference)} points" if self.difference else ""
        until = f" until {self.expires_at:%Y-%m-%d}" if self.expires_at else ""
        return f"{name} waits for {who} to approve, reject or ask for changes{until}{wer}{against}"


class Promotions:
    """Decisions about champions.

    Args:
        registry: where versions and aliases are.
        ledger: folder of the ledgers, one file a language.
        verdicts: folder of the persisted verdicts.
        approvers: who may decide. An empty list means nobody; None means that no list is kept.
        gates: the thresholds in force; a verdict judged by others is stale. None: not compared.
        compare_champion: an approval needs a verdict that compared with today's champion.
        require_better: an approval needs a paired interval that shows improvement over the champion.
        two_person: who launched the training cannot be the only approver.
        expires_days: an approval needs a verdict that is not older. None: any age.
        allow_override: failed gates may be accepted by an explicit decision.
        launchers: folder where `note_launchers` keeps who launched a bundle's training. None: the version's tag alone
            says so, which anyone with MLflow open can edit.
    """

    def __init__(
        self,
        registry: Registry,
        ledger: Path,
        verdicts: Path,
        approvers: Collection[str] | None = None,
        *,
        gates: GateSettings | None = None,
        compare_champion: bool = True,
        require_better: bool = False,
        two_person: bool = False,
        expires_days: int | None = None,
        allow_override: bool = False,
        launchers: Path | None = None,
    ) -> None:
        self.registry = registry
        self._folder = ledger
        self._verdicts = verdicts
        self._approvers = approvers
        self._gates = gates
        self._compare_champion = compare_champion
        self._require_better = require_better
        self._two_person = two_person
        self._expires_days = expires_days
        self._allow_override = allow_override
        self._launchers_folder = launchers

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
        approver, reason = self._require_person(approver, reason)
        if override_gates:
            self._require_override_allowed()
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            now = champion_in_force(entries)
            candidate = self._require_language(self.registry.verify(model, version), language)
            if now and (now.model, now.version, now.digest) == (candidate.name, candidate.version, candidate.digest):
                same = (now.action, now.approver, now.reason) == ("approve", approver, reason)
                if same or not self._interrupted(entries[-1]):
                    self._finish(ledger)
                if same:
                    return now  # the process that took this decision died after recording it
                raise PromotionRefused(
                    f"{model} version {candidate.version} is the champion of '{language}' since {now.time}, decided by "
                    f"{now.approver}: there is nothing to approve"
                )
            sha, overridden = self._require_eligible(entries, candidate, override_gates)
            action: Action = "approve"
            if self._two_person and not self._independent(entries, candidate, sha, approver):
                action = "voice"
                before = self._voices(entries, candidate, sha).get(approver)
                if before and before.reason == reason:
                    self._finish(ledger)
                    return before
                if before:
                    raise PromotionRefused(
                        f"'{approver}' has approved {model} version {candidate.version} on {before.time[:10]}: two "
                        f"people are asked for, so another approver has to decide ({self._allowed()})"
                    )
            return self._decide(ledger, entries, action, candidate, sha, approver, reason, overridden)

    def reject(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Record that a version shall not go to production, for good; it stops being the challenger.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or the version is the champion.
            RegistryError, LedgerError: no such version; the ledger is broken.
        """
        return self._close("reject", language, model, version, approver, reason)

    def request_changes(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Record what is to be changed first: the version waits no longer, until it was judged and offered again.

        Raises:
            PromotionRefused, RegistryError, LedgerError: as for `reject`.
        """
        return self._close("request_changes", language, model, version, approver, reason)

    def expire(self, language: str, model: str) -> Decision | None:
        """Close the challenger if it waited too long; None when there is nothing to close.

        Raises:
            RegistryError, LedgerError: the registry cannot be used; the ledger is broken.
        """
        ledger = self.ledger(language)
        with ledger.locked():
            candidate = self.overdue(model)
            if candidate is None:
                return None
            entries = ledger.entries()
            if closed := self._closed(entries, candidate):
                self._finish(ledger)  # the process that closed it died before it moved the alias
                return closed
            reason = f"waited longer than {self._expires_days} days for a decision: evaluate and judge it again"
            sha = _file_sha256(self._verdicts / f"{candidate.digest}.json")
            return self._decide(ledger, entries, "expire", candidate, sha, SYSTEM, reason)

    def overdue(self, model: str) -> ModelVersion | None:
        """The challenger, if it waited too long."""
        candidate = self.registry.challenger(model)
        deadline = self._expires_at(candidate) if candidate else None
        return candidate if deadline and datetime.now(UTC) > deadline else None

    def override(self, language: str, model: str, bundle: Path, digest: str, approver: str, reason: str) -> Decision:
        """Accept the failed gates of exactly this bundle and verdict, so that it can be registered and approved.

        Raises:
            PromotionRefused: overriding is switched off, the approver may not decide, there is no reason, or every
                gate was passed.
            GateRefused: the verdict is missing, altered, stale or foreign, which nobody can override.
            BundleError: the bundle is not the one of that digest.
            LedgerError: the ledger is broken.
        """
        approver, reason = self._require_person(approver, reason)
        self._require_override_allowed()
        ModelBundle.load(bundle, digest)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            now = champion_in_force(entries)
            verdict = load_verdict(self._verdicts, digest)
            failed = tuple(dict.fromkeys(gate.label for gate in verdict.failures))
            self._require_verdict(digest, language, champion=now.digest if now else None, overridden=failed)
            self._require_fresh(verdict, verdict.model_name)
            if not failed:
                raise PromotionRefused(f"{verdict.model_name} ({digest[:12]}) passed every gate: nothing to override")
            sha = _file_sha256(self._verdicts / f"{digest}.json")
            last = entries[-1] if entries else None
            if last and (last.action, last.digest, last.verdict_sha256, last.approver, last.reason) == (
                "override",
                digest,
                sha,
                approver,
                reason,
            ):
                self._finish(ledger)
                return last
            self.registry.ensure_model(model, language)
            about = ModelVersion(model, "", digest)
            return self._decide(ledger, entries, "override", about, sha, approver, reason, failed)

    def overridden(self, language: str, digest: str) -> tuple[str, ...]:
        """Labels of the gates that people accepted for exactly this bundle and its present verdict.

        Raises:
            LedgerError: the ledger is broken.
        """
        if not self._allow_override:
            return ()
        sha = _file_sha256(self._verdicts / f"{digest}.json")
        return _overridden(self.ledger(language).entries(), digest, sha)

    def offer(self, language: str, version: ModelVersion) -> Waiting | None:
        """Note in the registry what a registered version waits for; one judged anew after it was closed waits again.

        Returns what waits, when that is news: nothing when the version was offered so before or is closed.

        Raises:
            LedgerError: the ledger is broken.
        """
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            about = [entry for entry in entries if _same(entry, version)]
            if self._closed(entries, version) or any(entry.action in PRODUCTION for entry in about):
                return None
            if any(entry.action in CLOSING for entry in about):
                self.registry.offer(version.name, version.version, again=True)
            waiting = self.waiting(language, version.name)
            if waiting is None or waiting.version.version != version.version:
                return None
            if waiting.version.tags.get(STATUS_TAG) == waiting.sentence:
                return None
            self.registry.set_version_tag(version.name, version.version, STATUS_TAG, waiting.sentence)
            self._supersede(entries, version)
            return waiting

    def _supersede(self, entries: tuple[Decision, ...], newer: ModelVersion) -> None:
        """Say at versions that nobody decided about that they wait no longer: only the newest is the challenger."""
        said = f"superseded by version {newer.version}, which waits in its place"
        for version in self.registry.versions(newer.name):
            undecided = version.version != newer.version and not any(_same(entry, version) for entry in entries)
            if undecided and STATUS_TAG in version.tags:
                self.registry.set_version_tag(version.name, version.version, STATUS_TAG, said)

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
            verdict = load_verdict(self._verdicts, challenger.digest)
            wer = next((gate for gate in verdict.gates if (gate.name, gate.test_set) == ("wer", BENCHMARK)), None)
            benchmark = replace(wer.interval, estimate=wer.value) if wer and wer.interval else None
            difference = verdict.comparison
            obstacle = self._obstacle(entries, challenger)
        except GateRefused as refused:
            obstacle = str(refused)
        return Waiting(
            challenger,
            benchmark,
            difference,
            f"{now.model}/{now.version}" if now else "",
            self._who_may_approve(challenger),
            self._expires_at(challenger),
            obstacle,
            self._launchers(challenger),
        )

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
        approver, reason = self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            line = line_of_champions(entries)
            if not line:
                raise PromotionRefused(f"'{language}' has no champion yet: there is nothing to roll back")
            now, last = line[-1], entries[-1]
            if (last.action, last.approver, last.reason) == ("rollback", approver, reason) and (
                self._interrupted(last) or last.version == str(version) or _made_since(last, since)
            ):
                self._finish(ledger)  # the process that took this decision died after recording it
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
            target = self._require_language(self.registry.verify(back.model, back.version), language)
            if target.digest != back.digest:
                raise PromotionRefused(
                    f"{back.model} version {back.version} is now bundle {target.digest[:12]}, but {back.digest[:12]} "
                    "was approved: someone replaced it; approve a version instead"
                )
            closed = self._closed(entries, target)
            if closed and closed.action == "reject":
                raise PromotionRefused(_closed_sentence(closed))
            sha = self._require_still(entries, back)
            accepted = accepted_gates(entries, back)
            return self._decide(ledger, entries, "rollback", target, sha, approver, reason, accepted)

    def releasable(self, language: str) -> Decision:
        """The decision in force, if what it put into production may be served: its verdict is read again.

        The registry's alias plays no part. Failed gates are accepted only as far as that very decision says and an
        override before it covers.

        Raises:
            PromotionRefused: there is no champion.
            GateRefused: no passing verdict for exactly this bundle.
            LedgerError: the ledger is broken, cut off, or its last entry was not made by a decision.
        """
        entries = self.ledger(language).entries()
        now = champion_in_force(entries)
        if now is None:
            raise PromotionRefused(f"'{language}' has no champion yet: approve a version with the job `promote`")
        if cut := self._cut_off(entries, now.model, language):
            raise LedgerError(cut)
        self._require_noted(entries)
        self._require_still(entries, now)
        return now

    def current(self, language: str) -> Decision | None:
        """The decision that put the present champion into production, from the ledger; None without a champion."""
        return champion_in_force(self.ledger(language).entries())

    def history(self, language: str) -> tuple[Decision, ...]:
        """All decisions of a language, oldest first, verified."""
        return self.ledger(language).entries()

    def verify(self, language: str, model: str | None = None) -> str | None:
        """None when the ledger is intact, else a sentence that names what is broken.

        With `model`, the ledger's end is compared with what the registry notes of it: entries may be missing there,
        or one may be there that no decision has finished.
        """
        ledger = self.ledger(language)
        if broken := ledger.verify():
            return broken
        entries = ledger.entries()
        return (self._cut_off(entries, model, language) or self._unknown(entries)) if model else None

    def check_alias(self, language: str, model: str) -> AliasState:
        """Whether the registry's alias and its note of the ledger's head agree with the ledger.

        Raises:
            LedgerError: the ledger is broken.
        """
        entries = self.ledger(language).entries()
        now = champion_in_force(entries)
        if now and now.model != model:
            now = None
        alias = self.registry.champion(model)
        expected, found = (now.version if now else None), (alias.version if alias else None)
        if wrong := self._cut_off(entries, model, language) or self._unknown(entries):
            return AliasState(False, expected, found, wrong)
        if expected != found:
            aside = f"the alias '{CHAMPION}' of {model} points to {_named(found)}, but the ledger says "
            if expected and self._gone(model, expected):
                return AliasState(
                    False,
                    expected,
                    found,
                    f"{aside}version {expected}, which was deleted in MLflow: the decision stands, but nothing can be "
                    "released from it; approve another version, or roll back to an earlier champion",
                )
            return AliasState(
                False,
                expected,
                found,
                f"{aside}{_named(expected)}: it was moved by hand; the job `reconcile` sets it to the ledger",
            )
        if now and alias and now.digest != alias.digest:
            return AliasState(
                False,
                expected,
                found,
                f"{model} version {found} is tagged as bundle {alias.digest[:12]}, but {now.digest[:12]} was approved",
            )
        return AliasState(True, expected, found, f"the alias '{CHAMPION}' of {model} is {_named(found)}, as decided")

    def reconcile(self, language: str, model: str, approver: str, reason: str) -> AliasState:
        """Set the aliases and the registry's note to what the ledger says; returns what was found before.

        A last entry that the registry does not know of is accepted by this, if what its decision needed still holds:
        look at who wrote it first.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or the last entry is none that a person
                could have taken.
            GateRefused, BundleError, RegistryError: what the last entry puts into production may not be there.
            LedgerError: the ledger is broken or was cut off: the alias is then left as it is.
        """
        self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            before = self.check_alias(language, model)
            self._finish(ledger, model)
        return before

    def note_launchers(self, digest: str, names: Collection[str]) -> None:
        """Keep who launched the training of a bundle, beside those noted before; no edit in MLflow takes one away."""
        if self._launchers_folder is None:
            return
        if not _DIGEST.fullmatch(digest):
            raise PromotionRefused(f"{digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected")
        noted = sorted({*self._noted_launchers(digest), *(name.strip() for name in names if name.strip())})
        write_json(self._launchers_folder / f"{digest}.json", noted)

    def ledger(self, language: str) -> Ledger:
        """The ledger of a language."""
        return Ledger(self._folder, language)

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
        now = champion_in_force(entries)
        if cut := self._cut_off(entries, target.name, ledger.language):
            raise LedgerError(cut)
        self._require_noted(entries)
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
                launched_by=", ".join(self._launchers(target)),
            )
        )
        self._follow(ledger)
        return recorded

    def _close(self, action: Action, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        approver, reason = self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            now = champion_in_force(entries)
            candidate = self._require_language(self.registry.version(model, version), language)
            if now and (now.model, now.version) == (candidate.name, candidate.version):
                raise PromotionRefused(
                    f"{model} version {candidate.version} is the champion of '{language}': roll back instead"
                )
            sha = _file_sha256(self._verdicts / f"{candidate.digest}.json")
            last = next((entry for entry in reversed(entries) if _same(entry, candidate)), None)
            if last and (last.action, last.approver, last.reason, last.verdict_sha256) == (
                action,
                approver,
                reason,
                sha,
            ):
                self._finish(ledger)
                return last
            return self._decide(ledger, entries, action, candidate, sha, approver, reason)

    def _follow(self, ledger: Ledger, model: str | None = None) -> None:
        """Move the aliases to where the ledger says; repeating it changes nothing.

        The last entry's model is noted last, because that note says that all is done.
        """
        entries = ledger.entries()
        now = champion_in_force(entries)
        models = {entry.model for entry in entries} | ({model} if model else set())
        for name in sorted(models, key=lambda name: (bool(entries) and name == entries[-1].model, name)):
            champion = self.registry.champion(name)
            wanted = now.version if now and now.model == name else None
            if wanted and (champion is None or champion.version != wanted):
                try:
                    self.registry.set_alias(name, CHAMPION, wanted)
                except RegistryError:  # someone deleted the version: the decision stands, and `check_alias` tells of it
                    self.registry.remove_alias(name, CHAMPION)
            elif wanted is None and champion is not None:
                self.registry.remove_alias(name, CHAMPION)
            challenger = self.registry.challenger(name)
            if challenger is not None and (
                self._closed(entries, challenger)
                or any(entry.action in PRODUCTION and _same(entry, challenger) for entry in entries)
            ):
                self.registry.remove_alias(name, CHALLENGER)
            if entries:
                self._show(entries[-1], name)
                try:
                    self.registry.set_model_tag(name, f"{HEAD_TAG}.{ledger.language}", entries[-1].head)
                except RegistryError:
                    if name == entries[-1].model:  # an earlier model of the language may be gone
                        raise

    def _finish(self, ledger: Ledger, model: str | None = None) -> None:
        """Follow the ledger again, for a process that died; an entry that no decision wrote is not followed.

        Raises:
            LedgerError: entries are missing at its end, or more are there than one decision writes.
            PromotionRefused, GateRefused, BundleError, RegistryError: what the last entry needs does not hold.
        """
        entries = ledger.entries()
        about = {entry.model for entry in entries} | ({model} if model else set())
        for name in sorted(about):
            if cut := self._cut_off(entries, name, ledger.language):
                raise LedgerError(cut)
        if entries and self._interrupted(entries[-1]):
            last = entries[-1]
            try:
                self._require_made(entries)
            except (PromotionRefused, GateRefused, BundleError) as refused:
                raise type(refused)(
                    f"decision {last.sequence} of '{last.language}' ({last.action} by {last.approver}) is not known to "
                    f"the registry, and cannot be accepted: {refused}"
                ) from refused
        self._follow(ledger, model)

    def _require_made(self, entries: tuple[Decision, ...]) -> None:
        """Ask again what the last entry's decision needed, since nothing but the file says that it was taken.

        Where the note was edited or removed, any entry could be the one that was added, and old ones may rest on rules
        that have changed since; so then what is in production is held to what a roll-back to it would ask for.
        """
        last = entries[-1]
        known = self._known(entries)
        if self._damaged(entries):
            if now := champion_in_force(entries):
                self._require_servable(entries, now)
            return
        if len(entries) - known > 1:
            raise LedgerError(
                f"decisions {known + 1} to {last.sequence} of '{last.language}' are not known to the registry, and an "
                "interrupted decision leaves one such entry: they were written by hand; restore the ledger from its "
                "backup"
            )
        if last.action != "expire":
            self._require_person(last.approver, last.reason)
        if last.action in ("approve", "voice"):
            self._require_approval(entries[:-1], last)
        elif last.action == "rollback":
            self._require_rollback(entries[:-1], last)
        elif last.action == "override":
            self._require_override_allowed()

    def _require_servable(self, entries: tuple[Decision, ...], entry: Decision) -> None:
        """What it takes for an entry's bundle to stay in production or to come back to it.

        Its version may have been deleted in MLflow, where a verified copy of the bundle is at hand.
        """
        there = (entry.model, entry.version)
        if rejected := next((e for e in entries if e.action == "reject" and (e.model, e.version) == there), None):
            raise PromotionRefused(_closed_sentence(rejected))
        self._require_still(entries, entry)
        if self.registry.cached(entry.digest) is None or not self._gone(entry.model, entry.version):
            self._require_bytes(entry)

    def _require_bytes(self, entry: Decision) -> ModelVersion:
        """The version that an entry names, if the registry's bytes are those of the entry's digest."""
        version = self._require_language(self.registry.verify(entry.model, entry.version), entry.language)
        if version.digest != entry.digest:
            raise BundleError(
                f"{entry.model} version {entry.version} is bundle {version.digest[:12]}, but decision "
                f"{entry.sequence} is about {entry.digest[:12]}; look at who wrote it, and restore the ledger from its "
                "backup"
            )
        return version

    def _require_approval(self, earlier: tuple[Decision, ...], entry: Decision) -> None:
        """What an approval, or one voice of it, asked for before it was written."""
        self._require_still((*earlier, entry), entry)
        version = self._require_bytes(entry)
        if entry.overridden:
            self._require_override_allowed()
        sha, used = self._require_eligible(earlier, version, override=bool(entry.overridden))
        if not set(used) <= set(entry.overridden) or (entry.overridden and sha != entry.verdict_sha256):
            raise PromotionRefused(
                "it rests on another verdict, or accepts other gates, than the ones there are; remove the entry, and "
                "approve the version again if somebody took it"
            )
        if (
            entry.action == "approve"
            and self._two_person
            and not self._independent(earlier, version, sha, entry.approver)
        ):
            raise PromotionRefused(
                f"'{entry.approver}' may have launched the training, and two people are asked for; remove the entry, "
                f"and have another approver decide ({self._allowed()})"
            )

    def _require_rollback(self, earlier: tuple[Decision, ...], entry: Decision) -> None:
        """What a roll-back asked for before it was written: an earlier champion, that may still be served."""
        if _about(entry) not in {_about(champion) for champion in every_champion(earlier)}:
            raise PromotionRefused(
                f"{entry.model} version {entry.version} ({entry.digest[:12]}) never was champion before it, so it was "
                "written by hand; remove the entry, or restore the ledger from its backup"
            )
        self._require_servable((*earlier, entry), entry)

    def _show(self, last: Decision, model: str) -> None:
        """Say at the versions that a decision was about what it made of them."""
        said = {last.version: f"{_SAID[last.action]} by {last.approver} on {last.time[:10]}: {last.reason}"}
        before, _, number = last.previous_champion.rpartition("/")
        if last.action in PRODUCTION and before == model and number != last.version:
            said[number] = (
                f"champion until {last.time[:10]}: {last.action} of version {last.version} by {last.approver}"
            )
        for version, status in said.items():
            if version and (last.model == model or version == number):
                with suppress(RegistryError):  # someone deleted the version, which changes nothing decided
                    self.registry.set_version_tag(model, version, STATUS_TAG, status)

    def _cut_off(self, entries: tuple[Decision, ...], model: str, language: str) -> str | None:
        """A sentence when the registry remembers a decision that the ledger no longer has."""
        noted = self._noted(model, language)
        if noted is None or not _HEAD.fullmatch(noted) or noted in {entry.head for entry in entries}:
            return None
        return (
            f"the registry notes decision {noted.partition(':')[0]} about {model}, which the ledger of '{language}' "
            "does not have: entries were removed from its end; restore the ledger from its backup"
        )

    def _interrupted(self, last: Decision) -> bool:
        """Whether a decision was recorded but its aliases were not all moved; the note is the last step."""
        return self._noted(last.model, last.language) != last.head

    def _known(self, entries: Sequence[Decision]) -> int:
        """How many entries the registry knows of: the last of them that is noted at any of their models."""
        notes = {self._noted(model, entries[0].language) for model in {entry.model for entry in entries}}
        return max((entry.sequence for entry in entries if entry.head in notes), default=0)

    def _unknown(self, entries: Sequence[Decision]) -> str | None:
        """A sentence when the registry does not know the last entry: no decision finished it, or the note is wrong."""
        if not entries or not self._interrupted(entries[-1]):
            return None
        last = entries[-1]
        if damaged := self._damaged(entries):
            return damaged
        return (
            f"decision {last.sequence} of '{last.language}' ({last.action} by {last.approver}) was interrupted or "
            "written by hand, since the registry does not know it: launch the same decision again, or remove the "
            "entry if nobody took it, or have it examined and accepted with the job `reconcile`"
        )

    def _damaged(self, entries: Sequence[Decision]) -> str | None:
        """A sentence when the note was edited or removed in MLflow; before the first decision ends there is none."""
        last = entries[-1]
        noted = self._noted(last.model, last.language)
        removed = noted is None and len(entries) > 1 and not self._known(entries)
        if not removed and (noted is None or _HEAD.fullmatch(noted)):
            return None
        found = "is missing" if noted is None else f"is {noted[:80]!r}, not a number and a hash"
        return (
            f"the registry's note of the last decision of '{last.language}' (the tag '{HEAD_TAG}.{last.language}' of "
            f"{last.model}) {found}: it was edited in MLflow; compare the ledger with its backup, then set the note "
            "right with the job `reconcile`"
        )

    def _require_noted(self, entries: Sequence[Decision]) -> None:
        """Nothing rests on an entry that no decision has finished: it may have been added by hand."""
        if unknown := self._unknown(entries):
            raise LedgerError(unknown)

    def _gone(self, model: str, version: str) -> bool:
        """Whether a version was deleted."""
        try:
            self.registry.version(model, version)
        except RegistryError:
            return True
        return False

    def _noted(self, model: str, language: str) -> str | None:
        return self.registry.model_tag(model, f"{HEAD_TAG}.{language}")

    def _require_person(self, approver: str, reason: str) -> tuple[str, str]:
        approver, reason = approver.strip(), reason.strip()
        if not approver:
            raise PromotionRefused("a decision needs the name of the person who takes it")
        if self._approvers is not None and approver not in self._approvers:
            raise PromotionRefused(f"'{approver}' may not decide about production ({self._allowed()})")
        if not reason:
            raise PromotionRefused("a decision needs a reason that others can read later")
        return approver, reason

    def _allowed(self) -> str:
        if self._approvers is None:
            return "anyone may"
        return f"allowed: {', '.join(sorted(self._approvers)) or 'nobody yet: name approvers in the settings'}"

    def _who_may_approve(self, version: ModelVersion) -> tuple[str, ...] | None:
        """Whose approval would be enough, or would be one of two."""
        if self._approvers is None:
            return None
        alone = {name.casefold() for name in self._launchers(version)} if self._two_person else set()
        return tuple(sorted(name for name in self._approvers if name.casefold() not in alone))

    def _launchers(self, version: ModelVersion) -> tuple[str, ...]:
        """Who launched a version's training, by its tag or by what was noted beside the ledger."""
        tagged = [name.strip() for name in version.tags.get(LAUNCHED_BY_TAG, "").split(",")]
        return tuple(sorted({name for name in (*tagged, *self._noted_launchers(version.digest)) if name}))

    def _noted_launchers(self, digest: str) -> tuple[str, ...]:
        if self._launchers_folder is None or not _DIGEST.fullmatch(digest):
            return ()
        path = self._launchers_folder / f"{digest}.json"
        try:
            names = json.loads(path.read_bytes())
        except FileNotFoundError:
            return ()
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return (UNSIGNED,)  # a damaged note clears nobody
        return tuple(names)

    def _voices(self, entries: Sequence[Decision], version: ModelVersion, verdict_sha256: str) -> dict[str, Decision]:
        """Approvals of a version that were not enough by themselves, by approver, on its present verdict.

        Only of people who may still decide: whoever left the list has no say in what goes into production now.
        """
        return {
            e.approver: e
            for e in entries
            if e.action == "voice"
            and _same(e, version)
            and e.verdict_sha256 == verdict_sha256
            and (self._approvers is None or e.approver in self._approvers)
        }

    def _independent(
        self, entries: Sequence[Decision], version: ModelVersion, verdict_sha256: str, approver: str
    ) -> bool:
        """Whether an approval satisfies the two-person rule: by another than the launcher, or as the second voice."""
        launchers = {name.casefold() for name in self._launchers(version)} or {UNSIGNED}
        if UNSIGNED not in launchers and approver.casefold() not in launchers:
            return True
        voices = self._voices(entries, version, verdict_sha256)
        return any(name.casefold() != approver.casefold() for name in voices)

    def _require_override_allowed(self) -> None:
        if not self._allow_override:
            raise PromotionRefused(
                "overriding gates is switched off: a team that wants it sets promotion.allow_override in its settings"
            )

    def _require_eligible(
        self, entries: tuple[Decision, ...], candidate: ModelVersion, override: bool
    ) -> tuple[str, tuple[str, ...]]:
        """What an approval needs, whoever gives it; returns the verdict's SHA-256 and the gates to be overridden."""
        if closed := self._closed(entries, candidate):
            raise PromotionRefused(_closed_sentence(closed))
        now = champion_in_force(entries)
        path = self._verdicts / f"{candidate.digest}.json"
        accepted = _overridden(entries, candidate.digest, _file_sha256(path)) if override else ()
        language = candidate.tags.get("language", "")
        verdict, sha = self._require_verdict(
            candidate.digest, language, champion=now.digest if now else None, overridden=accepted
        )
        name = f"{candidate.name} version {candidate.version}"
        self._require_fresh(verdict, name)
        used = tuple(dict.fromkeys(gate.label for gate in verdict.failures))
        if self._require_better and now and not verdict.improves:
            found = f"{_points(verdict.comparison)} points of WER" if verdict.comparison else "no paired comparison"
            if not override:
                raise PromotionRefused(
                    f"{name} is not shown to be better than champion {now.model}/{now.version} ({found} on the "
                    "benchmark; the whole interval must lie below zero): keep the champion, or train on more"
                )
            used += (BETTER,)
        return sha, used

    def _obstacle(self, entries: tuple[Decision, ...], candidate: ModelVersion) -> str | None:
        """Why an approval would be refused as things stand, and whether an override would help."""
        try:
            self._require_eligible(entries, candidate, override=False)
        except (GateRefused, PromotionRefused) as refused:
            try:
                self._require_eligible(entries, candidate, override=self._allow_override)
            except (GateRefused, PromotionRefused):
                return str(refused)
            return f"{refused} `promote` approves it all the same with `override_gates`."
        return None

    def _require_verdict(
        self, digest: str, language: str, *, champion: str | None, overridden: Collection[str]
    ) -> tuple[Verdict, str]:
        compare = self._compare_champion
        verdict = require_passed(
            self._verdicts,
            digest,
            language=language,
            settings=self._gates if compare else None,
            champion_digest=champion if compare else UNCHECKED,
            overridden=overridden,
        )
        return verdict, _file_sha256(self._verdicts / f"{digest}.json")

    def _require_fresh(self, verdict: Verdict, name: str) -> None:
        if self._expires_days is None:
            return
        judged = _instant(verdict.judged_at)
        if judged is None or datetime.now(UTC) - judged > timedelta(days=self._expires_days):
            when = f"on {judged:%Y-%m-%d}" if judged else "at an unknown time"
            raise PromotionRefused(
                f"{name} expired: it was judged {when}, and a verdict holds for {self._expires_days} days; "
                "evaluate and judge it again, then register it again"
            )

    def _require_still(self, entries: Sequence[Decision], entry: Decision) -> str:
        """The verdict of a decision's bundle must still open the way, or that decision itself accepted its failures."""
        sha = _file_sha256(self._verdicts / f"{entry.digest}.json")
        accepted = accepted_gates(entries, entry) if sha == entry.verdict_sha256 else ()
        require_passed(self._verdicts, entry.digest, language=entry.language, overridden=accepted)
        return sha

    def _closed(self, entries: Sequence[Decision], version: ModelVersion) -> Decision | None:
        """The decision that keeps a version from being approved: a rejection for good, others until it is rejudged."""
        closing = [entry for entry in reversed(entries) if entry.action in CLOSING and _same(entry, version)]
        if not closing:
            return None
        if rejected := next((entry for entry in closing if entry.action == "reject"), None):
            return rejected
        last = closing[0]
        return last if last.verdict_sha256 == _file_sha256(self._verdicts / f"{version.digest}.json") else None

    def _expires_at(self, version: ModelVersion) -> datetime | None:
        if self._expires_days is None:
            return None
        try:
            judged = _instant(load_verdict(self._verdicts, version.digest).judged_at)
        except GateRefused:
            judged = None
        since = judged or version.created_at
        return since + timedelta(days=self._expires_days) if since else None

    @staticmethod
    def _require_language(version: ModelVersion, language: str) -> ModelVersion:
        found = version.tags.get("language", "")
        if found != language:
            raise PromotionRefused(
                f"{version.name} version {version.version} is for language '{found}', not for '{language}'"
            )
        return version


def _about(entry: Decision) -> tuple[str, str, str]:
    return entry.model, entry.version, entry.digest


def _same(entry: Decision, version: ModelVersion) -> bool:
    return (entry.model, entry.version) == (version.name, version.version)


def _overridden(entries: tuple[Decision, ...], digest: str, verdict_sha256: str) -> tuple[str, ...]:
    made = (e for e in reversed(entries) if (e.action, e.digest) == ("override", digest))
    last = next(made, None)
    return last.overridden if last and last.verdict_sha256 == verdict_sha256 else ()


def _made_since(entry: Decision, since: datetime | None) -> bool:
    made = _instant(entry.time)
    return since is not None and made is not None and made >= since


def _closed_sentence(closed: Decision) -> str:
    about = f"{closed.model} version {closed.version}"
    when = f"on {closed.time[:10]}: {closed.reason}"
    if closed.action == "reject":
        return f"{about} was rejected by {closed.approver} {when}; that is final for this bundle, so train another"
    if closed.action == "expire":
        return f"{about} expired {when}"
    return (
        f"{closed.approver} asked for changes to {about} {when}; make them, then evaluate, judge and register it again"
    )


def _instant(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _percent(share: float) -> str:
    return f"{share:.2%}".replace("%", " %")


def _span(interval: Interval) -> str:
    return f"{_percent(interval.estimate)} (95 % interval {_percent(interval.low)} to {_percent(interval.high)})"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{interval.estimate * 100:+.2f} ({interval.low * 100:+.2f} to {interval.high * 100:+.2f})"


_SAID: Mapping[Action, str] = {
    "approve": "champion, approved",
    "voice": "approved by one person, waits for another; approved",
    "reject": "rejected",
    "request_changes": "changes asked for",
    "expire": "closed",
    "override": "failed gates accepted",
    "rollback": "champion again, rolled back to",
}


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""
