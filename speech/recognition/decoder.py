"""What every decoder promises: from the encoder's output to tokens, step by step.

A whole recording and a live stream are decoded by the same steps, and where the steps are cut changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speech.recognition.state import State


class PhrasesRefused(ValueError):
    """Phrases were to be preferred by a decoder that cannot; the message says what to do."""


@dataclass(frozen=True)
class Token:
    """A symbol that was said, and the output frames it was said in."""

    symbol: int  # its place in the vocabulary
    first: int  # output frame, counted from the start of the stream
    last: int  # output frame, included
    probability: float  # 0 to 1; the highest in its frames


class Decoder(Protocol):
    """Turns the encoder's output into tokens."""

    def start(self, phrases: Sequence[str] = ()) -> State:
        """The state of one stream before its first output frame.

        phrases: what the speaker is likely to say, as normalised text. Raises PhrasesRefused where the decoder cannot
        prefer them: they are honoured or refused, and never ignored.
        """
        ...

    def step(self, state: State, output: np.ndarray, counts: np.ndarray) -> tuple[State, list[list[Token]]]:
        """Take the next output of the encoder, [streams, frames, width] float32, of which counts [streams] are real.

        Returns the next state, and for each stream the tokens that are now settled, in order: no later output changes
        them, and none is given twice.
        """
        ...

    def pending(self, state: State) -> list[list[Token]]:
        """For each stream what would be settled if it ended here: what partials add, and the end gives."""
        ...
