"""The ledger: every decision about a language's production, append-only and tamper-evident.

One file a language, `<language>.jsonl`. An entry is flushed to disk before anything acts on it, and holds the hash of
the one before it, so an edit, a removed or an inserted entry shows (`verify`). That entries were cut off at the end
does not show here: `deployment.promotion.aliases` notes the head at the model in the registry and compares.

`soundstage decisions [LANGUAGE]` prints who put what into production, when and why.

A line that a dying machine left unfinished was never confirmed to anyone: the next decision moves it to
`<language>.torn` and continues after the last whole entry.

With a key that is not on the disk (`promotion.ledger_key`) each entry is signed, and one that is not signed with it is
refused: the package's docstring says against whom that helps. Entries written before there was a key are signed by
`soundstage decisions --sign`, once somebody has read them.
"""

import fcntl
import functools
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from speech.store.outputs import parse_json, write_atomically

LEDGER_SCHEMA = 2
ADDED_IN_SCHEMA_2 = ("overridden", "launched_by")  # entries of schema 1 stay as they were written
GENESIS = "0" * 64  # what stands for the entry before the first

Action = Literal["approve", "voice", "reject", "request_changes", "expire", "override", "rollback"]
PRODUCTION = ("approve", "rollback")  # what puts a version into production
CLOSING = ("reject", "request_changes", "expire")
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
        """The fields of the entry's own schema."""
        absent = {*(ADDED_IN_SCHEMA_2 if self.schema == 1 else ()), *(() if self.signature else ("signature",))}
        return {name: value for name, value in asdict(self).items() if name not in absent}


@functools.cache
def _adapter() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


class Ledger:
    """The decisions of one language, in `<folder>/<language>.jsonl`; with a key, each has to be signed with it."""

    def __init__(self, folder: Path, language: str, key: bytes | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
            raise LedgerError(f"'{language}' is not a language tag such as 'en'")
        self.language = language
        self.path = folder / f"{language}.jsonl"
        self._key = key

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
        sealed = decision.sealed() if self._key is None else decision.sealed().signed(self._key)
        data = (_line(sealed.content()) + "\n").encode()
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

    def sign(self, key: bytes) -> int:
        """Sign the entries as they are, whoever wrote them; returns how many there are.

        Raises:
            LedgerError: the chain is not intact.
        """
        with self.locked():
            entries = self.entries()
            if entries:
                lines = (_line(entry.signed(key).content()) + "\n" for entry in entries)
                write_atomically(self.path, "".join(lines))
            return len(entries)

    def _read(self) -> tuple[tuple[Decision, ...], int]:
        """Verified entries and how many bytes they take; an unfinished last line is not an entry."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return (), 0
        except OSError as error:
            raise LedgerError(f"{self.path} cannot be read ({error}); restore the file from its backup") from error
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
            given = set(parse_json(line))
            entry = _adapter().validate_json(line, strict=True)
            known = {item.name for item in fields(Decision)} - {"signature"}
            if given - {"signature"} != (known - set(ADDED_IN_SCHEMA_2) if entry.schema == 1 else known):
                raise ValueError("fields are missing or unknown")
        except (ValueError, TypeError) as error:
            wrong = error.errors()[0] if isinstance(error, ValidationError) else None
            why = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}" if wrong else error
            raise LedgerError(f"{broken} cannot be read ({why}); restore the file from its backup") from error
        if entry.schema not in (1, LEDGER_SCHEMA):
            raise LedgerError(f"{broken} has schema {entry.schema}, this version reads {LEDGER_SCHEMA}: upgrade")
        if entry.hash != entry.expected_hash():
            raise LedgerError(f"{broken} was changed after it was written; restore the file from its backup")
        if self._key is not None and not hmac.compare_digest(entry.signature, entry.expected_signature(self._key)):
            raise LedgerError(
                f"{broken} is not signed with the ledger key: it was written without it; restore the file from its "
                "backup, or read the entries and sign them with `soundstage decisions --sign`"
            )
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


def every_champion(entries: Sequence[Decision]) -> list[Decision]:
    """Each entry that put something into production, oldest first."""
    return [entry for entry in entries if entry.action in PRODUCTION]


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
