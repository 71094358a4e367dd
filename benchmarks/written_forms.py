"""Written forms and how they are read: a table of its own (tests/speech/written_forms.tsv), one line each.

    python benchmarks/written_forms.py

Exit code 1 where fewer than 95 % are read right, of English and German as of the other languages, or where one is
neither read right nor reported as unreadable.
"""

import csv
import sys
import time
from collections import Counter
from pathlib import Path

from bars import Bar, end
from rich.console import Console
from rich.table import Table

from speech.text import normalize, readings, unexpected_characters

FORMS = Path(__file__).parents[1] / "tests" / "speech" / "written_forms.tsv"
LEAST_FORMS = {"English and German": 60, "other languages": 20}
LEAST_RIGHT = 95.0  # per cent


def main() -> int:
    """Print the table; return the exit code."""
    with FORMS.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        normalize("1", row["language"])  # loads the grammar
    table = Table("", "language", "written", "read")
    forms, right, found = Counter[str](), Counter[str](), Counter[str]()
    started = time.perf_counter()
    for row in rows:
        language = row["language"]
        said, unread = normalize(row["written"], language), unexpected_characters(row["written"], language)
        good = said in row["right"].split(" | ")
        group = "English and German" if language in ("en", "de") else "other languages"
        forms[group] += 1
        right[group] += good
        found[group] += not good and bool(unread)
        outcome = "right" if good else f"finding {' '.join(sorted(unread))}" if unread else "WRONG"
        table.add_row(outcome, language, row["written"], said)
    seconds = time.perf_counter() - started
    several = sum(any(len(piece) > 1 for piece in readings(row["written"], row["language"])) for row in rows)
    Console(width=160).print(table)
    print(f"{several} forms with several readings; {seconds / len(rows) * 1e3:.1f} ms a form, none of them seen before")
    bars = []
    for group, least in LEAST_FORMS.items():
        print(f"{group}: {right[group]} of {forms[group]} read right, {found[group]} findings")
        silent = forms[group] - right[group] - found[group]
        bars += [
            Bar(f"{group}: forms", forms[group], least, at_least=True),
            Bar(f"{group}: read right, %", 100 * right[group] / forms[group], LEAST_RIGHT, at_least=True),
            Bar(f"{group}: neither right nor a finding", silent, 0),
        ]
    return end(bars)


if __name__ == "__main__":
    sys.exit(main())
