"""How a call went: each measure on a call made so that it can be counted by hand."""

import time

import pytest

from speech.transcript import Segment, Word
from speech.understanding.conversation import Conversation, SpeakerMeasures, measured


def talk(speaker: str | None, start_s: float, end_s: float, words: int = 1, channel: int | None = None) -> Segment:
    each_s = (end_s - start_s) / max(1, words)
    said = [Word("w", start_s + n * each_s, start_s + (n + 1) * each_s, 0.9, channel=channel) for n in range(words)]
    return Segment(tuple(said), start_s, end_s, speaker=speaker)


def of(speaker: str, conversation: Conversation | None) -> SpeakerMeasures:
    assert conversation is not None
    (found,) = [measures for measures in conversation.speakers if measures.speaker == speaker]
    return found


def test_talk_pace_turns_and_silence_of_a_call_without_overlap() -> None:
    said = measured([talk("a", 1, 5, 8), talk("b", 6, 8, 2), talk("a", 8.5, 10.5, 4)], 20.0)
    assert said is not None
    a, b = of("a", said), of("b", said)
    assert (a.talk_s, b.talk_s, a.share, b.share) == (6.0, 2.0, 0.75, 0.25)
    assert (a.turns, b.turns, a.longest_turn_s, b.longest_turn_s) == (2, 1, 4.0, 2.0)
    assert (a.words_per_minute, b.words_per_minute) == (120.0, 60.0)
    assert (a.response_s, b.response_s) == (0.5, 1.0)
    assert (said.silence_s, said.silence_share, said.longest_silence_s) == (12.0, 0.6, 9.5)
    assert (said.overlaps, said.overlap_s, a.interruptions, b.interruptions) == (0, 0.0, 0, 0)


def test_who_begins_in_anothers_talk_and_has_the_last_word_interrupts() -> None:
    said = measured([talk("a", 0, 4), talk("b", 3, 7)], 7.0)
    assert said is not None
    assert (of("a", said).interruptions, of("b", said).interruptions) == (0, 1)
    assert (said.overlaps, said.overlap_s, of("b", said).response_s) == (1, 1.0, 0.0)


def test_who_gives_up_or_only_agrees_does_not_interrupt() -> None:
    tried = measured([talk("a", 0, 9), talk("b", 3, 5)], 9.0)
    assert (of("b", tried).interruptions, of("b", tried).turns) == (0, 1)
    agreed = measured([talk("a", 0, 4), talk("b", 3.7, 4.4), talk("a", 4.5, 8)], 8.0)
    assert (of("b", agreed).interruptions, of("b", agreed).turns, of("b", agreed).talk_s) == (0, 0, 0.7)
    assert (of("a", agreed).turns, of("a", agreed).longest_turn_s, of("b", agreed).longest_turn_s) == (1, 8.0, 0.0)


def test_turns_that_change_smoothly_are_no_overlap() -> None:
    said = measured([talk("a", 0, 4), talk("b", 3.9, 7)], 7.0)
    assert said is not None
    assert (said.overlaps, of("b", said).interruptions, said.overlap_s) == (0, 0, 0.1)


def test_a_pause_ends_a_turn_where_another_takes_it_or_where_it_is_long() -> None:
    assert of("a", measured([talk("a", 0, 4), talk("a", 5, 9)], 9.0)).longest_turn_s == 9.0
    assert of("a", measured([talk("a", 0, 4), talk("a", 7, 9)], 9.0)).turns == 2
    assert of("a", measured([talk("a", 0, 4), talk("b", 4.2, 4.7), talk("a", 5, 9)], 9.0)).turns == 2


def test_without_speakers_channels_speak_and_without_either_one_does() -> None:
    channels = measured([talk(None, 0, 4, channel=0), talk(None, 5, 6, channel=1)], 6.0)
    assert channels is not None
    assert [measures.speaker for measures in channels.speakers] == ["channel_0", "channel_1"]
    mono = measured([talk(None, 0, 4)], 6.0)
    assert mono is not None
    assert [(measures.speaker, measures.share) for measures in mono.speakers] == [("", 1.0)]


def test_a_segment_in_which_two_speak_is_both_theirs_and_one_without_words_is_talk() -> None:
    mixed = Segment((Word("x", 0, 1, 0.9, speaker="a"), Word("y", 1, 3, 0.9, speaker="b")), 0, 3)
    said = measured([mixed, Segment((), 4, 6, speaker="a")], 6.0)
    assert (of("a", said).talk_s, of("b", said).talk_s) == (3.0, 2.0)


def test_nobody_is_measured_where_nobody_talks() -> None:
    assert measured([], 10.0) is None


@pytest.mark.parametrize("segments", [[talk("a", 0, 0)], [talk("a", 3, 2)], [talk("a", 5, 20), talk("b", 5, 20)]])
def test_odd_times_are_measured_too(segments: list[Segment]) -> None:
    said = measured(segments, 10.0)
    assert said is not None
    assert all(measures.talk_s >= 0 for measures in said.speakers)
    assert said.silence_s >= 0


def test_time_grows_with_the_talk_and_not_with_its_square() -> None:
    def took_s(count: int) -> float:
        call = [talk("ab"[n % 2], n * 2.0, n * 2.0 + 2.5) for n in range(count)]
        began = time.process_time()
        measured(call, count * 2.0 + 1)
        return time.process_time() - began

    assert min(took_s(8_000) for _ in range(3)) < 20 * max(1e-3, min(took_s(1_000) for _ in range(3)))
