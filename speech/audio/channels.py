"""Whether the channels of a recording hold different speakers, and where one of them holds only what leaked.

A call is delivered with a speaker per channel, an interview as stereo of one scene, and no header tells them apart.
What does is who leads. Where channels have speakers of their own, whoever speaks is far louder on one channel, and each
channel leads at some time; where a scene is recorded in stereo, the same voice is on both at about the same level. So
sound that is on several channels within 9 dB is *shared*, sound that is on one alone *leads*, and the channels are
apart where more of it leads than is shared. The 9 dB lie between voices that a scene has 6 dB to a side and crosstalk
of -12 dB, which `benchmarks/channels.py` both tells right, and measures how often. A channel that never leads is dead:
it holds nothing, or nothing but the echo of others. Lines differ in their gain, so the same is asked of channels that
are brought to one loudness, and where that tells more people apart, they are.

What leaks is told by its coherence with the channel that it leaked from (Carter 1987, "Coherence and time delay
estimation"): the share of a channel's energy that a linear filter could make of the other channel, after the delay of
the path was found by generalised cross-correlation with phase transform (Knapp and Carter 1976). A person who speaks
meanwhile shares no waveform with the other channel, and is not taken for an echo unless far softer than it. The work
grows with the pairs of channels that lead.

Not covered: an echo that a codec has changed beyond linear filters, or that comes later than 0.6 s; two people on one
channel, who are for a diarisation to tell apart.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speech.audio.mixdown import SAMPLE_RATE

WINDOW = 512  # samples of one decision, 32 ms: as speech detection counts them
LEAD = 8.0  # in power, 9 dB
LIVE_S = 0.3  # a channel that leads for less in all is dead; the shortest "yes" takes as long

_NOISE_PERCENTILE = 10.0  # of a channel's windows are taken for its noise, whose mean is about twice as strong
_QUIETEST = 1e-7  # -70 dBFS: below it nobody speaks
_SPEECH_BINS = slice(6, 110)  # 190 to 3,400 Hz, ITU-T G.712: no hum of the mains, and all that a telephone carries
_LOUD_PERCENTILE = 95.0
_SMOOTHED = 5  # windows, 0.16 s: a syllable
_ECHO_WINDOWS = (16, 3)  # before and after a window, in which its sound may be loud elsewhere: 0.5 s and 0.1 s

_AS_LOUD = 1.25  # in power, 1 dB: between channels that differ by less, nobody can say which one leaked
_FAR_LOUDER = 4.0  # in power, 6 dB: beside an echo, what is softer than that belongs to it
_COHERENT = 0.5  # share of its energy that an echo has from the other channel
_THE_SAME = 0.8  # where the other is hardly louder: somebody may speak here, too
_COHERENCE_WINDOWS = 25  # 0.8 s over which coherence is told
_BY_CHANCE = 0.1  # the share that unrelated sound shows over as many, half of which overlap
_REACH_WINDOWS = 8  # from the middle of those to windows that they speak for
_COHERENCE_BINS = slice(13, 218)  # 200 to 3,400 Hz again, of windows twice as long
_BLOCK_WINDOWS = 960  # worked on at once: 31 s
_MARGIN_WINDOWS = 32  # heard on both sides of a block, 1 s
_DELAYS_S = (-0.05, 0.6)  # of an echo: across a table, and around a network
_DELAY_SAMPLES = SAMPLE_RATE  # over which a delay is told
_FORGET = 0.5  # of what former blocks said of the delay: jitter buffers change it


@dataclass(frozen=True)
class Span:
    """A part of a recording, in seconds from its start."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Apart:
    """A channel that is listened to alone."""

    channel: int  # counted from 0
    echoes: tuple[Span, ...]  # where it holds only what leaked from others; in order, apart from each other


def channels_apart(paths: Sequence[Path]) -> tuple[Apart, ...]:
    """The channels that are to be heard each alone; none where they are one scene and are to be mixed.

    One alone is the only one of a recording that holds anything.

    Args:
        paths: the channels, in order, as 16 kHz mono files of one length.
    """
    power = levels(paths)
    live = _live(power)
    return tuple(Apart(channel, _echoes(channel, live, paths)) for channel in live)


def every_channel(paths: Sequence[Path]) -> tuple[Apart, ...]:
    """All channels, each alone, whatever they hold."""
    everyone = list(range(len(paths)))
    return tuple(Apart(channel, _echoes(channel, everyone, paths)) for channel in everyone)


