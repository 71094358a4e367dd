"""Log-mel features in numpy, equal to what NeMo's preprocessor gives in evaluation mode.

A served model hears through this file what the trained model heard through
`AudioToMelSpectrogramPreprocessor`; a difference here is a silent loss of accuracy, so a golden test
holds the two together (2e-4 on the log scale, the rounding of float32). The serving tier then needs
no torch. Every frame is computed by operations that look at that frame alone, in one fixed order:
the frames of a stream are bit for bit the frames of the whole recording, whatever the chunks.

Not covered: per-feature normalisation (it needs the whole recording, so no streaming model uses it)
and dither (off in evaluation mode).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Frames computed at a time: bounds memory on long audio and stays in the processor's cache.
_BLOCK_FRAMES = 512


@dataclass(frozen=True)
class MelConfig:
    """How a model hears: sizes in samples, frequencies in Hz. The defaults are NeMo's for 16 kHz."""

    sample_rate: int = 16_000
    window: int = 400  # 25 ms, symmetric Hann
    hop: int = 160  # 10 ms a frame
    fft: int = 512
    mels: int = 80
    low_hz: float = 0.0
    high_hz: float = 8_000.0
    preemphasis: float = 0.97
    log_guard: float = 2.0**-24  # added before the logarithm, so silence is -16.6 and not minus infinity

    def __post_init__(self) -> None:
        """Refuse sizes that no spectrum can have."""
        if min(self.sample_rate, self.window, self.hop, self.fft, self.mels) < 1:
            raise ValueError("sample_rate, window, hop, fft and mels must be above 0")
        if self.window > self.fft or self.fft % 2:
            raise ValueError(f"fft must be even and hold the window of {self.window} samples, not {self.fft}")
        if not 0 <= self.low_hz < self.high_hz <= self.sample_rate / 2:
            raise ValueError(f"mel range {self.low_hz}-{self.high_hz} Hz does not fit {self.sample_rate} Hz audio")
        if not 0 <= self.preemphasis < 1 or self.log_guard <= 0:
            raise ValueError("preemphasis must lie in [0, 1) and log_guard above 0")

    @property
    def frame_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop / self.sample_rate


def mel_filters(config: MelConfig) -> np.ndarray:
    """Return the triangular filters [mels, fft/2 + 1], Slaney's scale and area normalisation, float32."""
    edges = _mel_to_hz(np.linspace(_hz_to_mel(config.low_hz), _hz_to_mel(config.high_hz), config.mels + 2))
    bins = np.fft.rfftfreq(config.fft, 1.0 / config.sample_rate)
    slopes = edges[:, None] - bins[None, :]
    widths = np.diff(edges)
    rising = -slopes[:-2] / widths[:-1, None]
    falling = slopes[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)


def log_mel(samples: np.ndarray, config: MelConfig | None = None) -> np.ndarray:
    """Return the log-mel frames [samples // hop, mels] (float32) of mono float samples [n] in -1..1.

    Frame t is centred on sample hop * t; what lies outside the recording counts as zero.
    """
    stream = MelStream(config or MelConfig())
    return np.concatenate([stream.push(samples), stream.flush()])


class MelStream:
    """The same frames from audio that comes in chunks of any size.

    `push` returns the frames that the audio so far settles (frame t needs the samples before
    hop * t + window / 2); `flush` ends the recording and returns the rest. Then a new one is needed.
    """

    def __init__(self, config: MelConfig | None = None) -> None:
        """Start at the first sample of a recording."""
        self.config = config or MelConfig()
        self._half = self.config.window // 2
        # Pre-emphasised samples from the first one that a coming frame needs; zeros before the recording.
        self._held = np.zeros(self._half, np.float32)
        self._last = np.float32(0.0)  # the sample before the next one, for pre-emphasis
        self._samples = 0
        self._frames = 0
        self._ended = False

    def push(self, chunk: np.ndarray) -> np.ndarray:
        """Take mono float samples [n]; return the new frames [k, mels], k may be 0."""
        if self._ended:
            raise ValueError("this recording was flushed; start a new MelStream")
        chunk = np.asarray(chunk, dtype=np.float32)
        if chunk.ndim != 1:
            raise ValueError(f"expected mono samples of shape [n], got shape {list(chunk.shape)}")
        if chunk.size:
            previous = np.empty_like(chunk)
            previous[0] = self._last
            previous[1:] = chunk[:-1]
            self._last = chunk[-1]
            self._samples += chunk.size
            self._held = np.concatenate([self._held, chunk - np.float32(self.config.preemphasis) * previous])
        settled = (self._samples - (self.config.window - self._half)) // self.config.hop + 1
        return self._take(min(settled, self._samples // self.config.hop))

    def flush(self) -> np.ndarray:
        """End the recording; return its last frames [k, mels]."""
        self._ended = True
        self._held = np.concatenate([self._held, np.zeros(self.config.window, np.float32)])
        return self._take(self._samples // self.config.hop)

    def _take(self, until: int) -> np.ndarray:
        count = max(0, until - self._frames)
        frames = _frames_of(self._held, count, self.config)
        self._held = self._held[count * self.config.hop :]
        self._frames += count
        return frames


def _frames_of(emphasised: np.ndarray, count: int, config: MelConfig) -> np.ndarray:
    """Return the first `count` frames of samples that begin at the first frame's window."""
    out = np.empty((count, config.mels), np.float32)
    if not count:
        return out
    window, bins, weights, starts, empty = _tables(config)
    windows = np.lib.stride_tricks.sliding_window_view(emphasised, config.window)[:: config.hop]
    for first in range(0, count, _BLOCK_FRAMES):
        last = min(count, first + _BLOCK_FRAMES)
        spectrum = np.fft.rfft(windows[first:last] * window, n=config.fft, axis=1)
        power = spectrum.real * spectrum.real + spectrum.imag * spectrum.imag
        # A filter touches few bins. Summing those, and not a matrix product, keeps each frame's order
        # of additions the same however many frames come at once, and is as fast.
        energy = np.add.reduceat(power[:, bins] * weights, starts, axis=1)
        energy[:, empty] = 0.0
        out[first:last] = np.log(energy + np.float32(config.log_guard))
    return out


@lru_cache(maxsize=8)
def _tables(config: MelConfig) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the window, the bins and weights of all filters in a row, each filter's start, the empty filters."""
    filters = mel_filters(config)
    bins: list[np.ndarray] = []
    starts, empty = [], []
    position = 0
    for index, row in enumerate(filters):
        touched = np.flatnonzero(row)
        if not touched.size:  # narrower than a bin: reduceat needs one entry, which is then zeroed
            touched = np.zeros(1, np.intp)
            empty.append(index)
        bins.append(touched)
        starts.append(position)
        position += touched.size
    owner = np.repeat(np.arange(config.mels), [len(touched) for touched in bins])
    flat = np.concatenate(bins)
    window = np.hanning(config.window).astype(np.float32)
    return window, flat, filters[owner, flat], np.asarray(starts), np.asarray(empty, dtype=np.intp)


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz (15 mel), then 27 mel a factor of 6.4."""
    return hz * 3.0 / 200.0 if hz < 1_000.0 else 15.0 + 27.0 * float(np.log(hz / 1_000.0)) / float(np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    """Undo `_hz_to_mel`."""
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1_000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))
