"""Log-mel features: the definition, and that a stream's frames are the recording's frames.

Equality with NeMo's own preprocessor is held in tests/training/test_export.py, which has NeMo loaded.
"""

import time

import numpy as np
import pytest

from speech.features import MelConfig, MelStream, log_mel, mel_filters


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise under a chirp, loud and quiet parts."""
    times = np.arange(round(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).standard_normal(len(times)) * (0.02 + 0.1 * np.sin(times) ** 2)
    return (noise + 0.2 * np.sin(2 * np.pi * (200 + 300 * times) * times)).astype(np.float32)


def by_definition(samples: np.ndarray, config: MelConfig) -> np.ndarray:
    """The same frames written down plainly, in float64, one at a time."""
    emphasised = np.append(samples[0], samples[1:] - config.preemphasis * samples[:-1].astype(np.float64))
    padded = np.pad(emphasised, config.fft // 2)
    window = np.pad(np.hanning(config.window), (config.fft - config.window) // 2)
    filters = mel_filters(config).astype(np.float64)
    frames = []
    for index in range(len(samples) // config.hop):
        spectrum = np.fft.fft(padded[index * config.hop :][: config.fft] * window)[: config.fft // 2 + 1]
        frames.append(np.log(filters @ np.abs(spectrum) ** 2 + config.log_guard))
    return np.array(frames)


def test_frames_follow_the_definition() -> None:
    """An error here is a model that hears something else than it was trained on."""
    samples = recording(2.03)
    config = MelConfig()
    assert np.abs(log_mel(samples) - by_definition(samples, config)).max() < 2e-4
    telephone = MelConfig(sample_rate=8_000, window=200, hop=80, fft=256, mels=64, high_hz=4_000.0)
    assert np.abs(log_mel(samples, telephone) - by_definition(samples, telephone)).max() < 2e-4


@pytest.mark.parametrize("size", [1, 7, 160, 161, 399, 1280, 20_000])
def test_chunks_of_any_size_give_the_frames_of_the_whole_bit_for_bit(size: int) -> None:
    """A session resumed by replay must reach the same text, so even the last bit may not depend on the cuts."""
    samples = recording(1.237)
    stream = MelStream()
    parts = [stream.push(samples[first : first + size]) for first in range(0, len(samples), size)]
    assert np.array_equal(np.concatenate([*parts, stream.flush()]), log_mel(samples))


def test_frames_come_as_soon_as_their_samples_are_there() -> None:
    """Latency: frame t needs the samples before 160 t + 200, and no more."""
    samples = recording(0.5)
    for count in (199, 200, 359, 360, 1000, 1639, 1640):
        frames = MelStream().push(samples[:count])
        assert len(frames) == max(0, (count - 200) // 160 + 1)


@pytest.mark.parametrize("count", [0, 1, 159, 160, 161, 319, 320, 400])
def test_very_short_recordings_have_as_many_frames_as_whole_hops(count: int) -> None:
    """NeMo counts floor(n / 160) frames; one more or less shifts the end of every utterance."""
    frames = log_mel(recording(1.0)[:count])
    assert frames.shape == (count // 160, 80)
    assert np.isfinite(frames).all()


def test_silence_is_the_guard_and_never_zero() -> None:
    """All-zero frames mean "no audio" to the network, so no real audio may produce one."""
    frames = log_mel(np.zeros(16_000, np.float32))
    assert np.allclose(frames, np.log(2.0**-24))


def test_a_flushed_stream_refuses_more_audio() -> None:
    """Audio after the end would be glued to the padding."""
    stream = MelStream()
    stream.flush()
    with pytest.raises(ValueError, match="flushed"):
        stream.push(np.zeros(10, np.float32))


def test_stereo_is_refused() -> None:
    """Interleaved channels would be heard at half the speed."""
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros((2, 100), np.float32))


def test_long_audio_costs_little() -> None:
    """Features must stay a small part of recognition: a tenth of a second for a minute, generously."""
    samples = recording(60.0)
    log_mel(samples[:16_000])
    began = time.process_time()
    log_mel(samples)
    assert time.process_time() - began < 0.6


@pytest.mark.parametrize(
    "change",
    [{"window": 600}, {"hop": 0}, {"high_hz": 9_000.0}, {"preemphasis": 1.0}, {"log_guard": 0.0}],
)
def test_impossible_sizes_are_refused(change: dict[str, float]) -> None:
    """A config comes out of a file; nonsense must not reach the FFT."""
    with pytest.raises(ValueError, match=r"\w"):
        MelConfig(**change)  # type: ignore[arg-type]
