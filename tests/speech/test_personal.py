"""Personal data in what was said: what is found, what is found though it is none, and that nothing of it is left."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from speech.transcript import Segment, Transcript, Word
from speech.understanding.personal import PersonalData, kinds_in, redacted, silenced, silences

CASES = Path(__file__).with_name("personal_data.tsv")
EVERY: tuple[PersonalData, ...] = get_args(PersonalData)
KNOWN_WRONG = {"look at the dot in the middle"}  # which is written "look@the.in"


def cases() -> Iterator[tuple[str, str, str]]:
    with CASES.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines, delimiter="\t"):
            yield row["language"], row["said"], row["left"]


def transcript_of(said: str, language: str = "en") -> Transcript:
    """Turns apart by " / ", each of whom it names ("a: yes"); a word takes 0.3 s, and another begins every 0.4 s."""
    segments, at_s = [], 0.0
    for turn in said.split(" / "):
        speaker, _, sentence = turn.rpartition(": ")
        words = []
        for text in sentence.split():
            words.append(Word(text, at_s, round(at_s + 0.3, 3), 0.9))
            at_s = round(at_s + 0.4, 3)
        segments.append(Segment(tuple(words), words[0].start_s, words[-1].end_s, speaker=speaker or None))
        at_s += 1.0
    return Transcript(
        language=language, segments=tuple(segments), confidence=0.9, source_digest="d" * 64, duration_s=at_s
    )


def test_what_is_said_is_found_and_what_is_none_is_left() -> None:
    """31 sentences hold personal data, 28 hold none, most of these numbers of other kinds: all are right but one."""
    every = list(cases())
    wrong = {said for language, said, left in every if redacted(transcript_of(said, language), EVERY).text != left}
    assert wrong == KNOWN_WRONG
    holding = [left for _, _, left in every if "[" in left]
    assert (len(holding), len(every)) == (31, 59)


def test_nothing_of_what_was_found_is_left_in_any_form() -> None:
    said = "my card is four two four two four two four two four two four two four two four two thanks"
    made = redacted(transcript_of(said), EVERY)
    (segment,) = made.segments
    assert [word.text for word in segment.words] == ["my", "card", "is", "[CREDIT_CARD]", "thanks"]
    (find,) = [word for word in segment.words if word.redacted]
    assert (find.start_s, find.end_s, find.redacted) == (1.2, 7.5, "CREDIT_CARD")
    everything = json.dumps(made.to_json()) + made.to_srt() + made.to_vtt() + made.to_ctm("r") + made.to_rttm("r")
    assert not [digit for digit in ("four", "two", "4242") if digit in everything]
    assert kinds_in([made]) == Counter(CREDIT_CARD=1)


def test_only_the_kinds_that_were_asked_for_are_taken_out() -> None:
    said = transcript_of("call me at four one five five five five two six seven one or john at example dot com")
    assert redacted(said, ["EMAIL"]).text == "call me at four one five five five five two six seven one or [EMAIL]"
    assert redacted(said, []) == said


def test_confidence_stays_what_it_was() -> None:
    """What goes to people is told by how sure the words were, not by how many of them a label stands for."""
    said = transcript_of("call four one five five five five two six seven one")
    made = redacted(said, EVERY)
    assert made.segments[0].score == pytest.approx(said.segments[0].score)
    assert made.confidence == said.confidence


def test_the_audio_is_silent_where_the_words_were_and_nowhere_else() -> None:
    made = redacted(transcript_of("please call four one five five five five two six seven one thanks now"), EVERY)
    ((start_s, end_s),) = silences(made, padding_s=0.1)
    find = made.words[2]
    assert 0.7 <= start_s <= find.start_s - 0.1  # the word before ends at 0.7
    assert end_s == pytest.approx(find.end_s + 0.1)
    sound = np.ones(16_000 * 7, np.float32)
    clip = silenced(sound, 0.5, silences(made, padding_s=0.1))
    heard = np.flatnonzero(clip) / 16_000 + 0.5
    assert not np.any((heard > start_s + 1e-3) & (heard < end_s - 1e-3))
    assert np.all(sound == 1.0)
    assert len(heard) == pytest.approx((7 - (end_s - start_s)) * 16_000, abs=2)
    assert silences(transcript_of("nothing to hide"), 0.1) == []


def test_pauses_within_a_number_are_silent_too() -> None:
    """A digit that the recogniser missed is heard in what looks like a pause."""
    said = "a: your card please / b: four two four two / b: four two four two four two / b: four two four two four two"
    made = redacted(transcript_of(said), EVERY)
    labels = [word for word in made.words if word.redacted]
    assert len(labels) == 3
    ((start_s, end_s),) = silences(made, padding_s=0.1)
    assert start_s < labels[0].start_s
    assert end_s == pytest.approx(labels[2].end_s + 0.1)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was said of an address must not depend on a network, let alone be told to it."""
    import socket

    def refused(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    assert redacted(transcript_of("john dot smith at example dot com"), EVERY).text == "[EMAIL]"


def test_a_number_is_found_by_what_was_spoken_of_just_before_and_not_by_what_was_long_ago() -> None:
    wrong = "four two four two four two four two four two four two four two four three"
    near = transcript_of(f"a: what is your card / b: {wrong}")
    far = transcript_of(f"a: what is your card / a: {'well ' * 60}/ b: {wrong}")
    assert kinds_in([redacted(near, EVERY)]) == Counter(CREDIT_CARD=1)
    assert kinds_in([redacted(far, EVERY)]) == Counter()
