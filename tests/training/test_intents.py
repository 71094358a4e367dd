"""Intent models learnt from labelled sentences: what they understand, how sure they say they are, and their slots."""

import random
from dataclasses import replace

import numpy as np
import pytest

from evaluation.intents import IntentGateSettings, judge, score
from speech.corpus.intents import LabelledSentence, embedded_sentences, split
from speech.transcript import Intent, Segment, Word
from speech.understanding.intents import UNKNOWN, IntentModel, digest_of, with_intents
from speech.understanding.written import with_written_forms
from training.intents import IntentSettings, IntentTrainingError, train


@pytest.fixture(scope="module")
def sentences() -> list[LabelledSentence]:
    return embedded_sentences("en")


@pytest.fixture(scope="module")
def model(sentences: list[LabelledSentence]) -> IntentModel:
    return train(sentences, "en", IntentSettings())


def segment(text: str, start_s: float = 0.0, speaker: str | None = "caller") -> Segment:
    words = [Word(word, start_s + n * 0.3, start_s + n * 0.3 + 0.2, 0.9) for n, word in enumerate(text.split())]
    return with_written_forms(Segment(tuple(words), start_s, start_s + len(words) * 0.3, speaker=speaker), "en")


def understood(model: IntentModel, *segments: Segment) -> list[Intent | None]:
    return [part.intent for part in with_intents(segments, {"en": model}, "en")]


def test_the_embedded_sentences_make_models_that_pass_their_gates(model: IntentModel) -> None:
    german = embedded_sentences("de")
    for made, kept in (
        (model, split(embedded_sentences("en"))[1]),
        (train(german, "de", IntentSettings()), split(german)[1]),
    ):
        judged = judge(made, "d" * 64, kept, IntentGateSettings())
        assert judged.passed, judged.gates
        assert judged.scores.slots > 0.9


def test_a_model_of_labels_that_say_nothing_is_refused(sentences: list[LabelledSentence]) -> None:
    """A gate that cannot fail guards nothing."""
    some = sentences[::4]
    labels = [each.intent for each in some]
    random.Random(0).shuffle(labels)
    mixed = [replace(each, intent=label) for each, label in zip(some, labels, strict=True)]
    judged = judge(train(mixed, "en", IntentSettings()), "d" * 64, split(sentences)[1], IntentGateSettings())
    assert not judged.passed
    assert "intent_accuracy" in {gate.name for gate in judged.gates if not gate.passed}


def test_the_same_sentences_give_the_same_bytes(sentences: list[LabelledSentence], model: IntentModel) -> None:
    once, again = (train(sentences[::4], "en", IntentSettings()) for _ in range(2))
    assert digest_of(again.to_bytes()) == digest_of(once.to_bytes())
    read = IntentModel.from_bytes(model.to_bytes(), digest_of(model.to_bytes()))
    words = "please transfer ten dollars to anna".split()
    assert read.intent(words) == model.intent(words)
    assert read.tags(words, "transfer_money") == model.tags(words, "transfer_money")
    assert read.lineage == model.lineage


def test_what_is_wanted_and_its_values_as_people_write_them(model: IntentModel) -> None:
    (found,) = understood(model, segment("please transfer forty two dollars to maria"))
    assert found is not None
    assert (found.name, dict(found.slots)) == ("transfer_money", {"amount": "$42", "person": "maria"})
    assert 0.5 < found.confidence <= 1.0
    (number,) = understood(model, segment("my order number is three one four one five"))
    assert number is not None
    assert dict(number.slots) == {"digits": "31415"}


def test_what_was_said_before_tells_what_yes_means(model: IntentModel) -> None:
    def answer(question: str, by: str | None = "agent") -> str | None:
        return (understood(model, segment(question, speaker=by), segment("yes please", 4.0))[1] or Intent("", 0)).name

    assert answer("shall i cancel your order") == "cancel_order"
    assert answer("do you want to hear your balance") == "check_balance"
    assert answer("shall i cancel your order", by="caller") == ""  # nobody answers himself
    long_ago = [segment("shall i cancel your order", speaker="agent"), segment("yes please", 60.0)]
    assert understood(model, *long_ago)[1] is None


def test_nothing_is_said_of_what_nobody_learnt(model: IntentModel) -> None:
    assert understood(model, segment("the quick brown fox jumps over the lazy dog"), Segment((), 0, 1)) == [None, None]
    assert with_intents([segment("cancel my order")], {"de": model}, "en")[0].intent is None
    name, confidence = model.intent(["zzz"])
    assert (name, 0 < confidence < 1) == (UNKNOWN, True)


def test_confidence_is_how_often_it_is_right(model: IntentModel, sentences: list[LabelledSentence]) -> None:
    kept = split(sentences)[1]
    overconfident = replace(model, temperature=model.temperature / 10)
    assert score(model, kept).calibration < score(overconfident, kept).calibration
    told = model.probabilities("please cancel my order".split())
    assert told.sum() == pytest.approx(1.0)
    assert np.all(told > 0)


@pytest.mark.parametrize("intents", [["a"] * 8, ["a", "b"], ["a"] * 8 + ["b"], ["a", "a", "b", "b"]])
def test_too_few_sentences_are_refused_with_what_is_missing(intents: list[str]) -> None:
    few = [LabelledSentence((f"w{n}",), intent, ("",), f"t{n}") for n, intent in enumerate(intents)]
    with pytest.raises(IntentTrainingError, match="at least two intents"):
        train(few, "en", IntentSettings())


def test_two_intents_are_enough_and_slots_need_not_be() -> None:
    rows = [
        LabelledSentence((f"{intent}{n}", intent), intent, ("", ""), f"{intent}{n}")
        for n in range(8)
        for intent in "ab"
    ]
    made = train(rows, "xx", IntentSettings())
    assert made.slots is None
    assert [made.intent(("q", intent))[0] for intent in "ab"] == ["a", "b"]
    assert made.tags(("q", "a"), "a") == ["", ""]
