"""The ledger says who put what into production; the alias follows it, and nothing moves without a verdict."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from deployment.promotion.decisions import Promotions
from deployment.promotion.ledger import LedgerError
from deployment.promotion.rules import PromotionRefused
from tests.deployment.conftest import MODEL, rewrite


def test_ledger_answers_who_what_when_and_why(house):
    decision = house.approve(1)
    current = house.promotions.current("en")
    assert current == decision
    assert (current.action, current.approver, current.reason) == ("approve", "Ada", "quarter 1 is better")
    assert (current.model, current.version, current.digest) == (MODEL, "1", house.bundle(1).digest)
    assert current.previous_champion == ""
    assert len(current.verdict_sha256) == 64
    assert house.champion == "1"
    assert house.registry.challenger(MODEL) is None
    assert house.promotions.check_alias("en", MODEL) is None
    assert house.promotions.current("de") is None


def test_next_champion_names_the_one_before(house):
    house.approve(1)
    decision = house.approve(2, house.bundle(1).digest)
    assert (decision.sequence, decision.previous_champion) == (2, f"{MODEL}/1")
    assert decision.previous_digest == house.bundle(1).digest
    assert house.champion == "2"


def test_rejected_version_is_no_longer_offered(house):
    house.approve(1)
    house.register(2)
    decision = house.promotions.close("en", "reject", MODEL, "2", "Ada", "slow on calls")
    assert (decision.action, house.champion) == ("reject", "1")
    assert house.registry.challenger(MODEL) is None
    assert house.promotions.current("en").version == "1"
    assert house.promotions.close("en", "reject", MODEL, "2", "Ada", "slow on calls") == decision
    with pytest.raises(PromotionRefused, match="roll back instead"):
        house.promotions.close("en", "reject", MODEL, "1", "Ada", "no")


def test_rollback_walks_back_through_the_champions(house):
    """Two roll-backs in a row go two champions back, not there and back again."""
    for number in (1, 2, 3):
        house.approve(number, house.bundle(number - 1).digest if number > 1 else None)
    assert house.promotions.rollback("en", "Ada", "worse on calls").version == "2"
    assert house.champion == "2"
    assert house.promotions.rollback("en", "Ada", "still worse").version == "1"
    assert house.champion == "1"
    with pytest.raises(PromotionRefused, match="no earlier champion"):
        house.promotions.rollback("en", "Ada", "and again")
    assert house.promotions.rollback("en", "Ada", "it was the line", version="3").version == "3"
    assert [entry.action for entry in house.promotions.history("en")] == ["approve"] * 3 + ["rollback"] * 3


def test_rollback_needs_an_earlier_champion(house):
    with pytest.raises(PromotionRefused, match="nothing to roll back"):
        house.promotions.rollback("en", "Ada", "why not")
    house.approve(1)
    house.register(2)
    with pytest.raises(PromotionRefused, match="version 2"):  # never was champion
        house.promotions.rollback("en", "Ada", "why not", version="2")


def test_a_rollback_tried_again_after_its_answer_was_lost_goes_back_once(house):
    for number in (1, 2, 3):
        house.approve(number, house.bundle(number - 1).digest if number > 1 else None)
    began = datetime.now(UTC)
    first = house.promotions.rollback("en", "Ada", "worse", since=began)
    assert house.promotions.rollback("en", "Ada", "worse", since=began) == first
    assert house.champion == "2"
    assert house.promotions.rollback("en", "Ada", "worse", since=datetime.now(UTC)).version == "1", "another run"


def test_broken_ledger_stops_everymake_decision(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    rewrite(house.home, lambda lines: [lines[0].replace(b"better", b"worse!")])
    for decide in (
        lambda: house.promotions.approve("en", MODEL, "2", "Ada", "good"),
        lambda: house.promotions.close("en", "reject", MODEL, "2", "Ada", "bad"),
        lambda: house.promotions.rollback("en", "Ada", "bad"),
        lambda: house.promotions.current("en"),
        lambda: house.promotions.releasable("en"),
        lambda: house.promotions.reconcile("en", MODEL, "Ada", "as it is"),
    ):
        with pytest.raises(LedgerError, match="entry 1 was changed"):
            decide()


def test_a_version_deleted_by_hand_does_not_stop_the_nextmake_decision(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.promotions.approve("en", MODEL, "2", "Ada", "better").version == "2"
    assert house.promotions.releasable("en").version == "2"


def test_a_champion_whose_version_was_deleted_is_gone_back_to_by_its_kept_bundle(house):
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    house.registry.mlflow.delete_model_version(MODEL, "1")
    assert house.promotions.rollback("en", "Ada", "worse").version == "1"
    assert house.promotions.releasable("en").digest == house.bundle(1).digest
    assert "which was deleted in MLflow" in house.promotions.check_alias("en", MODEL)


def test_a_version_that_a_newer_one_replaced_does_not_say_that_it_waits(house):
    """Two versions that both ask for a decision send people to the wrong one."""
    for number in (1, 2):
        house.promotions.offer("en", house.register(number))
    first, second = (house.registry.version(MODEL, number).tags["soundstage.status"] for number in ("1", "2"))
    assert first == "superseded by version 2, which was offered in its place"
    assert second.startswith(f"{MODEL} version 2 waits for Ada")


def test_an_older_quarter_registered_later_says_that_it_waits_for_nobody(house):
    newer = house.register(1, partition="en|2024-07")
    assert house.promotions.offer("en", newer).version.version == "1"
    older = house.register(2, partition="en|2024-01")
    assert house.promotions.offer("en", older) is None
    assert house.promotions.waiting("en", MODEL).version.version == "1"
    said = house.registry.version(MODEL, "2").tags["soundstage.status"]
    assert said == "superseded by version 1, which was offered in its place"
    assert "superseded" not in house.registry.version(MODEL, "1").tags["soundstage.status"]


@pytest.mark.parametrize("promoted", ["1", "2"])
def test_the_status_of_a_superseded_version_is_true_after_a_promotion_too(house, promoted):
    """It is written once: whatever is decided about the newer version later, and where it is promoted itself."""
    for number in (1, 2):
        house.promotions.offer("en", house.register(number))
    house.promotions.approve("en", MODEL, promoted, "Ada", "better")
    first = house.registry.version(MODEL, "1").tags["soundstage.status"]
    if promoted == "1":
        assert first.startswith("champion, approved by Ada")
    else:
        assert first == "superseded by version 2, which was offered in its place"


class _Late(Promotions):
    """Somebody else decides between this one's look at the ledger and its entry."""

    meanwhile: Callable[[], object] | None = None

    def _decide(self, *what, **how):
        if (first := self.meanwhile) is not None:
            self.meanwhile = None
            first()
        return super()._decide(*what, **how)


def test_who_is_overtaken_decides_again_and_nobody_rolls_back_twice(house):
    """An entry about something else changes nothing; a champion put in force meanwhile is news for who rolls back."""
    for number in (1, 2, 3):
        house.approve(number, house.bundle(number - 1).digest if number > 1 else None)
    house.register(4, house.bundle(3).digest)
    late = _Late(house.registry, house.promotions.rules)
    late.meanwhile = lambda: house.promotions.close("en", "reject", MODEL, "4", "Ada", "slow")
    assert late.rollback("en", "Ada", "worse").version == "2"
    late.meanwhile = lambda: house.promotions.rollback("en", "Ada", "it is worse")
    with pytest.raises(PromotionRefused, match=f"Ada made {MODEL} version 1 the champion of 'en' meanwhile"):
        late.rollback("en", "Ada", "so much worse")
    assert [entry.action for entry in house.promotions.history("en")][3:] == ["reject", "rollback", "rollback"]
    assert house.promotions.check_alias("en", MODEL) is None
