"""A model moves forward only with an intact verdict that passed every gate, on exactly its own bundle."""

import hashlib
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from evaluation.gates import (
    REQUIRED_GATES,
    GateRefused,
    GateSettings,
    Verdict,
    judge,
    load_verdict,
    save_verdict,
)
from evaluation.results import Difference, NonSpeech, Score, SetResult
from speech.store.objects import open_objects
from tests.evaluation.conftest import BUNDLE, CHAMPION, result_of, rows_with


def require_passed(folder, bundle_digest, **asked):
    return load_verdict(open_objects(folder), bundle_digest).require_passed(**asked)


def failed(verdict):
    return {gate.name for gate in verdict.gates if not gate.passed}


def with_set(evaluation, name, **changes):
    return replace(evaluation, sets={**evaluation.sets, name: replace(evaluation.sets[name], **changes)})


def with_score(evaluation, name, **changes):
    return with_set(evaluation, name, score=replace(evaluation.sets[name].score, **changes))


def test_a_model_that_meets_everything_passes_every_required_gate(make_evaluation):
    verdict = judge(make_evaluation(champion=rows_with(0)))
    assert verdict.passed
    assert {gate.name for gate in verdict.gates} == set(REQUIRED_GATES)
    assert verdict.settings["wer"] == 0.15


def test_every_explanation_is_a_sentence(make_evaluation):
    for gate in judge(make_evaluation(rows_with(4), champion=rows_with(1))).gates:
        assert gate.explanation.endswith(".")
        assert "nan" not in gate.explanation.lower()


def test_error_rates_over_their_limit_are_refused(make_evaluation):
    """Two wrong words of ten is 20 %, over the default of 15 %."""
    verdict = judge(make_evaluation(quarter=rows_with(2)))
    gate = next(gate for gate in verdict.failures if gate.name == "wer")
    assert gate.value == pytest.approx(0.2)
    assert (gate.threshold, gate.test_set) == (0.15, "quarter")
    assert not verdict.passed


def test_a_rate_exactly_at_its_limit_passes(make_evaluation):
    verdict = judge(make_evaluation(quarter=rows_with(1)), GateSettings(wer=0.1, cer=1.0))
    assert "wer" not in failed(verdict)


def test_one_bad_slice_is_refused_though_the_whole_passes(make_evaluation):
    """Good figures on the majority must not hide a group that the model fails."""
    rows = [
        replace(row, hypothesis="x x x x x x x x x x") if row.speaker == "speaker 1" else row for row in rows_with(0)
    ]
    verdict = judge(make_evaluation(quarter=rows), GateSettings(slice_wer=0.15, cer=1.0))
    refused = [gate.slice for gate in verdict.failures]
    assert refused == ["domain=calls", "gender=female"]


def test_a_refusal_names_the_worst_gates_and_counts_the_rest(make_evaluation):
    """Thirty sentences about thirty slices hide the one that matters."""
    evaluation = make_evaluation(quarter=rows_with(9), benchmark=rows_with(2))
    evaluation = replace(evaluation, nonspeech=None, parity={"equal": 0.98, "utterances": 100})
    verdict = judge(evaluation)
    refusal = verdict.refusal()
    assert refusal is not None
    told = [gate for gate in verdict.failures if gate.explanation in refusal]
    assert {gate.name for gate in told} <= {"cer", "wer", "slice_wer", "insertions_per_minute"}
    assert "insertions_per_minute: Silence and noise were not tried" in refusal, "what nobody measured is the worst"
    assert "export_parity" not in refusal, "which misses its limit by one part in a hundred"
    assert len(told) == 3
    assert refusal.endswith(f"({len(verdict.failures) - 3} more failed.)")
    assert verdict.refusal([gate.label for gate in verdict.failures]) is None
    assert judge(make_evaluation()).refusal() is None


def test_a_slice_may_have_its_own_limit(make_evaluation):
    evaluation = make_evaluation(quarter=rows_with(2))
    settings = GateSettings(wer=1, cer=1, slice_wer=0.1, slice_limits={"domain=calls": 0.3})
    judged = {gate.slice: gate.passed for gate in judge(evaluation, settings).gates if gate.test_set == "quarter"}
    assert judged["domain=calls"]
    assert not judged["domain=reading"]


def test_a_slice_too_small_to_judge_is_not_judged_unless_it_is_required(make_evaluation):
    rows = [replace(row, slices={"domain": "rare" if row.id == "0-0" else "calls"}) for row in rows_with(0)]
    evaluation = make_evaluation(quarter=rows)
    assert judge(evaluation).passed
    assert "slice_wer" in failed(judge(evaluation, GateSettings(required_slices=("domain=rare",))))


