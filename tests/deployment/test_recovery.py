"""An alias moved by hand, a process killed in between and a line written by hand: seen, and repaired or refused."""

import hashlib
import os

import pytest

from deployment.promotion.ledger import LedgerError
from deployment.promotion.rules import PromotionRefused
from deployment.registry.models import Registry, RegistryError
from evaluation.gates import GateRefused, save_verdict
from speech.bundle import BundleError
from tests.deployment.conftest import MODEL, rewrite


def test_alias_moved_by_hand_is_seen_and_repaired(house):
    house.approve(1)
    house.register(2)
    house.registry.set_alias(MODEL, "champion", "2")
    state = house.promotions.check_alias("en", MODEL)
    assert (state.agrees, state.ledger_version, state.alias_version) == (False, "1", "2")
    assert "moved by hand" in state.explanation
    assert not house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it").agrees
    assert house.champion == "1"
    assert house.promotions.check_alias("en", MODEL).agrees


def test_alias_without_any_decision_is_seen_and_removed(house):
    house.register(1)
    house.registry.set_alias(MODEL, "champion", "1")
    assert not house.promotions.check_alias("en", MODEL).agrees
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
    assert house.champion is None


class _Dies(Registry):
    """A registry whose process ends when the alias is to be moved."""

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        os._exit(9)


def test_process_killed_between_ledger_and_alias_is_repaired(house):
    """The decision was recorded, so it holds: reconcile moves the alias, a repeat adds no second entry."""
    house.register(1)
    pid = os.fork()
    if pid == 0:
        dying = house.promotions_over(_Dies(house.registry.tracking_uri))
        dying.approve("en", MODEL, "1", "Ada", "good")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert house.champion is None
    assert house.promotions.current("en").version == "1"
    assert "interrupted" in house.promotions.check_alias("en", MODEL).explanation
    house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert house.champion == "1"
    assert len(house.promotions.history("en")) == 1
    with pytest.raises(PromotionRefused, match="nothing to approve"):
        house.promotions.approve("en", MODEL, "1", "Ada", "another reason")


def test_interrupted_rollback_is_finished_by_its_repeat(house):
    """A retried roll-back must not go back twice."""
    for number in (1, 2, 3):
        house.approve(number, house.bundle(number - 1).digest if number > 1 else None)
    pid = os.fork()
    if pid == 0:
        dying = house.promotions_over(_Dies(house.registry.tracking_uri))
        dying.rollback("en", "Ada", "worse")
        os._exit(0)
    os.waitpid(pid, 0)
    assert house.promotions.rollback("en", "Ada", "worse").version == "2"
    assert len(house.promotions.history("en")) == 4
    assert house.champion == "2"


def _dies_in(house, decide) -> None:
    """Take a decision in a process that ends when the alias is to be moved."""
    pid = os.fork()
    if pid == 0:
        rules = {"approvers": ("Ada", "Bob")}
        decide(house.promotions_over(_Dies(house.registry.tracking_uri), **rules))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_person_has_an_interrupted_decision_finished_by_reconcile(house):
    """Who launched it may be on holiday; what it needed holds, so the name and reason of someone else are enough."""
    house.register(1)
    _dies_in(house, lambda dying: dying.approve("en", MODEL, "1", "Ada", "good"))
    for approver, reason in (("Eve", "looks right"), ("", "looks right"), ("Ada", " ")):
        with pytest.raises(PromotionRefused):
            house.promotions.reconcile("en", MODEL, approver, reason)
    assert house.champion is None
    house.promotions.reconcile("en", MODEL, "Ada", "Bob's run was killed")
    assert house.champion == "1"
    assert house.promotions.releasable("en").version == "1"
    house.approve(2, house.bundle(1).digest)
    _dies_in(house, lambda dying: dying.rollback("en", "Ada", "worse"))
    assert "interrupted" in house.promotions.verify("en", MODEL)
    house.promotions.reconcile("en", MODEL, "Ada", "it was me")
    assert house.champion == "1"
    assert house.promotions.verify("en", MODEL) is None


def _failed_bundle(house, verdict_of) -> dict[str, object]:
    """Champion 1, and a version 2 that fails now; returns what an approval of it would say."""
    house.approve(1)
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
    forged = house.forge(**_failed_bundle(house, verdict_of))
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
    assert house.champion == "1"
    house.registry.set_model_tag(MODEL, "ledger_head.en", forged.head)
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        promotions.releasable("en")


def test_a_forged_override_and_approval_together_are_not_one_interruptedmake_decision(house, verdict_of):
    said = _failed_bundle(house, verdict_of)
    house.forge(**{**said, "action": "override", "version": ""})
    house.forge(**said)
    with pytest.raises(LedgerError, match="decisions 2 to 3 .* written by hand"):
        house.restarted(allow_override=True).reconcile("en", MODEL, "Ada", "looks right")
    assert house.champion == "1"


