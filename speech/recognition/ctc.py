"""Greedy CTC: on each output frame the likeliest symbol; repeats merge, blanks go (Graves et al., 2006)."""

from collections.abc import Sequence

import numpy as np

from speech.recognition.decoder import PhrasesRefused, Token
from speech.recognition.state import State


class GreedyCtc:
    """A `Decoder` of log-probabilities [streams, frames, symbols].

    Its state is, of each stream: the output frames so far (int64), and the symbol of the last one (int64), since which
    frame (int64) and with which highest probability (float32). A symbol is settled as soon as another one, or the
    blank, follows.
    """

    def __init__(self, blank_id: int) -> None:
        self._blank = blank_id

    def start(self, phrases: Sequence[str] = ()) -> State:
        """See `Decoder`; phrases are refused, since nothing is weighed against anything here."""
        if phrases:
            raise PhrasesRefused(
                "this model's decoder takes the likeliest symbol of each moment and cannot prefer phrases: "
                "leave them out, or serve a model whose decoder can"
            )
        return np.zeros(1, np.int64), np.full(1, self._blank, np.int64), np.zeros(1, np.int64), np.zeros(1, np.float32)

    def step(self, state: State, output: np.ndarray, counts: np.ndarray) -> tuple[State, list[list[Token]]]:
        """See `Decoder`."""
        state = tuple(array.copy() for array in state)
        settled: list[list[Token]] = [[] for _ in counts]
        for row, (log_probs, count) in enumerate(zip(output, counts, strict=True)):
            if not count:
                continue
            frames, symbol, first, probability = (array[row] for array in state)
            symbols = log_probs[:count].argmax(axis=1)
            probabilities = np.exp(log_probs[np.arange(count), symbols])
            begins = np.flatnonzero(np.diff(symbols, prepend=-1))  # where a run of one symbol begins
            highest = np.maximum.reduceat(probabilities, begins)
            for begin, most in zip(begins, highest, strict=True):
                if symbols[begin] == symbol:  # only at the cut: it goes on
                    probability = max(probability, most)
                    continue
                settled[row] += self._token(symbol, first, frames + begin, probability)
                symbol, first, probability = symbols[begin], frames + begin, most
            for array, value in zip(state, (frames + count, symbol, first, probability), strict=True):
                array[row] = value
        return state, settled

    def pending(self, state: State) -> list[list[Token]]:
        """See `Decoder`."""
        return [self._token(symbol, first, frames, most) for frames, symbol, first, most in zip(*state, strict=True)]

    def _token(self, symbol: int, first: int, end: int, probability: float) -> list[Token]:
        """The token of a run of frames, its end not included; none for blanks."""
        return [] if symbol == self._blank else [Token(int(symbol), int(first), int(end) - 1, float(probability))]
