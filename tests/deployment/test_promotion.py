"""The ledger says who put what into production; the alias follows it, and nothing moves without a verdict."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deployment.ledger import GENESIS, Decision, Ledger, LedgerError
from deployment.promotion import PromotionRefused, Promotions
from deployment.registry import Registry
from evaluation.gates import GateRefused, GateSettings, save_verdict
from speech.bundle import BundleError

MODEL = "soundstage-en"
ROOT = Path(__file__).parents[2]


def _champion(house) -> str | None:
    found = house.registry.champion(MODEL)
    return found.version if found else None


def _approve(house, number: int, champion: str | None = None) -> Decision:
    version = house.register(number, champion)
    return house.promotions.approve("en", MODEL, version.version, "Ada", f"quarter {number} is better")


def test_ledger_answers_who_what_when_and_why(house):
    decision = _approve(house, 1)
    current = house.promotions.current("en")
    assert current == decision
    assert (current.action, current.approver, current.reason) == ("approve", "Ada", "quarter 1 is better")
    assert (current.model, current.version, current.digest) == (MODEL, "1", house.bundle(1).digest)
    assert current.previous_champion == ""
    assert len(current.verdict_sha256) == 64
    assert _champion(house) == "1"
    assert house.registry.challenger(MODEL) is None
    assert house.promotions.check_alias("en", MODEL).agrees
    assert house.promotions.current("de") is None


def test_next_champion_names_the_one_before(house):
    _approve(house, 1)
    decision = _approve(house, 2, house.bundle(1).digest)
    assert (decision.sequence, decision.previous_champion) == (2, f"{MODEL}/1")
    assert decision.previous_digest == house.bundle(1).digest
    assert _champion(house) == "2"


def test_rejected_version_is_no_longer_offered(house):
    _approve(house, 1)
    house.register(2)
    decision = house.promotions.reject("en", MODEL, "2", "Ada", "slow on calls")
    assert (decision.action, _champion(house)) == ("reject", "1")
    assert house.registry.challenger(MODEL) is None
    assert house.promotions.current("en").version == "1"
    assert house.promotions.reject("en", MODEL, "2", "Ada", "slow on calls") == decision
    with pytest.raises(PromotionRefused, match="roll back instead"):
        house.promotions.reject("en", MODEL, "1", "Ada", "no")


def test_rollback_walks_back_through_the_champions(house):
    """Two roll-backs in a row go two champions back, not there and back again."""
    for number in (1, 2, 3):
        _approve(house, number, house.bundle(number - 1).digest if number > 1 else None)
    assert house.promotions.rollback("en", "Ada", "worse on calls").version == "2"
    assert _champion(house) == "2"
    assert house.promotions.rollback("en", "Ada", "still worse").version == "1"
    assert _champion(house) == "1"
    with pytest.raises(PromotionRefused, match="no earlier champion"):
        house.promotions.rollback("en", "Ada", "and again")
    assert house.promotions.rollback("en", "Ada", "it was the line", version="3").version == "3"
    assert [entry.action for entry in house.promotions.history("en")] == ["approve"] * 3 + ["rollback"] * 3
    assert house.promotions.verify("en") is None


def test_rollback_needs_an_earlier_champion(house):
    with pytest.raises(PromotionRefused, match="nothing to roll back"):
        house.promotions.rollback("en", "Ada", "why not")
    _approve(house, 1)
    house.register(2)
    with pytest.raises(PromotionRefused, match="version 2"):  # never was champion
        house.promotions.rollback("en", "Ada", "why not", version="2")


@pytest.mark.parametrize(
    ("approver", "reason", "approvers", "message"),
    [
        ("Bob", "good", ("Ada",), "'Bob' may not decide"),
        ("", "good", ("Ada",), "name of the person"),
        ("  ", "good", None, "name of the person"),
        ("Ada", "", ("Ada",), "needs a reason"),
        ("Ada", "  ", ("Ada",), "needs a reason"),
        ("Ada", "good", (), "nobody yet"),
        ("ada", "good", ("Ada",), "may not decide"),
    ],
)
def test_only_named_people_with_a_reason_decide(house, approver, reason, approvers, message):
    house.register(1)
    promotions = house.restarted(approvers=approvers)
    for decide in (
        lambda: promotions.approve("en", MODEL, "1", approver, reason),
        lambda: promotions.reject("en", MODEL, "1", approver, reason),
        lambda: promotions.rollback("en", approver, reason),
    ):
        with pytest.raises(PromotionRefused, match=message):
            decide()
    assert house.promotions.history("en") == ()


def test_without_a_list_anyone_with_a_name_decides(house):
    house.register(1)
    assert house.restarted(approvers=None).approve("en", MODEL, "1", "Bob", "good").approver == "Bob"


def _edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda path, other: path.unlink(), "no verdict"),
        (lambda path, other: path.write_text("{"), "not readable"),
        (lambda path, other: _edit(path, lambda c: c.update(passed=True, language="de")), "altered"),
        (lambda path, other: _edit(path, lambda c: c.update(schema_version=0)), "stale schema"),
        (lambda path, other: _edit(path, lambda c: c.pop("sha256")), "altered"),
        (lambda path, other: path.write_bytes(other.read_bytes()), "foreign"),
    ],
    ids=["missing", "cut", "edited", "old schema", "unsealed", "of another bundle"],
)
def test_nothing_is_approved_on_a_tampered_verdict(house, tamper, message):
    """The verdict is read again at the moment of the decision, whatever was true at registration."""
    house.register(1)
    house.register(2)
    folder = house.home / "verdicts"
    tamper(folder / f"{house.bundle(1).digest}.json", folder / f"{house.bundle(2).digest}.json")
    with pytest.raises(GateRefused, match=message):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert house.promotions.history("en") == ()
    assert _champion(house) is None


def test_a_failed_verdict_after_registration_stops_the_approval(house, verdict_of):
    house.register(1)
    save_verdict(verdict_of(house.bundle(1), wer=0.5), house.home / "verdicts")
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_approval_needs_a_comparison_with_todays_champion(house):
    """Two challengers judged against nobody: after one is champion the other's verdict is out of date."""
    house.register(1)
    house.register(2)
    house.promotions.approve("en", MODEL, "1", "Ada", "good")
    with pytest.raises(GateRefused, match="stale"):
        house.promotions.approve("en", MODEL, "2", "Ada", "also good")
    assert house.restarted(compare_champion=False).approve("en", MODEL, "2", "Ada", "also good").version == "2"


