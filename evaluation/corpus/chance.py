"""How far a figure may lie from its limit by chance: limits that good partitions of any size pass.

A share of 3 % in 100 rows says little about a source whose share is 1 %; in a million rows it says all. So a figure is
not held against its setting but against what a source that just meets the setting exceeds at the stated rate. Rows of
one speaker go wrong together, so rows are counted by what they are worth (`effective_rows`).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

POWER = 0.95  # what is said to be found is found at least so often


@dataclass(frozen=True)
class Judgement:
    """A figure of a partition, what it is held against, and what that finds."""

    value: float
    limit: float  # passed by good partitions, but for the stated rate
    finds: str  # what is found in 95 %, in words; "" where it is not known
    untold: str = ""  # why the figure proves nothing here; "" where it does
    note: str = ""  # what else to know where it fails


def share(found: float, rows: float, allowed: float, alarm_rate: float) -> Judgement:
    """A share of rows that should be at most `allowed`; `rows`: how many independent ones it was found in.

    Sources whose share is at most `allowed` are refused at no more than `alarm_rate`.
    """
    from scipy.stats import beta, binom

    worth = max(1, round(rows))
    passed = int(binom.isf(alarm_rate, worth, allowed))
    if passed >= worth:
        return Judgement(found, 1.0, "", "" if allowed == 1 else "of so few rows any share can be bad by chance")
    return Judgement(found, passed / worth, f"a share of {beta.ppf(POWER, passed + 1, worth - passed):.2%}")


def effective_rows(table: NDArray[np.integer]) -> float:
    """What so many rows are worth, `table` [speakers, kinds]: fewer where rows of one speaker are alike.

    Rao and Scott's design effect: the variance of the shares between speakers over the variance of independent rows,
    weighted over the kinds. Never more than there are rows; one speaker is worth one row.
    """
    table = table[table.sum(axis=1) > 0]
    rows, speakers = float(table.sum()), len(table)
    shares = table.sum(axis=0) / max(rows, 1.0)
    table, shares = table[:, shares > 0], shares[shares > 0]
    if len(shares) < 2:
        return rows
    if speakers < 2:
        return min(rows, 1.0)
    apart = table - table.sum(axis=1, keepdims=True) * shares
    variance = np.square(apart).sum(axis=0) * speakers / (speakers - 1) / rows**2
    effect = rows * float((variance / shares).sum()) / (len(shares) - 1)
    return rows / max(1.0, effect)


def by_speaker(
    speakers: Sequence[Hashable], kinds: Sequence[int] | NDArray[np.integer], number: int
) -> NDArray[np.int64]:
    """Rows counted by speaker and kind: [speakers, number]."""
    group, named = numbered(speakers), np.asarray(kinds, dtype=np.int64)
    groups = int(group.max(initial=-1)) + 1
    return np.bincount(group * number + named, minlength=groups * number).reshape(groups, number)


def numbered(speakers: Sequence[Hashable]) -> NDArray[np.int64]:
    """Each row's speaker as a number from 0: [n]."""
    numbers: dict[Hashable, int] = {}
    return np.fromiter((numbers.setdefault(name, len(numbers)) for name in speakers), np.int64, len(speakers))
