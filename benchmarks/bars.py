"""How every benchmark ends: what was measured, the bar for it, and whether it holds; the exit code says the same."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """A figure and its limit, both in the unit that `what` names."""

    what: str
    measured: float
    limit: float
    at_least: bool = False  # else the figure may be at most the limit

    @property
    def holds(self) -> bool:
        """Whether the figure is within its limit; what could not be measured (nan) is not."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


def end(bars: Sequence[Bar], missed: Sequence[str] = ()) -> int:
    """Print what missed its bar in words, then the figures; the exit code of the benchmark, 0 where every bar holds."""
    for sentence in missed:
        print(f"missed: {sentence}")
    width = max(len(bar.what) for bar in bars)
    print(f"\n{'':{width}} {'measured':>10} {'bar':>20}")
    for bar in bars:
        limit = f"{'at least' if bar.at_least else 'at most'} {bar.limit:,g}"
        print(f"{bar.what:{width}} {_number(bar.measured):>10} {limit:>20}  {'holds' if bar.holds else 'MISSED'}")
    return 0 if all(bar.holds for bar in bars) and not missed else 1


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
