"""The ledger says who put what into production; the alias follows it, and nothing moves without a verdict."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment.ledger import GENESIS, Decision, Ledger, LedgerError
from deployment.promotion import PromotionRefused, Promotions
from deployment.registry import Registry, RegistryError
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
    assert not house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it").agrees
    assert _champion(house) == "1"
    assert house.promotions.check_alias("en", MODEL).agrees


def test_alias_without_any_decision_is_seen_and_removed(house):
    house.register(1)
    house.registry.set_alias(MODEL, "champion", "1")
    assert not house.promotions.check_alias("en", MODEL).agrees
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
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


def _dies_in(house, decide) -> None:
    """Take a decision in a process that ends when the alias is to be moved."""
    pid = os.fork()
    if pid == 0:
        rules = {"approvers": ("Ada", "Bob")}
        decide(Promotions(_Dies(house.registry.tracking_uri), house.home / "ledger", house.home / "verdicts", **rules))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_person_has_an_interrupted_decision_finished_by_reconcile(house):
    """Who launched it may be on holiday; what it needed holds, so the name and reason of someone else are enough."""
    house.register(1)
    _dies_in(house, lambda dying: dying.approve("en", MODEL, "1", "Ada", "good"))
    for approver, reason in (("Eve", "looks right"), ("", "looks right"), ("Ada", " ")):
        with pytest.raises(PromotionRefused):
            house.promotions.reconcile("en", MODEL, approver, reason)
    assert _champion(house) is None
    house.promotions.reconcile("en", MODEL, "Ada", "Bob's run was killed")
    assert _champion(house) == "1"
    assert house.promotions.releasable("en").version == "1"
    _approve(house, 2, house.bundle(1).digest)
    _dies_in(house, lambda dying: dying.rollback("en", "Ada", "worse"))
    assert "interrupted" in house.promotions.verify("en", MODEL)
    house.promotions.reconcile("en", MODEL, "Ada", "it was me")
    assert _champion(house) == "1"
    assert house.promotions.verify("en", MODEL) is None


def test_a_rollback_tried_again_after_its_answer_was_lost_goes_back_once(house):
    for number in (1, 2, 3):
        _approve(house, number, house.bundle(number - 1).digest if number > 1 else None)
    began = datetime.now(UTC)
    first = house.promotions.rollback("en", "Ada", "worse", since=began)
    assert house.promotions.rollback("en", "Ada", "worse", since=began) == first
    assert _champion(house) == "2"
    assert house.promotions.rollback("en", "Ada", "worse", since=datetime.now(UTC)).version == "1", "another run"


def _forge(house, **fields) -> Decision:
    """A line that fits the chain, by someone who can write the file but decides nothing."""
    entries = house.promotions.history("en")
    fitting = _decision(len(entries) + 1, entries[-1].hash if entries else GENESIS).__dict__
    sealed = Decision(**{**fitting, **fields}).sealed()
    path = house.promotions.ledger("en").path
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(sealed.content(), sort_keys=True, separators=(",", ":")) + "\n")
    return sealed


def _failed_bundle(house, verdict_of) -> dict[str, object]:
    """Champion 1, and a version 2 that fails now; returns what an approval of it would say."""
    _approve(house, 1)
    house.register(2, house.bundle(1).digest)
    verdict = verdict_of(house.bundle(2), champion=house.bundle(1).digest, wer=0.5)
    path = save_verdict(verdict, house.home / "verdicts")
    return {
        "version": "2",
        "digest": house.bundle(2).digest,
        "verdict_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "overridden": tuple(dict.fromkeys(gate.label for gate in verdict.failures)),
    }


@pytest.mark.parametrize("allowed", [False, True])
def test_an_approval_cannot_accept_gates_that_no_override_accepted(house, verdict_of, allowed):
    """The line is well hashed and fits; neither a repair, nor its repeat, nor a release may take it for a decision."""
    forged = _forge(house, **_failed_bundle(house, verdict_of))
    promotions = house.restarted(allow_override=allowed)
    assert "written by hand" in promotions.verify("en", MODEL)
    assert "written by hand" in promotions.check_alias("en", MODEL).explanation
    with pytest.raises(LedgerError, match="written by hand"):
        promotions.releasable("en")
    for adopt in (
        lambda: promotions.reconcile("en", MODEL, "Ada", "looks right"),
        lambda: promotions.approve("en", MODEL, "2", "Ada", forged.reason),
    ):
        with pytest.raises(GateRefused, match="did not pass gate wer"):
            adopt()
    assert _champion(house) == "1"
    house.registry.set_model_tag(MODEL, "ledger_head.en", forged.head)
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        promotions.releasable("en")


def test_a_forged_override_and_approval_together_are_not_one_interrupted_decision(house, verdict_of):
    said = _failed_bundle(house, verdict_of)
    _forge(house, **{**said, "action": "override", "version": ""})
    _forge(house, **said)
    with pytest.raises(LedgerError, match="decisions 2 to 3 .* written by hand"):
        house.restarted(allow_override=True).reconcile("en", MODEL, "Ada", "looks right")
    assert _champion(house) == "1"


def test_a_forged_override_counts_for_nothing_where_overriding_is_switched_off(house, verdict_of):
    _forge(house, **{**_failed_bundle(house, verdict_of), "action": "override", "version": ""})
    with pytest.raises(PromotionRefused, match="switched off"):
        house.promotions.reconcile("en", MODEL, "Ada", "looks right")


def test_a_forged_approval_needs_all_that_approvals_need(house):
    """A passing version that was not compared with the champion, or that somebody unknown is said to have approved."""
    _approve(house, 1)
    house.register(2)
    path = house.promotions.ledger("en").path
    before = path.read_bytes()
    about = {"version": "2", "digest": house.bundle(2).digest}
    for fields, refusal, message in (
        (about, GateRefused, "stale"),
        ({**about, "approver": "Eve"}, PromotionRefused, "'Eve' may not decide"),
        ({**about, "digest": house.bundle(1).digest}, BundleError, "is bundle"),
        ({**about, "version": "7"}, RegistryError, "no version 7"),
    ):
        _forge(house, **fields)
        with pytest.raises(refusal, match=message):
            house.promotions.reconcile("en", MODEL, "Ada", "looks right")
        path.write_bytes(before)
    assert _champion(house) == "1"


def test_a_forged_rollback_to_what_never_was_champion_is_not_taken_for_an_interrupted_one(house):
    _approve(house, 1)
    house.register(2, house.bundle(1).digest)
    _forge(house, action="rollback", version="2", digest=house.bundle(2).digest, reason="worse")
    for adopt in (
        lambda: house.promotions.rollback("en", "Ada", "worse"),
        lambda: house.promotions.reconcile("en", MODEL, "Ada", "looks right"),
    ):
        with pytest.raises(PromotionRefused, match="never was champion"):
            adopt()
    assert _champion(house) == "1"


@pytest.mark.parametrize("note", ["x", "1:", "²:" + "a" * 64, None])
def test_an_edited_note_is_named_and_set_right_by_a_person(house, note):
    """The ledger is whole: restoring it from a backup would be the wrong remedy."""
    _approve(house, 1)
    _approve(house, 2, house.bundle(1).digest)
    if note is None:
        house.registry._client().delete_registered_model_tag(MODEL, "ledger_head.en")
    else:
        house.registry.set_model_tag(MODEL, "ledger_head.en", note)
    assert "edited in MLflow" in house.promotions.check_alias("en", MODEL).explanation
    with pytest.raises(LedgerError, match="job `reconcile`"):
        house.promotions.rollback("en", "Ada", "worse")
    house.promotions.reconcile("en", MODEL, "Ada", "compared with the backup")
    assert house.promotions.check_alias("en", MODEL).agrees
    assert house.promotions.rollback("en", "Ada", "worse").version == "1"


def test_an_edited_note_does_not_let_a_failed_bundle_in(house, verdict_of):
    _forge(house, **_failed_bundle(house, verdict_of))
    house.registry.set_model_tag(MODEL, "ledger_head.en", "x")
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        house.promotions.reconcile("en", MODEL, "Ada", "looks right")
    assert _champion(house) == "1"


def test_editing_the_tag_does_not_hide_who_launched_the_training(house):
    version = house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob", "Cleo"), two_person=True)
    strict.note_launchers(version.digest, ("Ada",))
    house.registry.set_version_tag(MODEL, "1", "launched_by", "Bob")
    waiting = strict.waiting("en", MODEL)
    assert (waiting.launchers, waiting.approvers) == (("Ada", "Bob"), ("Cleo",))
    assert strict.approve("en", MODEL, "1", "Ada", "mine is good").action == "voice"
    assert strict.current("en") is None
    decision = strict.approve("en", MODEL, "1", "Cleo", "good")
    assert (decision.action, decision.launched_by) == ("approve", "Ada, Bob")


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_damaged_note_of_launchers_clears_nobody(house, content):
    version = house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    strict.note_launchers(version.digest, ("Ada",))
    (house.home / "launchers" / f"{version.digest}.json").write_text(content)
    assert strict.approve("en", MODEL, "1", "Bob", "good").action == "voice"


def test_the_voice_of_someone_who_left_does_not_count(house):
    house.register(1)
    first = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    assert first.approve("en", MODEL, "1", "Bob", "good").action == "voice"
    later = house.restarted(approvers=("Ada", "Cleo"), two_person=True)
    assert later.approve("en", MODEL, "1", "Ada", "good").action == "voice"
    assert later.approve("en", MODEL, "1", "Cleo", "good").action == "approve"


def test_a_forged_approval_by_the_launcher_is_still_one_voice(house):
    version = house.register(1, launched_by="Ada")
    sha = hashlib.sha256((house.home / "verdicts" / f"{version.digest}.json").read_bytes()).hexdigest()
    _forge(house, digest=version.digest, verdict_sha256=sha)
    with pytest.raises(PromotionRefused, match="two people are asked for"):
        house.restarted(approvers=("Ada", "Bob"), two_person=True).reconcile("en", MODEL, "Bob", "looks right")
    assert _champion(house) is None


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
        house.promotions.reconcile("en", MODEL, "Ada", "as it is")
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.approve("en", MODEL, "1", "Ada", "quarter 1 is better")
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
        lambda: house.promotions.reconcile("en", MODEL, "Ada", "as it is"),
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
    command = [sys.executable, "-m", "deployment.decisions"]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SOUNDSTAGE_")},
        "SOUNDSTAGE_CONFIG": str(house.home / "soundstage.toml"),
    }
    printed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in ("approve", "soundstage-en/1", house.bundle(1).digest[:12], "Ada", "quarter 1 is better"):
        assert part in printed
    assert "de: nothing was decided yet" in printed
    _rewrite(house.promotions.ledger("en").path, lambda lines: [lines[0].replace(b"better", b"worse!")])
    broken = subprocess.run([*command, "en"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert broken.returncode == 1
    assert "entry 1 was changed" in broken.stdout
    house.promotions.ledger("en").path.unlink()
    gone = subprocess.run([*command, "en"], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert gone.returncode == 1, "a ledger that is gone is not one in which nothing was decided"
    assert "entries were removed from its end" in gone.stdout


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


def test_decisions_go_on_after_the_champions_version_was_deleted(house):
    _approve(house, 1)
    house.register(2, house.bundle(1).digest)
    house.register(3, house.bundle(1).digest)
    house.registry._client().delete_model_version(MODEL, "1")
    assert house.promotions.reject("en", MODEL, "2", "Ada", "slow").action == "reject"
    state = house.promotions.check_alias("en", MODEL)
    assert not state.agrees
    assert "version 1, which was deleted in MLflow" in state.explanation
    house.registry.set_alias(MODEL, "champion", "2")
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
    assert _champion(house) is None
    assert house.promotions.approve("en", MODEL, "3", "Ada", "better").version == "3"
    assert house.promotions.check_alias("en", MODEL).agrees


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


def test_a_version_that_a_newer_one_replaced_does_not_say_that_it_waits(house):
    """Two versions that both ask for a decision send people to the wrong one."""
    for number in (1, 2):
        house.promotions.offer("en", house.register(number))
    first, second = (house.registry.version(MODEL, number).tags["soundstage.status"] for number in ("1", "2"))
    assert first == "superseded by version 2, which waits in its place"
    assert second.startswith(f"{MODEL} version 2 waits for Ada")
