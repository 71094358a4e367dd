"""Tables of transcripts: TSV and CSV, and Common Voice's."""

import csv
import os
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from speech.corpus.importers.intake import COLUMN_ALIASES, Imported, Intake, column_of
from speech.corpus.rows import BadLine, ManifestError, PathLike, numbered_lines, reason_of
from speech.corpus.sources import Defaults

TABLE_NAMES = ("transcripts.tsv", "transcripts.csv", "metadata.csv", "metadata.tsv")
MAX_QUOTED_LINES = 20  # a quoted field that runs on for longer was never closed
PLAIN = ("\t", "|")  # delimiters of tables in which a quote is mostly a part of the text
UNCLOSED = "a quote is opened and not closed"

Line = tuple[int, str | BadLine]


def table_of(path: PathLike) -> Path:
    """The table that is meant: the file itself, or the first of `TABLE_NAMES` in a folder.

    Raises ManifestError where a folder holds none.
    """
    table = Path(path)
    if not table.is_dir():
        return table
    found = [table / name for name in TABLE_NAMES if (table / name).is_file()]
    if not found:
        lines = (table / "metadata.jsonl").is_file()
        hint = "metadata.jsonl is read as kind nemo" if lines else f"put one of {', '.join(TABLE_NAMES)} there"
        raise ManifestError(table, None, f"holds no transcripts; {hint}")
    return found[0]


