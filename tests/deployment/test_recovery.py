"""An alias moved by hand, a process killed in between and an end that is missing: seen, and repaired or refused."""

import os

import pytest

from deployment.promotion.ledger import LedgerError
from deployment.promotion.rules import PromotionRefused
from deployment.registry.models import Registry
from speech.store.objects import open_objects
from tests.deployment.conftest import MODEL, forked, rewrite


def test_alias_moved_by_hand_is_seen_and_repaired(house):
    house.approve(1)
    house.register(2)
    house.registry.set_alias(MODEL, "champion", "2")
    state = house.promotions.check_alias("en", MODEL)
    assert "points to version 2, but the ledger says version 1: it was moved by hand" in state
    assert house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it") == state
    assert house.champion == "1"
    assert house.promotions.check_alias("en", MODEL) is None


def test_alias_without_any_decision_is_seen_and_removed(house):
    house.register(1)
    house.registry.set_alias(MODEL, "champion", "1")
    assert house.promotions.check_alias("en", MODEL)
    with pytest.raises(PromotionRefused, match="no champion yet"):
        house.promotions.releasable("en")
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
    assert house.champion is None


class _Dies(Registry):
    """A registry whose process ends when the alias is to be moved."""

    def set_alias(self, model_name: str, alias: str, version: str) -> None:
        os._exit(9)


def test_process_killed_between_ledger_and_alias_is_repaired(house):
    """The decision was recorded, so it holds: reconcile moves the alias, a repeat adds no second entry."""
    house.register(1)
    _dies_in(house, lambda dying: dying.approve("en", MODEL, "1", "Ada", "good"))
    assert house.champion is None
    assert house.promotions.current("en").version == "1"
    assert "interrupted" in house.promotions.check_alias("en", MODEL)
    house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert house.champion == "1"
    assert len(house.promotions.history("en")) == 1
    with pytest.raises(PromotionRefused, match="nothing to approve"):
        house.promotions.approve("en", MODEL, "1", "Ada", "another reason")


def test_interrupted_rollback_is_finished_by_its_repeat(house):
    """A retried roll-back must not go back twice."""
    for number in (1, 2, 3):
        house.approve(number, house.bundle(number - 1).digest if number > 1 else None)
    _dies_in(house, lambda dying: dying.rollback("en", "Ada", "worse"))
    assert house.promotions.rollback("en", "Ada", "worse").version == "2"
    assert len(house.promotions.history("en")) == 4
    assert house.champion == "2"


def _dies_in(house, decide) -> None:
    """Take a decision in a process that ends when the alias is to be moved."""
    rules = {"approvers": ("Ada", "Bob")}
    registry = _Dies(house.registry.tracking_uri, open_objects(house.home))
    pid = forked(lambda: decide(house.promotions_over(registry, **rules)))
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
    assert "interrupted" in house.promotions.check_alias("en", MODEL)
    assert house.promotions.releasable("en").version == "1", "it was decided"
    house.promotions.reconcile("en", MODEL, "Ada", "it was me")
    assert house.champion == "1"
    assert len(house.promotions.whole("en", MODEL)) == 3


@pytest.mark.parametrize("note", ["x", "1:", "²:" + "a" * 64, None])
def test_an_edited_note_decides_nothing_and_is_set_right_by_the_next_decision(house, note):
    """The ledger is whole: restoring it from a backup would be the wrong remedy."""
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    if note is None:
        house.registry.mlflow.delete_registered_model_tag(MODEL, "ledger_head.en")
    else:
        house.registry.set_model_tag(MODEL, "ledger_head.en", note)
    assert house.promotions.check_alias("en", MODEL)
    assert house.promotions.releasable("en").version == "2"
    assert house.promotions.rollback("en", "Ada", "worse").version == "1"
    assert house.promotions.check_alias("en", MODEL) is None


def test_a_note_of_a_decision_that_never_was_says_how_to_remove_it(house):
    house.approve(1)
    house.registry.set_model_tag(MODEL, "ledger_head.en", "9:" + "a" * 64)
    with pytest.raises(LedgerError, match="remove the tag 'ledger_head.en' of soundstage-en, then launch `reconcile`"):
        house.promotions.reconcile("en", MODEL, "Ada", "the ledger is whole")
    house.registry.mlflow.delete_registered_model_tag(MODEL, "ledger_head.en")
    house.promotions.reconcile("en", MODEL, "Ada", "the ledger is whole")
    assert house.promotions.check_alias("en", MODEL) is None


def test_entries_cut_off_at_the_end_are_missed(house):
    """A hash chain cannot show that its end is gone; the note in the registry can."""
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    rewrite(house.home, lambda lines: lines[:1])
    assert len(house.promotions.history("en")) == 1, "the chain is whole as far as it goes"
    with pytest.raises(LedgerError, match="notes decision 2"):
        house.promotions.check_alias("en", MODEL)
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.reconcile("en", MODEL, "Ada", "as it is")
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.approve("en", MODEL, "1", "Ada", "quarter 1 is better")
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.close("en", "reject", MODEL, "2", "Ada", "cover up")
    with pytest.raises(LedgerError, match="removed from its end"):
        house.promotions.releasable("en")
    assert house.champion == "2"


def test_decisions_go_on_after_the_champions_version_was_deleted(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    house.register(3, house.bundle(1).digest)
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.promotions.close("en", "reject", MODEL, "2", "Ada", "slow").action == "reject"
    assert "version 1, which was deleted in MLflow" in house.promotions.check_alias("en", MODEL)
    house.registry.set_alias(MODEL, "champion", "2")
    house.promotions.reconcile("en", MODEL, "Ada", "nobody decided it")
    assert house.champion is None
    assert house.promotions.approve("en", MODEL, "3", "Ada", "better").version == "3"
    assert house.promotions.check_alias("en", MODEL) is None
