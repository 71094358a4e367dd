"""Calibration: a model's confidence becomes the probability that a word is right.

Transcripts above a confidence are published and the rest go to people, so the number has to mean something: of the
words marked 0.8, eight in ten must be right. Raw network scores do not say that, and each model errs in its own way
(Guo et al., "On Calibration of Modern Neural Networks", ICML 2017), so every bundle gets a map fitted on words of its
dev set.

How much is fitted depends on how many words there are: isotonic regression from `ISOTONIC_WORDS` on, a two-parameter
logistic curve (Platt 1999) from `PLATT_WORDS` on, and below that only the share of right words, the same for every
word. The result says which. The error "after" is measured on words that the map was not fitted on.

Not covered: words that were not recognised at all. A deletion has no confidence.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import BeforeValidator, ConfigDict

if TYPE_CHECKING:
    from speech.bundle import Calibration

ISOTONIC_WORDS = 1_000
PLATT_WORDS = 100
WORDS_A_STEP = 50  # fewest words behind one knot of an isotonic map
FOLDS = 5
RELIABILITY_BINS = 10

_Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


@dataclass(frozen=True)
class ReliabilityBin:
    """The words whose confidence lies in [low, high): how sure the model was and how often it was right."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    low: float
    high: float
    words: int
    confidence: _Number  # mean; NaN in an empty bin
    accuracy: _Number


@dataclass(frozen=True)
class Reliability:
    """How well confidence and correctness agree. Expected calibration error: Naeini et al., AAAI 2015."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    bins: tuple[ReliabilityBin, ...]
    expected_calibration_error: _Number  # mean gap between confidence and accuracy, weighted by words; NaN: no words
    words: int


@dataclass(frozen=True)
class CalibrationFit:
    """A fitted map with the evidence for it."""

    calibration: "Calibration"
    method: str  # "isotonic", "platt" or "constant"
    words: int
    accuracy: float  # share of right words; NaN without words
    ece_before: float
    ece_after: float  # on words the map was not fitted on; NaN where too few for that
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
            low=position / bins,
            high=(position + 1) / bins,
            words=int(words[position]),
            confidence=float(total_sure[position] / words[position]) if words[position] else math.nan,
            accuracy=float(total_right[position] / words[position]) if words[position] else math.nan,
        )
        for position in range(bins)
    )
    error = float(np.abs(total_sure - total_right).sum() / len(sure)) if len(sure) else math.nan
    return Reliability(groups, error, len(sure))


def fit_calibration(confidences: Sequence[float], correct: Sequence[bool]) -> "Calibration":
    """The map of `calibrate` alone, as a bundle carries it."""
    return calibrate(confidences, correct).calibration


def calibrate(confidences: Sequence[float], correct: Sequence[bool]) -> CalibrationFit:
    """Fit a map from raw word confidences (0..1) to probabilities of being right, and measure what it gains."""
    sure, right = _checked(confidences, correct)
    method = _method(len(sure))
    calibration = _fit(sure, right, method)
    words = len(sure)
    if method == "constant":
        note = (
            f"Only {words} words: every word gets the same probability, {calibration.probabilities[0]:.2f}. "
            f"From {PLATT_WORDS} words on, confidence is told apart."
        )
    elif method == "platt":
        note = f"{words} words: a two-parameter curve. From {ISOTONIC_WORDS} words on, the shape is fitted freely."
    else:
        note = f"{words:,} words: isotonic regression with {len(calibration.confidences)} knots."
    return CalibrationFit(
        calibration=calibration,
        method=method,
        words=words,
        accuracy=float(right.mean()) if words else math.nan,
        ece_before=reliability(sure.tolist(), right.astype(bool).tolist()).expected_calibration_error,
        ece_after=_held_out_error(sure, right, method),
        note=note,
    )


def _checked(confidences: Sequence[float], correct: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    sure = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape:
        raise ValueError(f"{len(sure)} confidences but {len(right)} outcomes: one of each is needed for every word.")
    if not np.all((sure >= 0) & (sure <= 1)):
        raise ValueError("A confidence lies outside 0 to 1 or is not a number: leave such words out.")
    return sure, right


def _method(words: int) -> str:
    if words >= ISOTONIC_WORDS:
        return "isotonic"
    return "platt" if words >= PLATT_WORDS else "constant"


def _fit(sure: np.ndarray, right: np.ndarray, method: str) -> "Calibration":
    from speech.bundle import Calibration

    if method == "constant":
        # Laplace's rule of succession: without a word this is 0.5, so nothing is published unseen.
        knots, levels = np.array([0.5]), np.array([(right.sum() + 1) / (len(right) + 2)])
    elif method == "platt":
        knots, levels = _platt(sure, right)
    else:
        knots, levels = _isotonic(sure, right)
    return Calibration(
        confidences=tuple(float(value) for value in knots),
        probabilities=tuple(float(value) for value in levels),
        words=len(sure),
    )


def pool_adjacent_violators(values: np.ndarray, weights: np.ndarray) -> list[tuple[int, int]]:
    """Half-open index ranges whose weighted means never decrease (Ayer et al. 1955), in order."""
    pools: list[tuple[float, float, int]] = []  # total, weight, start
    for start, (value, weight) in enumerate(zip(values, weights, strict=True)):
        total = float(value) * float(weight)
        weight = float(weight)
        while pools and pools[-1][0] / pools[-1][1] >= total / weight:
            before, heaviness, start = pools.pop()
            total, weight = total + before, weight + heaviness
        pools.append((total, weight, start))
    starts = [pool[2] for pool in pools] + [len(values)]
    return list(itertools.pairwise(starts))


def _isotonic(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Knots at the centre of each pool, so the map rises between them and does not jump."""
    order = np.argsort(sure, kind="stable")
    sure, right = sure[order], right[order]
    # Equal confidences stay in one group whatever their number: a map gives them one probability.
    edges, last = [0], 0
    for position in range(1, len(sure)):
        enough = position - last >= WORDS_A_STEP and len(sure) - position >= WORDS_A_STEP
        if enough and sure[position] > sure[position - 1]:
            edges.append(position)
            last = position
    edges.append(len(sure))
    sizes = np.diff(edges)
    means = np.add.reduceat(right, edges[:-1]) / sizes
    knots, levels = [], []
    for first, end in pool_adjacent_violators(means, sizes):
        pool = slice(edges[first], edges[end])
        knots.append(float(sure[pool].mean()))
        # One imagined right and one wrong word: no probability of exactly 0 or 1 from a finite sample.
        levels.append(float((right[pool].sum() + 1) / (edges[end] - edges[first] + 2)))
    keep = np.concatenate([[True], np.diff(knots) > 0])
    return np.array(knots)[keep], np.maximum.accumulate(levels)[keep]


