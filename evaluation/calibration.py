"""Calibration: a model's confidence becomes the probability that a word is right.

Transcripts above a confidence are published and the rest go to people, so the number has to mean something: of the
words marked 0.8, eight in ten must be right. Raw network scores do not say that, and each model errs in its own way
(Guo et al., "On Calibration of Modern Neural Networks", ICML 2017), so every bundle gets a map fitted on words of its
dev set.

How much is fitted depends on how many words there are: isotonic regression from `ISOTONIC_WORDS` on, a two-parameter
logistic curve (Platt 1999) from `PLATT_WORDS` on, and below that only the share of right words, the same for every
word. The result says which.

Not covered: words that were not recognised at all. A deletion has no confidence.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speech.bundle import Calibration
from speech.plain import Number, Record

ISOTONIC_WORDS = 1_000
PLATT_WORDS = 100
WORDS_A_STEP = 50  # fewest words behind one knot of an isotonic map
RELIABILITY_BINS = 10


@dataclass(frozen=True)
class ReliabilityBin(Record):
    """The words whose confidence lies in [low, high): how sure the model was and how often it was right."""

    low: float
    high: float
    words: int
    confidence: Number  # mean; NaN in an empty bin
    accuracy: Number


@dataclass(frozen=True)
class Reliability(Record):
    """How well confidence and correctness agree. Expected calibration error: Naeini et al., AAAI 2015."""

    bins: tuple[ReliabilityBin, ...]
    expected_calibration_error: Number  # mean gap between confidence and accuracy, weighted by words; NaN: no words
    words: int


@dataclass(frozen=True)
class CalibrationFit:
    """A fitted map, and what it rests on."""

    calibration: Calibration
    method: str  # "isotonic", "platt" or "constant"
    words: int
    note: str  # one sentence on how far to trust it


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = RELIABILITY_BINS) -> Reliability:
    """Group words by confidence and compare it with the share that is right."""
    sure, right = _checked(confidences, correct)
    index = np.minimum((sure * bins).astype(int), bins - 1)
    words = np.bincount(index, minlength=bins)
    total_sure = np.bincount(index, weights=sure, minlength=bins)
    total_right = np.bincount(index, weights=right, minlength=bins)
    groups = tuple(
        ReliabilityBin(
            place / bins, (place + 1) / bins, int(count), _mean(sure_of_it, count), _mean(right_of_it, count)
        )
        for place, (count, sure_of_it, right_of_it) in enumerate(zip(words, total_sure, total_right, strict=True))
    )
    return Reliability(groups, _mean(np.abs(total_sure - total_right).sum(), len(sure)), len(sure))


def _mean(total: float, words: int) -> float:
    return float(total / words) if words else math.nan


def calibrate(confidences: Sequence[float], correct: Sequence[bool]) -> CalibrationFit:
    """Fit a map from raw word confidences (0..1) to probabilities of being right."""
    sure, right = _checked(confidences, correct)
    words = len(sure)
    if words < PLATT_WORDS:
        method, (knots, levels) = "constant", _constant(right)
        note = (
            f"Only {words} words: every word gets the same probability, {levels[0]:.2f}. "
            f"From {PLATT_WORDS} words on, confidence is told apart."
        )
    elif words < ISOTONIC_WORDS:
        method, (knots, levels) = "platt", _platt(sure, right)
        note = f"{words} words: a two-parameter curve. From {ISOTONIC_WORDS} words on, the shape is fitted freely."
    else:
        method, (knots, levels) = "isotonic", _isotonic(sure, right)
        note = f"{words:,} words: isotonic regression with {len(knots)} knots."
    return CalibrationFit(Calibration(tuple(knots), tuple(levels), words), method, words, note)


def _checked(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    sure = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape:
        raise ValueError(f"{len(sure)} confidences but {len(right)} outcomes: one of each is needed for every word.")
    if not np.all((sure >= 0) & (sure <= 1)):
        raise ValueError("A confidence lies outside 0 to 1 or is not a number: leave such words out.")
    return sure, right


def _constant(right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Laplace's rule of succession: without a word this is 0.5, so nothing is published unseen."""
    return np.array([0.5]), np.array([(right.sum() + 1) / (len(right) + 2)])


def _isotonic(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots at the centre of each pool, so the map rises between them and does not jump."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    # Equal confidences stay in one group whatever their number: a map gives them one probability.
    edges = [0]
    for position in np.flatnonzero(np.diff(sure)) + 1:
        if position - edges[-1] >= WORDS_A_STEP and len(sure) - position >= WORDS_A_STEP:
            edges.append(int(position))
    sizes = np.diff([*edges, len(sure)])
    pools = isotonic_regression(np.add.reduceat(right, edges) / sizes, weights=sizes).blocks[:-1]
    starts = np.take(edges, pools)
    words = np.add.reduceat(sizes, pools)
    # One imagined right and one wrong word: no probability of exactly 0 or 1 from a finite sample.
    levels = np.maximum.accumulate((np.add.reduceat(right, starts) + 1) / (words + 2))
    return np.add.reduceat(sure, starts) / words, levels


def _platt(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A logistic curve over the log-odds of confidence, with Platt's softened targets."""
    from scipy.optimize import minimize
    from scipy.special import expit

    features = np.column_stack([_log_odds(sure), np.ones(len(sure))])
    hits = right.sum()
    targets = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = features @ weights
        ridge = 1e-3 * weights  # a little: separable words stay finite
        slope = features.T @ (expit(odds) - targets) + ridge
        return np.logaddexp(0, odds).sum() - targets @ odds + ridge @ weights / 2, slope

    weights = minimize(loss, (1.0, 0.0), jac=True, options={"gtol": 1e-9}).x
    if weights[0] <= 0:  # confidence says nothing or the opposite: no order is better than a wrong one
        return _constant(right)
    knots = np.linspace(0.0, 1.0, 41)
    return knots, expit(weights[0] * _log_odds(knots) + weights[1])


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    from scipy.special import logit

    return np.asarray(logit(np.clip(probabilities, 1e-3, 1 - 1e-3)))