def test_a_forged_override_counts_for_nothing_where_overriding_is_switched_off(house, verdict_of):
    house.forge(**{**_failed_bundle(house, verdict_of), "action": "override", "version": ""})
    with pytest.raises(PromotionRefused, match="switched off"):
        house.promotions.reconcile("en", MODEL, "Ada", "looks right")


def test_a_forged_approval_needs_all_that_approvals_need(house):
    """A passing version that was not compared with the champion, or that somebody unknown is said to have approved."""
    house.approve(1)
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
        house.forge(**fields)
        with pytest.raises(refusal, match=message):
            house.promotions.reconcile("en", MODEL, "Ada", "looks right")
        path.write_bytes(before)
    assert house.champion == "1"


def test_a_forged_rollback_to_what_never_was_champion_is_not_taken_for_an_interrupted_one(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    house.forge(action="rollback", version="2", digest=house.bundle(2).digest, reason="worse")
    for adopt in (
        lambda: house.promotions.rollback("en", "Ada", "worse"),
        lambda: house.promotions.reconcile("en", MODEL, "Ada", "looks right"),
    ):
        with pytest.raises(PromotionRefused, match="never was champion"):
            adopt()
    assert house.champion == "1"


def test_a_forged_approval_by_the_launcher_is_still_one_voice(house):
    version = house.register(1, launched_by="Ada")
    sha = hashlib.sha256((house.home / "verdicts" / f"{version.digest}.json").read_bytes()).hexdigest()
    house.forge(digest=version.digest, verdict_sha256=sha)
    with pytest.raises(PromotionRefused, match="two people are asked for"):
        house.restarted(approvers=("Ada", "Bob"), two_person=True).reconcile("en", MODEL, "Bob", "looks right")
    assert house.champion is None


@pytest.mark.parametrize("note", ["x", "1:", "²:" + "a" * 64, None])
def test_an_edited_note_is_named_and_set_right_by_a_person(house, note):
    """The ledger is whole: restoring it from a backup would be the wrong remedy."""
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    if note is None:
        house.registry.mlflow.delete_registered_model_tag(MODEL, "ledger_head.en")
    else:
        house.registry.set_model_tag(MODEL, "ledger_head.en", note)
    assert "edited in MLflow" in house.promotions.check_alias("en", MODEL).explanation
    with pytest.raises(LedgerError, match="job `reconcile`"):
        house.promotions.rollback("en", "Ada", "worse")
    house.promotions.reconcile("en", MODEL, "Ada", "compared with the backup")
    assert house.promotions.check_alias("en", MODEL).agrees
    assert house.promotions.rollback("en", "Ada", "worse").version == "1"


def test_a_forged_note_of_a_decision_that_never_was_says_how_to_remove_it(house):
    house.approve(1)
    house.registry.set_model_tag(MODEL, "ledger_head.en", "9:" + "a" * 64)
    with pytest.raises(LedgerError, match="remove the tag 'ledger_head.en' of soundstage-en, then launch `reconcile`"):
        house.promotions.reconcile("en", MODEL, "Ada", "the ledger is whole")
    house.registry.mlflow.delete_registered_model_tag(MODEL, "ledger_head.en")
    house.promotions.reconcile("en", MODEL, "Ada", "the ledger is whole")
    assert house.promotions.check_alias("en", MODEL).agrees


def test_an_edited_note_does_not_let_a_failed_bundle_in(house, verdict_of):
    house.forge(**_failed_bundle(house, verdict_of))
    house.registry.set_model_tag(MODEL, "ledger_head.en", "x")
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        house.promotions.reconcile("en", MODEL, "Ada", "looks right")
    assert house.champion == "1"


def test_entries_cut_off_at_the_end_are_missed(house):
    """A hash chain cannot show that its end is gone; the note in the registry can."""
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    rewrite(house.promotions.ledger("en").path, lambda lines: lines[:1])
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
    assert house.champion == "2"


def test_decisions_go_on_after_the_champions_version_was_deleted(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    house.register(3, house.bundle(1).digest)
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.promotions.reject("en", MODEL, "2", "Ada", "slow").action == "reject"
    state = house.promotions.check_alias("en", MODEL)
    assert not state.agrees
    assert "version 1, which was deleted in MLflow" in state.explanation
    house.registry.set_alias(MODEL, "champion", "2")
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
    assert house.champion is None
    assert house.promotions.approve("en", MODEL, "3", "Ada", "better").version == "3"
    assert house.promotions.check_alias("en", MODEL).agrees
