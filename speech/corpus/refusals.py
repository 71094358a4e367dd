"""Why rows were refused, said once for all that are alike: a mistake in a setting is one sentence and not thousands."""

import re
from collections.abc import Iterable, Sequence

_PARTICULAR = re.compile(
    r"'[^']*'"  # what a row says
    r"|(?<![\w.])/.*?(?=: |$)"  # a path, to the advice that follows it
    r"|[0-9][0-9.,:]*"
)


def grouped(reasons: Iterable[str]) -> list[tuple[int, str]]:
    """How many rows were refused for reasons that differ in names and numbers only, and the first of these reasons.

    The most frequent come first.
    """
    counts: dict[str, int] = {}
    first: dict[str, str] = {}
    for reason in reasons:
        kind = _PARTICULAR.sub("", reason)
        counts[kind] = counts.get(kind, 0) + 1
        first.setdefault(kind, reason)
    return [(counts[kind], first[kind]) for kind in sorted(counts, key=lambda kind: -counts[kind])]


def sentence(rows: int, first: str) -> str:
    """One sentence for a group of rows, from the reason of its first."""
    if rows == 1:
        return f"1 row: {first}"
    found = _PARTICULAR.search(first)
    if found is None:
        return f"{rows:,} rows: {first}"
    what, rest = first[: found.start()].rstrip(), first[found.end() :]
    if what and (not rest or rest.startswith(":")):
        return f"{rows:,} rows: {what}; the first is {found[0]}{rest}"
    return f"{rows:,} rows, of which the first: {first}"


def summary(reasons: Iterable[str], most: int = 2) -> str:
    """The most frequent groups of reasons in one line, and how many rows the others are of."""
    groups = grouped(reasons)
    return "; ".join([sentence(*group) for group in groups[:most]] + _rest(groups[most:]))


def _rest(groups: Sequence[tuple[int, str]]) -> list[str]:
    rows = sum(count for count, _ in groups)
    return [f"{rows:,} more for {len(groups)} other reasons"] if rows else []
