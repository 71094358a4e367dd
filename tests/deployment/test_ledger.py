"""Append-only and tamper-evident: an edit shows, a killed writer loses nothing, two writers do not collide."""

import hashlib
import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from deployment.promotion.ledger import GENESIS, Ledger, LedgerError
from speech.store.objects import LostRace, open_objects
from tests.deployment.conftest import make_decision, rewrite


def _ledger_of(home: Path, count: int) -> Ledger:
    ledger = Ledger(open_objects(home), "en")
    for number in range(1, count + 1):
        entries = ledger.entries()
        ledger.append(make_decision(number, entries[-1].hash if entries else GENESIS))
    return ledger


def _resealed(line: bytes, **fields: object) -> bytes:
    """The entry with other fields and the hash that they call for."""
    content = {**json.loads(line), **fields, "hash": ""}
    canonical = json.dumps(
        {name: value for name, value in content.items() if name != "signature"}, sort_keys=True, separators=(",", ":")
    )
    return json.dumps({**content, "hash": hashlib.sha256(canonical.encode()).hexdigest()}).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        (lambda lines: [lines[0], lines[1].replace(b"good", b"fine"), *lines[2:]], 2),
        (lambda lines: [lines[0], lines[1].replace(b'"Ada"', b'"Eve"'), *lines[2:]], 2),
        (lambda lines: [lines[0], *lines[2:]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [lines[0], lines[0], *lines[1:]], 2),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], 2),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], 3),
        (lambda lines: [*lines[:3], b"{}\n"], 4),
        (lambda lines: [*lines[:3], lines[3][:40] + b"\n"], 4),
        (lambda lines: [*lines[:3], b"\xff\xfe\n"], 4),
        (lambda lines: [*lines[:3], b"[]\n"], 4),
        (lambda lines: [*lines[:3], b"[" * 100_000 + b"\n"], 4),
        (lambda lines: [*lines[:3], _resealed(lines[3], action="crown")], 4),
        (lambda lines: [*lines[:3], _resealed(lines[3], version=4)], 4),
        (lambda lines: [*lines[:3], _resealed(lines[3], time=5)], 4),
        (lambda lines: [*lines[:3], _resealed(lines[3], sequence=4.0)], 4),
        (lambda lines: [*lines[:3], lines[3].replace(b'"schema":2', b'"schema":3')], 4),
    ],
    ids=(
        "reason approver removed first-removed doubled swapped blank empty cut bytes list deep action version time "
        "number schema"
    ).split(),
)
def test_tampered_ledger_names_its_first_broken_entry(tmp_path, change, broken):
    ledger = _ledger_of(tmp_path, 4)
    assert len(ledger.entries()) == 4
    rewrite(tmp_path, change)
    with pytest.raises(LedgerError, match=f"entry {broken} "):
        Ledger(open_objects(tmp_path), "en").entries()


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (b"", "it is empty"),
        (b'{"sequence": 1, "time"', "it is not whole JSON"),
        (b"\x00\x01{", "it is not whole JSON"),
        (b"[]", "it is no table of fields"),
        (b"{}", "sequence is missing"),
    ],
)
def test_what_is_no_entry_is_refused_in_words(tmp_path, stored, said):
    """Who reads it restores a backup; how a parser failed, and Python's bytes, are no help with that."""
    _ledger_of(tmp_path, 1)
    (entry,) = (tmp_path / "ledger" / "en").glob("*.json")
    entry.write_bytes(stored)
    with pytest.raises(LedgerError, match=f"ledger/en in .*: entry 1 cannot be read .{said}.; restore it from its"):
        Ledger(open_objects(tmp_path), "en").entries()


def test_an_action_that_nobody_knows_is_refused_by_its_word(tmp_path):
    _ledger_of(tmp_path, 1)
    rewrite(tmp_path, lambda lines: [_resealed(lines[0], action="crown")])
    with pytest.raises(LedgerError) as refused:
        Ledger(open_objects(tmp_path), "en").entries()
    assert "ledger/en" in str(refused.value)
    assert "entry 1 cannot be read (action: Input should be 'approve', " in str(refused.value)
    assert "not 'crown'); restore it from its backup, or upgrade" in str(refused.value)


def test_a_ledger_with_a_gap_says_which_entry_is_missing(tmp_path):
    _ledger_of(tmp_path, 3)
    (tmp_path / "ledger" / "en" / "00000002.json").unlink()
    with pytest.raises(LedgerError, match="ledger/en/00000002.json is not in the data store .* number 3 is"):
        Ledger(open_objects(tmp_path), "en").entries()