def import_table(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A table of transcripts with a header, its cells parted by tabs, commas, semicolons or bars, or a folder with one.

    Columns go by any of the usual names (`COLUMN_ALIASES`); a path and a text column must be there. Paths are absolute,
    or relative to `audio_root`, else to the table. In a folder the table is the first of `TABLE_NAMES`.
    """
    table = table_of(path)
    yield from _import_columns(table, table.parent, defaults)


def common_voice_table(path: PathLike) -> Path:
    """The table of a Common Voice release: the file itself, or `validated.tsv` in a folder."""
    return Path(path) / "validated.tsv" if Path(path).is_dir() else Path(path)


def import_common_voice(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A Common Voice TSV (``validated.tsv``, ``train.tsv``, ...), its recordings in a folder beside it.

    They are in ``clips``, or where the speech was spontaneous in ``audios``. The first releases name them without
    ``.mp3``.
    """
    table = common_voice_table(path)
    folder = next((table.parent / name for name in ("clips", "audios") if (table.parent / name).is_dir()), table.parent)
    yield from _import_columns(table, folder, defaults, extension=".mp3")


def _import_columns(table: Path, base: Path, defaults: Defaults, extension: str = "") -> Iterator[Imported]:
    if not table.is_file():
        raise ManifestError(table, None, "is missing; give a table of transcripts")
    lines = numbered_lines(table)
    number, header = next(lines, (0, ""))
    if isinstance(header, BadLine):
        raise ManifestError(table, 1, header.reason)
    if (named := re.fullmatch(r"sep=(.)", header)) is not None:  # a line for Excel
        number, header = next(lines, (0, ""))
        if isinstance(header, BadLine):
            raise ManifestError(table, number, header.reason)
        delimiter = named[1]
    else:
        delimiter = "\t" if "\t" in header else max(",;|", key=header.count)
    columns = _columns(table, header, delimiter)
    intake = Intake(defaults, base)
    for number, cells in _records(lines, delimiter, len(columns)):
        if isinstance(cells, BadLine):
            yield intake.refused(table, number, cells.reason)
            continue
        row = {column: cell for column, cell in zip(columns, cells, strict=True) if column}
        if extension and row["audio"] and not os.path.splitext(row["audio"])[1]:
            row["audio"] += extension
        try:
            yield intake.utterance(row, number)
        except ValueError as error:
            yield intake.refused(table, number, reason_of(error), row.get("id"), row)


def _columns(table: Path, header: str, delimiter: str) -> list[str]:
    """What each column of a table holds; empty for one that is not read. Raises ManifestError where it cannot do."""
    names = _parsed(header, delimiter)
    if isinstance(names, BadLine):
        raise ManifestError(table, 1, names.reason)
    try:
        columns = [column_of(name) for name in names]
    except ValueError as error:
        raise ManifestError(table, 1, f"has a column that cannot be used: {error}") from error
    for needed in ("audio", "text"):
        if needed not in columns:
            what = COLUMN_ALIASES[needed][0]
            shown = repr(header if len(header) <= 60 else f"{header[:60]}...") if header else "there is none"
            raise ManifestError(table, 1, f"names no column {what}; the first row must name the columns: {shown}")
    for column in set(columns) - {""}:
        if columns.count(column) > 1:
            twice = [name for name, known in zip(names, columns, strict=True) if known == column]
            raise ManifestError(table, 1, f"has the columns {' and '.join(twice)} for the same thing; keep one")
    return columns


def _records(lines: Iterator[Line], delimiter: str, width: int) -> Iterator[tuple[int, "list[str] | BadLine"]]:
    """The rows of a table.

    A field in quotes may hold line breaks. One that is never closed would swallow the rows after it, so it costs only
    its own line: reading goes on at the next one. Between tabs or bars a quote may be part of the text, and is where
    the next line is a row of its own.
    """
    waiting: deque[Line] = deque()
    while True:
        number, line = waiting.popleft() if waiting else next(lines, (0, ""))
        if number == 0:
            return
        if isinstance(line, BadLine):
            yield number, line
            continue
        if not line.strip():
            continue
        cells = _parsed(line, delimiter)
        if _runs_on(line, cells, delimiter):
            cells = _continued(line, cells, delimiter, width, lines, waiting)
        if not isinstance(cells, BadLine) and len(cells) != width:
            cells = BadLine(f"the row has {len(cells)} columns where the header has {width}")
        yield number, cells


def _runs_on(line: str, cells: "list[str] | BadLine", delimiter: str) -> bool:
    """Whether the last cell of a line opens a quote that is not closed in it."""
    if delimiter not in PLAIN:
        return isinstance(cells, BadLine) and cells.reason == UNCLOSED
    last = line.rsplit(delimiter, 1)[-1]
    return last.startswith('"') and last.count('"') % 2 == 1


def _continued(
    line: str,
    cells: "list[str] | BadLine",
    delimiter: str,
    width: int,
    lines: Iterator[Line],
    waiting: "deque[Line]",
) -> "list[str] | BadLine":
    """The row that begins with `line`, with those lines of it taken that its quoted field runs over."""
    joined = line
    for taken in range(1, MAX_QUOTED_LINES + 1):
        if taken > len(waiting) and (following := next(lines, None)) is not None:
            waiting.append(following)
        if taken > len(waiting) or isinstance(waiting[taken - 1][1], BadLine):
            break
        addition = str(waiting[taken - 1][1])
        if taken == 1 and delimiter in PLAIN and addition.count(delimiter) == width - 1:
            return cells
        joined += "\n" + addition
        whole = _quoted(joined, delimiter)
        if not isinstance(whole, BadLine):
            if len(whole) != width:
                break
            for _ in range(taken):
                waiting.popleft()
            return whole
        if whole.reason != UNCLOSED:
            break
    if delimiter in PLAIN and not any(str(following).strip() for _, following in waiting):
        return cells
    return BadLine(UNCLOSED)


def _parsed(line: str, delimiter: str) -> "list[str] | BadLine":
    """The cells of a line, or why they cannot be told apart."""
    if delimiter in PLAIN:
        return [_unquoted(cell) for cell in line.split(delimiter)]
    if '"' not in line:
        return line.split(delimiter)
    cells = _quoted(line, delimiter)
    if not isinstance(cells, BadLine) or cells.reason == UNCLOSED:
        return cells
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        return BadLine(f"the row cannot be read as CSV ({error})")


def _quoted(text: str, delimiter: str) -> "list[str] | BadLine":
    """The cells of a text that keeps to the rules of CSV, or why it does not."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        return BadLine(UNCLOSED if "unexpected end" in str(error) else f"the row cannot be read as CSV ({error})")


def _unquoted(cell: str) -> str:
    """A cell between tabs or bars, without the quotes that some exporters put around cells that hold quotes."""
    if len(cell) >= 2 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell
