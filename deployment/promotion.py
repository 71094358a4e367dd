"""Who put what into production, when and why: an append-only ledger that the registry's alias follows.

An alias in MLflow can be moved by anyone with a browser, remembers nobody, and is not what a deployment may rest on. So
a decision is first written to the ledger of its language (`<language>.jsonl`), flushed to disk, and only then is the
alias `champion` moved; a process killed in between leaves an alias that `reconcile` repairs from the ledger. Each entry
holds the hash of the one before it, so an edit, a removed or an inserted entry shows (`verify`); that entries were cut
off at the end shows against the head that is noted at the model in the registry (`check_alias`).

Every step forward, roll-back included, re-reads the persisted verdict for exactly the bundle in question and compares
the registry's bytes with its digest. Whatever is missing is a refusal.

A line that a dying machine left unfinished was never confirmed to anyone: the next decision moves it to
`<language>.torn` and continues after the last whole entry. Not covered: someone who rewrites the whole chain and the
registry's note as well; the folder's permissions keep them out.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from deployment.registry import CHALLENGER, CHAMPION, ModelVersion, Registry
from evaluation.gates import UNCHECKED, GateSettings, require_passed

LEDGER_SCHEMA = 1
GENESIS = "0" * 64  # what stands for the entry before the first
HEAD_TAG = "ledger_head"

Action = Literal["approve", "reject", "rollback"]


class PromotionRefused(Exception):
    """A decision that may not be taken: no such approver, no reason, nothing to go back to, or a broken ledger."""


class LedgerError(Exception):
    """The ledger is not intact; the message names the first broken entry."""


@dataclass(frozen=True)
class Decision:
    """One entry of the ledger.

    Attributes:
        sequence: 1 for a language's first decision.
        time: UTC, ISO 8601.
        digest: of the bundle that was decided about.
        verdict_sha256: of the verdict file that was read for it; empty only for a rejection without one.
        previous_champion: `model/version` in force before, or empty.
        previous_digest: digest of that champion's bundle, or empty.
        previous_hash: hash of the entry before this one.
        hash: SHA-256 over all other fields.
    """

    sequence: int
    time: str
    action: Action
    language: str
    model: str
    version: str
    digest: str
    verdict_sha256: str
    approver: str
    reason: str
    previous_champion: str
    previous_digest: str
    previous_hash: str
    schema: int = LEDGER_SCHEMA
    hash: str = ""

    def sealed(self) -> "Decision":
        """The same entry with its hash."""
        return Decision(**{**asdict(self), "hash": self.expected_hash()})

    def expected_hash(self) -> str:
        """The hash that the other fields call for."""
        return hashlib.sha256(_line({**asdict(self), "hash": ""}).encode()).hexdigest()


@dataclass(frozen=True)
class AliasState:
    """How the registry's alias stands to the ledger; `explanation` is one sentence for people."""

    agrees: bool
    ledger_version: str | None
    alias_version: str | None
    explanation: str