def test_rehashed_edit_breaks_the_chain_at_the_next_entry(tmp_path):
    """Whoever edits an entry and computes its hash anew would have to rewrite all that follow."""
    ledger = _ledger_of(tmp_path, 3)
    entries = ledger.entries()
    forged = make_decision(2, entries[0].hash, "bribed").sealed()
    line = json.dumps(forged.__dict__, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    rewrite(tmp_path, lambda lines: [lines[0], line, lines[2]])
    with pytest.raises(LedgerError, match="entry 3 does not follow"):
        Ledger(open_objects(tmp_path), "en").entries()


def test_killed_writers_leave_a_whole_chain(tmp_path):
    """kill -9 at random moments while decisions are appended: confirmed entries are all there, in an intact chain."""
    for trial in range(12):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            ledger = Ledger(open_objects(tmp_path), "en")
            while True:
                entries = ledger.entries()
                number = len(entries) + 1
                ledger.append(make_decision(number, entries[-1].hash if entries else GENESIS))
                os.write(tell, f"{number}\n".encode())
        time.sleep(random.Random(trial).uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(tell)
        with os.fdopen(told) as reader:
            confirmed = [int(line) for line in reader]
        ledger = Ledger(open_objects(tmp_path), "en")
        assert len(ledger.entries()) >= (confirmed[-1] if confirmed else 0)
    assert len(ledger.entries()) > 12


def test_two_writers_never_take_the_same_number(tmp_path):
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            ledger, written = Ledger(open_objects(tmp_path), "en"), 0
            while written < 20:
                entries = ledger.entries()
                with suppress(LostRace):
                    ledger.append(make_decision(len(entries) + 1, entries[-1].hash if entries else GENESIS))
                    written += 1
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert [entry.sequence for entry in Ledger(open_objects(tmp_path), "en").entries()] == list(range(1, 41))


def test_who_decided_on_older_entries_is_told_and_writes_nothing(tmp_path):
    ledger = _ledger_of(tmp_path, 2)
    first, _ = ledger.entries()
    with pytest.raises(LostRace):
        Ledger(open_objects(tmp_path), "en").append(make_decision(2, first.hash, "late"))
    assert [entry.reason for entry in Ledger(open_objects(tmp_path), "en").entries()] == ["good", "good"]


@pytest.mark.parametrize("language", ["../en", "", "a/b", ".hidden"])
def test_ledger_stays_in_its_folder(tmp_path, language):
    with pytest.raises(LedgerError):
        Ledger(open_objects(tmp_path), language)


KEY = b"a key that is not on this disk"


def test_with_a_key_every_entry_is_signed_and_one_without_is_refused(tmp_path):
    """Whoever has the disk alone can compute hashes anew, and still writes no decision."""
    signed = Ledger(open_objects(tmp_path), "en", KEY)
    for number in (1, 2):
        entries = signed.entries()
        signed.append(make_decision(number, entries[-1].hash if entries else GENESIS))
    assert [len(entry.signature) for entry in signed.entries()] == [64, 64]
    assert len(Ledger(open_objects(tmp_path), "en").entries()) == 2, "who has no key can read"
    forged = make_decision(3, signed.entries()[-1].hash, "nobody decided it")
    third = tmp_path / "ledger" / "en" / "00000003.json"
    for entry in (forged.sealed(), forged.sealed().signed(b"a guess of some sixteen bytes")):
        third.write_bytes(entry.to_json())
        with pytest.raises(LedgerError, match="entry 3 is not signed with the ledger key"):
            Ledger(open_objects(tmp_path), "en", KEY).entries()
        third.unlink()
    rewrite(tmp_path, lambda lines: [lines[0], _resealed(lines[1], version="7")])
    with pytest.raises(LedgerError, match="entry 2 is not signed with the ledger key"):
        Ledger(open_objects(tmp_path), "en", KEY).entries()


def test_a_ledger_from_before_the_key_is_signed_once_and_read_from_then_on(tmp_path):
    ledger = _ledger_of(tmp_path, 3)
    signed = Ledger(open_objects(tmp_path), "en", KEY)
    with pytest.raises(LedgerError, match="entry 1 is not signed"):
        signed.entries()
    before = ledger.entries()
    assert ledger.sign(KEY) == 3
    signed = Ledger(open_objects(tmp_path), "en", KEY)
    assert [entry.hash for entry in signed.entries()] == [entry.hash for entry in before]
