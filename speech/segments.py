"""Cutting what was said into pieces that a person takes in: at pauses first, then where the gap is widest.

Recognisers write a long word in one frame, mostly at its end, so not all of the gap before it is silence: what the word
takes at the speaker's own pace is taken off. The pace is the median over the words, which pauses do not move.
"""

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from speech.text import spoken_length

if TYPE_CHECKING:
    from speech.transcript import Word

PAUSE_S = 0.6  # a gap between words that a listener hears as a pause
SLOW_LETTER_S = 0.1  # ten letters a second; who leaves more time than that between words is not talking


def phrases(
    words: Sequence["Word"], fits: Callable[[Sequence["Word"]], bool], pause_s: float = PAUSE_S
) -> Iterator[Sequence["Word"]]:
    """Cut words (in order of time) at pauses, and what still does not fit at its widest gap.

    Every word is in exactly one phrase, in order. A single word may be more than fits. `fits` is asked for the first
    words of a phrase, ever more of them, and must not hold again once it did not.
    """
    letter_s = _pace(words)
    first = 0
    for place in range(1, len(words) + 1):
        if place == len(words) or _silence(words[place - 1], words[place], letter_s) > pause_s:
            yield from _shortened(words[first:place], fits)
            first = place


def _pace(words: Sequence["Word"]) -> float:
    """Seconds a letter, from the end of one word to the end of the next."""
    paces = [
        (word.end_s - before.end_s) / max(1, spoken_length(word.text)) for before, word in itertools.pairwise(words)
    ]
    return min(SLOW_LETTER_S, statistics.median(paces)) if paces else 0.0


def _silence(before: "Word", word: "Word", letter_s: float) -> float:
    unwritten_s = letter_s * spoken_length(word.text) - (word.end_s - word.start_s)
    return word.start_s - before.end_s - max(0.0, unwritten_s)


def _shortened(words: Sequence["Word"], fits: Callable[[Sequence["Word"]], bool]) -> Iterator[Sequence["Word"]]:
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
