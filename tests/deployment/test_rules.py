"""What a decision needs: a named person with a reason, and a whole, current verdict for exactly that bundle."""

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment.promotion.rules import PromotionRefused
from evaluation.gates import GateRefused, GateSettings, save_verdict
from speech.bundle import BundleError
from speech.store.objects import open_objects
from tests.deployment.conftest import MODEL


@pytest.mark.parametrize(
    ("approver", "reason", "approvers", "message"),
    [
        ("Bob", "good", ("Ada",), "'Bob' may not decide"),
        ("", "good", ("Ada",), "name of the person"),
        ("  ", "good", ("Ada",), "name of the person"),
        ("Ada", "", ("Ada",), "needs a reason"),
        ("Ada", "  ", ("Ada",), "needs a reason"),
        ("Ada", " .", ("Ada",), "needs a reason"),
        ("Ada", "--- ?!", ("Ada",), "needs a reason"),
        ("Ada", "a\ud800b", ("Ada",), r"U\+D800"),
        ("Ada", "a\u202eb", ("Ada",), r"U\+202E"),
        ("Ada", "a\x00b", ("Ada",), r"U\+0000"),
        ("Ada", "good", (), "nobody yet"),
        ("ada", "good", ("Ada",), "may not decide"),
    ],
)
def test_only_named_people_with_a_reason_decide(house, approver, reason, approvers, message):
    house.register(1)
    promotions = house.restarted(approvers=approvers)
    for decide in (
        lambda: promotions.approve("en", MODEL, "1", approver, reason),
        lambda: promotions.close("en", "reject", MODEL, "1", approver, reason),
        lambda: promotions.rollback("en", approver, reason),
    ):
        with pytest.raises(PromotionRefused, match=message):
            decide()
    assert house.promotions.history("en") == ()


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
        (lambda path, other: _edit(path, lambda c: c.update(schema_version=0)), "altered"),
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
    assert house.champion is None


def test_a_failed_verdict_after_registration_stops_the_approval(house, verdict_of):
    house.register(1)
    save_verdict(verdict_of(house.bundle(1), wer=0.5), open_objects(house.home))
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_approval_needs_a_comparison_with_todays_champion(house):
    """Two challengers judged against nobody: after one is champion the other's verdict is out of date."""
    house.register(1)
    house.register(2)
    house.promotions.approve("en", MODEL, "1", "Ada", "good")
    with pytest.raises(GateRefused, match="stale"):
        house.promotions.approve("en", MODEL, "2", "Ada", "also good")


def test_approval_needs_todays_thresholds(house):
    house.register(1)
    stricter = house.restarted(gates=GateSettings(wer=0.01))
    with pytest.raises(GateRefused, match="other thresholds"):
        stricter.approve("en", MODEL, "1", "Ada", "good")


