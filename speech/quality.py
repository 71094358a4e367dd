"""Quality of a recording, measured in one pass: what a corpus check refuses and what a slice is named after.

All measures are taken on 16 kHz mono audio, over frames of 20 ms, in memory that does not grow with the recording.

* `rms_dbfs`, `peak_dbfs`: relative to a full-scale square wave, so a full-scale sine measures -3.01 dB RMS.
* `clipping_share`: samples in runs of at least 3 neighbours at or above 0.999 of full scale (what resampling lifts
  above full scale counts too). A recording clipped before it was made quieter is not recognised.
* `silence_share`: frames below -60 dBFS or more than 40 dB under the loud frames (95th percentile). Background noise
  louder than that is not silence, nor is a pause in it: speech detection is another matter.
* `snr_db`: in the manner of NIST's STNR (SPQA package): the histogram of frame powers gives noise as a low percentile
  (10th) and noisy speech as the 95th; `10 log10(speech / noise - 1)`. It is a peak-speech ratio: on read speech with
  white noise at 0 to 20 dB it measured 6 dB above the ratio of mean powers, give or take 0.7. Digitally silent frames
  (below -90 dBFS) are padding and left out. It needs pauses: a steady sound, and speech without a gap, measure low.
  Bounded to [-20, 100].
* `bandwidth_hz`: the highest frequency at which the long-term spectrum (Welch, Hann, 32 ms) holds energy within 50 dB
  of its peak. Narrow-band telephone stays below 4,000 Hz, also after it was upsampled.
* `loudness_lufs`: integrated loudness as EBU R 128 measures it (`speech/loudness.py`).

Silence made of zeros, and no samples at all, measure rms and peak -120 dBFS, SNR 0, clipping 0, silence 1, bandwidth 0,
loudness -70 LUFS.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from speech.audio.mixdown import SAMPLE_RATE, cut_anew
from speech.loudness import SILENT_LUFS, LoudnessMeter

FLOOR_DBFS = -120.0
FRAME_SAMPLES = 320  # 20 ms at 16 kHz

CLIPPING_LEVEL = 0.999
CLIPPING_RUN = 3  # fewer neighbours at full scale happen in honest peaks

SILENCE_DBFS = -60.0
SILENCE_BELOW_LOUD_DB = 40.0
PADDING_DBFS = -90.0

NOISE_PERCENTILE = 10.0
SPEECH_PERCENTILE = 95.0
SNR_BOUNDS_DB = (-20.0, 100.0)

SPECTRUM_SAMPLES = 512  # 32 ms, bins of 31.25 Hz
BANDWIDTH_BELOW_PEAK_DB = 50.0
NARROW_BAND_HZ = 4_200.0  # half of 8 kHz and a few bins of leakage

_BINS_PER_DB = 10
_TOP_DBFS = 45.0  # decoding admits samples to +42 dBFS
_BLOCK_SAMPLES = SAMPLE_RATE * 10


@dataclass(frozen=True)
class Quality:
    """Measures of one recording; every field is finite."""

    duration_s: float
    rms_dbfs: float
    peak_dbfs: float
    snr_db: float
    clipping_share: float  # 0..1 of samples
    silence_share: float  # 0..1 of frames
    bandwidth_hz: float
    loudness_lufs: float | None = None  # None: measured before loudness was

    @property
    def narrow_band(self) -> bool:
        """Whether the recording holds no more than a telephone line carries; silence counts as neither."""
        return 0.0 < self.bandwidth_hz <= NARROW_BAND_HZ


def measure(audio: Iterable[np.ndarray] | np.ndarray) -> Quality:
    """Measure 16 kHz mono audio, given whole or as chunks of any lengths (up to rounding the result is the same).

    Raises:
        ValueError: the audio is not one-dimensional or holds values that are not finite.
    """
    levels = _FrameLevels()
    spectrum = _LongTermSpectrum()
    clipping = _Clipping()
    loudness = LoudnessMeter()
    samples, energy, peak = 0, 0.0, 0.0
    # cut anew, so that no measure depends on how the audio came
    for block in cut_anew([audio] if isinstance(audio, np.ndarray) else audio, _BLOCK_SAMPLES):
        if block.ndim != 1:
            raise ValueError(f"audio has shape {block.shape}; give mono samples of shape [n]")
        squares = np.square(block, dtype=np.float64)
        total = float(squares.sum())
        if not np.isfinite(total):
            raise ValueError("cannot measure samples that are not finite numbers; decode the recording again")
        samples += len(block)
        energy += total
        peak = max(peak, float(block.max()), -float(block.min()))
        levels.add(squares)
        clipping.add(block)
        spectrum.add(block)
        loudness.add(block)
    return Quality(
        duration_s=samples / SAMPLE_RATE,
        rms_dbfs=_dbfs(energy / samples if samples else 0.0),
        peak_dbfs=_dbfs(peak * peak),
        snr_db=levels.snr_db(),
        clipping_share=clipping.samples / samples if samples else 0.0,
        silence_share=levels.silence_share(),
        bandwidth_hz=spectrum.bandwidth_hz(),
        loudness_lufs=loudness.lufs(),
    )


def at_loudness(chunks: Iterable[np.ndarray], measured: Quality, lufs: float) -> Iterator[np.ndarray]:
    """A recording at another integrated loudness, by one gain for all of it.

    What then lies beyond full scale, such as a click, is clipped: it must not keep a recording soft. Silence stays.

    Args:
        chunks: float samples [n].
        measured: what they measure.
        lufs: what they are to measure.
    """
    now = measured.loudness_lufs
    gain_db = 0.0 if now is None or now <= SILENT_LUFS else lufs - now
    for chunk in chunks:
        yield np.clip(chunk * np.float32(10 ** (gain_db / 20)), -1, 1)


def _dbfs(power: float) -> float:
    return max(FLOOR_DBFS, 10 * float(np.log10(max(power, 1e-30))))


class _FrameLevels:
    """Histogram of the levels of 20 ms frames in steps of 0.1 dB; a last shorter frame counts as a frame."""

    def __init__(self) -> None:
        self._counts = np.zeros(int((_TOP_DBFS - FLOOR_DBFS) * _BINS_PER_DB) + 1, dtype=np.int64)

    def add(self, squares: np.ndarray) -> None:
        whole = len(squares) - len(squares) % FRAME_SAMPLES
        powers = squares[:whole].reshape(-1, FRAME_SAMPLES).mean(axis=1)
        if whole < len(squares):
            powers = np.append(powers, squares[whole:].mean())
        steps = (10 * np.log10(np.maximum(powers, 1e-30)) - FLOOR_DBFS) * _BINS_PER_DB
        bins = np.clip(np.floor(steps), 0, len(self._counts) - 1).astype(np.int64)
        self._counts += np.bincount(bins, minlength=len(self._counts))

    def _percentile_dbfs(self, percentile: float) -> float | None:
        """Level of that share of the frames that are not padding; None if there is none."""
        first = int((PADDING_DBFS - FLOOR_DBFS) * _BINS_PER_DB)
        counts = self._counts[first:]
        total = int(counts.sum())
        if not total:
            return None
        index = int(np.searchsorted(np.cumsum(counts), percentile / 100 * total))
        return PADDING_DBFS + (min(index, len(counts) - 1) + 0.5) / _BINS_PER_DB

    def snr_db(self) -> float:
        noise, speech = self._percentile_dbfs(NOISE_PERCENTILE), self._percentile_dbfs(SPEECH_PERCENTILE)
        if noise is None or speech is None:
            return 0.0
        ratio = 10 ** ((speech - noise) / 10) - 1
        low, high = SNR_BOUNDS_DB
        return float(np.clip(10 * np.log10(max(ratio, 1e-30)), low, high))

    def silence_share(self) -> float:
        total = int(self._counts.sum())
        loud = self._percentile_dbfs(SPEECH_PERCENTILE)
        if not total or loud is None:
            return 1.0
        threshold = max(SILENCE_DBFS, loud - SILENCE_BELOW_LOUD_DB)
        below = round((threshold - FLOOR_DBFS) * _BINS_PER_DB)
        return float(self._counts[:below].sum() / total)


class _Clipping:
    """Samples in runs of neighbours at full scale; a run may cross blocks."""

    def __init__(self) -> None:
        self.samples = 0
        self._open = 0  # length of the run that the last block ended in; a counted one goes on with CLIPPING_RUN

    def add(self, block: np.ndarray) -> None:
        full = np.concatenate((np.ones(self._open, bool), np.abs(block) >= CLIPPING_LEVEL))
        edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
        lengths = edges[1::2] - edges[::2]
        counted = self._open if self._open >= CLIPPING_RUN else 0
        self.samples += int(lengths[lengths >= CLIPPING_RUN].sum()) - counted
        self._open = min(int(lengths[-1]), CLIPPING_RUN) if full[-1] else 0


class _LongTermSpectrum:
    """Mean power spectrum over half-overlapping windows; a recording shorter than one window is padded."""

    def __init__(self) -> None:
        self._window = np.hanning(SPECTRUM_SAMPLES).astype(np.float32)
        self._power = np.zeros(SPECTRUM_SAMPLES // 2 + 1)
        self._tail = np.zeros(0, dtype=np.float32)
        self._windows = 0

    def add(self, block: np.ndarray) -> None:
        samples = np.concatenate((self._tail, block.astype(np.float32, copy=False)))
        hop = SPECTRUM_SAMPLES // 2
        count = (len(samples) - hop) // hop
        if count > 0:
            windows = np.lib.stride_tricks.sliding_window_view(samples, SPECTRUM_SAMPLES)[: count * hop : hop]
            self._accumulate(windows)
            samples = samples[count * hop :]
        self._tail = samples.copy()

    def _accumulate(self, windows: np.ndarray) -> None:
        for start in range(0, len(windows), 256):
            bins = np.fft.rfft(windows[start : start + 256] * self._window, axis=1)
            self._power += (np.square(bins.real) + np.square(bins.imag)).sum(axis=0, dtype=np.float64)
        self._windows += len(windows)

    def bandwidth_hz(self) -> float:
        if not self._windows:
            short = np.zeros(SPECTRUM_SAMPLES, dtype=np.float32)
            short[: len(self._tail)] = self._tail
            self._accumulate(short[None])
        power = self._power.copy()
        power[:2] = 0.0  # an offset of the converter and its leakage are no sound
        if not power.max() > 0:
            return 0.0
        held = np.flatnonzero(power >= power.max() * 10 ** (-BANDWIDTH_BELOW_PEAK_DB / 10))
        return float(held[-1] * SAMPLE_RATE / SPECTRUM_SAMPLES)
