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

from deployment.promotion.actions import PRODUCTION
from deployment.promotion.ledger import Decision, Ledger, LedgerError, champion_in_force
from deployment.promotion.rules import Rules, about
from deployment.registry.models import CHALLENGER, CHAMPION, ModelVersion, Registry, RegistryError

HEAD_TAG = "ledger_head"
STATUS_TAG = "soundstage.status"  # on a version: who has to do what until when, or what was decided

_HEAD = re.compile(r"[0-9]{1,9}:[0-9a-f]{64}")


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

        Somebody may decide meanwhile, and be overtaken by this older word: so the ledger is read again at the end. The
        last entry's model is noted last, because that note says that all is done.
        """
        entries: Sequence[Decision] | None = None
        while entries != (now := ledger.entries()):
            entries = now
            if entries:
                self._show(entries[-1])
            for name in _models(entries, model):
                self._move(entries, name)
                if entries:
                    self._note(entries[-1], name)

    def _move(self, entries: Sequence[Decision], model: str) -> None:
        now = champion_in_force(entries)
        self._set_champion(model, now.version if now and now.model == model else None)
        challenger = self.registry.challenger(model)
        if challenger is not None and (
            self.rules.closed(entries, challenger)
            or any(entry.action in PRODUCTION and about(entry, challenger) for entry in entries)
        ):
            self.registry.remove_alias(model, CHALLENGER)

    def _note(self, last: Decision, model: str) -> None:
        try:
            self.registry.set_model_tag(model, f"{HEAD_TAG}.{last.language}", last.head)
        except RegistryError:
            if model == last.model:  # an earlier model of the language may be gone
                raise

    def check(self, ledger: Ledger, model: str) -> str | None:
        """What the registry shows otherwise than the ledger says, in a sentence; None where they agree.

        Raises:
            LedgerError: the ledger is broken, or entries are missing at its end.
        """
        self.require_whole(ledger, model)
        entries = ledger.entries()
        if entries and self.interrupted(last := entries[-1]):
            return (
                f"decision {last.sequence} of '{ledger.language}' ({last.action} by {last.approver}) was interrupted "
                "before the registry followed it: launch it again, or the job `reconcile`"
            )
        now, alias = champion_in_force(entries), self.registry.champion(model)
        if now and now.model != model:
            now = None
        expected, found = (f"version {each.version}" if each else "no version" for each in (now, alias))
        if expected != found:
            aside = f"the alias '{CHAMPION}' of {model} points to {found}, but the ledger says {expected}"
            if now and self.registry.deleted(model, now.version):
                return (
                    f"{aside}, which was deleted in MLflow: the decision stands, and its verified copy is served while "
                    "one is kept; approve another version, or roll back to an earlier champion"
                )
            return f"{aside}: it was moved by hand; the job `reconcile` sets it to the ledger"
        if now and alias and now.digest != alias.digest:
            return f"{model} {found} is tagged as bundle {alias.digest[:12]}, but {now.digest[:12]} was approved"
        return None

    def finish(self, ledger: Ledger, model: str | None = None) -> None:
        """Have the registry follow a ledger that is whole; a process may have died before it did.

        Raises:
            LedgerError: entries are missing at its end.
        """
        for name in _models(ledger.entries(), model):
            self.require_whole(ledger, name)
        self.follow(ledger, model)

    def require_whole(self, ledger: Ledger, model: str) -> None:
        """Nothing rests on a ledger that lacks a decision which the registry remembers.

        Raises:
            LedgerError: entries are missing at its end, or the note was edited.
        """
        noted = self._noted(model, ledger.language)  # before the ledger is read: what is noted was stored before
        if noted is None or not _HEAD.fullmatch(noted) or noted in {entry.head for entry in ledger.entries()}:
            return
        raise LedgerError(
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
        said = f"superseded by version {challenger.version}, which was offered in its place"
        for version in self.registry.versions(challenger.name):
            decided = any(about(entry, version) for entry in entries)
            if version.recency < challenger.recency and not decided and version.tags.get(STATUS_TAG) != said:
                self.registry.set_version_tag(version.name, version.version, STATUS_TAG, said)

    def _set_champion(self, model: str, wanted: str | None) -> None:
        with suppress(RegistryError):  # someone deleted the version: the decision stands, and `check` tells of it
            if wanted:
                self.registry.set_alias(model, CHAMPION, wanted)
                return
        self.registry.remove_alias(model, CHAMPION)

    def _show(self, last: Decision) -> None:
        """Say at the versions that a decision was about what it made of them."""
        if last.action not in PRODUCTION:
            return self._say(last.model, last.version, last.done)
        self._say(last.model, last.version, f"champion, {last.done}")
        model, _, version = last.previous_champion.rpartition("/")
        if (model, version) != (last.model, last.version):
            self._say(model, version, f"champion until version {last.version} was {last.done}")

    def _say(self, model: str, version: str, status: str) -> None:
        if version:
            with suppress(RegistryError):  # someone deleted the version, which changes nothing decided
                self.registry.set_version_tag(model, version, STATUS_TAG, status)

    def _noted(self, model: str, language: str) -> str | None:
        return self.registry.model_tag(model, f"{HEAD_TAG}.{language}")


def _models(entries: Sequence[Decision], model: str | None) -> list[str]:
    """The models that a ledger is about and one that asks, that of its last entry at the end."""
    names = [entry.model for entry in reversed(entries)]
    return list(dict.fromkeys([*names, model] if model else names))[::-1]