def levels(paths: Sequence[Path]) -> np.ndarray:
    """The power of each window of each channel in the band of speech, float [windows, channels].

    An hour of stereo takes 1.8 MB.
    """
    return np.stack([np.concatenate([np.zeros(0), *_powers(path)]) for path in paths], axis=1)


def _powers(path: Path) -> Iterator[np.ndarray]:
    taper = np.hanning(WINDOW).astype(np.float32)
    scale = 2 / (WINDOW * np.square(taper).sum())
    for block in soundfile.blocks(path, WINDOW * _BLOCK_WINDOWS, dtype="float32"):
        windows = np.pad(block, (0, -len(block) % WINDOW)).reshape(-1, WINDOW)
        yield np.square(np.abs(np.fft.rfft(windows * taper)[:, _SPEECH_BINS])).sum(axis=1) * scale


def _live(power: np.ndarray) -> list[int]:
    """The channels that lead, if more leads than is shared, whatever gain the lines have."""
    floors = np.array([_floor(channel) for channel in power.T])
    smooth = np.stack([np.convolve(channel, np.ones(_SMOOTHED) / _SMOOTHED, "same") for channel in power.T], axis=1)
    loud = np.where(smooth > 2 * floors, smooth, 0.0)
    as_is = _leading(loud, floors)
    gains = np.array([np.percentile(some[some > 0], _LOUD_PERCENTILE) if some.any() else 1.0 for some in loud.T])
    alike = _leading(loud / gains, floors / gains)
    return alike if len(alike) > max(1, len(as_is)) else as_is


def _leading(loud: np.ndarray, floors: np.ndarray) -> list[int]:
    """The channels that lead, if more leads than is shared; what noise hides is not taken to be absent."""
    leads = [_leads(channel, loud, np.maximum(loud, floors)) for channel in range(loud.shape[1])]
    close = (loud * LEAD > loud.max(axis=1, keepdims=True)) & (loud > 0)
    if np.sum(leads) <= (close.sum(axis=1) > 1).sum():
        return []
    around = np.maximum(_loudest_around(loud), floors)
    live_windows = [_leads(channel, loud, around).sum() for channel in range(loud.shape[1])]
    return [channel for channel, windows in enumerate(live_windows) if windows * WINDOW >= LIVE_S * SAMPLE_RATE]


