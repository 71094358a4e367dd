"""Labelled sentences from files and templates, and intent models as bytes that hold no code."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from speech.corpus.intents import (
    LabelledSentence,
    SentencesError,
    embedded_languages,
    embedded_sentences,
    read_sentences,
    split,
)
from speech.understanding.intents import IntentModel, IntentModelError, Linear, digest_of

MODEL = IntentModel(
    language="en",
    intents=Linear(("w pay",), ("pay", "unknown"), np.array([[2.0, -2.0], [0.0, 0.5]], np.float32)),
    slots=None,
    temperature=1.0,
    threshold=0.5,
)


def test_sentences_of_a_file_are_read_as_they_are_spoken(tmp_path: Path) -> None:
    rows = tmp_path / "calls.jsonl"
    rows.write_text(
        json.dumps({"text": "Pay Anna $42!", "intent": "pay", "slots": {"amount": "$42", "person": "Anna"}})
        + "\n\n"
        + json.dumps({"text": "Yes.", "intent": None, "before": "Shall I pay?", "template": "yes"})
    )
    paid, yes = read_sentences(rows, "en")
    assert paid.words == ("pay", "anna", "forty", "two", "dollars")
    assert paid.tags == ("", "person", "amount", "amount", "amount")
    assert (yes.intent, yes.before, yes.template) == ("unknown", ("shall", "i", "pay"), "yes")
    table = tmp_path / "calls.csv"
    table.write_text('\ufefftext,intent,slots\n"Pay $42",pay,"{""amount"": ""$42""}"\nhello,,\n', encoding="utf-8")
    assert [each.intent for each in read_sentences(table, "en")] == ["pay", "unknown"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "holds no sentence"),
        ("{", "sentence 1"),
        ("[]", "sentence 1"),
        ('{"text": 3, "intent": "a"}', "must be texts"),
        ('{"text": "...", "intent": "a"}', "has no words"),
        ('{"text": "pay", "intent": "a", "slots": {"amount": "$42"}}', "which is not in"),
        ('{"text": "pay", "intent": "a", "slots": ["amount"]}', "must be texts by their names"),
    ],
)
def test_a_line_that_is_no_labelled_sentence_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "calls.jsonl"
    path.write_text(line)
    with pytest.raises(SentencesError, match=said):
        read_sentences(path, "en")


def test_a_file_that_is_not_there_and_a_language_without_sentences_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SentencesError, match="cannot be read"):
        read_sentences(tmp_path / "none.jsonl", "en")
    with pytest.raises(SentencesError, match="sentences"):
        embedded_sentences("sw")


def test_templates_are_kept_whole_and_the_same_ones_whatever_is_added() -> None:
    rows = [
        LabelledSentence((str(n), str(way)), "a", ("", ""), f"way {way}") for way in range(10) for n in range(3)
    ] + [LabelledSentence(("x",), "rare", ("",), f"rare {way}") for way in range(3)]
    learnt, kept = split(rows)
    assert len({each.way for each in kept}) == 2
    assert not {each.way for each in kept} & {each.way for each in learnt}
    assert {each.intent for each in kept} == {"a"}  # of three ways to say it none is spared
    more = [*rows, *(replace(each, words=("other", *each.words), tags=("", *each.tags)) for each in rows)]
    assert {each.way for each in split(more)[1]} == {each.way for each in kept}


@pytest.mark.parametrize("language", embedded_languages())
def test_embedded_sentences_are_the_same_each_time_and_hold_sentences_of_no_intent(language: str) -> None:
    made = embedded_sentences(language)
    assert made == embedded_sentences(language)
    assert {"unknown", "transfer_money"} < {each.intent for each in made}
    assert not [word for each in made for word in each.words if word in "(|){}>"]


def test_a_model_crosses_bytes_and_other_bytes_are_refused() -> None:
    data = MODEL.to_bytes()
    read = IntentModel.from_bytes(data, digest_of(data))
    assert read == MODEL
    assert read.intent(["pay"]) == MODEL.intent(["pay"])
    with pytest.raises(IntentModelError, match="are others"):
        IntentModel.from_bytes(data[:-1], digest_of(data))
    harmful = pickle.dumps({"about": print})
    for other in (b"", b"{}", harmful, data[: len(data) // 2]):
        with pytest.raises(IntentModelError, match="cannot be read"):
            IntentModel.from_bytes(other, digest_of(other))


def test_a_model_of_a_later_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from speech.understanding import intents

    monkeypatch.setattr(intents, "FORMAT", 2)
    data = MODEL.to_bytes()
    monkeypatch.undo()
    with pytest.raises(IntentModelError, match="format 2"):
        IntentModel.from_bytes(data, digest_of(data))
