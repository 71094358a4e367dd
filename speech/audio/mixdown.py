"""From blocks of frames to 16 kHz mono.

One channel is taken where it is asked for, each where all are. Otherwise several channels become their mean. Channels
in opposite phase would erase each other, so every half second whose mean holds less than a tenth of the energy that
unrelated channels of that loudness would give takes its loudest channel instead, cross-faded over 10 ms. Partial
cancellation at some frequencies is not noticed.
"""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import soxr

from speech.audio.decoders import Block, blocks
from speech.audio.source import AudioError, AudioLimits, OpenAudio

SAMPLE_RATE = 16_000  # Hz; what every model of the platform listens to
RESAMPLER_QUALITY = "HQ"  # soxr: 20 bit precision, passband to 0.91 of the lower Nyquist frequency

_MIX_BLOCK_S = 0.5  # the mixdown is decided anew for each such stretch of source audio
_MIX_FADE_S = 0.010
_CANCELLED = 0.1  # mean / expected energy under which channels count as cancelling; above twice this the mean is back
_LOUDEST_PLAUSIBLE = 128.0  # +42 dBFS; float files beyond it are scaled as integers or damaged


def resampled(recording: OpenAudio, limits: AudioLimits, channel: int | None = None) -> Iterator[np.ndarray]:
    """Mono pieces at 16 kHz; a change of rate or channels inside the recording starts a new mixdown and resampler.

    `channel`, counted from 0, is cut out alone; None mixes all.
    """
    delivered = 0
    accepted = _accepted(recording, limits, channel)
    for (rate, channels), stretch in itertools.groupby(accepted, key=lambda found: (found[1], found[0].shape[1])):
        for piece in _Line(recording, rate, channels).heard(block for block, _ in stretch):
            delivered += len(piece)
            yield piece
    if not delivered:
        raise _nothing_in(recording)


