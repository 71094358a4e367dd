"""Which language is spoken where: clips, votes, and changes that are some and none."""

import itertools

import numpy as np
import pytest

from speech.labels import UNKNOWN
from speech.language import CLIP_S, LanguageSettings, Part, Spoken, clips_of, parts_of, spoken_in
from speech.vad import Stretch

LABELS = ("en", "de", UNKNOWN)
SURE = LanguageSettings()


def heard(*languages: str, probability: float = 0.9) -> np.ndarray:
    """Log-probabilities in which each clip is this surely of a language."""
    rest = (1 - probability) / (len(LABELS) - 1)
    rows = [[probability if label == language else rest for label in LABELS] for language in languages]
    return np.log(np.array(rows, np.float32).reshape(-1, len(LABELS)))


def stretches(*seconds: float, pause_s: float = 0.5) -> list[Stretch]:
    found, at = [], 0.0
    for lasts_s in seconds:
        found.append(Stretch(round(at, 3), round(at + lasts_s, 3)))
        at += lasts_s + pause_s
    return found


def told(parts: list[Part]) -> list[str]:
    return [part.spoken.language for part in parts]


@pytest.mark.parametrize(
    "lengths", [(0.4,), (1, 1, 1, 1, 1), (20, 0.3), (2.9, 3.1, 7), (0.2, 19.9), (3, 1), (1.6, 3, 1)]
)
def test_clips_are_all_of_the_speech_in_order_and_about_as_long(lengths: tuple[float, ...]) -> None:
    """Short stretches are joined and long ones cut, and no moment is heard twice or not at all."""
    speech = stretches(*lengths)
    clips = clips_of(speech)
    pieces = [piece for clip in clips for piece in clip.pieces]
    assert sum(clip.seconds for clip in clips) == pytest.approx(sum(lengths))
    assert [piece.start_s for piece in pieces] == sorted(piece.start_s for piece in pieces)
    for place, stretch in enumerate(speech):
        own = [piece for clip in clips for piece, of in zip(clip.pieces, clip.of, strict=True) if of == place]
        assert (own[0].start_s, own[-1].end_s) == (stretch.start_s, stretch.end_s)
        assert all(before.end_s == after.start_s for before, after in itertools.pairwise(own))
    assert all(clip.seconds < 3 * CLIP_S for clip in clips)
    assert all(clip.seconds >= CLIP_S - 1e-6 for clip in clips[:-1])


def test_a_recording_in_one_language_keeps_its_stretches_whole() -> None:
    speech = stretches(20.0, 0.4, 8.0)
    clips = clips_of(speech)
    parts = parts_of(clips, heard(*["de"] * len(clips)), LABELS, 0.6, SURE)
    assert [part.stretch for part in parts] == speech
    assert set(told(parts)) == {"de"}
    assert parts[0].spoken.confidence == pytest.approx(0.9, abs=1e-3)


def test_neighbouring_stretches_that_vad_cut_are_not_joined() -> None:
    """A stretch that was as long as recognition takes is not made longer."""
    speech = [Stretch(0.0, 20.0), Stretch(20.0, 40.0)]
    clips = clips_of(speech)
    assert [part.stretch for part in parts_of(clips, heard(*["en"] * len(clips)), LABELS, 0.6, SURE)] == speech


def test_a_stretch_is_cut_where_its_language_changes() -> None:
    speech = stretches(18.0, 6.0)
    clips = clips_of(speech)
    parts = parts_of(clips, heard(*["en"] * 3, *["de"] * (len(clips) - 3)), LABELS, 0.6, SURE)
    assert [(part.stretch, part.spoken.language) for part in parts] == [
        (Stretch(0.0, 9.0), "en"),
        (Stretch(9.0, 18.0), "de"),
        (speech[1], "de"),
    ]


def test_one_clip_that_is_heard_otherwise_is_no_change() -> None:
    """A model errs in one of ten clips; a call of an hour would otherwise change its language a hundred times."""
    for odd in range(8):
        languages = ["en"] * 8
        languages[odd] = "de"
        clips = clips_of(stretches(*[3.0] * 8))
        assert set(told(parts_of(clips, heard(*languages), LABELS, 0.6, SURE))) == {"en"}


def test_what_is_not_sure_or_surely_neither_is_unknown() -> None:
    clips = clips_of(stretches(3.0, 3.0))
    assert told(parts_of(clips, heard("en", "en", probability=0.55), LABELS, 0.6, SURE)) == [UNKNOWN] * 2
    assert told(parts_of(clips, heard(UNKNOWN, UNKNOWN), LABELS, 0.0, SURE)) == [UNKNOWN] * 2
    assert parts_of([], heard(), LABELS, 0.6, SURE) == []


def test_a_recording_is_in_the_language_of_most_of_its_speech() -> None:
    parts = [
        Part(Stretch(0, 4), Spoken("de", 0.9)),
        Part(Stretch(5, 15), Spoken("en", 0.7)),
        Part(Stretch(15, 25), Spoken("en", 0.9)),
    ]
    assert spoken_in(parts) == Spoken("en", 0.8)
    assert spoken_in([]) is None
    assert spoken_in([Part(Stretch(0, 4), Spoken("de", None))]) == Spoken("de", None)
    even = [Part(Stretch(0, 4), Spoken(UNKNOWN, 0.4)), Part(Stretch(4, 8), Spoken("de", 0.9))]
    assert spoken_in(even) == Spoken("de", 0.9)
