"""What people read of what was said: numbers, amounts, dates and addresses as they write them, and no word lost."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech.corpus.synthetic import sentences
from speech.transcript import Segment, Word
from speech.understanding.written import LONGEST_SENTENCE, with_written_forms, written_forms

CASES = Path(__file__).with_name("spoken_forms.tsv")
KNOWN_WRONG = {  # what the grammars write otherwise; a case that comes right is to be taken out
    "set the alarm to seven thirty today",
    "smith one two three at gmail dot com",
    "sechs mal sieben",
}


def cases() -> Iterator[tuple[str, str, list[str]]]:
    with CASES.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            yield row["language"], row["spoken"], row["right"].split(" | ")


def written(spoken: str, language: str) -> str:
    return " ".join(form for form in written_forms(spoken.split(), language) if form)


@pytest.mark.parametrize("language", ["en", "de"])
def test_at_least_95_in_100_cases_are_written_right_and_the_rest_is_known(language: str) -> None:
    every = [(spoken, right) for tag, spoken, right in cases() if tag == language]
    wrong = {spoken for spoken, right in every if written(spoken, language) not in right}
    assert wrong == KNOWN_WRONG & {spoken for spoken, _ in every}
    assert len(wrong) <= 0.05 * len(every)


def test_each_word_has_a_form_or_an_earlier_ones_stands_for_it() -> None:
    """Times of what is clicked on in a transcript, and what is silenced, hang on this."""
    forms = written_forms("pay one hundred dollars fifty percent now".split(), "en")
    assert forms == ["pay", "$100", "", "", "50%", "", "now"]
    assert written_forms("um fünf uhr dreißig heute".split(), "de") == ["um", "5.30 Uhr", "", "", "heute"]
    assert written_forms("my pin is nine double five one ok".split(), "en") == [
        *("my", "pin", "is", "9551", "", "", "", "ok")
    ]
    assert written_forms("thirty seven zero four five".split(), "en") == ["37", "", "045", "", ""]


@pytest.mark.parametrize("language", ["en", "de"])
def test_no_word_is_lost_or_made_up_in_sentences_without_end(language: str) -> None:
    """What does not change stays in its own place, and a form never takes the words of another with it."""
    made = sentences(language)
    draw = random.Random(0)
    for _ in range(300):
        spoken = [word for _ in range(draw.randint(1, 3)) for word in next(made).spoken.split()]
        forms = written_forms(spoken, language)
        assert len(forms) == len(spoken)
        assert not spoken or forms[0]
        plain = [place for place, word in enumerate(spoken) if word in ("please", "bitte", "hello", "hallo")]
        assert [forms[place].lower() for place in plain] == [spoken[place] for place in plain]


def test_a_segment_keeps_its_words_and_their_times() -> None:
    words = tuple(Word(text, n / 2, n / 2 + 0.4, 0.9) for n, text in enumerate("pay forty two dollars".split()))
    segment = with_written_forms(Segment(words, 0.0, 2.0), "en-US")
    assert [(word.text, word.start_s, word.written) for word in segment.words] == [
        ("pay", 0.0, "pay"),
        ("forty", 0.5, "$42"),
        ("two", 1.0, ""),
        ("dollars", 1.5, ""),
    ]
    assert (segment.text, segment.written) == ("pay forty two dollars", "pay $42")


@pytest.mark.parametrize("words", [[], [""], ["42"], ["one"] * (LONGEST_SENTENCE + 1), ["\x00", "-", "  "]])
def test_whatever_a_model_writes_has_forms(words: list[str]) -> None:
    assert len(written_forms(words, "en")) == len(words)


def test_a_language_that_nobody_knows_stays_as_spoken() -> None:
    for language in ("ja", "sw", "zxx", "?"):
        assert written_forms(["forty", "two"], language) == ["forty", "two"]
