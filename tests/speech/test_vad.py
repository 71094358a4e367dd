"""Where somebody speaks: on speech of the embedded synthesiser between silence and noise, and on real recordings."""

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from speech.audio.decode import decode
from speech.corpus.synthetic import Voicebox, speaker_of
from speech.vad import WINDOW, WINDOW_S, SpeechDetector, Stretch, VadSettings, stretches

RATE = 16_000


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    return SpeechDetector()


@pytest.fixture(scope="module")
def spoken() -> np.ndarray:
    box = Voicebox()
    said = box.say("please tell me how the weather will be tomorrow morning", speaker_of("a", "en"), RATE)
    box.close()
    return said / np.abs(said).max() * 0.5


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def test_speech_between_silence_is_found_with_its_edges(detector: SpeechDetector, spoken: np.ndarray) -> None:
    audio = np.concatenate([silence(2), spoken, silence(3)])
    found = stretches(detector.probabilities([audio]), len(audio) / RATE)
    assert found[0].start_s == pytest.approx(2.0, abs=0.3)
    assert found[-1].end_s == pytest.approx(2 + len(spoken) / RATE, abs=0.5)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.0, 40.0])
def test_nobody_speaks_in_silence_and_noise(detector: SpeechDetector, seconds: float) -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)
    for audio in (silence(seconds), noise, 0.001 * noise):
        assert stretches(detector.probabilities([audio]), seconds) == ()


def test_a_recording_is_heard_alike_however_it_is_cut(detector: SpeechDetector, spoken: np.ndarray) -> None:
    audio = np.concatenate([silence(1), *[spoken, silence(1)] * 12])
    whole = detector.probabilities([audio])
    assert len(whole) == -(-len(audio) // WINDOW)
    for sizes in ([1, 511, 513], [len(audio) // 3], [7_777]):
        ends = np.cumsum(np.resize(sizes, len(audio)))
        pieces = np.split(audio, ends[ends < len(audio)])
        assert np.array_equal(detector.probabilities(pieces), whole)


def test_streams_share_no_state(detector: SpeechDetector, spoken: np.ndarray) -> None:
    alone = detector.probabilities([spoken])
    detector.probabilities([np.concatenate([spoken] * 5)])
    assert np.array_equal(detector.probabilities([spoken]), alone)


def windows(*runs: tuple[float, float]) -> np.ndarray:
    """Probabilities for so many seconds each."""
    return np.concatenate([np.full(round(seconds / WINDOW_S), value, np.float32) for seconds, value in runs])


def test_short_pauses_do_not_end_a_stretch_and_clicks_are_no_speech() -> None:
    settings = VadSettings(padding_s=0)
    found = windows((1, 0), (1, 0.9), (0.2, 0), (1, 0.9), (1, 0), (0.05, 0.9), (1, 0), (1, 0.9))
    assert [(round(s.start_s, 1), round(s.end_s, 1)) for s in stretches(found, 10, settings)] == [
        (1.0, 3.2),
        (5.2, 6.2),
    ]


def test_speech_goes_on_between_threshold_and_release() -> None:
    (found,) = stretches(windows((1, 0.4), (1, 0.9), (1, 0.4), (1, 0.1)), 4.0, VadSettings(padding_s=0))
    assert (round(found.start_s, 1), round(found.end_s, 1)) == (1.0, 3.0)


def test_long_speech_is_cut_where_it_is_least_likely() -> None:
    probabilities = windows((60, 0.9))
    dips = [round(at / WINDOW_S) for at in (14.0, 27.0, 40.0)]
    probabilities[dips] = 0.6
    found = stretches(probabilities, 60.0, VadSettings(padding_s=0, longest_s=20))
    assert all(stretch.end_s - stretch.start_s <= 20 for stretch in found)
    assert [round(stretch.end_s) for stretch in found[:3]] == [14, 27, 40]
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(found))


def test_padding_stays_within_the_recording_and_off_the_neighbour() -> None:
    found = stretches(windows((0.1, 0), (1, 0.9), (0.5, 0), (1, 0.9)), 2.6, VadSettings(padding_s=1.0))
    assert [found[0].start_s, found[1].end_s] == [0.0, 2.6]
    assert found[0].end_s == found[1].start_s == pytest.approx(1.35, abs=2 * WINDOW_S)


def test_real_speech_is_found_and_an_empty_recording_is_empty(detector: SpeechDetector) -> None:
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: no real recordings here")
    folder = Path(root, "multilingual")

    def found_in(name: str) -> tuple[Stretch, ...]:
        audio = decode(folder / name)
        return stretches(detector.probabilities([audio.samples]), audio.duration_s)

    assert found_in("empty.wav") == ()
    said = heard = 0
    for test in json.loads((folder / "transcripts.json").read_text())["tests"]["language_tests"]:
        found = found_in(test["audio_file"])
        middles = [(word["start_sec"] + word["end_sec"]) / 2 for word in test["words"]]
        said += len(middles)
        heard += sum(any(s.start_s <= middle <= s.end_s for s in found) for middle in middles)
    assert said > 80
    assert heard >= 0.99 * said