def _platt(sure: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A logistic curve over the log-odds of confidence, with Platt's softened targets, by Newton's method."""
    features = np.column_stack([_log_odds(sure), np.ones(len(sure))])
    hits = right.sum()
    targets = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        likely = _sigmoid(features @ weights)
        gradient = features.T @ (likely - targets) + 1e-3 * weights  # a little ridge: separable words stay finite
        curvature = (features * (likely * (1 - likely))[:, None]).T @ features + 1e-3 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-8:
            break
    if weights[0] <= 0:  # confidence says nothing or the opposite: no order is better than a wrong one
        return np.array([0.5]), np.array([(hits + 1) / (len(right) + 2)])
    knots = np.linspace(0.0, 1.0, 41)
    return knots, _sigmoid(weights[0] * _log_odds(knots) + weights[1])


def _log_odds(probabilities: np.ndarray) -> np.ndarray:
    inside = np.clip(probabilities, 1e-3, 1 - 1e-3)
    return np.asarray(np.log(inside / (1 - inside)))


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -40, 40))))


def _held_out_error(sure: np.ndarray, right: np.ndarray, method: str) -> float:
    """Calibration error of maps that did not see the words; folds are stretches, so utterances stay whole."""
    if method == "constant" or len(sure) < FOLDS * 2:
        return math.nan
    mapped = np.empty_like(sure)
    for fold in np.array_split(np.arange(len(sure)), FOLDS):
        seen = np.ones(len(sure), dtype=bool)
        seen[fold] = False
        mapped[fold] = _fit(sure[seen], right[seen], method).apply(sure[fold])
    return reliability(mapped.tolist(), right.astype(bool).tolist()).expected_calibration_error
