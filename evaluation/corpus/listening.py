"""Whether transcripts belong to their audio, told by a model that listens: it hears what lengths cannot show.

Where transcripts moved by a row or a few, what a model hears in an audio fits the transcript of a neighbour better than
the row's own. How often that happens in good rows depends on the model and on how alike texts are, so each row is
also compared with as many transcripts from elsewhere in the partition: in good rows one is as likely as the other to
fit better. The rows in which only one of the two does are coin tosses then, which bounds false alarms at any size.

It costs no hearing of its own where an evaluation has heard the rows, and 12 comparisons of short texts a row. A run
is found as soon as some 14 of its rows were heard, and the model got the most of their words right.

Not covered: neighbours that say nearly the same as each other in rows that the model mishears; they count as moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.corpus.alignment import MOVES
from speech.corpus.manifest import Utterance
from speech.text import normalize

FITS = 0.5  # character error rate: a transcript that shares no more than this with what was heard is another one


@dataclass(frozen=True)
class Misplaced:
    """What listening found."""

    heard: int  # rows
    neighbours: tuple[str, ...]  # ids of the rows whose audio fits a neighbour's transcript better, as delivered
    elsewhere: int  # rows whose audio fits a transcript from elsewhere better
    found: bool

    @property
    def explanation(self) -> str:
        """In one sentence, for people."""
        beside = f"{len(self.neighbours)} of {self.heard} utterances heard fit the transcript of a row nearby better"
        elsewhere = f"{self.elsewhere} one from elsewhere"
        if not self.found:
            return f"{beside} than their own, {elsewhere}: no more than chance."
        return (
            f"{beside} than their own, {elsewhere}: transcripts moved against their audio between {self.neighbours[0]} "
            f"and {self.neighbours[-1]}; compare them by ear and export again."
        )


def misplaced(
    delivered: Sequence[Utterance], heard: Mapping[str, str], language: str, alarm_rate: float, seed: int = 0
) -> Misplaced:
    """Compare what was heard with the transcripts around each row.

    `delivered`: all rows of the partition as their source listed them; `heard`: what a model made of some of them, by
    id. Good rows are found misplaced with at most the probability `alarm_rate`.
    """
    from scipy.stats import binom

    chance = np.random.default_rng(seed)
    texts = [normalize(row.text, language) for row in delivered]
    rows = len(texts)
    known = [place for place, row in enumerate(delivered) if row.id in heard]
    neighbours: list[str] = []
    elsewhere = 0
    for place in known:
        said = normalize(heard[delivered[place].id], language)
        near = [place + move for move in MOVES if 0 <= place + move < rows]
        away = chance.integers(rows, size=len(near))
        fits_near = _fits_better(said, texts[place], [texts[other] for other in near])
        fits_away = _fits_better(said, texts[place], [texts[other] for other in away if other not in near])
        if fits_near and not fits_away:
            neighbours.append(delivered[place].id)
        elsewhere += fits_away and not fits_near
    tail = binom.sf(len(neighbours) - 1, len(neighbours) + elsewhere, 0.5)
    return Misplaced(len(known), tuple(neighbours), elsewhere, bool(neighbours) and tail <= alarm_rate)


def _fits_better(heard: str, own: str, others: Sequence[str]) -> bool:
    """Whether one of the other texts is like what was heard, and more so than the row's own."""
    from rapidfuzz.distance import Levenshtein

    if not heard:
        return False
    away = Levenshtein.normalized_distance(heard, own)
    return any(Levenshtein.normalized_distance(heard, other) < min(away, FITS) for other in others)
