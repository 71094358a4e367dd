"""People's words in place of a model's: nothing else changes, times stay or are shared, and versions follow."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deployment.batch.branch import ReviewTask, tasks_of
from deployment.batch.versions import Versions
from deployment.review.answers import Answer, Kind, outcome_of
from deployment.review.corrected import corrected, reviewed
from speech.store.objects import open_objects
from speech.transcript import Intent, Transcript
from tests.deployment.review_hours import HOUR, transcript


def asked(about: Transcript) -> list[ReviewTask]:
    return tasks_of(about, False, 0.8, 0.0)


def answer(task: ReviewTask, text: str, kind: Kind = "text", who: str = "Ada") -> Answer:
    at = datetime(2026, 11, 26, 10, tzinfo=UTC)
    return Answer(task=task, who=who, at=at, kind=kind, text=text, reason="", seconds=1, doubled=False, audio_digest="")


def test_words_that_are_the_same_keep_their_times_and_others_share_those_in_place_of_which_they_are() -> None:
    before = transcript(1, "turn of the light", "thank you")
    first, _ = asked(before)
    made = corrected(before, [answer(first, "Turn off the light.")])
    assert made.text == "Turn off the light. thank you"
    assert [(word.start_s, word.end_s) for word in made.words] == [(word.start_s, word.end_s) for word in before.words]
    assert [word.confidence for word in made.words] == [1.0] * 4 + [0.5] * 2
    assert made.segments[1] == before.segments[1]
    assert made.confidence == pytest.approx(5 / 6, abs=1e-4)


def test_one_word_for_two_and_two_for_one_share_the_time_by_what_there_is_to_say() -> None:
    before = transcript(1, "a lot of rain to day")
    (task,) = asked(before)
    words = corrected(before, [answer(task, "alot of heavy rain today")]).words
    assert [word.text for word in words] == ["alot", "of", "heavy", "rain", "today"]
    assert (words[0].start_s, words[0].end_s) == (before.words[0].start_s, before.words[1].end_s)
    assert (words[4].start_s, words[4].end_s) == (before.words[4].start_s, before.words[5].end_s)
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    one = transcript(1, "heavyrain")
    two = corrected(one, [answer(asked(one)[0], "heavy rain")]).words
    assert two[0].end_s - two[0].start_s == pytest.approx(5 / 9, abs=1e-3)
    assert two[1].end_s == one.words[0].end_s


@pytest.mark.parametrize(("text", "segments"), [("", 1), ("quite another sentence of six words", 2)])
def test_all_of_a_segment_may_be_another_or_nothing(text: str, segments: int) -> None:
    before = transcript(1, "turn of", "thank you")
    made = corrected(before, [answer(asked(before)[0], text)])
    assert made.text == f"{text} thank you".strip()
    assert len(made.segments) == segments
    assert all(1.0 <= word.start_s <= word.end_s <= 2.0 for word in made.words[:-2])


def test_words_where_none_were_heard_have_the_time_of_the_speech() -> None:
    heard = transcript(1, "one")
    before = replace(heard, segments=(replace(heard.segments[0], words=()),))
    (task,) = asked(before)
    (segment,) = corrected(before, [answer(task, "two words")]).segments
    assert (segment.words[0].start_s, segment.words[1].end_s) == (1.0, 2.0)
    assert corrected(before, [answer(task, "")]).segments == ()


def test_what_cannot_be_written_down_stays_as_it_was_heard() -> None:
    before = transcript(1, "turn of")
    assert corrected(before, [answer(asked(before)[0], "", "unusable")]) == before


def test_scripts_without_spaces_share_times_by_character() -> None:
    before = transcript(1, "電気を付けて", language="ja")
    words = corrected(before, [answer(asked(before)[0], "電気をつけて")]).words
    assert "".join(word.text for word in words) == "電気をつけて"
    assert (words[0].start_s, words[-1].end_s) == (1.0, 2.0)
    edges = [edge for word in words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)


def test_written_forms_and_intents_go_with_the_words_that_they_are_of() -> None:
    heard = transcript(1, "turn it off")
    segment = replace(heard.segments[0], written="Turn it off.", intent=Intent("off", 0.9), speaker="B")
    before = replace(heard, segments=(segment,))
    (task,) = asked(before)
    (same,) = corrected(before, [answer(task, "turn it off")]).segments
    assert (same.written, same.intent, same.speaker) == (segment.written, segment.intent, "B")
    (other,) = corrected(before, [answer(task, "turn it on")]).segments
    assert (other.written, other.intent, other.speaker) == (None, None, "B")


def test_an_answer_counts_whichever_model_heard_the_recording_since() -> None:
    """What people corrected is not lost when an hour is transcribed again and cut elsewhere."""
    (task,) = asked(transcript(1, "turn of the light"))
    again = transcript(1, "turn off the light", "thank you")
    first, second = again.segments
    whole = replace(first, words=(*first.words, *second.words), end_s=second.end_s)
    made = corrected(replace(again, segments=(whole,)), [answer(task, "turn off the lights")])
    assert [segment.text for segment in made.segments] == ["turn off the lights", "thank you"]


def test_one_channel_is_corrected_and_the_other_is_not() -> None:
    both = transcript(1, "one two")
    (segment,) = both.segments
    sides = [
        replace(segment, channel=n, words=tuple(replace(word, channel=n) for word in segment.words)) for n in (0, 1)
    ]
    before = replace(both, segments=tuple(sides))
    _, second = asked(before)
    made = corrected(before, [answer(second, "three")])
    assert sorted(each.text for each in made.segments) == ["one two", "three"]
    assert next(each for each in made.segments if each.text == "three").words[0].channel == 1


def test_words_in_place_of_others_have_their_speaker() -> None:
    heard = transcript(1, "how are you fine thanks")
    (segment,) = heard.segments
    words = tuple(replace(word, speaker="A" if n < 3 else "B") for n, word in enumerate(segment.words))
    before = replace(heard, segments=(replace(segment, words=words),))
    said = corrected(before, [answer(asked(before)[0], "how do you very fine thank you")]).words
    assert [word.speaker for word in said] == ["A", "A", "A", "B", "B", "B", "B"]


def test_what_is_asked_now_counts_more_than_what_was_asked_of_an_earlier_model(tmp_path: Path) -> None:
    versions = Versions(open_objects(tmp_path))
    former, now = transcript(1, "turn of"), replace(transcript(1, "turn of"), model_digests={"recognition": "c" * 64})
    (kept,) = versions.kept(now, HOUR)
    ((old,), (task,)) = asked(former), asked(kept.transcript)
    assert old.id != task.id
    for names in ((old, task), (task, old)):
        outcomes = {each.id: outcome_of([answer(each, "off" if each is task else "on")], False) for each in names}
        (made,) = reviewed([kept.transcript], [task], outcomes, versions, HOUR)
        assert made.text == "off"


def test_a_transcript_of_which_nothing_could_be_written_down_is_no_version_of_people(tmp_path: Path) -> None:
    versions = Versions(open_objects(tmp_path))
    (kept,) = versions.kept(transcript(1, "turn of"), HOUR)
    (task,) = asked(kept.transcript)
    outcomes = {task.id: outcome_of([answer(task, "", "unusable")], False)}
    assert reviewed([kept.transcript], [task], outcomes, versions, HOUR) == []


def test_a_transcript_waits_until_all_is_answered_and_keeps_its_version_until_somebody_answers(tmp_path: Path) -> None:
    versions = Versions(open_objects(tmp_path))
    (first,) = versions.kept(transcript(1, "turn of", "thank you"), HOUR)
    before = first.transcript
    tasks = asked(before)
    outcomes = {tasks[0].id: outcome_of([answer(tasks[0], "turn off")], False)}
    assert reviewed([before], tasks, outcomes, versions, HOUR) == []
    outcomes[tasks[1].id] = outcome_of([answer(tasks[1], "thank you", who="Ben")], False)
    (made,) = reviewed([before], tasks, outcomes, versions, HOUR)
    assert (made.id, made.version, made.supersedes) == (f"{1:032x}-2", 2, before.id)
    assert versions.of(f"{1:032x}")[-1].by == "Ada, Ben"
    assert reviewed([before], tasks, outcomes, versions, HOUR) == [made]
    outcomes[tasks[1].id] = outcome_of([answer(tasks[1], "thanks")], False)
    (third,) = reviewed([before], tasks, outcomes, versions, HOUR)
    assert (third.version, third.supersedes, third.text) == (3, made.id, "turn off thanks")
    waiting = {tasks[0].id: outcomes[tasks[0].id]}
    assert reviewed([before], tasks, waiting, versions, HOUR) == [third], "an answer taken back takes nothing out"
