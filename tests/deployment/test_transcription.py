"""Segments are what people read: cut at pauses, never too long, nothing lost."""

import importlib.metadata
import itertools
import random
from dataclasses import replace

from deployment.serving.transcription import segments_from_words
from deployment.transcribe import transcribe_file
from speech.recognition.offline import Recognizer
from speech.store.outputs import digest_file
from speech.transcript import Word
from tests.sounds import sound_bytes
from tests.toy_bundle import tones, write_toy_bundle


def _words(*spans: tuple[float, float]) -> list[Word]:
    return [Word(f"w{number}", start, end, 0.9) for number, (start, end) in enumerate(spans)]


def test_pauses_cut():
    segments = segments_from_words(_words((0, 1), (1.2, 2), (2.61, 3), (3.5, 4)))
    assert [segment.text for segment in segments] == ["w0 w1", "w2 w3"]
    assert [(segment.start_s, segment.end_s) for segment in segments] == [(0, 2), (2.61, 4)]


def test_a_long_word_that_is_written_at_its_end_is_no_pause():
    """A word of a second's length, written in one frame, stands behind a gap in which it sounds."""
    texts = ["telephone", "international", "information", "switchboard"]
    ends = itertools.accumulate([1.0, 1.1, 1.0, 0.9])
    words = [Word(text, end - 0.1, end, 0.9) for text, end in zip(texts, ends, strict=True)]
    assert [segment.text for segment in segments_from_words(words)] == [" ".join(texts)]
    late = [*words[:2], *(replace(word, start_s=word.start_s + 1, end_s=word.end_s + 1) for word in words[2:])]
    assert [segment.text for segment in segments_from_words(late)] == [" ".join(texts[:2]), " ".join(texts[2:])]


def test_long_speech_is_cut_at_its_widest_gap():
    """Someone who speaks for a minute without a pause still gets segments that fit a screen."""
    spans = [(k * 1.0, k * 1.0 + 0.9) for k in range(20)]
    spans[10] = (10.05, 10.9)  # the gap before word 10 is the widest
    segments = segments_from_words(_words(*spans))
    assert segments[0].text.split()[-1] == "w9"
    assert all(segment.end_s - segment.start_s <= 14 for segment in segments)


def test_no_word_is_lost_or_moved():
    rng = random.Random(7)
    for _ in range(50):
        at, spans = 0.0, []
        for _ in range(rng.randrange(0, 80)):
            at += rng.choice([0.0, 0.05, 0.3, 0.9])
            length = rng.choice([0.1, 0.4, 2.0, 20.0])
            spans.append((at, at + length))
            at += length
        words = _words(*spans)
        segments = segments_from_words(words)
        assert [word for segment in segments for word in segment.words] == words
        for segment in segments:
            assert segment.words
            assert (segment.start_s, segment.end_s) == (segment.words[0].start_s, segment.words[-1].end_s)
            assert segment.end_s - segment.start_s <= 14.0 or len(segment.words) == 1


def test_nothing_said_has_no_segments():
    assert segments_from_words([]) == ()


def test_a_transcript_says_which_model_and_which_code_wrote_it(tmp_path):
    """Years later somebody asks whether a mistake was the model's, and which."""
    bundle = write_toy_bundle(tmp_path / "bundle")
    (tmp_path / "a.wav").write_bytes(sound_bytes(tones(["one", "two"])))
    said = transcribe_file(tmp_path / "a.wav", Recognizer(bundle))
    assert (said.text, said.language) == ("one two", "en")
    assert said.model_digests == {"recognition": bundle.digest}
    assert said.models == {"recognition": "toy", "bundle": bundle.digest}
    assert said.source_digest == digest_file(tmp_path / "a.wav")
    assert said.code_version == importlib.metadata.version("soundstage")
