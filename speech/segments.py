"""Cutting what was said into pieces that a person takes in: at pauses first, then where the gap is widest."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

PAUSE_S = 0.6  # a gap between words that a listener hears as a pause


class Timed(Protocol):
    """Anything with a start and an end in seconds."""

    @property
    def start_s(self) -> float:
        """Where it begins."""
        ...

    @property
    def end_s(self) -> float:
        """Where it ends."""
        ...


T = TypeVar("T", bound=Timed)


def phrases(words: Sequence[T], fits: Callable[[Sequence[T]], bool], pause_s: float = PAUSE_S) -> Iterator[Sequence[T]]:
    """Cut words (in order of time) at pauses, and what still does not fit at its widest gap.

    Every word is in exactly one phrase, in order. A single word may be more than fits. `fits` is asked for the first
    words of a phrase, ever more of them, and must not hold again once it did not.
    """
    first = 0
    for place in range(1, len(words) + 1):
        if place == len(words) or words[place].start_s - words[place - 1].end_s > pause_s:
            yield from _shortened(words[first:place], fits)
            first = place


def _shortened(words: Sequence[T], fits: Callable[[Sequence[T]], bool]) -> Iterator[Sequence[T]]:
    """One phrase, or several cut at the widest gap in the later half of what may go together."""
    while words:
        fitting = 1
        while fitting < len(words) and fits(words[: fitting + 1]):
            fitting += 1
        cut = fitting
        if fitting < len(words):
            half = max(1, fitting // 2)
            cut = max(range(half, fitting + 1), key=lambda at: (words[at].start_s - words[at - 1].end_s, at))
        yield words[:cut]
        words = words[cut:]
