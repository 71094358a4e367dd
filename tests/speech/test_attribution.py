"""Words to speakers: by the turns that hold them, the nearest where none does, and as fast for a long call."""

import time

from speech.attribution import attributed
from speech.diarization import Turn
from speech.transcript import Intent, Segment, Transcript, Word

TURNS = (Turn(0.0, 2.0, "speaker_0"), Turn(2.0, 4.0, "speaker_1"), Turn(6.0, 8.0, "speaker_0"))


def transcript(*segments: Segment) -> Transcript:
    return Transcript(language="en", confidence=0.9, duration_s=10.0, source_digest="0" * 64, segments=segments)


def segment(*words: Word, **said: object) -> Segment:
    return Segment(words, words[0].start_s, words[-1].end_s, **said)  # type: ignore[arg-type]


def word(text: str, start_s: float, end_s: float) -> Word:
    return Word(text, start_s, end_s, 0.9)


def said_by(found: Transcript) -> list[tuple[str | None, str]]:
    return [(part.speaker, part.text) for part in found.segments]


def test_a_segment_is_cut_where_the_speaker_changes() -> None:
    words = [word("how", 1.0, 1.3), word("are", 1.4, 1.8), word("fine", 2.2, 2.6), word("thanks", 2.7, 3.2)]
    found = attributed(transcript(segment(*words)), {None: TURNS})
    assert said_by(found) == [("speaker_0", "how are"), ("speaker_1", "fine thanks")]
    assert [(part.start_s, part.end_s) for part in found.segments] == [(1.0, 1.8), (2.2, 3.2)]
    assert [w.speaker for w in found.words] == ["speaker_0", "speaker_0", "speaker_1", "speaker_1"]
    assert found.to_rttm("r").count("SPEAKER") == 2


def test_a_word_goes_to_whose_turn_holds_most_of_it_and_outside_of_all_to_the_nearest() -> None:
    words = [word("a", 1.8, 2.1), word("b", 1.9, 2.3), word("c", 4.4, 4.6), word("d", 5.6, 5.8), word("e", 9.0, 9.5)]
    found = attributed(transcript(*map(segment, words)), {None: TURNS})
    assert [part.speaker for part in found.segments] == [
        "speaker_0",
        "speaker_1",
        "speaker_1",
        "speaker_0",
        "speaker_0",
    ]


def test_a_word_that_has_no_length_has_a_speaker() -> None:
    """Recognisers write a word in one frame, and its times may be equal."""
    found = attributed(transcript(segment(word("yes", 3.0, 3.0))), {None: TURNS})
    assert said_by(found) == [("speaker_1", "yes")]


def test_one_word_between_two_of_another_is_theirs() -> None:
    flicker = (Turn(0.0, 1.0, "speaker_0"), Turn(1.0, 1.4, "speaker_1"), Turn(1.4, 3.0, "speaker_0"))
    words = [word("one", 0.5, 0.9), word("two", 1.0, 1.4), word("three", 1.5, 2.0), word("four", 2.1, 2.5)]
    assert said_by(attributed(transcript(segment(*words)), {None: flicker})) == [("speaker_0", "one two three four")]
    apart = transcript(*map(segment, words))  # pauses between them: an answer of one word
    assert [part.speaker for part in attributed(apart, {None: flicker}).segments] == [
        "speaker_0",
        "speaker_1",
        "speaker_0",
        "speaker_0",
    ]


def test_changes_of_speaker_word_by_word_are_kept() -> None:
    """Two who count together are two, though each word of theirs is between two of the other."""
    quick = tuple(Turn(float(n), n + 1.0, f"speaker_{n % 2}") for n in range(4))
    words = [word(text, n + 0.1, n + 0.9) for n, text in enumerate("abcd")]
    found = attributed(transcript(segment(*words)), {None: quick})
    assert [part.speaker for part in found.segments] == ["speaker_0", "speaker_1"] * 2


def test_channels_have_turns_of_their_own() -> None:
    parts = [segment(word(text, 1.0, 1.5), channel=channel) for channel, text in enumerate(("hello", "hi"))]
    turns = {0: (Turn(0.0, 2.0, "speaker_0"),), 1: (Turn(0.0, 2.0, "speaker_1"),)}
    found = attributed(transcript(*parts, Segment((), 3.0, 4.0, channel=1)), turns)
    assert said_by(found) == [("speaker_0", "hello"), ("speaker_1", "hi"), ("speaker_1", "")]


def test_what_was_said_of_a_segment_stays_with_it_and_is_gone_where_it_is_cut() -> None:
    """The written form of a whole segment must not be shown for a half of it."""
    said = {"written": "How R U", "intent": Intent("greet", 0.9), "confidence": 0.5, "language": "en"}
    whole = segment(word("how", 1.0, 1.3), word("are", 1.4, 1.8), **said)
    cut = segment(word("how", 1.0, 1.3), word("fine", 2.2, 2.6), **said)
    kept, *parts = attributed(transcript(whole, cut), {None: TURNS}).segments
    assert (kept.written, kept.confidence) == ("How R U", 0.5)
    assert [(part.written, part.intent, part.confidence, part.language) for part in parts] == [
        (None, None, None, "en"),
        (None, None, None, "en"),
    ]


def test_speech_without_words_has_its_speaker_and_without_turns_nothing_changes() -> None:
    silent = transcript(Segment((), 2.5, 3.5))
    assert attributed(silent, {None: TURNS}).segments[0].speaker == "speaker_1"
    assert attributed(silent, {}) == silent
    spoken = transcript(segment(word("yes", 3.0, 3.2)))
    assert attributed(spoken, {None: ()}) == spoken


def test_the_work_is_linear_in_the_words() -> None:
    """Ten hours of quick changes, and one speaker over all of it: each word looks at the turns beside it alone."""

    def seconds(words: int) -> float:
        turns = [
            Turn(0.0, words / 2, "speaker_9"),
            *(Turn(n * 2.0, n * 2.0 + 1.9, f"speaker_{n % 4}") for n in range(words // 4)),
        ]
        parts = [
            segment(*(word("a", n / 2 + k / 2, n / 2 + k / 2 + 0.3) for k in range(10))) for n in range(0, words, 10)
        ]
        began = time.process_time()
        attributed(transcript(*parts), {None: turns})
        return time.process_time() - began

    fewer = min(seconds(4_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(3)) < 12 * fewer  # eight times the words
