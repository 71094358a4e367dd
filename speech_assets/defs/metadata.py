"""How figures are shown in Dagster's UI: titles, Markdown tables, inline plots."""

import base64
import re
from collections.abc import Iterable, Sequence

import dagster as dg

from evaluation.presentation import one_line
from speech.corpus.manifest import quarter_title
from speech.store.outputs import Published

MAX_ROWS = 50
CELL_CHARACTERS = 2_500

_MARKUP = re.compile(r"[\\\[\]|`*~]|(?<!\w)_|_(?!\w)")


def place_of(output: Published, name: str) -> dg.PathMetadataValue:
    """Where a file of an output lies, as people copy it."""
    return dg.MetadataValue.path(f"{output.objects.home}/{output.key}/{name}")


def quarter_heading(quarter: str, language: str) -> str:
    """A partition as people read it: '2024 Q2, en'."""
    return f"{quarter_title(quarter)}, {language}"


def candidate_name(quarter: str, language: str) -> str:
    """Name of a quarter's model: 'en-2024-Q2'."""
    return f"{language}-{quarter_title(quarter).replace(' ', '-')}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> dg.MarkdownMetadataValue:
    """A table of at most `MAX_ROWS` rows; cells are plain text, whatever they hold."""
    rows = list(rows)
    if not rows:
        return dg.MetadataValue.md("none")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(_cell(value) for value in row) + " |" for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        lines.append(f"\n... and {len(rows) - MAX_ROWS} more")
    return dg.MetadataValue.md("\n".join(lines))


def inline_plot(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """A plot inside the metadata."""
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def _cell(value: object) -> str:
    """Someone's text as one line of text in Markdown: nothing of it is markup, a link or an image to be fetched."""
    line = one_line(str(value), CELL_CHARACTERS)
    return _MARKUP.sub(r"\\\g<0>", line).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
