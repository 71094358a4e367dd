"""Calls with a speaker per channel and scenes in stereo, made of any speech, with the truth of who speaks when."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve

RATE = 16_000
FADE_S = 0.1  # of the tail of an echo


@dataclass(frozen=True)
class Call:
    """Two channels, and where each person speaks."""

    samples: np.ndarray  # float32 [n, 2]
    speaking: np.ndarray  # bool [n, 2]: the person of that channel


def turns(
    speech: Sequence[Sequence[np.ndarray]], draw: np.random.Generator, count: int = 6, overlap_share: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Two people in turn, some begun before the other has ended: float32 [n, 2] each alone, and bool [n, 2]."""
    placed, at = [], 0.5
    for turn in range(count):
        said = speech[turn % 2][draw.integers(len(speech[turn % 2]))]
        begins = at - draw.uniform(0.3, 1.0) if turn and draw.random() < overlap_share else at + draw.uniform(0.1, 0.8)
        placed.append((turn % 2, max(0, round(begins * RATE)), said))
        at = begins + len(said) / RATE
    alone = np.zeros((round((at + 1.0) * RATE), 2), np.float32)
    speaking = np.zeros(alone.shape, bool)
    for who, start, said in placed:
        alone[start : start + len(said), who] += 0.1 * said / np.sqrt(np.mean(said**2))
        speaking[start : start + len(said), who] |= audible(said)
    return alone, speaking


def audible(said: np.ndarray) -> np.ndarray:
    """Where an utterance is louder than 30 dB under its loudest tenth of a second, bool [n]."""
    power = np.convolve(said**2, np.ones(RATE // 10) / (RATE // 10), "same")
    return power > power.max() * 1e-3


def room(draw: np.random.Generator, delay_s: float, decay_s: float = 0.15, direct_db: float = 6.0) -> np.ndarray:
    """An impulse response of power 1: a delay, then a direct sound and a decaying tail (Polack's model)."""
    tail = draw.standard_normal(round(decay_s * RATE)) * np.exp(
        -6.9 * np.arange(round(decay_s * RATE)) / decay_s / RATE
    )
    tail *= 10 ** (-direct_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    return np.concatenate([np.zeros(round(delay_s * RATE)), tail / np.sqrt(np.sum(tail**2))])


def call(
    speech: Sequence[Sequence[np.ndarray]],
    draw: np.random.Generator,
    leak_db: float | None = None,
    delay_s: float = 0.02,
    gains_db: tuple[float, float] = (0.0, 0.0),
    noise_db: float = -60.0,
    count: int = 6,
) -> Call:
    """A speaker a channel; `leak_db` of each (under its talker) is heard on the other channel, through a room."""
    alone, speaking = turns(speech, draw, count)
    samples = alone.copy()
    if leak_db is not None:
        for who in range(2):
            leak = fftconvolve(alone[:, who], room(draw, delay_s))[: len(alone)]
            samples[:, 1 - who] += 10 ** (leak_db / 20) * leak
    samples *= 10 ** (np.array(gains_db) / 20)
    return Call(_noisy(samples, draw, noise_db), speaking)


def scene(
    speech: Sequence[Sequence[np.ndarray]],
    draw: np.random.Generator,
    pan_db: float = 3.0,
    spaced_s: float = 0.0,
    noise_db: float = -60.0,
    count: int = 6,
) -> np.ndarray:
    """Both people before one pair of microphones, float32 [n, 2]: each louder by `pan_db` on a side, which the sound
    reaches `spaced_s` sooner, and through a room of its own where that is not 0."""
    alone, _ = turns(speech, draw, count)
    samples = np.zeros(alone.shape)
    for who in range(2):
        for side in range(2):
            far = side != who
            path = room(draw, far * spaced_s) if spaced_s else np.ones(1)
            heard = fftconvolve(alone[:, who], path)[: len(alone)]
            samples[:, side] += 10 ** ((-pan_db if far else 0.0) / 20) * heard
    return _noisy(samples, draw, noise_db)


def _noisy(samples: np.ndarray, draw: np.random.Generator, noise_db: float) -> np.ndarray:
    noisy = samples + 10 ** (noise_db / 20) * draw.standard_normal(samples.shape)
    return (noisy / max(1.0, 1.05 * np.abs(noisy).max())).astype(np.float32)
