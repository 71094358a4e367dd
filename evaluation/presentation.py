"""How figures read on every page, and the pages' templates: no script, nothing from elsewhere, everything escaped."""

import math
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from evaluation.gates import GateResult
from evaluation.results import Interval

LABEL_CHARACTERS = 40

CSP = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)


def template(name: str, folder: Path | None = None) -> Template:
    """One of the pages, with the filters that show figures; whatever is put into it is escaped.

    A page in another `folder` than this package's may include what lies here.
    """
    here = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader([folder, here] if folder else here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=percent, points=points, span=span, number=number, label=one_line, anchor=anchor, measured=measured
    )
    return environment.get_template(name)


def one_line(text: str, characters: int = LABEL_CHARACTERS) -> str:
    """Someone's text as one printable line of bounded length."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def gate_title(gate: GateResult) -> str:
    """A gate as people read it: "WER (benchmark)"."""
    name = {
        "wer": "WER",
        "cer": "CER",
        "slice_wer": "WER of a slice",
        "insertions_per_minute": "Words made up without speech",
        "export_parity": "Export parity",
    }.get(gate.name, gate.name)
    if gate.name == "evidence":
        name = f"Evidence: {gate.unit}"
    if gate.name == "not_worse_than_champion":
        name = f"Not {'significantly' if gate.unit.endswith('lower end') else 'much'} worse than the champion"
    if gate.slice:
        name = f"WER, {gate.slice.replace('=', ': ', 1)}"
    return f"{name} ({gate.test_set})" if gate.test_set else name


def measured(gate: GateResult, value: float) -> str:
    """A gate's value or threshold in its own unit."""
    if not math.isfinite(value):
        return "not measured"
    if gate.unit.startswith("share"):
        return percent(value)
    if gate.unit.startswith("WER difference"):
        return points(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def percent(value: float | None) -> str:
    """A share in percent; a dash where nothing was measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:.1f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:+.2f} pt"


def span(interval: Interval | None) -> str:
    """The ends of an interval of shares, in percent."""
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval"
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}"


def number(value: float | None, digits: int = 2) -> str:
    """A figure with that many decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def anchor(text: str) -> str:
    """Someone's text as the id of a place in a page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
