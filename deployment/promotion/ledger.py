"""The ledger: every decision about a language's production, append-only and tamper-evident.

An entry is an object of the data store, `ledger/<language>/00000001.json` and so on. Its number is taken by whoever
writes it first, and whoever decided on the same entries as somebody else is told so (`LostRace`): reads again, and
decides again. An entry is stored before anything acts on it, and holds the hash of the one before it, so an edit, a
removed or an inserted entry shows (`verify`). That entries were cut off at the end does not show here:
`deployment.promotion.aliases` notes the head at the model in the registry and compares.

`soundstage decisions [LANGUAGE]` prints who put what into production, when and why.

With a key that is not on the disk (`promotion.ledger_key`) each entry is signed, and one that is not signed with it is
refused: the package's docstring says against whom that helps. Entries written before there was a key are signed by
`soundstage decisions --sign`, once somebody has read them.
"""

import functools
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deployment.promotion.actions import DONE, PRODUCTION, Action
from speech.corpus.manifest import LANGUAGE_TAG
from speech.store.objects import Objects, StoreError, StoreUnavailable
from speech.store.records import Records

PLACE = "ledger"
LEDGER_SCHEMA = 2
GENESIS = "0" * 64  # what stands for the entry before the first

BETTER = "better_than_champion"  # the comparison that `require_better` asks for, among overridden gates


class LedgerError(Exception):
    """The ledger is not intact; the message names the first broken entry."""


@dataclass(frozen=True)
class Decision:
    """One entry of the ledger.

    Attributes:
        sequence: 1 for a language's first decision.
        time: UTC, ISO 8601.
        version: empty for an override, which comes before registration.
        digest: of the bundle that was decided about.
        verdict_sha256: of the verdict file that was read for it; empty only for a rejection without one.
        previous_champion: `model/version` in force before, or empty.
        previous_digest: digest of that champion's bundle, or empty.
        previous_hash: hash of the entry before this one.
        hash: SHA-256 over all other fields.
        overridden: labels of the failed gates that this decision accepts.
        launched_by: who launched the training, as far as its run said.
        signature: HMAC-SHA256 of the hash, with a key that is not on the disk; empty without one.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    overridden: tuple[str, ...] = ()
    launched_by: str = ""
    signature: str = ""

    @property
    def head(self) -> str:
        """Names this entry as the last of its ledger, for whoever notes that elsewhere."""
        return f"{self.sequence}:{self.hash}"

    @property
    def done(self) -> str:
        """What was done, by whom, when and why, to follow a version."""
        return f"{DONE[self.action]} by {self.approver} on {self.time[:10]}: {self.reason}"

    def sealed(self) -> "Decision":
        """The same entry with its hash."""
        return replace(self, hash=self.expected_hash())

    def expected_hash(self) -> str:
        """The hash that the other fields call for."""
        content = {**self.content(), "hash": ""}
        content.pop("signature", None)
        return hashlib.sha256(_line(content).encode()).hexdigest()

    def signed(self, key: bytes) -> "Decision":
        """The same sealed entry with its signature."""
        return replace(self, signature=self.expected_signature(key))

    def expected_signature(self, key: bytes) -> str:
        """The signature that the entry calls for."""
        return hmac.new(key, self.hash.encode(), hashlib.sha256).hexdigest()

    def content(self) -> dict[str, Any]:
        """What is stored: every field, but no signature where there is none."""
        return {name: value for name, value in asdict(self).items() if value or name != "signature"}

    def to_json(self) -> bytes:
        """As the object that is stored."""
        return (_line(self.content()) + "\n").encode()


@functools.cache
def _adapter() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


class Ledger:
    """The decisions of one language; with a key, each has to be signed with it."""

    def __init__(self, objects: Objects, language: str, key: bytes | None = None) -> None:
        if not LANGUAGE_TAG.fullmatch(language):
            raise LedgerError(f"'{language}' is not a language tag such as 'en'")
        self.language = language
        self.records = Records(objects, f"{PLACE}/{language}")
        self.name = f"{self.records.prefix} in {objects.home}"
        self._key = key

    def entries(self) -> tuple[Decision, ...]:
        """All decisions, oldest first, verified.

        Raises:
            LedgerError: an entry was changed, removed, inserted or cannot be read.
            StoreUnavailable: the data store does not answer.
        """
        try:
            records = self.records.all()
        except StoreUnavailable:
            raise
        except (StoreError, OSError) as error:
            raise LedgerError(f"{self.name} cannot be read: {error}") from error
        entries: list[Decision] = []
        for number, record in enumerate(records, start=1):
            entry = self._entry(record, number)
            if entry.previous_hash != (entries[-1].hash if entries else GENESIS):
                raise LedgerError(
                    f"{self.name}: entry {number} does not follow the entry before it: something was removed or "
                    "inserted; restore it from its backup"
                )
            entries.append(entry)
        return tuple(entries)

    def append(self, decision: Decision) -> Decision:
        """Store the entry that follows those the caller decided on; returns it sealed, and signed where there is a key.

        Raises:
            LostRace: somebody else decided since; nothing was written.
        """
        sealed = decision.sealed() if self._key is None else decision.sealed().signed(self._key)
        self.records.append(decision.sequence, sealed.to_json())
        return sealed

    def sign(self, key: bytes) -> int:
        """Sign the entries as they are, whoever wrote them; returns how many there are. Repeating it is no harm.

        Raises:
            LedgerError: the chain is not intact.
        """
        entries = self.entries()
        for entry in entries:
            self.records.objects.put(self.records.key(entry.sequence), entry.signed(key).to_json())
        return len(entries)

    def _entry(self, record: bytes, number: int) -> Decision:
        broken = f"{self.name}: entry {number}"
        try:
            entry = _adapter().validate_json(record, strict=True)
        except ValidationError as error:
            raise LedgerError(
                f"{broken} cannot be read ({_why(error, record)}); restore it from its backup, or upgrade if a newer "
                "version wrote it"
            ) from error
        if entry.schema != LEDGER_SCHEMA:
            raise LedgerError(f"{broken} has schema {entry.schema}, this version reads {LEDGER_SCHEMA}: upgrade")
        if entry.hash != entry.expected_hash():
            raise LedgerError(f"{broken} was changed after it was written; restore it from its backup")
        if self._key is not None and not hmac.compare_digest(entry.signature, entry.expected_signature(self._key)):
            raise LedgerError(
                f"{broken} is not signed with the ledger key: it was written without it; restore it from its backup, "
                "or read the entries and sign them with `soundstage decisions --sign`"
            )
        if entry.sequence != number or entry.language != self.language:
            raise LedgerError(
                f"{broken} says it is number {entry.sequence} of '{entry.language}': something was removed, inserted "
                "or brought from another ledger; restore it from its backup"
            )
        return entry


def _why(error: ValidationError, record: bytes) -> str:
    """What is wrong with an entry, in words: its bytes themselves help nobody."""
    wrong = error.errors()[0]
    field = ".".join(map(str, wrong["loc"]))
    if not record.strip():
        return "it is empty"
    if wrong["type"] == "json_invalid":
        return "it is not whole JSON"
    if not field:
        return "it is no table of fields"
    if wrong["type"] == "missing":
        return f"{field} is missing"
    return f"{field}: {wrong['msg']}, not {wrong['input']!r:.80}"


def line_of_champions(entries: Sequence[Decision]) -> list[Decision]:
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


def champion_in_force(entries: Sequence[Decision]) -> Decision | None:
    """The entry that put the present champion into production; None before the first."""
    return next((entry for entry in reversed(entries) if entry.action in PRODUCTION), None)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