def test_approval_needs_todays_thresholds(house):
    house.register(1)
    stricter = house.restarted(gates=GateSettings(wer=0.01))
    with pytest.raises(GateRefused, match="other thresholds"):
        stricter.approve("en", MODEL, "1", "Ada", "good")


def test_replaced_model_is_not_approved(house):
    version = house.register(1)
    network = Path(version.uri.removeprefix("file://")) / "bundle" / "network.onnx"
    network.write_bytes(network.read_bytes() + b"x")
    with pytest.raises(BundleError, match="not what was registered"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert house.promotions.history("en") == ()


def test_model_of_another_language_is_not_approved(house):
    house.register(1)
    with pytest.raises(PromotionRefused, match="for language 'en', not for 'de'"):
        house.promotions.approve("de", MODEL, "1", "Ada", "good")


def test_alias_moved_by_hand_is_seen_and_repaired(house):
    _approve(house, 1)
    house.register(2)
    house.registry.set_alias(MODEL, "champion", "2")
    state = house.promotions.check_alias("en", MODEL)
    assert (state.agrees, state.ledger_version, state.alias_version) == (False, "1", "2")
    assert "moved by hand" in state.explanation
    assert not house.promotions.reconcile("en", MODEL).agrees
    assert _champion(house) == "1"
    assert house.promotions.check_alias("en", MODEL).agrees


def test_alias_without_any_decision_is_seen_and_removed(house):
    house.register(1)
    house.registry.set_alias(MODEL, "champion", "1")
    assert not house.promotions.check_alias("en", MODEL).agrees
    house.promotions.reconcile("en", MODEL)
    assert _champion(house) is None


class _Dies(Registry):
    """A registry whose process ends when the alias is to be moved."""

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        os._exit(9)


def test_process_killed_between_ledger_and_alias_is_repaired(house):
    """The decision was recorded, so it holds: reconcile moves the alias, a repeat adds no second entry."""
    house.register(1)
    pid = os.fork()
    if pid == 0:
        dying = Promotions(_Dies(house.registry.tracking_uri), house.home / "ledger", house.home / "verdicts")
        dying.approve("en", MODEL, "1", "Ada", "good")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert _champion(house) is None
    assert house.promotions.current("en").version == "1"
    assert "interrupted" in house.promotions.check_alias("en", MODEL).explanation
    house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert _champion(house) == "1"
    assert len(house.promotions.history("en")) == 1
    with pytest.raises(PromotionRefused, match="nothing to approve"):
        house.promotions.approve("en", MODEL, "1", "Ada", "another reason")


def test_interrupted_rollback_is_finished_by_its_repeat(house):
    """A retried roll-back must not go back twice."""
    for number in (1, 2, 3):
        _approve(house, number, house.bundle(number - 1).digest if number > 1 else None)
    pid = os.fork()
    if pid == 0:
        dying = Promotions(_Dies(house.registry.tracking_uri), house.home / "ledger", house.home / "verdicts")
        dying.rollback("en", "Ada", "worse")
        os._exit(0)
    os.waitpid(pid, 0)
    assert house.promotions.rollback("en", "Ada", "worse").version == "2"
    assert len(house.promotions.history("en")) == 4
    assert _champion(house) == "2"


def _ledger_of(folder: Path, count: int) -> Ledger:
    ledger = Ledger(folder, "en")
    with ledger.locked():
        for number in range(1, count + 1):
            entries = ledger.entries()
            ledger.append(_decision(number, entries[-1].hash if entries else GENESIS))
    return ledger


def _decision(number: int, previous: str, reason: str = "good") -> Decision:
    return Decision(
        sequence=number,
        time="2024-07-01T00:00:00.000+00:00",
        action="approve",
        language="en",
        model=MODEL,
        version=str(number),
        digest=f"{number:064x}",
        verdict_sha256="0" * 64,
        approver="Ada",
        reason=reason,
        previous_champion="",
        previous_digest="",
        previous_hash=previous,
    )


def _rewrite(path: Path, change) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


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
        (lambda lines: [*lines[:3], lines[3].replace(b'"schema":2', b'"schema":3')], 4),
    ],
    ids="reason approver removed first-removed doubled swapped blank empty cut bytes list schema".split(),
)
def test_tampered_ledger_names_its_first_broken_entry(tmp_path, change, broken):
    ledger = _ledger_of(tmp_path, 4)
    assert ledger.verify() is None
    _rewrite(ledger.path, change)
    assert f"entry {broken} " in ledger.verify()
    with pytest.raises(LedgerError, match=f"entry {broken} "):
        ledger.append(_decision(5, GENESIS))


