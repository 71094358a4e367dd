"""CTC decoding: from the log-probabilities of a stream to the pieces that were said, each with its frames."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Piece:
    """A run of output frames on which one symbol is the likeliest."""

    symbol: int
    first: int  # output frame
    last: int  # output frame, included
    probability: float  # the highest in the run


class GreedyCtc:
    """Greedy CTC over a stream of log-probabilities: repeats merge, blanks go (Graves et al., 2006)."""

    def __init__(self, blank_id: int) -> None:
        """Start before output frame 0."""
        self.pieces: list[Piece] = []
        self.frames = 0
        self._blank = blank_id
        self._previous = blank_id

    def push(self, log_probs: np.ndarray) -> None:
        """Take the next output frames [frames, symbols]."""
        symbols = log_probs.argmax(axis=1)
        probabilities = np.exp(log_probs[np.arange(len(symbols)), symbols])
        for offset in np.flatnonzero(symbols != self._blank):
            frame, symbol, probability = self.frames + int(offset), int(symbols[offset]), float(probabilities[offset])
            before = int(symbols[offset - 1]) if offset else self._previous
            if symbol != before:
                self.pieces.append(Piece(symbol, frame, frame, probability))
            else:
                self.pieces[-1].last = frame
                self.pieces[-1].probability = max(self.pieces[-1].probability, probability)
        if len(symbols):
            self.frames += len(symbols)
            self._previous = int(symbols[-1])