class Ledger:
    """The decisions of one language, in `<folder>/<language>.jsonl`."""

    def __init__(self, folder: Path, language: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
            raise PromotionRefused(f"'{language}' is not a language tag such as 'en'")
        self.language = language
        self.path = folder / f"{language}.jsonl"

    def entries(self) -> tuple[Decision, ...]:
        """All decisions, oldest first, verified.

        Raises:
            LedgerError: an entry was changed, removed, inserted or cannot be read.
        """
        return self._read()[0]

    def verify(self) -> str | None:
        """None when the chain is intact, else a sentence that names the first broken entry."""
        try:
            self.entries()
        except LedgerError as error:
            return str(error)
        return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the right to decide; freed by the kernel if the process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def append(self, decision: Decision) -> Decision:
        """Add an entry at the end, flushed to disk before this returns; the caller holds `locked()`."""
        entries, whole_bytes = self._read()
        last = entries[-1] if entries else None
        if decision.sequence != len(entries) + 1 or decision.previous_hash != (last.hash if last else GENESIS):
            raise LedgerError(f"{self.path}: entry {decision.sequence} does not follow the last one: read it again")
        sealed = decision.sealed()
        data = (_line(asdict(sealed)) + "\n").encode()
        new = not self.path.exists()
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._set_torn_aside(handle, whole_bytes)
            try:
                written = os.write(handle, data)
                if written != len(data):
                    raise OSError(f"only {written} of {len(data)} bytes were written")
                os.fsync(handle)
            except OSError as error:
                os.ftruncate(handle, whole_bytes)
                raise LedgerError(
                    f"{self.path}: the decision was not recorded ({error}): free space and decide again"
                ) from error
        finally:
            os.close(handle)
        if new:
            _flush_folder(self.path.parent)
        return sealed

    def _read(self) -> tuple[tuple[Decision, ...], int]:
        """Verified entries and how many bytes they take; an unfinished last line is not an entry."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return (), 0
        lines = data.split(b"\n")
        unfinished = lines.pop()
        entries: list[Decision] = []
        previous = GENESIS
        for number, line in enumerate(lines, start=1):
            entry = self._entry(line, number)
            if entry.previous_hash != previous:
                raise LedgerError(
                    f"{self.path}: entry {number} does not follow the entry before it: something was removed or "
                    "inserted; restore the file from its backup"
                )
            previous = entry.hash
            entries.append(entry)
        return tuple(entries), len(data) - len(unfinished)

    def _entry(self, line: bytes, number: int) -> Decision:
        broken = f"{self.path}: entry {number}"
        try:
            values: dict[str, Any] = json.loads(line)
            if set(values) != {item.name for item in fields(Decision)}:
                raise ValueError("fields are missing or unknown")
            entry = Decision(**values)
        except (ValueError, TypeError) as error:
            raise LedgerError(f"{broken} cannot be read ({error}); restore the file from its backup") from error
        if entry.schema != LEDGER_SCHEMA:
            raise LedgerError(f"{broken} has schema {entry.schema}, this version reads {LEDGER_SCHEMA}: upgrade")
        if entry.hash != entry.expected_hash():
            raise LedgerError(f"{broken} was changed after it was written; restore the file from its backup")
        if entry.sequence != number or entry.language != self.language:
            raise LedgerError(
                f"{broken} says it is number {entry.sequence} of '{entry.language}': something was removed, inserted "
                "or brought from another ledger; restore the file from its backup"
            )
        return entry

    def _set_torn_aside(self, handle: int, whole_bytes: int) -> None:
        size = os.fstat(handle).st_size
        if size <= whole_bytes:
            return
        with self.path.with_suffix(".torn").open("ab") as torn:
            torn.write(os.pread(handle, size - whole_bytes, whole_bytes) + b"\n")
            torn.flush()
            os.fsync(torn.fileno())
        os.ftruncate(handle, whole_bytes)


class Promotions:
    """Decisions about champions.

    Args:
        registry: where versions and aliases are.
        ledger: folder of the ledgers, one file a language.
        verdicts: folder of the persisted verdicts.
        approvers: who may decide. An empty list means nobody; None means that no list is kept.
        gates: the thresholds in force; a verdict judged by others is stale. None: not compared.
        compare_champion: an approval needs a verdict that compared with today's champion.
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
    ) -> None:
        self.registry = registry
        self._folder = ledger
        self._verdicts = verdicts
        self._approvers = approvers
        self._gates = gates
        self._compare_champion = compare_champion

    def approve(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Make a version the champion. Repeating an approval that is in force repairs the alias and adds nothing.

        Raises:
            PromotionRefused: the approver may not decide, or there is no reason.
            GateRefused: no passing, current verdict for exactly this bundle.
            BundleError: the registry's bytes are not those that were registered.
            RegistryError, LedgerError: no such version; the ledger is broken.
        """
        approver, reason = self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            now = _champion(entries)
            candidate = self._require_language(self.registry.verify(model, version), language)
            if now and (now.model, now.version, now.digest) == (candidate.name, candidate.version, candidate.digest):
                self._follow(ledger)
                if (now.action, now.approver, now.reason) == ("approve", approver, reason):
                    return now  # the process that took this decision died after recording it
                raise PromotionRefused(
                    f"{model} version {candidate.version} is the champion of '{language}' since {now.time}, decided by "
                    f"{now.approver}: there is nothing to approve"
                )
            sha = self._require_verdict(
                candidate.digest, language, compare=self._compare_champion, champion=now.digest if now else None
            )
            return self._decide(ledger, entries, "approve", candidate, sha, approver, reason)

    def reject(self, language: str, model: str, version: str, approver: str, reason: str) -> Decision:
        """Record that a version shall not go to production; it stops being the challenger.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or the version is the champion.
            RegistryError, LedgerError: no such version; the ledger is broken.
        """
        approver, reason = self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            now = _champion(entries)
            candidate = self._require_language(self.registry.version(model, version), language)
            if now and (now.model, now.version) == (candidate.name, candidate.version):
                raise PromotionRefused(
                    f"{model} version {candidate.version} is the champion of '{language}': roll back instead"
                )
            last = next((e for e in reversed(entries) if (e.model, e.version) == (model, candidate.version)), None)
            if last and (last.action, last.approver, last.reason) == ("reject", approver, reason):
                self._follow(ledger)
                return last
            sha = _file_sha256(self._verdicts / f"{candidate.digest}.json")
            return self._decide(ledger, entries, "reject", candidate, sha, approver, reason)

    def rollback(
        self, language: str, approver: str, reason: str, version: str | None = None, model: str | None = None
    ) -> Decision:
        """Go back to the champion before this one, or to a named earlier champion.

        Raises:
            PromotionRefused: the approver may not decide, there is no reason, or no such earlier champion.
            GateRefused, BundleError, RegistryError, LedgerError: as for `approve`.
        """
        approver, reason = self._require_person(approver, reason)
        ledger = self.ledger(language)
        with ledger.locked():
            entries = ledger.entries()
            line = _champions(entries)
            if not line:
                raise PromotionRefused(f"'{language}' has no champion yet: there is nothing to roll back")
            now, last = line[-1], entries[-1]
            if (last.action, last.approver, last.reason) == ("rollback", approver, reason) and (
                self._interrupted(last) or last.version == str(version)
            ):
                self._follow(ledger)  # the process that took this decision died after recording it
                return last
            earlier = [
                entry
                for entry in (line[:-1] if version is None else _ever_champion(entries))
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
            sha = self._require_verdict(target.digest, language, compare=False, champion=None)
            return self._decide(ledger, entries, "rollback", target, sha, approver, reason)

    def current(self, language: str) -> Decision | None:
        """The decision that put the present champion into production, from the ledger; None without a champion."""
        return _champion(self.ledger(language).entries())

    def history(self, language: str) -> tuple[Decision, ...]:
        """All decisions of a language, oldest first, verified."""
        return self.ledger(language).entries()

    def verify(self, language: str) -> str | None:
        """None when the ledger is intact, else a sentence that names the first broken entry."""
        return self.ledger(language).verify()

    def check_alias(self, language: str, model: str) -> AliasState:
        """Whether the registry's alias and its note of the ledger's head agree with the ledger.

        Raises:
            LedgerError: the ledger is broken.
        """
        entries = self.ledger(language).entries()
        now = _champion(entries)
        if now and now.model != model:
            now = None
        alias = self.registry.champion(model)
        cut = self._cut_off(entries, model, language)
        expected, found = (now.version if now else None), (alias.version if alias else None)
        if cut:
            return AliasState(False, expected, found, cut)
        if expected != found:
            return AliasState(
                False,
                expected,
                found,
                f"the alias '{CHAMPION}' of {model} points to {_named(found)}, but the ledger says {_named(expected)}: "
                "it was moved by hand, or a decision was interrupted; reconcile sets it to the ledger",
            )
        if now and alias and now.digest != alias.digest:
            return AliasState(
                False,
                expected,
                found,
                f"{model} version {found} is tagged as bundle {alias.digest[:12]}, but {now.digest[:12]} was approved",
            )
        return AliasState(True, expected, found, f"the alias '{CHAMPION}' of {model} is {_named(found)}, as decided")

    def reconcile(self, language: str, model: str) -> AliasState:
        """Set the aliases to what the ledger says; returns what was found before.

        Raises:
            LedgerError: the ledger is broken or was cut off: the alias is then left as it is.
        """
        ledger = self.ledger(language)
        with ledger.locked():
            before = self.check_alias(language, model)
            cut = self._cut_off(ledger.entries(), model, language)
            if cut:
                raise LedgerError(cut)
            self._follow(ledger, model)
        return before

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
    ) -> Decision:
        now = _champion(entries)
        cut = self._cut_off(entries, target.name, ledger.language)
        if cut:
            raise LedgerError(cut)
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
            )
        )
        self._follow(ledger)
        return recorded

    def _follow(self, ledger: Ledger, model: str | None = None) -> None:
        """Move the aliases to where the ledger says; repeating it changes nothing."""
        entries = ledger.entries()
        now = _champion(entries)
        models = {entry.model for entry in entries} | ({model} if model else set())
        for name in sorted(models):
            champion = self.registry.champion(name)
            wanted = now.version if now and now.model == name else None
            if wanted and (champion is None or champion.version != wanted):
                self.registry.set_alias(name, CHAMPION, wanted)
            elif wanted is None and champion is not None:
                self.registry.remove_alias(name, CHAMPION)
            challenger = self.registry.challenger(name)
            decided = {entry.version for entry in entries if entry.model == name}
            if challenger is not None and challenger.version in decided:
                self.registry.remove_alias(name, CHALLENGER)
            if entries:
                self.registry.set_model_tag(name, f"{HEAD_TAG}.{ledger.language}", _head(entries[-1]))

    def _cut_off(self, entries: tuple[Decision, ...], model: str, language: str) -> str | None:
        """A sentence when the registry remembers a decision that the ledger no longer has."""
        noted = self._noted(model, language)
        if noted is None or noted in {_head(entry) for entry in entries}:
            return None
        return (
            f"the registry notes decision {noted.partition(':')[0]} about {model}, which the ledger of '{language}' "
            "does not have: entries were removed from its end; restore the ledger from its backup"
        )

    def _interrupted(self, last: Decision) -> bool:
        """Whether a decision was recorded but its aliases were not all moved; the note is the last step."""
        return self._noted(last.model, last.language) != _head(last)

    def _noted(self, model: str, language: str) -> str | None:
        return self.registry.model_tag(model, f"{HEAD_TAG}.{language}")

    def _require_person(self, approver: str, reason: str) -> tuple[str, str]:
        approver, reason = approver.strip(), reason.strip()
        if not approver:
            raise PromotionRefused("a decision needs the name of the person who takes it")
        if self._approvers is not None and approver not in self._approvers:
            allowed = ", ".join(sorted(self._approvers)) or "nobody yet: name approvers in the settings"
            raise PromotionRefused(f"'{approver}' may not decide about production (allowed: {allowed})")
        if not reason:
            raise PromotionRefused("a decision needs a reason that others can read later")
        return approver, reason

    def _require_verdict(self, digest: str, language: str, *, compare: bool, champion: str | None) -> str:
        require_passed(
            self._verdicts,
            digest,
            language=language,
            settings=self._gates if compare else None,
            champion_digest=champion if compare else UNCHECKED,
        )
        return _file_sha256(self._verdicts / f"{digest}.json")

    @staticmethod
    def _require_language(version: ModelVersion, language: str) -> ModelVersion:
        found = version.tags.get("language", "")
        if found != language:
            raise PromotionRefused(
                f"{version.name} version {version.version} is for language '{found}', not for '{language}'"
            )
        return version


def _champions(entries: tuple[Decision, ...]) -> list[Decision]:
    """The line of champions that a roll-back walks down: approvals add to it, roll-backs cut it."""
    line: list[Decision] = []
    for entry in entries:
        if entry.action == "approve":
            line.append(entry)
        elif entry.action == "rollback":
            while line and (line[-1].model, line[-1].version) != (entry.model, entry.version):
                line.pop()
            line[-1:] = [entry]
    return line


def _champion(entries: tuple[Decision, ...]) -> Decision | None:
    return next((entry for entry in reversed(entries) if entry.action != "reject"), None)


def _ever_champion(entries: tuple[Decision, ...]) -> list[Decision]:
    return [entry for entry in entries if entry.action != "reject"]


def _head(entry: Decision) -> str:
    return f"{entry.sequence}:{entry.hash}"


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _file_sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
