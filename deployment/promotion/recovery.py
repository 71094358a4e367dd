"""After a process died between the ledger and the registry: finish its decision, unless nobody took it.

A last entry that the registry does not know of is either a decision whose process was killed before its last step, or
one that somebody wrote by hand. So what such a decision needs is asked again before anything follows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deployment.promotion.aliases import Aliases
from deployment.promotion.ledger import Decision, LedgerError, champion_in_force, every_champion
from deployment.promotion.rules import (
    PromotionRefused,
    Rules,
    about,
    closed_sentence,
    require_language,
    require_still_passed,
)
from deployment.registry.models import ModelVersion, Registry
from evaluation.gates import GateRefused
from speech.bundle import BundleError


@dataclass(frozen=True)
class Recovery:
    """What it takes to finish a ledger's last entry."""

    registry: Registry
    rules: Rules
    aliases: Aliases

    def finish(self, entries: Sequence[Decision], language: str, model: str | None = None) -> None:
        """Have the aliases follow the ledger again; an entry that no decision wrote is not followed.

        Raises:
            LedgerError: entries are missing at its end, or more are there than one decision writes.
            PromotionRefused, GateRefused, BundleError, RegistryError: what the last entry needs does not hold.
        """
        for name in sorted({entry.model for entry in entries} | ({model} if model else set())):
            if cut := self.aliases.why_cut_off(entries, language, name):
                raise LedgerError(cut)
        if entries and self.aliases.interrupted(entries[-1]):
            last = entries[-1]
            try:
                self._require_made(entries)
            except (PromotionRefused, GateRefused, BundleError) as refused:
                raise type(refused)(
                    f"decision {last.sequence} of '{last.language}' ({last.action} by {last.approver}) is not known to "
                    f"the registry, and cannot be accepted: {refused}"
                ) from refused
        self.aliases.follow(entries, language, model)

    def _require_made(self, entries: Sequence[Decision]) -> None:
        """Ask again what the last entry's decision needed, since nothing but the file says that it was taken.

        Where the note was edited or removed, any entry could be the one that was added, and old ones may rest on rules
        that have changed since; so then what is in production is held to what a roll-back to it would ask for.
        """
        last = entries[-1]
        known = self.aliases.known(entries)
        if self.aliases.why_damaged(entries):
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
            self.rules.require_person(last.approver, last.reason)
        if last.action in ("approve", "voice"):
            self._require_approval(entries[:-1], last)
        elif last.action == "rollback":
            self._require_rollback(entries[:-1], last)
        elif last.action == "override":
            self.rules.require_override_allowed()

    def _require_approval(self, earlier: Sequence[Decision], entry: Decision) -> None:
        """What an approval, or one voice of it, asked for before it was written."""
        require_still_passed(self.rules.verdicts, (*earlier, entry), entry)
        version = self._require_bytes(entry)
        if entry.overridden:
            self.rules.require_override_allowed()
        verdict, used = self.rules.require_eligible(earlier, version, override=bool(entry.overridden))
        rejudged = verdict.file_sha256 != entry.verdict_sha256
        if not set(used) <= set(entry.overridden) or (entry.overridden and rejudged):
            raise PromotionRefused(
                "it rests on another verdict, or accepts other gates, than the ones there are; remove the entry, and "
                "approve the version again if somebody took it"
            )
        if entry.action == "approve" and not self.rules.suffices(earlier, version, verdict.file_sha256, entry.approver):
            raise PromotionRefused(
                f"'{entry.approver}' may have launched the training, and two people are asked for; remove the entry, "
                f"and have another approver decide ({self.rules.allowed})"
            )

    def _require_rollback(self, earlier: Sequence[Decision], entry: Decision) -> None:
        """What a roll-back asked for before it was written: an earlier champion, that may still be served."""
        if _champion(entry) not in {_champion(before) for before in every_champion(earlier)}:
            raise PromotionRefused(
                f"{entry.model} version {entry.version} ({entry.digest[:12]}) never was champion before it, so it was "
                "written by hand; remove the entry, or restore the ledger from its backup"
            )
        self._require_servable((*earlier, entry), entry)

    def _require_servable(self, entries: Sequence[Decision], entry: Decision) -> None:
        """What it takes for an entry's bundle to stay in production or to come back to it.

        Its version may have been deleted in MLflow, where a verified copy of the bundle is at hand.
        """
        there = ModelVersion(entry.model, entry.version, entry.digest)
        if rejected := next((e for e in entries if e.action == "reject" and about(e, there)), None):
            raise PromotionRefused(closed_sentence(rejected))
        require_still_passed(self.rules.verdicts, entries, entry)
        if self.registry.shelf.find(entry.digest) is None or not self.registry.deleted(entry.model, entry.version):
            self._require_bytes(entry)

    def _require_bytes(self, entry: Decision) -> ModelVersion:
        """The version that an entry names, if the registry's bytes are those of the entry's digest."""
        version = require_language(self.registry.verify(entry.model, entry.version), entry.language)
        if version.digest != entry.digest:
            raise BundleError(
                f"{entry.model} version {entry.version} is bundle {version.digest[:12]}, but decision "
                f"{entry.sequence} is about {entry.digest[:12]}; look at who wrote it, and restore the ledger from its "
                "backup"
            )
        return version


def _champion(entry: Decision) -> tuple[str, str, str]:
    return entry.model, entry.version, entry.digest