def _leads(channel: int, loud: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The windows in which a channel is far louder than all others, bool [windows]."""
    found: np.ndarray = loud[:, channel] > LEAD * np.delete(others, channel, axis=1).max(axis=1)
    return found


def _floor(power: np.ndarray) -> float:
    """The power of a channel's noise, at its loudest."""
    return max(_QUIETEST, 2 * float(np.percentile(power, _NOISE_PERCENTILE))) if len(power) else _QUIETEST


def _loudest_around(power: np.ndarray) -> np.ndarray:
    """Of each channel, the most power that a window's sound can be an echo of."""
    before, after = _ECHO_WINDOWS
    padded = np.pad(power, ((before, after), (0, 0)))
    return np.lib.stride_tricks.sliding_window_view(padded, before + after + 1, axis=0).max(axis=-1)


def _echoes(channel: int, live: Sequence[int], paths: Sequence[Path]) -> tuple[Span, ...]:
    """Where a channel holds only what leaked from the other live ones."""
    marks = [_leaked(paths[other], paths[channel], other < channel) for other in live if other != channel]
    if not marks:
        return ()
    edges = np.flatnonzero(np.diff(np.any(marks, axis=0), prepend=False, append=False)) * WINDOW / SAMPLE_RATE
    return tuple(Span(float(start), float(end)) for start, end in zip(edges[::2], edges[1::2], strict=True))


def _leaked(source: Path, target: Path, source_first: bool) -> np.ndarray:
    """The windows of `target` that hold what leaked from `source`, bool [windows].

    What is as loud on both, such as an announcement that both hear, is the first channel's.
    """
    louder = 1 / _AS_LOUD if source_first else _AS_LOUD
    correlation = np.zeros(_DELAY_SAMPLES + 1, np.complex128)
    marks = []
    for ours, theirs, windows in _both(target, source):
        correlation = _FORGET * correlation + _phases(theirs, ours, louder)
        aligned = _delayed(theirs, _delay(correlation))
        marks.append(_is_echo(aligned, ours, louder)[_MARGIN_WINDOWS:][:windows])
    return np.concatenate(marks)


def _both(first: Path, second: Path) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Blocks of both files, with a margin on each side, and how many windows lie between the margins."""
    margin, block = _MARGIN_WINDOWS * WINDOW, _BLOCK_WINDOWS * WINDOW
    with ExitStack() as stack:
        files = [stack.enter_context(soundfile.SoundFile(path)) for path in (first, second)]
        heard = np.zeros((2, margin), np.float32)
        for start in range(0, files[0].frames, block):
            more = 2 * margin + block - heard.shape[1]
            following = [file.read(more, dtype="float32", fill_value=0.0) for file in files]
            heard = np.concatenate((heard, following), axis=1)
            yield heard[0], heard[1], -(-min(block, files[0].frames - start) // WINDOW)
            heard = heard[:, block:]


def _phases(source: np.ndarray, target: np.ndarray, louder: float) -> np.ndarray:
    """The cross-spectrum of both, only its phases, summed over the seconds in which the source is so much louder."""
    total = np.zeros(_DELAY_SAMPLES + 1, np.complex128)
    for start in range(0, len(source) - _DELAY_SAMPLES + 1, _DELAY_SAMPLES):
        theirs, ours = (some[start : start + _DELAY_SAMPLES] for some in (source, target))
        if np.square(theirs).mean() > max(_QUIETEST, louder * np.square(ours).mean()):
            cross = np.fft.rfft(ours, 2 * _DELAY_SAMPLES) * np.fft.rfft(theirs, 2 * _DELAY_SAMPLES).conj()
            total += cross / np.maximum(np.abs(cross), 1e-12)
    return total


def _delay(correlation: np.ndarray) -> int:
    """By how many samples what leaks comes later."""
    earliest, latest = (round(at * SAMPLE_RATE) for at in _DELAYS_S)
    lags = np.arange(earliest, latest + 1)
    return int(lags[np.argmax(np.abs(np.fft.irfft(correlation)[lags]))])


def _delayed(samples: np.ndarray, by: int) -> np.ndarray:
    moved = np.zeros_like(samples)
    moved[max(0, by) : len(samples) + min(0, by)] = samples[max(0, -by) : len(samples) - max(0, by)]
    return moved


def _is_echo(source: np.ndarray, target: np.ndarray, louder: float) -> np.ndarray:
    """The windows of `target` that are coherent with `source`, which is so much louder; samples are aligned."""
    ours, theirs = _spectra(target), _spectra(source)
    cross = _averaged(ours * theirs.conj())
    our_power, their_power = _averaged(np.square(np.abs(ours))), _averaged(np.square(np.abs(theirs)))
    from_theirs = (np.square(np.abs(cross)) / np.maximum(their_power, 1e-12)).sum(axis=1)
    at_once = np.square(np.abs(ours)).sum(axis=1)
    all_ours = our_power.sum(axis=1)
    over_noise = all_ours - np.percentile(at_once[at_once > 0], _NOISE_PERCENTILE) if at_once.any() else all_ours
    all_theirs = their_power.sum(axis=1)
    needed = np.where(all_theirs > _FAR_LOUDER * all_ours, _COHERENT, _THE_SAME) * over_noise
    coherent = (from_theirs - _BY_CHANCE * all_ours > needed) & (all_theirs > louder * all_ours)
    reached = np.convolve(coherent, np.ones(2 * _REACH_WINDOWS + 1), "same") > 0.5
    softer = np.square(np.abs(theirs)).sum(axis=1) > _FAR_LOUDER * at_once
    return reached & (coherent | softer)


def _spectra(samples: np.ndarray) -> np.ndarray:
    """Of twice the length of each window around its middle, complex64 [windows, bins]."""
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW)[::WINDOW]
    return np.fft.rfft(frames * np.hanning(2 * WINDOW).astype(np.float32), axis=1)[:, _COHERENCE_BINS].astype(
        np.complex64
    )


def _averaged(values: np.ndarray) -> np.ndarray:
    """Running means over `_COHERENCE_WINDOWS` rows, as many rows as before."""
    half = _COHERENCE_WINDOWS // 2
    sums = np.cumsum(np.pad(values, ((half + 1, half), (0, 0))), axis=0, dtype=np.result_type(values, np.float64))
    return (sums[_COHERENCE_WINDOWS:] - sums[:-_COHERENCE_WINDOWS]) / _COHERENCE_WINDOWS