UNMEASURED = {
    "no quarter set": (lambda e: replace(e, sets={"benchmark": e.sets["benchmark"]}), {"wer", "cer", "evidence"}),
    "no benchmark set": (
        lambda e: replace(e, sets={"quarter": e.sets["quarter"]}),
        {"wer", "cer", "evidence", "not_worse_than_champion"},
    ),
    "no sets at all": (
        lambda e: replace(e, sets={}),
        {"wer", "cer", "evidence", "slice_wer", "not_worse_than_champion"},
    ),
    "WER is NaN": (lambda e: with_score(e, "quarter", wer=math.nan), {"wer"}),
    "CER is NaN": (lambda e: with_score(e, "benchmark", cer=math.nan), {"cer"}),
    "WER is minus infinity": (lambda e: with_score(e, "quarter", wer=-math.inf), {"wer"}),
    "too few words": (lambda e: with_score(e, "quarter", words=499), {"evidence"}),
    "too few speakers": (lambda e: with_score(e, "benchmark", speakers=4), {"evidence"}),
    "no slices": (
        lambda e: with_set(with_set(e, "quarter", slices={}), "benchmark", slices={}),
        {"slice_wer"},
    ),
    "a slice is NaN": (
        lambda e: with_set(
            e, "quarter", slices={"domain=calls": replace(e.sets["quarter"].score, wer=math.nan, words=900)}
        ),
        {"slice_wer"},
    ),
    "champion not scored": (lambda e: with_set(e, "benchmark", champion=None), {"not_worse_than_champion"}),
    "difference is NaN": (
        lambda e: with_set(
            e,
            "benchmark",
            champion=replace(
                e.sets["benchmark"].champion, difference=Difference(math.nan, math.nan, math.nan, 0.5, 0, 0)
            ),
        ),
        {"not_worse_than_champion"},
    ),
    "noise not tried": (lambda e: replace(e, nonspeech=None), {"insertions_per_minute"}),
    "noise is NaN": (lambda e: replace(e, nonspeech=NonSpeech(math.nan, 0.0, {})), {"insertions_per_minute"}),
    "no parity": (lambda e: replace(e, parity={}), {"export_parity"}),
    "parity of no utterances": (lambda e: replace(e, parity={"utterances": 0, "equal": 1.0}), {"export_parity"}),
    "parity is text": (lambda e: replace(e, parity={"utterances": 9, "equal": "all"}), {"export_parity"}),
}


@pytest.mark.parametrize("case", UNMEASURED)
def test_what_was_not_measured_has_failed(make_evaluation, case):
    """A gate that passes for want of a figure is worse than no gate."""
    spoil, gates = UNMEASURED[case]
    verdict = judge(spoil(make_evaluation(champion=rows_with(0))))
    assert failed(verdict) == gates
    assert not verdict.passed


def test_an_empty_evaluation_fails_everything_it_can(make_evaluation):
    nothing = Score(**{**vars(make_evaluation().sets["quarter"].score), "wer": math.nan, "cer": math.nan, "words": 0})
    empty = SetResult(nothing, {}, (), make_evaluation().sets["quarter"].reliability)
    verdict = judge(make_evaluation(sets={"quarter": empty, "benchmark": empty}, parity={}, nonspeech=None))
    assert failed(verdict) == set(REQUIRED_GATES) - {"not_worse_than_champion"}


def test_utterances_that_could_not_be_decoded_are_missing_evidence(make_evaluation):
    from evaluation.results import Unreadable

    verdict = judge(with_set(make_evaluation(), "quarter", unreadable=(Unreadable("x", "the file is empty"),)))
    assert failed(verdict) == {"evidence"}


def test_words_made_up_on_noise_are_refused(make_evaluation):
    verdict = judge(make_evaluation(nonspeech=NonSpeech(2.5, 2.0, {"white noise": 5.0})))
    assert failed(verdict) == {"insertions_per_minute"}
    assert "white noise" in verdict.failures[0].explanation


def differing(estimate, low, high):
    def change(evaluation):
        rival = replace(
            evaluation.sets["benchmark"].champion, difference=Difference(estimate, low, high, 0.5, 1000, 10)
        )
        return with_set(evaluation, "benchmark", champion=rival)

    return change


@pytest.mark.parametrize(
    ("difference", "passes"),
    [
        ((-0.01, -0.02, -0.001), True),  # better
        ((0.001, -0.004, 0.006), True),  # worse by chance: noise must not decide
        ((0.004, 0.001, 0.007), False),  # a little worse, and surely so
        ((0.03, -0.02, 0.08), False),  # too little data to be sure, but far too much to let pass
        ((0.0, 0.0, 0.0), True),  # the same model again
    ],
)
def test_against_the_champion_noise_passes_and_real_or_large_losses_do_not(make_evaluation, difference, passes):
    verdict = judge(differing(*difference)(make_evaluation(champion=rows_with(0))))
    assert verdict.passed is passes
    assert failed(verdict) <= {"not_worse_than_champion"}


