"""Quality measures: known signals have known values, and real narrow band is told from wide band."""

import json
import math
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soxr

from speech import quality
from speech.audio import decode as audio
from speech.plain import from_plain
from speech.quality import Quality, measure

RATE = audio.SAMPLE_RATE


def sine(frequency: float, seconds: float, amplitude: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def bursts(seconds: float, level: float = 0.3) -> np.ndarray:
    """Noise bursts of 0.7 s with pauses of 0.3 s: the rhythm of speech with a known power."""
    rng = np.random.default_rng(7)
    gate = (np.arange(round(seconds * RATE)) % RATE) < 0.7 * RATE
    return (level * rng.standard_normal(len(gate)) * gate).astype(np.float32)


def real_data(*parts: str) -> Path:
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: no real recordings to measure")
    return Path(root, *parts)


def test_a_full_scale_sine_measures_minus_three_dbfs():
    """The reference of every level: wrong here, and each threshold in the corpus checks is wrong."""
    quality = measure(sine(1000, 2))
    assert quality.rms_dbfs == pytest.approx(-3.01, abs=0.02)
    assert quality.peak_dbfs == pytest.approx(0.0, abs=0.02)
    assert quality.duration_s == 2.0
    assert quality.silence_share == 0.0


@pytest.mark.parametrize("amplitude_db", [-6, -20, -60])
def test_level_follows_the_amplitude(amplitude_db):
    assert measure(sine(440, 1, 10 ** (amplitude_db / 20))).rms_dbfs == pytest.approx(amplitude_db - 3.01, abs=0.05)


@pytest.mark.parametrize("samples", [np.zeros(RATE, np.float32), np.zeros(1, np.float32), np.zeros(0, np.float32)])
def test_digital_silence_has_the_documented_finite_values(samples):
    """Silence is common in real corpora; minus infinity would break JSON and every aggregate over it."""
    quality = measure(samples)
    assert quality == Quality(len(samples) / RATE, -120.0, -120.0, 0.0, 0.0, 1.0, 0.0, -70.0)
    assert not quality.narrow_band


def test_no_chunks_measure_like_silence():
    assert measure(iter(())) == measure(np.zeros(0, np.float32))


def test_chunking_does_not_change_the_measures():
    """A long recording is measured as it is decoded; how it was cut must not show."""
    samples = np.clip(bursts(25, 0.6), -1, 1)
    whole = measure(samples)
    for size in (1, 319, 16_000, 161_001):
        cut = samples[:40_000] if size == 1 else samples
        chunked = measure(cut[start : start + size] for start in range(0, len(cut), size))
        expected = measure(cut) if size == 1 else whole
        assert chunked == expected


def test_clipping_counts_runs_at_full_scale_only():
    """Single full-scale peaks are honest; flat tops are not."""
    loud = sine(300, 1, 0.9)
    assert measure(loud).clipping_share == 0.0
    loud[[100, 5000, 5001]] = 1.0  # two neighbours are no run
    assert measure(loud).clipping_share == 0.0
    loud[9000:9100] = -1.0
    assert measure(loud).clipping_share == pytest.approx(100 / RATE)


def test_a_clipping_run_across_blocks_is_counted_once():
    samples = np.zeros(21 * RATE, np.float32)
    samples[10 * RATE - 2 : 10 * RATE + 2] = 1.0  # two on either side of an inner block's border
    samples[-3:] = 1.0
    assert measure(samples).clipping_share == pytest.approx(7 / len(samples))


def test_clipping_survives_resampling():
    """A recording clipped at 48 kHz shows as clipped at 16 kHz, although resampling bends its flat tops."""
    clean = 1.6 * np.sin(2 * np.pi * 200 * np.arange(96_000) / 48_000)
    clipped = soxr.resample(np.clip(clean, -1, 1).astype(np.float32), 48_000, RATE)
    assert measure(clipped).clipping_share > 0.1


def test_silence_share_counts_pauses():
    assert measure(bursts(10)).silence_share == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("snr_db", [0, 10, 20, 30])
def test_snr_follows_the_noise(snr_db):
    """Known noise under known bursts: the estimate is within 2 dB where speech and pauses are both there."""
    speech = bursts(20)
    noise = np.random.default_rng(1).standard_normal(len(speech)) * 0.3 * 10 ** (-snr_db / 20)
    assert measure((speech + noise).astype(np.float32)).snr_db == pytest.approx(snr_db, abs=2.0)


def test_padding_with_zeros_does_not_make_a_noisy_recording_clean():
    """Pads of exact zeros are an editor's doing; counted as the noise floor they would give 100 dB."""
    noisy = bursts(10) + np.random.default_rng(1).standard_normal(10 * RATE).astype(np.float32) * 0.03
    padded = np.concatenate([np.zeros(5 * RATE, np.float32), noisy])
    assert measure(padded).snr_db == pytest.approx(measure(noisy).snr_db, abs=0.5)


@pytest.mark.parametrize("top_hz", [1500, 3400, 6000, 7500])
def test_bandwidth_finds_the_highest_tone(top_hz):
    assert measure(sine(400, 2, 0.5) + sine(top_hz, 2, 0.02)).bandwidth_hz == pytest.approx(top_hz, abs=100)


def test_non_finite_samples_are_refused():
    with pytest.raises(ValueError, match="finite"):
        measure(np.array([0.0, np.nan], np.float32))


def test_stereo_is_refused():
    with pytest.raises(ValueError, match="shape"):
        measure(np.zeros((10, 2), np.float32))


def test_quality_survives_json():
    quality = measure(bursts(2))
    assert from_plain(Quality, json.loads(json.dumps(asdict(quality)))) == quality


def test_telephone_recordings_are_narrow_band_and_studio_recordings_are_not():
    """Real 8 kHz digits against real 16 kHz read speech; the slice decides what a model is trained on."""
    telephone = sorted(real_data("fsdd", "recordings").glob("*.wav"))[::100]
    wide = sorted(real_data("diarization").rglob("*.flac"))[::4] + sorted(
        real_data("formats", "lhotse").glob("*libri-*.wav")
    )
    assert telephone
    assert wide
    assert all(measure(audio.decode(path).samples).narrow_band for path in telephone)
    assert not any(measure(audio.decode(path).samples).narrow_band for path in wide)


def test_real_speech_with_more_noise_measures_a_lower_snr():
    """On real speech the estimate must at least order recordings by their noise."""
    path = sorted(real_data("diarization").rglob("*.flac"))[0]
    samples = audio.decode(path).samples
    noise = np.random.default_rng(3).standard_normal(len(samples)) * math.sqrt(np.mean(np.square(samples)))
    estimates = [measure((samples + noise * 10 ** (-s / 20)).astype(np.float32)).snr_db for s in (0, 5, 10, 15, 20)]
    assert estimates == sorted(estimates)
    assert estimates[-1] - estimates[0] > 12


def test_the_constants_stay_consistent():
    """Narrow band must end below what the resampler leaves of wide band."""
    assert 4_000 <= quality.NARROW_BAND_HZ < 5_000
