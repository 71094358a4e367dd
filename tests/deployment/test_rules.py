"""What a decision needs: a named person with a reason, and a whole, current verdict for exactly that bundle."""

import hashlib
import json
from pathlib import Path

import pytest

from deployment.promotion.rules import PromotionRefused
from evaluation.gates import GateRefused, GateSettings, save_verdict
from speech.bundle import BundleError
from tests.deployment.conftest import MODEL


@pytest.mark.parametrize(
    ("approver", "reason", "approvers", "message"),
    [
        ("Bob", "good", ("Ada",), "'Bob' may not decide"),
        ("", "good", ("Ada",), "name of the person"),
        ("  ", "good", None, "name of the person"),
        ("Ada", "", ("Ada",), "needs a reason"),
        ("Ada", "  ", ("Ada",), "needs a reason"),
        ("Ada", "x" * 2_001, ("Ada",), "the reason has 2,001 characters"),
        ("A" * 201, "good", None, "the name has 201 characters"),
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
    assert house.champion is None


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


def test_a_rejection_is_final_even_after_other_wishes(house):
    house.register(1)
    house.promotions.reject("en", MODEL, "1", "Ada", "leaks names")
    house.promotions.request_changes("en", MODEL, "1", "Ada", "or perhaps not")
    house.register(1)
    with pytest.raises(PromotionRefused, match="rejected by Ada"):
        house.promotions.approve("en", MODEL, "1", "Ada", "good")


def test_editing_the_tag_does_not_hide_who_launched_the_training(house):
    version = house.register(1, launched_by="Ada")
    strict = house.restarted(approvers=("Ada", "Bob", "Cleo"), two_person=True)
    strict.rules.launchers.note(version.digest, ("Ada",))
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
    strict.rules.launchers.note(version.digest, ("Ada",))
    (house.home / "launchers" / f"{version.digest}.json").write_text(content)
    assert strict.approve("en", MODEL, "1", "Bob", "good").action == "voice"


def test_the_voice_of_someone_who_left_does_not_count(house):
    house.register(1)
    first = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    assert first.approve("en", MODEL, "1", "Bob", "good").action == "voice"
    later = house.restarted(approvers=("Ada", "Cleo"), two_person=True)
    assert later.approve("en", MODEL, "1", "Ada", "good").action == "voice"
    assert later.approve("en", MODEL, "1", "Cleo", "good").action == "approve"


def test_a_verdict_replaced_while_an_override_is_recorded_is_not_the_one_accepted(house, verdict_of, monkeypatch):
    """People accepted what they saw: a failure of 16 %, not of 90 %."""
    folder, bundle = house.home / "verdicts", house.bundle(1)
    save_verdict(verdict_of(bundle, wer=0.16), folder)
    promotions = house.restarted(allow_override=True)
    ensure = promotions.registry.ensure_model

    def meanwhile(*arguments: object) -> None:
        ensure(*arguments)
        save_verdict(verdict_of(bundle, wer=0.9), folder)

    monkeypatch.setattr(promotions.registry, "ensure_model", meanwhile)
    promotions.override("en", MODEL, bundle.path, bundle.digest, "Ada", "a pilot for ten callers")
    assert promotions.overridden("en", bundle.digest) == ()


def test_a_voice_is_for_the_verdict_that_it_was_given_on(house, verdict_of, monkeypatch):
    version = house.register(1, launched_by="Ada")
    promotions = house.restarted(approvers=("Ada", "Bob"), two_person=True)
    before = (house.home / "verdicts" / f"{version.digest}.json").read_bytes()
    verify = promotions.registry.model_tag

    def meanwhile(*arguments: str) -> str | None:
        save_verdict(verdict_of(house.bundle(1), wer=0.1), house.home / "verdicts")
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
    assert house.promotions.check_alias("en", MODEL).agrees
    assert reason in house.registry.version(MODEL, "1").tags["soundstage.status"]
    house.registry.set_version_tag(MODEL, "1", "soundstage.outcome", "x" * 200_000)
    assert len(house.registry.version(MODEL, "1").tags["soundstage.outcome"]) == 2_500
