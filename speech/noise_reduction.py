"""Noise taken out of a recording by spectral gating (Sainburg 2020, the library `noisereduce`).

What people like to hear is not what a recogniser hears best: noise reduction tends to make transcripts worse
(`benchmarks/noise_reduction.py` measures it for a champion). So nothing here is done unless a setting asks.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from speech.audio.mixdown import SAMPLE_RATE, cut_anew

_BLOCK = 30 * SAMPLE_RATE  # samples worked on at once
_MARGIN = 4 * SAMPLE_RATE  # heard on both sides: twice the time over which the method follows the noise


def reduced(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """A recording with less noise, as many float32 samples [n] of 16 kHz as came, in bounded memory."""
    from noisereduce import reduce_noise

    before = block = np.zeros(0, np.float32)
    for following in chain(cut_anew(chunks, _BLOCK), [np.zeros(0, np.float32)]):
        if len(block):
            heard = np.concatenate((before, block, following[:_MARGIN]))
            quiet = reduce_noise(y=heard, sr=SAMPLE_RATE, stationary=False, n_jobs=1)
            yield quiet[len(before) :][: len(block)].astype(np.float32)
            before = block[-_MARGIN:]
        block = following