def test_a_candidate_that_loses_words_against_the_champion_is_refused(make_evaluation):
    """The same through real figures: 10 % against 0 % on the same utterances."""
    verdict = judge(make_evaluation(benchmark=rows_with(1), champion=rows_with(0)), GateSettings(cer=1))
    assert failed(verdict) == {"not_worse_than_champion"}


def test_unknown_settings_are_not_ignored():
    """A misspelt threshold that silently keeps its default is a gate left open."""
    with pytest.raises(ValidationError):
        GateSettings(wre=0.1)


def test_every_setting_says_what_it_means_and_its_unit():
    for name, field in GateSettings.model_fields.items():
        assert field.description, name
        assert "(" in field.description, name


def saved(verdict: Verdict, home: Path) -> Path:
    """Save a verdict in a data store; returns where its file lies."""
    save_verdict(verdict, open_objects(home))
    return home / "verdicts" / f"{verdict.bundle_digest}.json"


def test_judging_twice_gives_the_same_bytes(make_evaluation, tmp_path):
    when = datetime(2024, 7, 1, tzinfo=UTC)
    first = saved(judge(make_evaluation(), judged_at=when), tmp_path / "a").read_bytes()
    assert saved(judge(make_evaluation(), judged_at=when), tmp_path / "b").read_bytes() == first


def test_a_verdict_tells_its_age(make_evaluation, tmp_path):
    saved(judge(make_evaluation()), tmp_path)
    age = datetime.now(UTC) - datetime.fromisoformat(load_verdict(open_objects(tmp_path), BUNDLE).judged_at)
    assert age < timedelta(minutes=1)


def test_a_verdict_of_before_ages_were_noted_still_reads(make_evaluation, tmp_path):
    """Champions judged by then stay servable."""
    path = saved(judge(make_evaluation()), tmp_path)
    content = json.loads(path.read_text())
    del content["judged_at"]
    path.write_text(json.dumps(sealed(content)))
    assert require_passed(tmp_path, BUNDLE).judged_at == ""


@pytest.mark.parametrize(
    ("difference", "improves"),
    [
        ((-0.01, -0.02, -0.001), True),
        ((-0.01, -0.02, 0.0), False),
        ((-0.01, -0.02, 0.001), False),
        ((0.0, 0.0, 0.0), False),
        ((math.nan, math.nan, math.nan), False),
        ((-math.inf, -math.inf, -math.inf), False),
    ],
)
def test_only_a_whole_interval_below_zero_is_an_improvement(make_evaluation, tmp_path, difference, improves):
    """The comparison is read from the stored verdict, where a missing figure is null."""
    saved(judge(differing(*difference)(make_evaluation(champion=rows_with(0)))), tmp_path)
    assert load_verdict(open_objects(tmp_path), BUNDLE).improves is improves


def test_without_a_champion_nothing_was_improved(make_evaluation):
    verdict = judge(make_evaluation())
    assert verdict.comparison is None
    assert not verdict.improves


def test_only_the_gates_named_are_overridden(make_evaluation, tmp_path):
    saved(judge(make_evaluation(quarter=rows_with(2)), GateSettings(cer=1, slice_wer=1)), tmp_path)
    assert not require_passed(tmp_path, BUNDLE, overridden=("wer on quarter",)).passed
    with pytest.raises(GateRefused, match="did not pass gate wer"):
        require_passed(tmp_path, BUNDLE, overridden=("wer on benchmark", "wer"))
    with pytest.raises(GateRefused, match="stale"):
        require_passed(tmp_path, BUNDLE, settings=GateSettings(), overridden=("wer on quarter",))


def test_a_verdict_comes_back_as_it_was_judged(make_evaluation, tmp_path):
    verdict = judge(make_evaluation(champion=rows_with(0)))
    saved(verdict, tmp_path)
    assert load_verdict(open_objects(tmp_path), BUNDLE) == verdict
    assert require_passed(tmp_path, BUNDLE, language="en", settings=GateSettings(), champion_digest=CHAMPION)


def test_a_refused_verdict_loads_but_opens_nothing(make_evaluation, tmp_path):
    verdict = judge(make_evaluation(quarter=rows_with(2)))
    saved(verdict, tmp_path)
    assert not load_verdict(open_objects(tmp_path), BUNDLE).passed
    with pytest.raises(GateRefused, match=r"did not pass gate wer: WER 20\.00 %"):
        require_passed(tmp_path, BUNDLE)


