"""The registry's side of the ledger: aliases that follow it, and a note of its end.

An alias in MLflow can be moved by anyone with a browser and remembers nobody, so nothing rests on it: it is set to what
the ledger says. The ledger's head is noted at the model in the registry, as the last step of each decision. Against
that note two things show: entries that are missing at the end, as after an old backup was put back; and a decision
whose process died before the registry followed it, which whoever comes next finishes.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from deployment.promotion.actions import DONE, PRODUCTION
from deployment.promotion.ledger import Decision, Ledger, LedgerError, champion_in_force
from deployment.promotion.rules import Rules, about
from deployment.registry.models import CHALLENGER, CHAMPION, ModelVersion, Registry, RegistryError

HEAD_TAG = "ledger_head"
STATUS_TAG = "soundstage.status"  # on a version: who has to do what until when, or what was decided

_HEAD = re.compile(r"[0-9]{1,9}:[0-9a-f]{64}")


@dataclass(frozen=True)
class AliasState:
    """How the registry's alias stands to the ledger; `explanation` is one sentence for people."""

    agrees: bool
    ledger_version: str | None
    alias_version: str | None
    explanation: str


@dataclass(frozen=True)
class Aliases:
    """What the registry shows of a ledger, and whether it still does.

    Attributes:
        registry: where versions, aliases and the note are.
        rules: which decisions close a version, so that it is the challenger no longer.
    """

    registry: Registry
    rules: Rules

    def follow(self, ledger: Ledger, model: str | None = None) -> None:
        """Move the aliases to where the ledger says; repeating it changes nothing.

        Somebody may decide meanwhile, and be overtaken by this older word: so the ledger is read again at the end.
        """
        entries: Sequence[Decision] | None = None
        while entries != (now := ledger.entries()):
            entries = now
            self._move(entries, ledger.language, model)

    def _move(self, entries: Sequence[Decision], language: str, model: str | None) -> None:
        """The last entry's model is noted last, because that note says that all is done."""
        now = champion_in_force(entries)
        models = {entry.model for entry in entries} | ({model} if model else set())
        for name in sorted(models, key=lambda name: (bool(entries) and name == entries[-1].model, name)):
            self._set_champion(name, now.version if now and now.model == name else None)
            challenger = self.registry.challenger(name)
            if challenger is not None and (
                self.rules.closed(entries, challenger)
                or any(entry.action in PRODUCTION and about(entry, challenger) for entry in entries)
            ):
                self.registry.remove_alias(name, CHALLENGER)
            if entries:
                self._show(entries[-1], name)
                try:
                    self.registry.set_model_tag(name, f"{HEAD_TAG}.{language}", entries[-1].head)
                except RegistryError:
                    if name == entries[-1].model:  # an earlier model of the language may be gone
                        raise

    def check(self, ledger: Ledger, model: str) -> AliasState:
        """Whether a model's alias and its note of the ledger's head agree with the ledger."""
        entries, language = ledger.entries(), ledger.language
        now = champion_in_force(entries)
        if now and now.model != model:
            now = None
        alias = self.registry.champion(model)
        expected, found = (now.version if now else None), (alias.version if alias else None)

        def differs(why: str) -> AliasState:
            return AliasState(False, expected, found, why)

        if wrong := self.why_cut_off(ledger, model):
            return differs(wrong)
        if entries and self.interrupted(last := entries[-1]):
            return differs(
                f"decision {last.sequence} of '{language}' ({last.action} by {last.approver}) was interrupted before "
                "the registry followed it: launch it again, or the job `reconcile`"
            )
        if expected != found:
            aside = f"the alias '{CHAMPION}' of {model} points to {_named(found)}, but the ledger says "
            if expected and self.registry.deleted(model, expected):
                return differs(
                    f"{aside}version {expected}, which was deleted in MLflow: the decision stands, and its verified "
                    "copy is served while one is kept; approve another version, or roll back to an earlier champion"
                )
            return differs(
                f"{aside}{_named(expected)}: it was moved by hand; the job `reconcile` sets it to the ledger"
            )
        if now and alias and now.digest != alias.digest:
            return differs(
                f"{model} version {found} is tagged as bundle {alias.digest[:12]}, but {now.digest[:12]} was approved"
            )
        return AliasState(True, expected, found, f"the alias '{CHAMPION}' of {model} is {_named(found)}, as decided")

    def finish(self, ledger: Ledger, model: str | None = None) -> None:
        """Have the registry follow a ledger that is whole; a process may have died before it did.

        Raises:
            LedgerError: entries are missing at its end.
        """
        for name in {entry.model for entry in ledger.entries()} | ({model} if model else set()):
            self.require_whole(ledger, name)
        self.follow(ledger, model)

    def require_whole(self, ledger: Ledger, model: str) -> None:
        """Nothing rests on a ledger whose end is missing.

        Raises:
            LedgerError: the sentence of `why_cut_off`.
        """
        if wrong := self.why_cut_off(ledger, model):
            raise LedgerError(wrong)

    def why_cut_off(self, ledger: Ledger, model: str) -> str | None:
        """A sentence when the registry remembers a decision that the ledger no longer has."""
        noted = self._noted(model, ledger.language)  # before the ledger is read: what is noted was stored before
        if noted is None or not _HEAD.fullmatch(noted) or noted in {entry.head for entry in ledger.entries()}:
            return None
        return (
            f"the registry notes decision {noted.partition(':')[0]} about {model}, which the ledger of "
            f"'{ledger.language}' does not have: entries were removed from its end; restore the ledger from its "
            f"backup. If it is whole, the note was edited in MLflow: remove the tag '{HEAD_TAG}.{ledger.language}' of "
            f"{model}, then launch `reconcile`"
        )

    def interrupted(self, last: Decision) -> bool:
        """Whether a decision was recorded but its aliases were not all moved; the note is the last step."""
        return self._noted(last.model, last.language) != last.head

    def supersede(self, entries: Sequence[Decision], challenger: ModelVersion) -> None:
        """Say at versions that nobody decided about that they do not wait: only the newest of them does."""
        said = f"superseded by version {challenger.version}, which waits in its place"
        for version in self.registry.versions(challenger.name):
            decided = any(about(entry, version) for entry in entries)
            if version.recency < challenger.recency and not decided and version.tags.get(STATUS_TAG) != said:
                self.registry.set_version_tag(version.name, version.version, STATUS_TAG, said)

    def _set_champion(self, model: str, wanted: str | None) -> None:
        champion = self.registry.champion(model)
        if wanted and (champion is None or champion.version != wanted):
            try:
                self.registry.set_alias(model, CHAMPION, wanted)
            except RegistryError:  # someone deleted the version: the decision stands, and `check` tells of it
                self.registry.remove_alias(model, CHAMPION)
        elif wanted is None and champion is not None:
            self.registry.remove_alias(model, CHAMPION)

    def _show(self, last: Decision, model: str) -> None:
        """Say at the versions that a decision was about what it made of them."""
        now = "champion, " if last.action in PRODUCTION else ""
        said = {last.version: f"{now}{DONE[last.action]} by {last.approver} on {last.time[:10]}: {last.reason}"}
        before, _, number = last.previous_champion.rpartition("/")
        if last.action in PRODUCTION and before == model and number != last.version:
            said[number] = (
                f"champion until {last.time[:10]}: {last.action} of version {last.version} by {last.approver}"
            )
        for version, status in said.items():
            if version and (last.model == model or version == number):
                with suppress(RegistryError):  # someone deleted the version, which changes nothing decided
                    self.registry.set_version_tag(model, version, STATUS_TAG, status)

    def _noted(self, model: str, language: str) -> str | None:
        return self.registry.model_tag(model, f"{HEAD_TAG}.{language}")


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"
