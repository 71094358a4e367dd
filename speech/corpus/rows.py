"""Lines of text files and the values in them, checked: what manifests and importers both read."""

import datetime as dt
import functools
import gzip
import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from speech.plain import from_plain
from speech.quality import Quality
from speech.store.outputs import parse_json

SPLITS = ("train", "dev", "test")
MAX_LINE = 4 * 2**20  # a transcript row is a few hundred bytes; a longer "line" is a file of another kind
ROUNDED_S = 0.001  # less than what is left below zero where times were subtracted
EARLIEST_DATE = dt.date(1900, 1, 1)
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")  # in the first bytes of a file that is no text
_WORKBOOK = "is an Excel workbook; save its sheet as CSV"
_FIRST_BYTES = {
    b"PK\x03\x04": "is a ZIP archive; unpack it",
    b"\xd0\xcf\x11\xe0": _WORKBOOK,  # of before 2007
    b"PAR1": "is a Parquet file; write its rows as CSV or JSON lines",
    b"ARROW1": "is an Arrow file; write its rows as CSV or JSON lines",
    b"SQLite format 3": "is an SQLite database; write its rows as CSV or JSON lines",
    b"\x1f\x8b": "is compressed with gzip; let its name end in .gz, or unpack it",
    b"BZh": "is compressed with bzip2; unpack it",
    b"\xfd7zXZ": "is compressed with xz; unpack it",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
    b"RIFF": "is audio; give the manifest of transcripts",
    b"fLaC": "is audio; give the manifest of transcripts",
    b"OggS": "is audio; give the manifest of transcripts",
    b"ID3": "is audio; give the manifest of transcripts",
}
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # how Python decodes a byte that is no part of a character

PathLike = str | os.PathLike[str]


class ManifestError(Exception):
    """A manifest or corpus that cannot be used; says which file, which row (from 1) and why."""

    def __init__(self, path: PathLike, row: int | None, reason: str) -> None:
        self.path, self.row, self.reason = str(path), row, reason
        super().__init__(self.path, row, reason)  # all three as args, so that the error crosses process boundaries

    def __str__(self) -> str:
        place = f"{self.path}, row {self.row}" if self.row is not None else self.path
        return f"{place}: {self.reason}" if place else self.reason


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be read, and why."""

    reason: str


def numbered_lines(path: Path) -> Iterator[tuple[int, "str | BadLine"]]:
    """Numbered lines of a text file, plain or gzipped; a line that is not text comes as its reason.

    The text is UTF-8, or UTF-16 that says so in its first two bytes. Lines end as on Unix or on Windows, or as on a
    Macintosh of old where the file knows no other end.

    Raises ManifestError for a file that is missing, damaged or, by its first bytes, no text.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            if what := _not_text(file.read(2048), path.suffix):
                raise ManifestError(path, None, what)
            file.seek(0)
            text = _decoded(cast(BinaryIO, file))
            number = 0
            while line := text.readline(MAX_LINE):
                number += 1
                if len(line) >= MAX_LINE and not line.endswith("\n"):
                    while (rest := text.readline(MAX_LINE)) and not rest.endswith("\n"):
                        pass
                    yield number, BadLine(f"the line is longer than {MAX_LINE // 2**20} MiB")
                elif not line.isascii() and _NOT_UTF_8.search(line):
                    yield number, BadLine("the line is not UTF-8: save the file anew in that encoding")
                else:
                    yield number, BadLine("the line holds a NUL character") if "\x00" in line else line.rstrip("\r\n")
    except FileNotFoundError:
        raise ManifestError(path, None, "is missing") from None
    except UnicodeError:  # of a line that is UTF-8 it is met above
        raise ManifestError(path, None, "is UTF-16 by its first bytes, but damaged; save it as UTF-8") from None
    except (OSError, EOFError) as error:  # EOFError and BadGzipFile: a damaged .gz
        raise ManifestError(path, None, f"cannot be read ({reason_of(error)})") from error


def _not_text(first: bytes, suffix: str) -> str:
    """What a file is that begins with these bytes, and what to do with it; empty where it may be text."""
    if not _BINARY.search(first[:64]):
        return ""
    parts = re.search(rb"\[Content_Types\]\.xml|docProps/|xl/|opendocument\.spreadsheet", first)
    if first.startswith(b"PK") and (parts or suffix.lower() in (".xlsx", ".xlsm", ".ods")):
        return _WORKBOOK
    return next((what for mark, what in _FIRST_BYTES.items() if first.startswith(mark)), "")


def _decoded(file: BinaryIO) -> io.TextIOWrapper:
    """The text of a file from its beginning; bytes that are not UTF-8 become lone surrogates."""
    first = file.readline(MAX_LINE)
    file.seek(0)
    if first.startswith((b"\xff\xfe", b"\xfe\xff")):
        return io.TextIOWrapper(file, "utf-16", newline="\n")
    newline = None if b"\n" not in first and b"\r" in first else "\n"
    return io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=newline)


