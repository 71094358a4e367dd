"""How far a quarter is from the one before, and how far two quarters of one source come by chance.

Drift is held against limits in the units people know (a population stability index, a change of a share), each
widened by what chance adds for so many rows of so many speakers. So two quarters whose speakers are drawn from one
population warn at the stated rate at most, and large quarters are held to the limit itself.
"""

import math
from collections.abc import Sequence

import numpy as np

from evaluation.corpus.chance import POWER, Judgement

FARTHEST = 12.0  # index; two histograms of a thousand counts without a common bin are about that far apart
UNMEASURED = "one of the two quarters was not measured for it"
TOO_FEW = "so few speakers differ as much by chance"


def stability(
    now: Sequence[int],
    before: Sequence[int],
    worth: tuple[float, float],
    allowed: float,
    alarm_rate: float,
) -> Judgement:
    """The population stability index of two histograms, held against `allowed`; `worth`: effective rows of each.

    Over its chance level `1/n + 1/m` the index is chi-squared with one degree less than bins, and not central where the
    quarters differ; Patnaik's approximation scales a central one to it.
    """
    from scipy.stats import chi2

    index, chance = stability_index(now, before), sum(1 / max(rows, 1.0) for rows in worth)
    degrees = np.count_nonzero(np.add(now, before)) - 1
    if not math.isfinite(index):
        return Judgement(math.nan, math.inf, "", UNMEASURED)
    if degrees < 1:
        return Judgement(0.0, allowed, "a quarter in other bins")

    def reached(true_index: float, upper_tail: float) -> float:
        apart = true_index / chance
        scale = (degrees + 2 * apart) / (degrees + apart)
        freedom = (degrees + apart) ** 2 / (degrees + 2 * apart)
        return chance * (scale * float(chi2.isf(upper_tail, freedom)) - degrees)

    limit = reached(allowed, alarm_rate)
    found = allowed
    while found < FARTHEST and reached(found, POWER) < limit:
        found *= 1.05
    value = max(0.0, index - chance * degrees)
    return Judgement(value, limit, f"an index of {found:.2g}", TOO_FEW if found >= FARTHEST > allowed else "")


def stability_index(now: Sequence[int], before: Sequence[int]) -> float:
    """Population stability index of two histograms, 0 for equal shapes; NaN when one of them is empty.

    The sum of (p - q) ln(p / q) over bins, each bin half a count fuller so that an empty one is not infinitely far.
    Usual reading: 0.1 a shift worth noting, 0.25 a large one.
    """
    if not sum(now) or not sum(before):
        return math.nan
    current, earlier = np.asarray(now, float) + 0.5, np.asarray(before, float) + 0.5
    p, q = current / current.sum(), earlier / earlier.sum()
    return float(((p - q) * np.log(p / q)).sum())


def change(now: float, before: float, worth: tuple[float, float], allowed: float, alarm_rate: float) -> Judgement:
    """The change of a share in either direction, held against `allowed`; `worth`: effective rows of each."""
    from scipy.special import ndtri

    spread = _spread((now, before), worth)
    limit = allowed - float(ndtri(alarm_rate / 2)) * spread
    found = limit + float(ndtri(POWER)) * spread
    return Judgement(abs(now - before), limit, f"a change of {found:.2f}", TOO_FEW if found >= 1 > allowed else "")


def known_share(now: float, before: float, worth: tuple[float, float], allowed: float, alarm_rate: float) -> Judgement:
    """The share of words known from the quarter before, at least `allowed` of what its speakers knew of each other.

    `before` is the share of a speaker's words that others of that quarter use too: a small quarter knows fewer words,
    and a new one is not asked for more.
    """
    from scipy.special import ndtri

    spread = _spread((now, before), worth)
    limit = max(0.0, allowed * before + float(ndtri(alarm_rate)) * spread)
    found = limit - float(ndtri(POWER)) * spread
    return Judgement(now, limit, f"a share of {found:.2f}", TOO_FEW if found <= 0 < allowed else "")


def _spread(shares: tuple[float, float], worth: tuple[float, float]) -> float:
    """Standard error of a difference of shares; two counts are added to each, so that none is certain."""
    variance = 0.0
    for part, rows in zip(shares, worth, strict=True):
        likely = (part * rows + 1) / (rows + 2)
        variance += likely * (1 - likely) / (rows + 2)
    return math.sqrt(variance)
