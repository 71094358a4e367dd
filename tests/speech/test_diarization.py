"""Who speaks when, told from made-up voices: how many, where the edges are, and what four hours take."""

import itertools
import math
import time
import tracemalloc

import numpy as np
import pytest
from pydantic import ValidationError

from speech.diarization import DiarizationSettings, grouped, turns, voices, windows
from speech.vad import Stretch

THRESHOLD = 0.5
PLAIN = DiarizationSettings()


def heard(speakers: list[int], *, dimensions: int = 64, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    """The voice of a speaker in each window, with as much of chance in it: float32 [n, d] of length 1."""
    draw = np.random.default_rng(seed)
    directions = np.linalg.qr(draw.standard_normal((dimensions, dimensions)))[0]
    noise = draw.standard_normal((len(speakers), dimensions)) / math.sqrt(dimensions)
    vectors = directions[speakers] + spread * noise
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_windows_cover_each_stretch_and_never_leave_it() -> None:
    stretches = [Stretch(0.0, 0.3), Stretch(1.0, 2.5), Stretch(3.0, 7.1), Stretch(9.0, 10.51)]
    found = windows(stretches, PLAIN)
    for stretch in stretches:
        inside = [w for w in found if stretch.start_s <= w.start_s and w.end_s <= stretch.end_s + 1e-9]
        assert inside[0].start_s == stretch.start_s
        assert inside[-1].end_s == pytest.approx(stretch.end_s)
        assert all(b.start_s - a.start_s <= PLAIN.hop_s + 1e-9 for a, b in itertools.pairwise(inside))
    assert len(found) == 1 + 1 + 5 + 2


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_as_many_speakers_are_found_as_there_are_in_the_order_that_they_speak(count: int) -> None:
    order = [speaker for speaker in range(count) for _ in range(5)] * 3
    assert grouped(heard(order), THRESHOLD).tolist() == order


def test_the_number_of_speakers_may_be_known_or_bounded() -> None:
    order = [0, 1, 2] * 12
    vectors = heard(order)
    groups = {
        "two": grouped(vectors, THRESHOLD, DiarizationSettings(speakers=2)),
        "at most two": grouped(vectors, THRESHOLD, DiarizationSettings(max_speakers=2)),
        "at least five": grouped(vectors, THRESHOLD, DiarizationSettings(min_speakers=5)),
        "more than windows": grouped(vectors[:3], THRESHOLD, DiarizationSettings(speakers=7)),
    }
    assert {name: len(set(found.tolist())) for name, found in groups.items()} == {
        "two": 2,
        "at most two": 2,
        "at least five": 5,
        "more than windows": 3,
    }
    for faults in ({"min_speakers": 3, "max_speakers": 2}, {"hop_s": 2.0}, {"speakers": 0}):
        with pytest.raises(ValidationError):
            DiarizationSettings(**faults)


def test_nobody_speaks_in_silence() -> None:
    nothing = np.zeros((0, 8), np.float32)
    assert len(grouped(nothing, THRESHOLD)) == 0
    assert turns([], [], nothing, voices(nothing, grouped(nothing, THRESHOLD))) == []


def test_blocks_change_nothing_where_voices_are_plain() -> None:
    """A recording of hours is grouped in blocks; it must come to the same speakers as one of minutes."""
    order = np.random.default_rng(1).integers(0, 4, 2_600).tolist()
    groups = grouped(heard(order), THRESHOLD)
    assert len(set(zip(order, groups.tolist(), strict=True))) == len(set(order)) == 4


def test_time_grows_with_the_length_and_memory_hardly() -> None:
    """Four hours are 19,200 windows; all pairs of them would be 2.9 GB."""
    took, most = [], []
    for count in (4_800, 19_200):
        order = np.random.default_rng(2).integers(0, 5, count).tolist()
        vectors = heard(order)
        tracemalloc.start()
        began = time.process_time()
        groups = grouped(vectors, THRESHOLD)
        took.append(time.process_time() - began)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(set(groups.tolist())) == 5
    assert took[1] < 8 * took[0]  # four times the windows
    assert most[1] < 100e6


def conversation() -> tuple[list[Stretch], list[Stretch], np.ndarray]:
    """Ada until 6 s, Bob until 10 s, a pause, and Bob again."""
    stretches = [Stretch(0.0, 10.0), Stretch(12.0, 16.0)]
    found = windows(stretches, PLAIN)
    speaker = [int((window.start_s + window.end_s) / 2 > 6.0) for window in found]
    return stretches, found, heard(speaker)


def test_turns_cover_the_speech_and_change_where_the_voice_does() -> None:
    stretches, found, vectors = conversation()
    said = turns(stretches, found, vectors, voices(vectors, grouped(vectors, THRESHOLD)))
    assert [speaker for _, _, speaker in said] == [0, 1, 1]
    assert said[0][1] == said[1][0] == pytest.approx(6.0, abs=PLAIN.hop_s / 2)
    assert [(said[0][0], said[1][1]), said[2][:2]] == [(0.0, 10.0), (12.0, 16.0)]


def test_one_window_that_sounds_otherwise_is_no_turn() -> None:
    stretches = [Stretch(0.0, 12.0)]
    found = windows(stretches, PLAIN)
    speaker = [0] * len(found)
    speaker[5] = 1
    vectors = heard([*speaker, 1])
    both = voices(vectors, np.array([*speaker, 1]))
    assert turns(stretches, found, vectors[:-1], both) == [(0.0, 12.0, 0)]
    overlapped = DiarizationSettings(overlap_margin=2.0)
    assert turns(stretches, found, vectors[:-1], both, overlapped) == [(0.0, 12.0, 0)]
    known = turns(stretches, found, vectors[:-1], both, DiarizationSettings(speakers=2))
    assert [speaker for _, _, speaker in known] == [0, 1, 0]  # unless two are known to speak


def test_two_speak_at_once_where_both_are_as_likely_and_only_if_asked_for() -> None:
    stretches, found, vectors = conversation()
    both = vectors.copy()
    ada, bob = voices(vectors, grouped(vectors, THRESHOLD))
    for place in (6, 7, 8):  # 4.6 to 7.3 s
        both[place] = (ada + bob) / np.linalg.norm(ada + bob)
    speakers = np.stack([ada, bob])
    alone = turns(stretches, found, both, speakers)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(alone))
    together = turns(stretches, found, both, speakers, DiarizationSettings(overlap_margin=0.2))
    shared = [(max(a[0], b[0]), min(a[1], b[1])) for a in together for b in together if a[2] < b[2]]
    (start_s, end_s) = next((s, e) for s, e in shared if e > s)
    assert 4.0 < start_s < 6.0 < end_s < 8.0