def test_replaced_model_is_not_approved(house):
    version = house.register(1)
    network = house.registry.shelf.get(version.digest) / "network.onnx"
    network.write_bytes(network.read_bytes() + b"x")
    with pytest.raises(BundleError, match="not what was registered"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")
    assert house.promotions.history("en") == ()


def test_model_of_another_language_is_not_approved(house):
    house.register(1)
    with pytest.raises(PromotionRefused, match="for language 'en', not for 'de'"):
        house.promotions.approve("de", MODEL, "1", "Ada", "good")


def test_a_rejection_is_final_even_after_other_wishes(house):
    house.register(1)
    house.promotions.close("en", "reject", MODEL, "1", "Ada", "leaks names")
    house.promotions.close("en", "request_changes", MODEL, "1", "Ada", "or perhaps not")
    house.register(1)
    with pytest.raises(PromotionRefused, match="rejected by Ada"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_editing_the_tag_does_not_hide_who_launched_the_training(house):
    house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob", "Cleo"), two_person=True)
    house.registry.set_version_tag(MODEL, "1", "launched_by", "Bob")
    waiting = strict.waiting("en", MODEL)
    assert (waiting.launchers, waiting.approvers) == (("Ada",), ("Bob", "Cleo"))
    assert strict.approve("en", MODEL, "1", "Ada", "mine is good").action == "voice"
    assert strict.current("en") is None
    decision = strict.approve("en", MODEL, "1", "Cleo", "good")
    assert (decision.action, decision.launched_by) == ("approve", "Ada")


@pytest.mark.parametrize("content", ["{", "{}", "[1]"])
def test_a_damaged_note_of_launchers_clears_nobody(house, content):
    version = house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    (house.home / "launchers" / f"{version.digest}.json").write_text(content)
    assert strict.approve("en", MODEL, "1", "Bob", "good").action == "voice"


def test_the_voice_of_someone_who_left_does_not_count(house):
    house.register(1)
    first = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    assert first.approve("en", MODEL, "1", "Bob", "good").action == "voice"
    later = house.restarted(approvers=("Ada", "Cleo"), two_person=True)
    assert later.approve("en", MODEL, "1", "Ada", "good").action == "voice"
    assert later.approve("en", MODEL, "1", "Cleo", "good").action == "approve"


def test_a_voice_becomes_an_approval_once_one_person_is_enough(house):
    house.register(1)
    strict = house.restarted(two_person=True)
    assert strict.approve("en", MODEL, "1", "Ada", "good").action == "voice"
    assert house.restarted().approve("en", MODEL, "1", "Ada", "good").action == "approve"


def test_a_verdict_replaced_while_an_override_is_recorded_is_not_the_one_accepted(house, verdict_of, monkeypatch):
    """People accepted what they saw: a failure of 16 %, not of 90 %."""
    store, bundle = open_objects(house.home), house.bundle(1)
    save_verdict(verdict_of(bundle, wer=0.16), store)
    promotions = house.restarted(allow_override=True)
    ensure = promotions.registry.ensure_model

    def meanwhile(*arguments: object) -> None:
        ensure(*arguments)
        save_verdict(verdict_of(bundle, wer=0.9), store)

    monkeypatch.setattr(promotions.registry, "ensure_model", meanwhile)
    promotions.override("en", MODEL, bundle.path, bundle.digest, "Ada", "a pilot for ten callers")
    assert promotions.overridden("en", bundle.digest) == ()


def test_a_voice_is_for_the_verdict_that_it_was_given_on(house, verdict_of, monkeypatch):
    version = house.register(1, launched_by="Ada")
    promotions = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    before = (house.home / "verdicts" / f"{version.digest}.json").read_bytes()
    verify = promotions.registry.model_tag

    def meanwhile(*arguments: str) -> str | None:
        save_verdict(verdict_of(house.bundle(1), wer=0.1), open_objects(house.home))
        return verify(*arguments)

    monkeypatch.setattr(promotions.registry, "model_tag", meanwhile)  # asked for between the check and the record
    voice = promotions.approve("en", MODEL, "1", "Ada", "mine is good")
    assert (voice.action, voice.verdict_sha256) == ("voice", hashlib.sha256(before).hexdigest())
    assert promotions.rules.voices((voice,), version, promotions.rules.verdict_sha256(version.digest)) == {}


def test_the_longest_reason_is_recorded_and_shown(house):
    """A tag that MLflow would not take must not leave a decision half taken."""
    house.register(1)
    reason = "ü" * 2_000
    assert house.promotions.approve("en", MODEL, "1", "Ada", reason).reason == reason
    assert house.promotions.check_alias("en", MODEL) is None
    assert reason in house.registry.version(MODEL, "1").tags["soundstage.status"]
    house.registry.set_version_tag(MODEL, "1", "soundstage.outcome", "x" * 200_000)
    assert len(house.registry.version(MODEL, "1").tags["soundstage.outcome"]) == 2_500


def test_a_model_that_is_merely_as_good_is_not_approved_unless_the_decision_says_so(house):
    house.approve(1)
    house.register(2, house.bundle(1).digest)
    strict = house.restarted(require_better=True, allow_override=True)
    assert "`override_gates`" in strict.waiting("en", MODEL).obstacle
    with pytest.raises(PromotionRefused, match=f"is not shown to be better than champion {MODEL}/1"):
        strict.approve("en", MODEL, "2", "Ada", "half the size")
    accepted = strict.approve("en", MODEL, "2", "Ada", "half the size", override_gates=True)
    assert accepted.overridden == ("better_than_champion",)


def test_the_launcher_is_one_voice_however_often(house):
    version = house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    first = strict.approve("en", MODEL, version.version, "Ada", "first")
    assert strict.approve("en", MODEL, version.version, "Ada", "first") == first, "the same again"
    with pytest.raises(PromotionRefused, match="two people are asked for"):
        strict.approve("en", MODEL, version.version, "Ada", "and again")
    assert strict.current("en") is None
    assert strict.approve("en", MODEL, version.version, "Bob", "I agree").action == "approve"


def test_an_expired_challenger_is_not_approved_until_it_is_judged_anew(house, verdict_of):
    house.register(1)
    old = replace(verdict_of(house.bundle(1)), judged_at="2020-01-01T00:00:00+00:00")
    save_verdict(old, open_objects(house.home))
    dated = house.restarted(challenger_expires_days=90)
    with pytest.raises(PromotionRefused, match="expired: it was judged on 2020-01-01"):
        dated.approve("en", MODEL, "1", "Ada", "good")
    assert dated.expire("en", MODEL).action == "expire"
    assert house.registry.challenger(MODEL) is None
    now = datetime.now(UTC).isoformat(timespec="seconds")
    save_verdict(replace(old, judged_at=now), open_objects(house.home))
    assert dated.approve("en", MODEL, "1", "Ada", "good").action == "approve"


def test_changes_that_were_asked_for_come_first(house):
    house.register(1)
    house.promotions.close("en", "request_changes", MODEL, "1", "Ada", "more calls in training")
    with pytest.raises(
        PromotionRefused,
        match=r"soundstage-en version 1 was closed \(changes asked for by Ada on .*: more calls in training\)",
    ):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_failed_gates_are_accepted_by_two_decisions_about_exactly_this_bundle_and_verdict(house, verdict_of):
    """Neither is enough alone, and neither says anything about another bundle or a later verdict."""
    house.register(1)
    store, bundle = open_objects(house.home), house.bundle(1)
    save_verdict(verdict_of(bundle, wer=0.2), store)
    with pytest.raises(PromotionRefused, match="switched off"):
        house.promotions.override("en", MODEL, bundle.path, bundle.digest, "Ada", "a pilot")
    with pytest.raises(PromotionRefused, match="switched off"):
        house.promotions.approve("en", MODEL, "1", "Ada", "a pilot", override_gates=True)
    allowed = house.restarted(allow_override=True)
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        allowed.approve("en", MODEL, "1", "Ada", "a pilot", override_gates=True)
    with pytest.raises(PromotionRefused, match="'Eve' may not decide"):
        allowed.override("en", MODEL, bundle.path, bundle.digest, "Eve", "a pilot")
    accepted = allowed.override("en", MODEL, bundle.path, bundle.digest, "Ada", "a pilot").overridden
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        allowed.approve("en", MODEL, "1", "Ada", "a pilot")
    assert allowed.overridden("en", house.bundle(2).digest) == ()
    assert allowed.approve("en", MODEL, "1", "Ada", "a pilot", override_gates=True).overridden == accepted
    assert house.promotions.releasable("en").version == "1", "what was decided holds when it is switched off again"
    save_verdict(verdict_of(bundle, wer=0.3), store)
    assert allowed.overridden("en", bundle.digest) == ()
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        allowed.releasable("en")


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda house, verdict: verdict.unlink(), GateRefused, "no verdict"),
        (lambda house, verdict: _edit(verdict, lambda c: c.update(language="de")), GateRefused, "altered"),
        (lambda house, verdict: (house.bundle(1).path / "network.onnx").write_bytes(b"x"), BundleError, "sha256"),
    ],
    ids=["no verdict", "edited verdict", "damaged bundle"],
)
def test_what_nobody_can_override(house, verdict_of, spoil, error, message):
    bundle = house.bundle(1)
    save_verdict(verdict_of(bundle, wer=0.2), open_objects(house.home))
    spoil(house, house.home / "verdicts" / f"{bundle.digest}.json")
    with pytest.raises(error, match=message):
        house.restarted(allow_override=True).override("en", MODEL, bundle.path, bundle.digest, "Ada", "a pilot")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda house, judge: (house.home / "verdicts" / f"{house.bundle(1).digest}.json").unlink(), "no verdict"),
        (lambda house, judge: save_verdict(judge(house.bundle(1), wer=0.5), open_objects(house.home)), "gate wer"),
    ],
    ids=["verdict deleted", "verdict failed since"],
)
def test_nothing_is_released_or_gone_back_to_without_a_passing_verdict(house, verdict_of, spoil, message):
    house.approve(1)
    spoil(house, verdict_of)
    with pytest.raises(GateRefused, match=message):
        house.promotions.releasable("en")
    house.approve(2, house.bundle(1).digest)
    with pytest.raises(GateRefused, match=message):
        house.promotions.rollback("en", "Ada", "worse")


def test_a_champion_that_was_rejected_since_is_not_gone_back_to(house):
    house.approve(1)
    house.approve(2, house.bundle(1).digest)
    house.promotions.close("en", "reject", MODEL, "1", "Ada", "leaks names")
    with pytest.raises(PromotionRefused, match="rejected by Ada"):
        house.promotions.rollback("en", "Ada", "worse")
