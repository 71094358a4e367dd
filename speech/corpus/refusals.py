"""Why rows were refused, said once for all that are alike: a mistake in a setting is one sentence and not thousands."""

import re
from collections import Counter
from collections.abc import Iterable

_PARTICULAR = re.compile(
    r"'[^']*'"  # what a row says
    r"|(?<![\w.])/.*?(?=: |$)"  # a path, to the advice that follows it
    r"|[0-9][0-9.,:]*"
)


def grouped(reasons: Iterable[str]) -> list[tuple[int, str]]:
    """How many rows were refused for reasons that differ in names and numbers only, and the first of these reasons.

    The most frequent come first.
    """
    counts: Counter[str] = Counter()
    first: dict[str, str] = {}
    for reason in reasons:
        kind = _PARTICULAR.sub("", reason)
        counts[kind] += 1
        first.setdefault(kind, reason)
    return [(count, first[kind]) for kind, count in counts.most_common()]


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
    said = [sentence(*group) for group in groups[:most]]
    if rest := groups[most:]:
        said.append(f"{sum(count for count, _ in rest):,} more for {len(rest)} other reasons")
    return "; ".join(said)