def test_rehashed_edit_breaks_the_chain_at_the_next_entry(tmp_path):
    """Whoever edits an entry and computes its hash anew would have to rewrite all that follow."""
    ledger = _ledger_of(tmp_path, 3)
    entries = ledger.entries()
    forged = _decision(2, entries[0].hash, "bribed").sealed()
    line = json.dumps(forged.__dict__, sort_keys=True, separators=(",", ":")).encode() + b"\n"
    _rewrite(ledger.path, lambda lines: [lines[0], line, lines[2]])
    assert "entry 3 does not follow" in ledger.verify()


def test_entries_cut_off_at_the_end_are_missed(house):
    """A hash chain cannot show that its end is gone; the note in the registry can."""
    _approve(house, 1)
    _approve(house, 2, house.bundle(1).digest)
    _rewrite(house.promotions.ledger("en").path, lambda lines: lines[:1])
    assert house.promotions.verify("en") is None
    state = house.promotions.check_alias("en", MODEL)
    assert not state.agrees
    assert "decision 2" in state.explanation
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.reconcile("en", MODEL)
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.reject("en", MODEL, "2", "Ada", "cover up")
    assert _champion(house) == "2"


def test_broken_ledger_stops_every_decision(house):
    _approve(house, 1)
    house.register(2, house.bundle(1).digest)
    _rewrite(house.promotions.ledger("en").path, lambda lines: [lines[0].replace(b"better", b"worse!")])
    for decide in (
        lambda: house.promotions.approve("en", MODEL, "2", "Ada", "good"),
        lambda: house.promotions.reject("en", MODEL, "2", "Ada", "bad"),
        lambda: house.promotions.rollback("en", "Ada", "bad"),
        lambda: house.promotions.current("en"),
        lambda: house.promotions.reconcile("en", MODEL),
    ):
        with pytest.raises(LedgerError, match="entry 1 was changed"):
            decide()


