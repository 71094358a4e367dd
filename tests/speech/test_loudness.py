"""Loudness as EBU R 128 measures it, block by block."""

import tracemalloc

import numpy as np
import pytest

from speech.loudness import SILENT_LUFS, LoudnessMeter
from speech.quality import at_loudness, measure
from tests.sounds import RATE, tone


def measured(samples: np.ndarray, pieces: int = 1) -> float:
    meter = LoudnessMeter()
    for piece in np.array_split(samples, pieces):
        meter.add(piece)
    return meter.lufs()


def programme(seed: int) -> np.ndarray:
    """Noise that gets louder and softer by the second, with silence in it: float32 [n]."""
    draw = np.random.default_rng(seed)
    levels = np.repeat(10 ** (draw.uniform(-50, -10, 40) / 20), RATE)
    levels[10 * RATE : 15 * RATE] = 0
    return (levels * draw.standard_normal(len(levels)) * 0.3).astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_it_measures_what_pyloudnorm_measures(seed: int) -> None:
    from pyloudnorm import Meter

    samples = programme(seed)
    assert measured(samples) == pytest.approx(Meter(RATE, "DeMan").integrated_loudness(samples), abs=0.01)


@pytest.mark.parametrize(("dbfs", "lufs"), [(-23.0, -26.01), (-33.0, -36.01)])
def test_a_sine_measures_what_the_standard_says(dbfs: float, lufs: float) -> None:
    """Tech 3341, cases 1 and 2, of one channel: there two have 3.01 LU more."""
    assert measured(tone(1_000, 20, amplitude=10 ** (dbfs / 20))) == pytest.approx(lufs, abs=0.1)


def test_pauses_do_not_make_speech_softer() -> None:
    said = tone(1_000, 10)
    assert measured(np.concatenate([said, np.zeros(60 * RATE, np.float32)])) == pytest.approx(measured(said), abs=0.1)


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(3 * RATE), tone(seconds=0.3), tone(amplitude=1e-5)])
def test_what_is_silent_or_too_short_measures_the_gate(samples: np.ndarray) -> None:
    assert measured(samples) == SILENT_LUFS


def test_it_does_not_matter_how_a_recording_is_cut() -> None:
    samples = programme(9)
    assert measured(samples, 977) == pytest.approx(measured(samples), abs=1e-9)


def test_memory_hardly_grows_with_a_recording() -> None:
    meter, minute = LoudnessMeter(), programme(1)
    meter.add(minute)
    tracemalloc.start()
    for _ in range(15):
        meter.add(minute)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 15 * minute.nbytes / 50


@pytest.mark.parametrize("amplitude", [0.01, 0.9])
def test_a_recording_is_brought_to_a_loudness(amplitude: float) -> None:
    samples = tone(1_000, 5, amplitude=amplitude)
    changed = np.concatenate(list(at_loudness(np.array_split(samples, 7), measure(samples), -23.0)))
    assert len(changed) == len(samples)
    assert measured(changed) == pytest.approx(-23.0, abs=0.05)


def test_a_click_is_clipped_and_does_not_keep_a_recording_soft() -> None:
    samples = tone(1_000, 5, amplitude=0.01)
    samples[1_000] = 0.5
    changed = np.concatenate(list(at_loudness([samples], measure(samples), -20.0)))
    assert np.abs(changed).max() == 1.0
    assert measured(np.delete(changed, 1_000)) == pytest.approx(-20.0, abs=0.2)


def test_what_is_louder_than_any_programme_is_made_softer() -> None:
    square = np.sign(tone(440, 3, amplitude=1.0))
    assert measured(square) > 0
    assert measured(np.concatenate(list(at_loudness([square], measure(square), -23.0)))) == pytest.approx(-23, abs=0.05)


def test_silence_stays_as_it_is() -> None:
    silence = np.zeros(RATE, np.float32)
    assert not np.concatenate(list(at_loudness([silence], measure(silence), -10.0))).any()
