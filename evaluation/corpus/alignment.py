"""Whether transcripts belong to their audio, told by lengths alone: long texts take long.

The fault this looks for is one delivery, a run of consecutive rows, whose transcripts moved by a row or a few against
the audio. A low correlation of lengths is a poor sign of it: speakers differ in pace, texts in length, and the lowest
of many correlations gets lower the more of them there are. So each row is asked a narrower question: does its audio
last as its own transcript says, or as the transcript of its neighbour says?

- **Lengths.** Within a speaker the logarithm of the speech time is a smooth function of the logarithm of the text's
  length, plus a rest. A speaker's pace is a constant, and cancels.
- **Evidence.** A row's evidence for a move by k rows is the difference of two log likelihoods of its rest, with the
  neighbour's text and with its own, under a heavy-tailed law, so that no single odd row decides. In good rows the
  neighbour's text fits worse: evidence falls by `r^2 / (1 - r^2)` a row for lengths that correlate by r; in moved rows
  it rises by as much. The statistic is the highest evidence of any run of consecutive rows and of any move of up to
  three rows: no window is chosen, and all are found in one pass (Page's cumulative sum).
- **False alarms.** Given the texts, good rests come in any order. Drawing them anew within their speakers gives what
  evidence does by chance, and the exponent `h` for which its exponential has mean 1. Then exp(h * evidence) of a run
  that starts at a given row is a martingale, and Doob's inequality bounds the chance that any of n runs and m moves
  exceeds E by `n m exp(-h E)`. Setting that to the stated rate gives a limit that grows with the logarithm of the rows.
- **Order.** Some corpora are listed by length. There a neighbour's transcript fits nearly as well as the own one, rests
  come in no free order, and evidence does not fall as it was drawn. So how far it falls in the rows outside of the run
  is measured against the draw, and the exponent shrinks with it: where nothing is left of it, lengths cannot tell.
- **Power.** The same draw, with the texts moved, says how fast evidence rises, so how many moved rows are needed.
  Where even all rows would be too few, lengths cannot tell, and the finding says so.

Transcripts that belong to no row nearby (shuffled, or of another corpus) leave no such trace: for them `relation` looks
at the correlation of lengths within speakers in the whole partition.

Not covered: texts and audio that are all equally long, and faults of single rows. A model that listens covers both.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.corpus.chance import POWER, Judgement, numbered

MOVES = (-3, -2, -1, 1, 2, 3)  # rows by which transcripts may have moved
POOLED_BELOW = 5  # rows; speakers with fewer count as one, whose pace is their mean
TAIL = 4.0  # degrees of freedom of Student's law for the rests: heavy enough for pauses and misread lines
DRAWN_ROWS = 60_000  # of the null: the exponent is then good to about two per cent
PACE_SPREAD = 0.5  # most that a speaker's logarithmic pace varies (standard deviation); measured: 0.2 to 0.3
LISTED = "rows are listed by their length, so that their neighbours' transcripts fit as well"
ALIKE = "lengths are too few or too much alike to show it"

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """The run of rows whose transcripts most likely moved, and how that is judged."""

    judgement: Judgement  # evidence of the run (nats)
    start: int = 0  # in rows of what was given
    stop: int = 0
    move: int = 0  # the audio of row i fits the transcript of row i + move

    @property
    def found(self) -> bool:
        """Whether transcripts moved."""
        return not self.judgement.untold and self.judgement.value > self.judgement.limit


class Lengths:
    """Lengths of texts and of their speech, one a row, in the order in which they were delivered.

    `characters` [n], `speech_s` [n] (seconds), `speakers` [n]. Rows without a text or speech count as the shortest.
    """

    def __init__(self, characters: Floats, speech_s: Floats, speakers: Sequence[Hashable]) -> None:
        self.rows = len(speakers)
        self.text = np.log(np.maximum(characters, 1.0))
        self.speech = np.log(np.maximum(speech_s, 0.05))
        group = numbered(speakers)
        few = np.bincount(group, minlength=1)[group] < POOLED_BELOW
        self._group = np.where(few, 0, group + 1)
        self._sizes = np.maximum(np.bincount(self._group), 1)

    def _centred(self, values: Floats) -> Floats:
        """Values less their speaker's mean."""
        return values - self._mean(values)

    def _mean(self, values: Floats) -> Floats:
        return (np.bincount(self._group, values, len(self._sizes)) / self._sizes)[self._group]

    def relation(self, alarm_rate: float) -> Judgement:
        """The correlation of the logarithms within speakers, held against half of what honest speech shows.

        A pace that varies by PACE_SPREAD correlates texts of the spread s and speech by s / sqrt(s^2 + PACE_SPREAD^2)
        at the least. Matching rows, however few, reach half of that, but for the stated rate (Fisher's interval).
        """
        from scipy.special import ndtri

        text, speech = self._centred(self.text), self._centred(self.speech)
        free = self.rows - int(np.count_nonzero(np.bincount(self._group, minlength=1))) - 2
        spread, heard = (math.sqrt(float(part @ part) / max(1, free)) for part in (text, speech))
        if free < 4 or heard <= spread / 2 or heard < 1e-6:  # durations that texts do not move: clips cut to one length
            return Judgement(math.nan, -1.0, "", ALIKE)
        correlation = float(text @ speech) / (free * spread * heard) if spread > 1e-6 else 0.0
        least = math.atanh(0.5 * spread / math.hypot(spread, PACE_SPREAD)) + float(ndtri(alarm_rate)) / math.sqrt(free)
        found = math.tanh(least - float(ndtri(POWER)) / math.sqrt(free))
        return Judgement(correlation, math.tanh(least), f"a correlation of {found:.2f}", ALIKE if found < 0 else "")

    def moved(self, alarm_rate: float, seed: int = 0) -> Moved:
        """The run of rows whose lengths say most clearly that their transcripts moved.

        Good rows are found moved with at most the probability `alarm_rate`, however many they are. The same rows give
        the same finding. Memory is a few arrays of n numbers.
        """
        if self.rows < 2 * len(MOVES):
            return Moved(Judgement(math.nan, math.inf, "", ALIKE))
        expected, fitted_move = self._expected()
        pace = self._mean(self.speech - beside(expected, fitted_move))
        rest = self.speech - beside(expected, fitted_move) - pace
        scale = float(np.median(np.abs(rest))) / 0.741 or float(np.std(rest))  # of Student's law from its quartile
        if not scale > 1e-9:
            return Moved(Judgement(math.nan, math.inf, "", ALIKE))
        null, risen = self._drawn(expected / scale, rest / scale, np.random.default_rng(seed))
        own = _cost((self.speech - pace - expected) / scale)
        evidence = {move: own - _cost((self.speech - pace - beside(expected, move)) / scale) for move in MOVES}
        runs = [(*highest_run(evidence[move]), move) for move in MOVES]
        value, start, stop, move = max(runs, key=lambda run: run[0])
        within = np.zeros(self.rows, bool)
        within[start:stop] = 2 * (stop - start) <= self.rows  # where most rows moved, only all of them are enough
        falls = null.reshape(len(MOVES), -1).mean(axis=1)
        falling = [(each, fall) for each, fall in zip(MOVES, falls, strict=True) if fall < -1e-6]
        kept = min(1.0, max((abs(evidence[each][~within].mean() / fall) for each, fall in falling), default=0.0))
        limit = evidence_limit(null, self.rows * len(MOVES), alarm_rate) / kept if kept > 0 else math.inf
        least = rows_needed(risen - (1 - kept) * risen.mean(), limit)
        untold = "" if least <= self.rows else LISTED if kept < 0.5 else ALIKE
        finds = f"a run of {math.ceil(least)} rows" if least < math.inf else ""
        return Moved(Judgement(value, limit, finds, untold), start, stop, move)

    def _expected(self) -> tuple[Floats, int]:
        """Logarithm of the speech time as the text's length has it, and the move at which it fits best.

        Where most transcripts moved, they say less about their own audio than about the neighbour's: so the curve is
        fitted to that row whose texts explain most.
        """
        speech = self._centred(self.speech)
        best: tuple[float, int, NDArray[Any]] = (0.0, 0, np.zeros(2))
        powers = np.stack([self.text, self.text**2])
        powers -= powers.mean(axis=1, keepdims=True)
        for move in (0, *MOVES):
            text = np.stack([self._centred(beside(power, move)) for power in powers])
            weights = np.linalg.lstsq(text @ text.T, text @ speech, rcond=1e-9)[0]
            explained = float(weights @ (text @ speech))
            if explained > best[0] * 1.0001:
                best = explained, move, weights
        return best[2] @ powers, best[1]

    def _drawn(self, expected: Floats, rest: Floats, chance: np.random.Generator) -> tuple[Floats, Floats]:
        """Evidence of good rows and of moved ones, with rests drawn anew within their speakers."""
        order = np.argsort(self._group, kind="stable")
        first = np.cumsum(np.bincount(self._group)) - np.bincount(self._group)
        good, moved = [], []
        for move in MOVES:
            rows = chance.integers(self.rows, size=DRAWN_ROWS // len(MOVES))
            group = self._group[rows]
            drawn = rest[order[first[group] + (chance.random(len(rows)) * self._sizes[group]).astype(int)]]
            apart = (expected - beside(expected, move))[rows]
            good.append(_cost(drawn) - _cost(drawn + apart))
            moved.append(_cost(drawn - apart) - _cost(drawn))
        return np.concatenate(good), np.concatenate(moved)


# ----------------------------------------------------------------------------------------------- evidence over a run


def beside(values: Floats, move: int) -> Floats:
    """What stands `move` rows further on; rows without such a neighbour keep their own."""
    if not move:
        return values
    moved = values.copy()
    if move > 0:
        moved[:-move] = values[move:]
    else:
        moved[-move:] = values[:move]
    return moved


def highest_run(evidence: Floats) -> tuple[float, int, int]:
    """The consecutive rows with the highest sum: the sum, the first row, and the row after the last."""
    total = np.concatenate(([0.0], np.cumsum(evidence)))
    lowest = np.minimum.accumulate(total)
    stop = int(np.argmax(total - lowest))
    start = int(np.argmin(total[: stop + 1]))
    return float(total[stop] - total[start]), start, stop


def evidence_limit(null: Floats, runs: int, alarm_rate: float) -> float:
    """The evidence that none of so many runs exceeds but for the stated rate; `null`: evidence a row by chance."""
    from scipy.optimize import brentq
    from scipy.special import logsumexp

    def growth(exponent: float) -> float:
        return float(logsumexp(exponent * null)) - math.log(len(null))

    if not null.mean() < -1e-6:
        return math.inf
    high = 1.0
    while growth(high) < 0 and high < 64:
        high *= 2
    low = high / 2
    while growth(low) >= 0:
        low /= 2
    exponent = high if growth(high) < 0 else brentq(growth, low, high, rtol=1e-3)
    return math.log(runs / alarm_rate) / exponent


def rows_needed(risen: Floats, limit: float) -> float:
    """So many faulty rows pass the limit in 95 % (POWER); `risen`: evidence of a faulty row. Infinite: no number."""
    from scipy.special import ndtri

    rise, spread = float(risen.mean()), float(ndtri(POWER) * risen.std())
    if not (rise > 1e-6 and math.isfinite(limit)):
        return math.inf
    return ((spread + math.sqrt(spread**2 + 4 * rise * limit)) / (2 * rise)) ** 2


def _cost(rest: Floats) -> Floats:
    """Negative log likelihood of rests under Student's law, up to a constant (nats)."""
    return (TAIL + 1) / 2 * np.log1p(rest**2 / TAIL)