@pytest.mark.parametrize("kept", [1, 60, -1])
def test_unfinished_last_line_is_set_aside_and_not_a_decision(tmp_path, kept):
    ledger = _ledger_of(tmp_path, 2)
    whole = ledger.path.read_bytes()
    cut = whole.splitlines(keepends=True)[1][:kept]
    ledger.path.write_bytes(whole.splitlines(keepends=True)[0] + cut)
    assert len(ledger.entries()) == 1
    assert ledger.verify() is None
    ledger.append(_decision(2, ledger.entries()[0].hash, "again"))
    assert [entry.reason for entry in ledger.entries()] == ["good", "again"]
    assert ledger.path.with_suffix(".torn").read_bytes() == cut + b"\n"


def test_a_ledger_of_the_first_schema_is_read_and_continued(tmp_path):
    """Entries are never rewritten, so those of earlier versions stay as they were hashed."""
    content = {k: v for k, v in _decision(1, GENESIS).__dict__.items() if k not in ("overridden", "launched_by")}
    content |= {"schema": 1, "hash": ""}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    path = tmp_path / "en.jsonl"
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")) + "\n")
    ledger = Ledger(tmp_path, "en")
    (first,) = ledger.entries()
    assert (first.schema, first.approver, first.overridden) == (1, "Ada", ())
    with ledger.locked():
        ledger.append(_decision(2, first.hash))
    assert [entry.schema for entry in ledger.entries()] == [1, 2]
    path.write_text(path.read_text().replace("good", "fine", 1))
    assert "entry 1 was changed" in ledger.verify()


def test_the_command_prints_who_decided_what_and_why(house):
    """The question of an audit, answered without a server."""
    _approve(house, 1)
    (house.home / "soundstage.toml").write_text('home = "."\nlanguages = ["en", "de"]\n')
    command = [sys.executable, "-m", "deployment.ledger"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SOUNDSTAGE_")},
        "SOUNDSTAGE_CONFIG": str(house.home / "soundstage.toml"),
        "COLUMNS": "200",
    }
    printed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in ("approve", "soundstage-en/1", house.bundle(1).digest[:12], "Ada", "quarter 1 is better"):
        assert part in printed
    assert "de: nothing was decided yet" in printed
    _rewrite(house.promotions.ledger("en").path, lambda lines: [lines[0].replace(b"better", b"worse!")])
    broken = subprocess.run([*command, "en"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "entry 1 was changed" in broken.stdout.replace("\n", " ")


def test_a_rejection_is_final_even_after_other_wishes(house):
    house.register(1)
    house.promotions.reject("en", MODEL, "1", "Ada", "leaks names")
    house.promotions.request_changes("en", MODEL, "1", "Ada", "or perhaps not")
    house.register(1)
    with pytest.raises(PromotionRefused, match="rejected by Ada"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_a_version_deleted_by_hand_does_not_stop_the_next_decision(house):
    _approve(house, 1)
    house.register(2, house.bundle(1).digest)
    house.registry._client().delete_model_version(MODEL, "1")
    assert house.promotions.approve("en", MODEL, "2", "Ada", "better").version == "2"
    assert house.promotions.releasable("en").version == "2"


def test_killed_writers_leave_a_whole_chain(tmp_path):
    """kill -9 at random moments while decisions are appended: confirmed entries are all there, in an intact chain."""
    for trial in range(12):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            ledger = Ledger(tmp_path, "en")
            while True:
                with ledger.locked():
                    entries = ledger.entries()
                    number = len(entries) + 1
                    ledger.append(_decision(number, entries[-1].hash if entries else GENESIS))
                os.write(tell, f"{number}\n".encode())
        time.sleep(random.Random(trial).uniform(0.01, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(tell)
        with os.fdopen(told) as reader:
            confirmed = [int(line) for line in reader]
        ledger = Ledger(tmp_path, "en")
        assert ledger.verify() is None
        assert len(ledger.entries()) >= (confirmed[-1] if confirmed else 0)
    assert len(ledger.entries()) > 12


def test_two_writers_never_take_the_same_number(tmp_path):
    pids = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            ledger = Ledger(tmp_path, "en")
            for _ in range(20):
                with ledger.locked():
                    entries = ledger.entries()
                    ledger.append(_decision(len(entries) + 1, entries[-1].hash if entries else GENESIS))
            os._exit(0)
        pids.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0, 0]
    assert [entry.sequence for entry in Ledger(tmp_path, "en").entries()] == list(range(1, 41))


@pytest.mark.parametrize("language", ["../en", "", "a/b", ".hidden"])
def test_ledger_stays_in_its_folder(tmp_path, language):
    with pytest.raises(LedgerError):
        Ledger(tmp_path, language)
