"""What a network or a decoder remembers of streams: plain arrays, and nothing else.

So rows of different streams can be put together into one batch and taken apart, saved, and moved to another process,
which goes on as if nothing had happened.
"""

from collections.abc import Sequence

import numpy as np

State = tuple[np.ndarray, ...]  # of one or more streams, which are the first axis of every array


def take(state: State, streams: Sequence[int]) -> State:
    """The state of these streams, in this order."""
    return tuple(array[list(streams)] for array in state)


def joined(states: Sequence[State]) -> State:
    """One state of all the streams of several, at least one, in order."""
    return tuple(np.concatenate(arrays) for arrays in zip(*states, strict=True))
