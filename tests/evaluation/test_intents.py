"""The gates of intent models: what was not measured has failed, and a verdict is of one model and nobody else's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.gates import GateRefused, verdict_key
from evaluation.intents import (
    IntentGateSettings,
    IntentVerdict,
    judge,
    load_intent_verdict,
    save_intent_verdict,
    score,
)
from speech.corpus.intents import LabelledSentence
from speech.store.objects import Objects, open_objects
from speech.understanding.intents import IntentModel, Linear

DIGEST = "a" * 64
SETTINGS = IntentGateSettings(ways=4, unknown_ways=2, noisy_accuracy=0.4)
# Takes whatever holds "pay" for pay, "call" for call, and the rest for nothing.
MODEL = IntentModel(
    language="en",
    intents=Linear(
        ("w call", "w pay"),
        ("call", "pay", "unknown"),
        np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 2.0]], np.float32),
    ),
    slots=None,
    temperature=1.0,
    threshold=0.5,
)


def sentence(text: str, intent: str, template: str = "") -> LabelledSentence:
    words = tuple(text.split())
    return LabelledSentence(words, intent, ("",) * len(words), template or text)


NAMES = "anna peter him her them paul lisa tom eva max ida jo".split()
KEPT = [
    *(sentence(f"{word} {name}", word) for word in ("pay", "call") for name in NAMES),
    *(sentence(text, "unknown") for text in ("hello there", "good morning", "nice weather")),
]


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "home")


def failed(verdict: IntentVerdict) -> set[str]:
    return {gate.name for gate in verdict.gates if not gate.passed}


def test_a_model_that_understands_passes() -> None:
    judged = judge(MODEL, DIGEST, KEPT, SETTINGS)
    assert judged.passed, judged.gates
    scores = judged.scores
    assert (scores.accuracy.estimate, scores.out_of_scope.estimate, scores.ways, scores.unknown_ways) == (1, 1, 24, 3)
    assert scores.noisy_accuracy.estimate < 1.0
    assert judged.require_passed() is judged


def test_each_gate_fails_by_what_it_is_for() -> None:
    misses = [*KEPT, *(sentence(f"give {n}", "pay") for n in range(20))]
    assert failed(judge(MODEL, DIGEST, misses, SETTINGS)) >= {"intent_accuracy"}
    alarms = [*KEPT, *(sentence(f"pay day {n}", "unknown") for n in "abcd")]
    assert "out_of_scope" in failed(judge(MODEL, DIGEST, alarms, SETTINGS))
    unsure = replace(MODEL, temperature=12.0, threshold=0.1)
    assert failed(judge(unsure, DIGEST, KEPT, SETTINGS)) == {"calibration"}
    assert failed(judge(MODEL, DIGEST, KEPT[:3] + KEPT[24:], SETTINGS)) == {"evidence"}
    strict = SETTINGS.model_copy(update={"noisy_accuracy": 1.0})
    assert failed(judge(MODEL, DIGEST, KEPT, strict)) == {"noisy_intent_accuracy"}


def test_what_was_not_measured_has_failed() -> None:
    assert failed(judge(MODEL, DIGEST, [], SETTINGS)) == {
        "intent_accuracy",
        "noisy_intent_accuracy",
        "out_of_scope",
        "calibration",
        "evidence",
    }


def test_a_way_counts_once_however_many_sentences_it_has() -> None:
    """A grammar writes a thousand sentences of one template, and they are understood or not together."""
    many = [sentence(f"give {n}", "pay", "give {n}") for n in range(1_000)]
    scores = score(MODEL, [*KEPT, *many])
    assert scores.accuracy.estimate == pytest.approx(24 / 25)
    assert scores.accuracy.low < 24 / 25 < scores.accuracy.high
    assert scores.confused == {"give {n}": "unknown"}


def test_a_verdict_is_kept_and_read_again(store: Objects) -> None:
    judged = judge(MODEL, DIGEST, KEPT, SETTINGS)
    save_intent_verdict(judged, store)
    assert load_intent_verdict(store, DIGEST) == judged


def test_a_verdict_that_is_missing_altered_foreign_or_failed_opens_nothing(store: Objects) -> None:
    with pytest.raises(GateRefused, match="has no verdict"):
        load_intent_verdict(store, DIGEST)
    save_intent_verdict(judge(MODEL, DIGEST, KEPT, SETTINGS), store)
    kept = store.read(verdict_key(DIGEST)).data
    store.put(verdict_key(DIGEST), json.dumps({**json.loads(kept), "passed": True, "language": "de"}).encode())
    with pytest.raises(GateRefused, match="altered"):
        load_intent_verdict(store, DIGEST)
    store.put(verdict_key("b" * 64), kept)
    with pytest.raises(GateRefused, match="foreign"):
        load_intent_verdict(store, "b" * 64)
    store.put(verdict_key(DIGEST), b"[1]")
    with pytest.raises(GateRefused, match="not readable"):
        load_intent_verdict(store, DIGEST)
    judged = judge(MODEL, DIGEST, [], SETTINGS)
    with pytest.raises(GateRefused, match="did not pass gate"):
        judged.require_passed()
    with pytest.raises(GateRefused, match="incomplete"):
        replace(judged, gates=judged.gates[1:], passed=True).require_passed()