def resampled_with_channels(recording: OpenAudio, limits: AudioLimits) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pieces of the mono that `resampled` gives, [n], each with those of the channels, [m, channels]; all at 16 kHz."""
    delivered = 0
    accepted = _accepted(recording, limits, None)
    for (rate, channels), stretch in itertools.groupby(accepted, key=lambda found: (found[1], found[0].shape[1])):
        apart = _Resampler(rate, channels)
        line = _Line(recording, rate, channels)
        for block in cut_anew((block for block, _ in stretch), line.size):
            mono = line.through(block)
            delivered += len(mono)
            yield mono, apart.through(line.plausible(block))
        mono = line.through(line.nothing, last=True)
        delivered += len(mono)
        yield mono, apart.through(line.nothing, last=True)
    if not delivered:
        raise _nothing_in(recording)


def cut_anew(pieces: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same frames in pieces of `size`, the last one shorter but never empty."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        for start in range(0, len(piece), size):  # a whole recording in one piece is not copied at once
            held.append(piece[start : start + size])
            count += len(held[-1])
            if count >= size:
                joined = np.concatenate(held)
                yield joined[:size]
                held, count = [joined[size:]], count - size
    if count:
        yield np.concatenate(held)


def _nothing_in(recording: OpenAudio) -> AudioError:
    return recording.refuse("empty", "holds less than one sample at 16 kHz; deliver it again")


def _accepted(recording: OpenAudio, limits: AudioLimits, channel: int | None) -> Iterator[Block]:
    """The blocks of a recording, or of one of its channels, within the limits."""
    seconds, decoded_bytes = 0.0, 0
    for block, rate in blocks(recording, limits):
        seconds += len(block) / rate
        decoded_bytes += block.size * 4
        if seconds > limits.max_duration_s:
            raise recording.refuse("too-long", f"is longer than the limit of {limits.max_duration_s:,.0f} s; split it")
        if decoded_bytes > limits.max_decoded_bytes:
            raise recording.refuse(
                "too-large", f"decodes to more than the limit of {limits.max_decoded_bytes:,} bytes; split it"
            )
        if channel is not None and not 0 <= channel < block.shape[1]:
            raise recording.refuse(
                "no-such-channel",
                f"has no channel {channel}: it holds {block.shape[1]}, counted from 0; "
                "correct the channel at the source",
            )
        yield block if channel is None else block[:, channel : channel + 1], rate


class _Resampler:
    """One stretch of constant rate to 16 kHz, any number of channels side by side."""

    def __init__(self, rate: int, channels: int) -> None:
        self.unchanged = rate == SAMPLE_RATE
        self._stream = (
            None if self.unchanged else soxr.ResampleStream(rate, SAMPLE_RATE, channels, "float32", RESAMPLER_QUALITY)
        )

    def through(self, samples: np.ndarray, last: bool = False) -> np.ndarray:
        """Samples [n] or [n, channels] as far as they can be given by now, in the same form."""
        return samples if self._stream is None else self._stream.resample_chunk(samples, last=last)


class _Line:
    """Mixdown and resampler of one stretch of constant rate and channel count.

    Works on blocks of half a second of source audio counted from the stretch's start, so that the result does not
    depend on how decoders cut their frames.
    """

    def __init__(self, recording: OpenAudio, rate: int, channels: int) -> None:
        self.channels = channels
        self.size = max(1, round(rate * _MIX_BLOCK_S))
        self.nothing = np.zeros((0, channels), np.float32)
        self._recording = recording
        self._fade = np.linspace(0, 1, max(1, round(rate * _MIX_FADE_S)), dtype=np.float32)
        self._channel: int | None = None  # None: the mean of all
        self._resampler = _Resampler(rate, 1)

    def heard(self, stretch: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Mono pieces at 16 kHz of the stretch, whose blocks are float32 [frames, channels]."""
        unchanged = self.channels == 1 and self._resampler.unchanged
        for block in stretch if unchanged else cut_anew(stretch, self.size):
            yield self.through(block)
        yield self.through(self.nothing, last=True)

    def through(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """Mono at 16 kHz of a block, which has `size` frames unless it is the last one."""
        return self._resampler.through(self.plausible(self._mix(block)), last)

    def plausible(self, samples: np.ndarray) -> np.ndarray:
        """The samples, if they can be sound."""
        if samples.size and not max(samples.max(), -samples.min()) <= _LOUDEST_PLAUSIBLE:  # also false for NaN
            raise self._recording.refuse(
                "unreadable",
                f"holds samples that are not numbers or lie far outside [-1, 1] (above {_LOUDEST_PLAUSIBLE:g}); "
                "it is damaged or wrongly scaled: export it again",
            )
        return samples

    def _mix(self, block: np.ndarray) -> np.ndarray:
        if self.channels == 1 or not len(block):
            return np.ascontiguousarray(block[:, 0])
        before, self._channel = self._channel, self._choose(block)
        mono = _mixed(block, self._channel)
        if before != self._channel:
            faded = min(len(self._fade), len(mono))
            ramp = self._fade[:faded]
            mono[:faded] = ramp * mono[:faded] + (1 - ramp) * _mixed(block[:faded], before)
        return mono

    def _choose(self, block: np.ndarray) -> int | None:
        """None for the mean, or the channel that stands in for channels which cancel each other."""
        energy = np.array([np.square(block[:, c]).sum(dtype=np.float64) for c in range(self.channels)])
        expected = energy.sum() / self.channels**2  # of the mean, were the channels unrelated
        if not expected > 0:
            return self._channel
        kept = np.square(_mixed(block, None)).sum(dtype=np.float64) / expected
        # Twice the threshold to go back, and 3 dB to change the channel: no flicker between near equals.
        if not kept < (_CANCELLED if self._channel is None else 2 * _CANCELLED):
            return None
        loudest = int(energy.argmax())
        if self._channel is not None and energy[self._channel] > 0.5 * energy[loudest]:
            return self._channel
        return loudest


def _mixed(block: np.ndarray, channel: int | None) -> np.ndarray:
    if channel is not None:
        return block[:, channel].copy()
    mean = block[:, 0] + block[:, 1]
    for c in range(2, block.shape[1]):
        mean += block[:, c]
    mean *= np.float32(1 / block.shape[1])
    return mean