def numbered_objects(path: Path) -> Iterator[tuple[int, "dict[str, Any] | BadLine"]]:
    """Numbered objects of a JSON-lines file, plain or gzipped; a line that holds none comes as its reason."""
    for number, line in numbered_lines(path):
        if isinstance(line, BadLine):
            yield number, line
        elif line.strip():
            try:
                yield number, _json_object(line)
            except ValueError as error:
                yield number, BadLine(str(error))


@functools.lru_cache(4096)
def parse_date(value: str) -> dt.date:
    """A calendar day from an ISO date or time stamp, from 2024/05/31, or from 31.05.2024.

    Raises ValueError for anything else; 05/06/2024 means two different days and is therefore refused.
    """
    value = value.strip()
    dotted = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})", value)
    slashed = re.fullmatch(r"(\d{4})/(\d{1,2})/(\d{1,2})", value)
    try:
        if dotted:
            date = dt.date(int(dotted[3]), int(dotted[2]), int(dotted[1]))
        elif slashed:
            date = dt.date(int(slashed[1]), int(slashed[2]), int(slashed[3]))
        elif re.match(r"\d{4}-?\d\d-?\d\d(?:$|[T ])", value):
            date = dt.datetime.fromisoformat(value).date()
        else:
            raise ValueError
    except ValueError:
        raise ValueError(f"{value!r} is not a date; write it as 2024-05-31") from None
    if date < EARLIEST_DATE:
        raise ValueError(f"{value!r} is before there were recordings like this one")
    return date


def _json_object(line: str) -> dict[str, Any]:
    """A JSON object from a line. Raises ValueError for anything else."""
    try:
        row = parse_json(line)
    except ValueError:
        raise ValueError("the line is not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("the line is not a JSON object")
    return row


def is_uri(location: str) -> bool:
    """Whether a location names a scheme, as in s3://bucket/call.flac."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def cell_text(value: Any) -> str:
    """A cell as text, trimmed; empty for None. Raises ValueError for what is neither text nor a number."""
    if value is None:
        return ""
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value).strip()
    raise ValueError(f"{value!r} is neither text nor a number")


def text_field(row: Mapping[str, Any], key: str) -> str:
    """A field of a row; empty where it is missing. Raises ValueError for what is not text."""
    value = row.get(key)
    if isinstance(value, str):
        return value
    if value is not None:
        raise ValueError(f"{key} is not text")
    return ""


def required_field(row: Mapping[str, Any], key: str) -> str:
    """A field of a row. Raises ValueError where it is missing, empty or not text."""
    value = row.get(key)
    if value and isinstance(value, str):
        return value
    text_field(row, key)
    raise ValueError(f"{key} is missing")


def as_seconds(value: Any, name: str) -> float:
    """A length or position in seconds. Raises ValueError for what is no finite number of at least zero.

    What rounding leaves below zero is zero.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        if re.fullmatch(r"[0-9]+(,[0-9]+)+", str(value).strip()):  # "3,250" is 3.25 to one and 3250 to another
            point = "write decimals after a point, as 3.25, and nothing between thousands"
            raise ValueError(f"{name} {value!r} is not a number: {point}") from None
        raise ValueError(f"{name} {value!r} is not a number of seconds") from None
    if -ROUNDED_S < seconds < 0:
        return 0.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{name} {value!r} is not a number of seconds")
    return seconds


def as_channel(value: Any) -> int | None:
    """A channel counted from 0, by its number, its letter (A is the first) or its side, or None.

    Raises ValueError for anything else. A number is never taken to count from 1: which party it would mean is a guess.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    name = str(value).strip().lower()
    if re.fullmatch(r"[0-9]{1,3}(\.0)?", name):
        return int(float(name))
    if re.fullmatch(r"[a-p]", name):
        return ord(name) - ord("a")
    if name in ("left", "right"):
        return int(name == "right")
    raise ValueError(f"channel {value!r} is none: write its number counted from 0, or A, B, left or right")


def as_split(value: Any) -> str | None:
    """One of SPLITS, by the names that corpora give them, or None. Raises ValueError for another name."""
    if value is None:
        return None
    name = str(value).lower()
    name = {"validation": "dev", "valid": "dev", "val": "dev", "eval": "test"}.get(name, name)
    if name not in SPLITS:
        raise ValueError(f"split {value!r} is none of {', '.join(SPLITS)}")
    return name


def as_text_mapping(value: Any) -> dict[str, str]:
    """Attributes with their values as text. Raises ValueError for what is no object."""
    if not value and value in (None, {}):
        return {}
    if not isinstance(value, dict):
        raise ValueError("attributes is not an object")
    return {str(key): cell_text(item) for key, item in value.items()}


def as_quality(value: Any) -> Quality | None:
    """Quality measures as they were written, or None. Raises ValueError for anything else."""
    return None if value is None else from_plain(Quality, value)


def reason_of(error: BaseException) -> str:
    """What an error says, without the place that it names."""
    if isinstance(error, ManifestError):
        return error.reason
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__