def test_a_verdict_with_a_missing_measure_can_still_be_written_and_read(make_evaluation, tmp_path):
    """JSON has no NaN; the refusal must be on record all the same."""
    saved(judge(make_evaluation(parity={}, nonspeech=None)), tmp_path)
    with pytest.raises(GateRefused, match="did not pass"):
        require_passed(tmp_path, BUNDLE)


def sealed(content):
    """What someone who knows the format would write: a matching checksum."""
    content.pop("sha256", None)
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return {**content, "sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def edited(**changes):
    return lambda content: {**content, **changes}


TAMPERED = {
    "passed by hand": (edited(passed=True), "altered"),
    "another threshold": (lambda c: {**c, "settings": {**c["settings"], "wer": 0.9}}, "altered"),
    "another data set": (edited(dataset_digests={}), "altered"),
    "no checksum": (lambda c: {key: value for key, value in c.items() if key != "sha256"}, "altered"),
    "checksum of nothing": (edited(sha256=None), "altered"),
    "a value that is no number": (edited(passed=math.nan), "not readable"),
    "resealed: older schema": (lambda c: sealed({**c, "schema_version": 0}), "malformed .schema_version"),
    "resealed: schema of another type": (lambda c: sealed({**c, "schema_version": "1"}), "malformed .schema_version"),
    "resealed: another bundle": (lambda c: sealed({**c, "bundle_digest": "b" * 64}), "foreign"),
    "resealed: failed gates removed": (
        lambda c: sealed({**c, "gates": [gate for gate in c["gates"] if gate["passed"]], "passed": True}),
        "incomplete",
    ),
    "resealed: judged on one set only": (
        lambda c: sealed({**c, "gates": [gate for gate in c["gates"] if gate["test_set"] != "quarter"]}),
        "incomplete",
    ),
    "resealed: no gates": (lambda c: sealed({**c, "gates": [], "passed": True}), "incomplete"),
    "resealed: an unknown field": (lambda c: sealed({**c, "waived_by": "someone"}), "malformed"),
    "resealed: a field missing": (
        lambda c: sealed({key: value for key, value in c.items() if key != "gates"}),
        "malformed",
    ),
    "a list": (lambda c: [c], "not readable"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_an_altered_verdict_is_refused_and_says_why(make_evaluation, tmp_path, case):
    tamper, reason = TAMPERED[case]
    path = saved(judge(make_evaluation(quarter=rows_with(2), benchmark=rows_with(2))), tmp_path)
    path.write_text(json.dumps(tamper(json.loads(path.read_text()))))
    with pytest.raises(GateRefused, match=reason) as refused:
        load_verdict(open_objects(tmp_path), BUNDLE)
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith(".")


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"null"])
def test_a_torn_verdict_is_refused(make_evaluation, tmp_path, damage):
    saved(judge(make_evaluation()), tmp_path).write_bytes(damage)
    with pytest.raises(GateRefused, match="not readable"):
        require_passed(tmp_path, BUNDLE)


def test_a_verdict_copied_to_another_bundle_is_foreign(make_evaluation, tmp_path):
    path = saved(judge(make_evaluation()), tmp_path)
    path.with_name(f"{'d' * 64}.json").write_bytes(path.read_bytes())
    with pytest.raises(GateRefused, match="foreign"):
        require_passed(tmp_path, "d" * 64)


def test_a_missing_verdict_is_a_refusal(tmp_path):
    with pytest.raises(GateRefused, match="no verdict"):
        require_passed(tmp_path, BUNDLE)


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_a_digest_names_a_verdict(tmp_path, digest):
    """The name becomes a path: nothing but 64 hexadecimal digits may."""
    with pytest.raises(GateRefused, match="not the digest"):
        load_verdict(open_objects(tmp_path), digest)


def test_a_verdict_judged_for_other_circumstances_is_stale_or_foreign(make_evaluation, tmp_path):
    saved(judge(make_evaluation(champion=rows_with(0))), tmp_path)
    with pytest.raises(GateRefused, match="foreign: it is on en"):
        require_passed(tmp_path, BUNDLE, language="de")
    with pytest.raises(GateRefused, match="other thresholds"):
        require_passed(tmp_path, BUNDLE, settings=GateSettings(wer=0.1))
    with pytest.raises(GateRefused, match="champion"):
        require_passed(tmp_path, BUNDLE, champion_digest="e" * 64)
    with pytest.raises(GateRefused, match="champion"):
        require_passed(tmp_path, BUNDLE, champion_digest=None)


def test_a_benchmark_of_other_size_is_judged_by_its_own_figures(make_evaluation):
    """The quarter cannot lend its words to the benchmark."""
    small = result_of(rows_with(0, speakers=2, utterances=2))
    verdict = judge(make_evaluation(sets={**make_evaluation().sets, "benchmark": small}))
    assert {(gate.name, gate.test_set) for gate in verdict.failures} == {("evidence", "benchmark")}
