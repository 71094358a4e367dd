"""Written forms and how they are read: a table of its own (tests/speech/written_forms.tsv), one line each.

    python benchmarks/written_forms.py

Ends with the figures. Exit code 1 where fewer than 95 % are read right, or where one is neither read right nor reported
as unreadable.
"""

import csv
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from speech.text import normalize, readings, unexpected_characters

FORMS = Path(__file__).parents[1] / "tests" / "speech" / "written_forms.tsv"
LEAST_RIGHT = 0.95


def main() -> int:
    """Print the table; return the exit code."""
    with FORMS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        normalize("1", row["language"])  # loads the grammar
    table = Table("", "language", "written", "read")
    right = found = 0
    started = time.perf_counter()
    for row in rows:
        said, unread = (
            normalize(row["written"], row["language"]),
            unexpected_characters(row["written"], row["language"]),
        )
        good = said in row["right"].split(" | ")
        right += good
        found += not good and bool(unread)
        outcome = "right" if good else f"finding {' '.join(sorted(unread))}" if unread else "WRONG"
        table.add_row(outcome, row["language"], row["written"], said)
    seconds = time.perf_counter() - started
    several = sum(any(len(piece) > 1 for piece in readings(row["written"], row["language"])) for row in rows)
    console = Console(width=160)
    console.print(table)
    console.print(
        f"{right} of {len(rows)} read right ({right / len(rows):.1%}; bar {LEAST_RIGHT:.0%}), {found} findings, "
        f"{len(rows) - right - found} wrong in silence (bar 0); {several} with several readings; "
        f"{seconds / len(rows) * 1e3:.1f} ms each, none of them seen before"
    )
    return 0 if right >= LEAST_RIGHT * len(rows) and right + found == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
