"""The evaluation report: one HTML file that a speech engineer can open, send and archive.

Numbers say whether a model is refused; listening says why. The report holds both: gates, slices and plots, and the
worst utterances aligned word by word with their sound. It is one file without scripts and without a reference to any
server (a strict Content-Security-Policy enforces that), because transcripts are strangers' text and may hold anything.
Sounds are MP3 at about 30 kbit/s: good enough to hear what was said, a tenth of FLAC; not for measuring.

The plots are functions of their own that return PNG bytes, for use wherever an image is shown.
"""

import base64
import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.calibration import Reliability
from evaluation.gates import AT_MOST, GateResult, Verdict
from evaluation.results import BENCHMARK, QUARTER, Evaluation, Interval, Score, Scored, SetResult
from evaluation.scoring import Edit, align, score, slice_order
from speech.manifest import quarter_title
from speech.store import write_atomically

if TYPE_CHECKING:
    from jinja2 import Template
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REPORT_NAME = "report.html"
WORST_UTTERANCES = 20
OTHER_UTTERANCES = 8  # in each of the shorter lists
SPEAKERS_SHOWN = 8
FREQUENT_ERRORS = 12
AUDIO_BUDGET_BYTES = 6_000_000  # of encoded sound in one report
LONGEST_CLIP_S = 30.0
LABEL_CHARACTERS = 40
PLOTTED_SLICES = 40

AudioSource = str | os.PathLike[str] | bytes | np.ndarray
FindAudio = Callable[[str, str], AudioSource | None]  # (name of the set, utterance id) -> its sound

CSP = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)

# Okabe & Ito's palette: told apart by colour-blind readers.
CANDIDATE, CHAMPION, LIMIT = "#0072B2", "#E69F00", "#D55E00"
CANDIDATE_ON_DARK = "#56B4E9"


# ------------------------------------------------------------------------------------------------------------- plots


def _figure(width_in: float, height_in: float, dark: bool) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.patch.set_alpha(0.0) if dark else figure.patch.set_facecolor("#ffffff")
    return figure


def _style(axes: "Axes", dark: bool, title: str) -> None:
    ink = "#d7dde5" if dark else "#1f2933"
    faint = "#3a4552" if dark else "#dde3ea"
    if dark:
        axes.patch.set_alpha(0.0)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=ink, parse_math=False)
    axes.tick_params(colors=ink, labelsize=8.5, length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(ink)
        label.set_fontsize(9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(faint)
    axes.grid(True, color=faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        text.set_parse_math(False)  # a domain may be called "$x$"
    if (legend := axes.get_legend()) is not None:
        legend.get_frame().set_alpha(0.0)
        for text in legend.get_texts():
            text.set_color(ink)
            text.set_fontsize(8.5)
            text.set_parse_math(False)


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    figure.set_dpi(120)
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # savefig would lay out and draw twice
    return stream.getvalue()


def _label(text: str, characters: int = LABEL_CHARACTERS) -> str:
    """Someone's text as one printable line of bounded length."""
    line = " ".join("".join(character if character.isprintable() else " " for character in text).split())
    return line if len(line) <= characters else line[: characters - 1] + "…"


def _percent_axis(axes: "Axes", which: str) -> None:
    from matplotlib.ticker import PercentFormatter

    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))


def _empty(figure: "Figure", title: str, dark: bool) -> bytes:
    axes = figure.subplots()
    axes.text(0.5, 0.5, "nothing was measured", ha="center", va="center", color="#8793a1", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])
    _style(axes, dark, title)
    return _png(figure)


def _whiskers(
    axes: "Axes", positions: np.ndarray, scores: Sequence[Score | None], colour: str, label: str, horizontal: bool
) -> None:
    """Points with their intervals."""
    shown = [(place, score) for place, score in zip(positions, scores, strict=True) if score and score.words]
    if not shown:
        return
    places = np.array([place for place, _ in shown])
    rates = np.array([score.wer for _, score in shown])
    low = np.array([score.wer_interval.low for _, score in shown])
    high = np.array([score.wer_interval.high for _, score in shown])
    spread = np.nan_to_num(np.maximum(np.vstack([rates - low, high - rates]), 0.0))
    line: dict[str, Any] = {"fmt": "o", "color": colour, "markersize": 5, "elinewidth": 1.6, "label": label}
    if horizontal:
        axes.errorbar(rates, places, xerr=spread, **line)
    else:
        axes.errorbar(places, rates, yerr=spread, **line)


def wer_by_slice_png(
    evaluation: Evaluation, set_name: str = QUARTER, *, limit: float | None = None, dark: bool = False
) -> bytes:
    """WER of every slice with its 95 % interval, candidate beside champion; `limit` draws the gate."""
    title = f"WER by slice, {set_name} set (95 % intervals over speakers)"
    result = evaluation.sets.get(set_name)
    names = sorted((name for name, score in result.slices.items() if score.words), key=slice_order) if result else []
    names = names[:PLOTTED_SLICES]
    figure = _figure(9.6, 1.3 + 0.27 * max(len(names), 3), dark)
    if result is None or not names:
        return _empty(figure, title, dark)
    axes = figure.subplots()
    places = np.arange(len(names) + 1)
    labels = ["all utterances", *(_label(name.replace("=", ": ", 1)) for name in names)]
    shift = 0.14 if result.champion else 0.0
    blue = CANDIDATE_ON_DARK if dark else CANDIDATE
    ours: list[Score | None] = [result.score, *(result.slices[name] for name in names)]
    _whiskers(axes, places - shift, ours, blue, "candidate", True)
    if result.champion:
        theirs = [result.champion.score, *(result.champion.slices.get(name) for name in names)]
        _whiskers(axes, places + shift, theirs, CHAMPION, "champion", True)
    if limit is not None:
        axes.axvline(limit, color=LIMIT, linestyle="--", linewidth=1.2, label=f"slice limit {limit:.0%}")
    axes.set_yticks(places, labels)
    axes.set_ylim(len(names) + 0.6, -0.6)
    axes.set_xlim(left=0)
    _percent_axis(axes, "x")
    axes.legend(loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
    _style(axes, dark, "")
    axes.grid(False, axis="y")
    ink = "#d7dde5" if dark else "#1f2933"
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold", color=ink, parse_math=False)
    return _png(figure)


def reliability_png(found: Reliability, *, dark: bool = False) -> bytes:
    """How often words of each confidence are right, and how many words there are."""
    title = f"Confidence against correctness (calibration error {_percent(found.expected_calibration_error)})"
    figure = _figure(5.6, 4.2, dark)
    bins = [group for group in found.bins if group.words]
    if not bins:
        return _empty(figure, title, dark)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    blue = CANDIDATE_ON_DARK if dark else CANDIDATE
    upper.plot([0, 1], [0, 1], color="#8793a1", linestyle="--", linewidth=1, label="perfect")
    sure = [group.confidence for group in bins]
    right = [group.accuracy for group in bins]
    upper.plot(sure, right, color=blue, linewidth=1.4, label="measured")
    most = max(group.words for group in bins)
    upper.scatter(sure, right, s=[8 + 70 * group.words / most for group in bins], color=blue, linewidths=0, zorder=3)
    upper.set_ylim(-0.02, 1.04)
    upper.set_ylabel("share of words right")
    upper.legend(loc="upper left")
    width = found.bins[0].high - found.bins[0].low
    lower.bar(
        [(group.low + group.high) / 2 for group in found.bins],
        [group.words for group in found.bins],
        width=width * 0.9,
        color=blue,
        alpha=0.75,
    )
    lower.set_xlim(0, 1)
    lower.set_xlabel("confidence")
    lower.set_ylabel("words")
    _percent_axis(upper, "y")
    _style(upper, dark, title)
    _style(lower, dark, "")
    return _png(figure)


def wer_by_condition_png(
    evaluation: Evaluation, set_name: str = QUARTER, *, groups: int = 5, dark: bool = False
) -> bytes:
    """WER against duration and against signal-to-noise ratio: utterances in groups of equal size."""
    figure = _figure(5.6, 4.8, dark)
    result = evaluation.sets.get(set_name)
    if result is None or not result.rows:
        return _empty(figure, "WER by duration and signal quality", dark)
    panels = figure.subplots(2, 1, sharey=True)
    blue = CANDIDATE_ON_DARK if dark else CANDIDATE
    measures: tuple[tuple[str, str, Callable[[Scored], float]], ...] = (
        ("WER by duration", "seconds (groups of equal size, at their median)", lambda row: row.duration_s),
        ("WER by signal-to-noise ratio", "dB (groups of equal size, at their median)", lambda row: row.snr_db),
    )
    for axes, (title, unit, measure) in zip(panels, measures, strict=True):
        rivals = [(result.rows, blue, "candidate")]
        if result.champion:
            rivals.append((result.champion.rows, CHAMPION, "champion"))
        drawn = False
        for rows, colour, label in rivals:
            known = sorted((row for row in rows if math.isfinite(measure(row))), key=measure)
            parts = [part for part in np.array_split(np.arange(len(known)), groups) if len(part)]
            medians = np.array([measure(known[part[len(part) // 2]]) for part in parts])
            scores = [score([known[i] for i in part], evaluation.language, bootstrap=200) for part in parts]
            _whiskers(axes, medians, scores, colour, label, False)
            if parts:
                drawn = True
                axes.plot(medians, [found.wer for found in scores], color=colour, linewidth=1, alpha=0.6)
        axes.set_xlabel(unit)
        axes.set_ylim(bottom=0)
        _percent_axis(axes, "y")
        if drawn:
            axes.legend(loc="best")
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", color="#8793a1", transform=axes.transAxes)
        _style(axes, dark, title)
    return _png(figure)


def wer_by_speaker_png(evaluation: Evaluation, set_name: str = QUARTER, *, dark: bool = False) -> bytes:
    """Every speaker's WER, sorted: does the model fail everyone a little or a few people badly."""
    title = f"WER by speaker, {set_name} set (area = words)"
    figure = _figure(5.6, 3.2, dark)
    speakers = [found for found in _by_speaker(evaluation, set_name) if found.score.words]
    if not speakers:
        return _empty(figure, title, dark)
    axes = figure.subplots()
    speakers.sort(key=lambda found: found.score.wer)
    words = np.array([found.score.words for found in speakers], dtype=float)
    axes.scatter(
        np.arange(len(speakers)) + 1,
        [found.score.wer for found in speakers],
        s=12 + 120 * words / words.max(),
        color=CANDIDATE_ON_DARK if dark else CANDIDATE,
        alpha=0.7,
        linewidths=0,
    )
    overall = evaluation.sets[set_name].score.wer
    axes.axhline(overall, color="#8793a1", linestyle="--", linewidth=1, label=f"all speakers {_percent(overall)}")
    axes.set_xlabel("speakers, best first")
    axes.set_ylim(bottom=0)
    axes.set_xticks([])
    _percent_axis(axes, "y")
    axes.legend(loc="upper left")
    _style(axes, dark, title)
    return _png(figure)


def champion_png(evaluation: Evaluation, *, margin: float = 0.0, dark: bool = False) -> bytes:
    """Candidate's WER minus champion's on each set with its paired interval: left of zero is better."""
    title = "Against the champion, same utterances (left is better)"
    figure = _figure(5.6, 2.2, dark)
    found = [(name, result.champion.difference) for name, result in evaluation.sets.items() if result.champion]
    if not found:
        return _empty(figure, title, dark)
    axes = figure.subplots()
    for place, (_, difference) in enumerate(found):
        worse = difference.low > margin
        colour = LIMIT if worse else (CANDIDATE_ON_DARK if dark else CANDIDATE)
        values = np.array([difference.low, difference.estimate, difference.high]) * 100
        axes.plot([values[0], values[2]], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(values[1], place, marker="o", color=colour, markersize=7)
        axes.annotate(
            f"{values[1]:+.2f}", (values[1], place), textcoords="offset points", xytext=(0, 9), ha="center",
            fontsize=9, color=colour,
        )  # fmt: skip
    axes.axvline(0, color="#8793a1", linewidth=1)
    reach = max((abs(value) for _, item in found for value in (item.low, item.high) if math.isfinite(value)), default=0)
    reach = max(reach * 115, 0.5)
    axes.set_xlim(-reach, reach)
    axes.set_yticks(np.arange(len(found)), [_label(name) for name, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.7)
    axes.set_xlabel("percentage points of WER")
    _style(axes, dark, title)
    axes.grid(False, axis="y")
    return _png(figure)


def gates_png(verdict: Verdict, *, dark: bool = False) -> bytes:
    """Each gate's value as a share of its threshold: how far inside or outside."""
    chosen = [gate for gate in verdict.gates if gate.sense == AT_MOST and gate.threshold > 0]
    title = "Used share of each limit (refused beyond 100 %)"
    figure = _figure(7.0, 1.2 + 0.26 * max(len(chosen), 3), dark)
    if not chosen:
        return _empty(figure, title, dark)
    axes = figure.subplots()
    shares = np.clip(np.nan_to_num([gate.value / gate.threshold for gate in chosen], nan=0.0), 0.0, 2.0)
    blue = CANDIDATE_ON_DARK if dark else CANDIDATE
    axes.barh(np.arange(len(chosen)), shares, color=[blue if gate.passed else LIMIT for gate in chosen], height=0.6)
    axes.axvline(1.0, color=LIMIT, linestyle="--", linewidth=1.2)
    axes.set_yticks(np.arange(len(chosen)), [_label(gate_title(gate)) for gate in chosen])
    axes.set_ylim(len(chosen) - 0.4, -0.6)
    _percent_axis(axes, "x")
    _style(axes, dark, title)
    axes.grid(False, axis="y")
    return _png(figure)


# ------------------------------------------------------------------------------------------------------------ tables


@dataclass(frozen=True)
class SpeakerScore:
    """One speaker's errors."""

    speaker: str
    score: Score


@dataclass(frozen=True)
class ErrorPair:
    """A recurring error: `reference` was said, `hypothesis` was recognised, `count` times."""

    reference: str
    hypothesis: str
    count: int


@dataclass(frozen=True)
class AlignedUtterance:
    """An utterance as the report shows it."""

    row: Scored
    edits: tuple[Edit, ...]
    errors: int
    champion: tuple[Edit, ...] | None
    champion_errors: int | None
    sound: str  # data: URI or ""
    no_sound: str  # why there is none


def _by_speaker(evaluation: Evaluation, set_name: str) -> list[SpeakerScore]:
    rows: dict[str, list[Scored]] = {}
    result = evaluation.sets.get(set_name)
    for row in result.rows if result else ():
        rows.setdefault(row.speaker, []).append(row)
    return [SpeakerScore(speaker, score(rows[speaker], evaluation.language, bootstrap=200)) for speaker in sorted(rows)]


def frequent_errors(rows: Iterable[Scored], language: str, most: int = FREQUENT_ERRORS) -> dict[str, list[ErrorPair]]:
    """The commonest substitutions, deletions and insertions, most frequent first."""
    counts: dict[str, Counter[tuple[str, str]]] = {kind: Counter() for kind in ("substitute", "delete", "insert")}
    for row in rows:
        for edit in align(row.reference, row.hypothesis, language):
            if edit.kind != "equal":
                counts[edit.kind][edit.reference, edit.hypothesis] += 1
    return {
        kind: [
            ErrorPair(expected, heard, count)
            for (expected, heard), count in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:most]
        ]
        for kind, found in counts.items()
    }


# ------------------------------------------------------------------------------------------------------------- sound


class _Sounds:
    """Encodes utterances until the budget is spent."""

    def __init__(self, find: FindAudio | None, budget_bytes: int) -> None:
        self._find = find
        self._left = budget_bytes

    def uri(self, set_name: str, utterance_id: str) -> tuple[str, str]:
        """A data: URI and "", or "" and the reason why there is none."""
        if self._find is None:
            return "", "no audio was given to this report"
        if self._left <= 0:
            return "", "left out: the report's audio budget is spent"
        from speech.audio import AudioError, decode

        try:
            source = self._find(set_name, utterance_id)
            if source is None:
                return "", "the audio was not found"
            samples = source if isinstance(source, np.ndarray) else decode(source).samples
        except AudioError as error:
            return "", error.reason
        except OSError:
            return "", "the audio could not be read"
        encoded = _mp3(samples[: int(LONGEST_CLIP_S * 16_000)])
        if len(encoded) > self._left:
            return "", "left out: the report's audio budget is spent"
        self._left -= len(encoded)
        return "data:audio/mpeg;base64," + base64.b64encode(encoded).decode(), ""


def _mp3(samples: np.ndarray) -> bytes:
    """float32 mono 16 kHz as MP3: what every browser plays."""
    import soundfile

    stream = io.BytesIO()
    soundfile.write(stream, np.asarray(samples, np.float32), 16_000, format="MP3", subtype="MPEG_LAYER_III")
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------------------ report


def write_report(
    folder: Path,
    evaluation: Evaluation,
    *,
    verdict: Verdict | None = None,
    audio: FindAudio | None = None,
    audio_budget_bytes: int = AUDIO_BUDGET_BYTES,
    worst: int = WORST_UTTERANCES,
) -> Path:
    """Write report.html into `folder` and return its path.

    `audio(set name, utterance id)` gives an utterance's sound as a path, encoded bytes or float32 samples at 16 kHz,
    or None. At most `audio_budget_bytes` of encoded sound go into the file.
    """
    path = folder / REPORT_NAME
    write_atomically(path, render_report(evaluation, verdict, audio, audio_budget_bytes, worst))
    return path


def render_report(
    evaluation: Evaluation,
    verdict: Verdict | None = None,
    audio: FindAudio | None = None,
    audio_budget_bytes: int = AUDIO_BUDGET_BYTES,
    worst: int = WORST_UTTERANCES,
) -> str:
    """The report as text; see `write_report`."""
    sounds = _Sounds(audio, audio_budget_bytes)
    order = [name for name in (QUARTER, BENCHMARK) if name in evaluation.sets]
    order += sorted(set(evaluation.sets) - set(order))
    slice_limit = verdict.settings.get("slice_wer") if verdict else None
    return template("report.html.j2").render(
        csp=CSP,
        evaluation=evaluation,
        verdict=verdict,
        title=_title(evaluation),
        set_titles={QUARTER: "The quarter's test set", BENCHMARK: "Frozen benchmark"},
        sets=[
            _set_context(evaluation, name, verdict, sounds, slice_limit, worst if name == QUARTER else worst // 2)
            for name in order
        ],
        gate_title=gate_title,
        overview={
            "champion": _both(champion_png, evaluation) if evaluation.champion_digest else None,
        },
    )


def template(name: str) -> "Template":
    """One of this package's pages, with the filters that show figures; whatever is put into it is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, points=_points, span=_span, number=_number, label=_label, anchor=_anchor, measured=_measured
    )
    return environment.get_template(name)


def _set_context(
    evaluation: Evaluation,
    name: str,
    verdict: Verdict | None,
    sounds: _Sounds,
    slice_limit: float | None,
    worst: int,
) -> Mapping[str, Any]:
    result = evaluation.sets[name]
    gates = {gate.slice: gate for gate in verdict.gates if gate.slice and gate.test_set == name} if verdict else {}
    speakers = sorted(
        (found for found in _by_speaker(evaluation, name) if found.score.words),
        key=lambda found: (-found.score.wer, found.speaker),
    )
    return {
        "name": name,
        "result": result,
        "slices": [(slice_name, result.slices[slice_name]) for slice_name in sorted(result.slices, key=slice_order)],
        "slice_gates": gates,
        "plots": {
            "slices": _both(wer_by_slice_png, evaluation, name, limit=slice_limit),
            "condition": _both(wer_by_condition_png, evaluation, name),
            "reliability": _both(reliability_png, result.reliability),
            "speakers": _both(wer_by_speaker_png, evaluation, name),
        },
        "speakers": speakers[:SPEAKERS_SHOWN],
        "errors": frequent_errors(result.rows, evaluation.language),
        "lists": _utterance_lists(evaluation, name, result, sounds, worst),
    }


def _utterance_lists(
    evaluation: Evaluation, set_name: str, result: SetResult, sounds: _Sounds, worst: int
) -> list[tuple[str, str, list[AlignedUtterance]]]:
    """Lists worth listening to; an utterance is in the first that it belongs to."""
    edits = {row.id: tuple(align(row.reference, row.hypothesis, evaluation.language)) for row in result.rows}
    errors = {identity: _errors(found) for identity, found in edits.items()}
    theirs = {}
    if result.champion:
        theirs = {
            row.id: tuple(align(row.reference, row.hypothesis, evaluation.language)) for row in result.champion.rows
        }

    def regression(row: Scored) -> int:
        return errors[row.id] - _errors(theirs[row.id]) if row.id in theirs else 0

    def rate(row: Scored) -> float:
        return errors[row.id] / max(1, sum(edit.kind != "insert" for edit in edits[row.id]))

    wrong = [row for row in result.rows if errors[row.id]]
    plans = [
        (
            "Most errors",
            "What costs the most words, and so the most WER.",
            sorted(wrong, key=lambda row: (-errors[row.id], -rate(row), row.id)),
            worst,
        ),
        (
            "Worse than the champion",
            "What the candidate lost: errors that the champion does not make.",
            sorted((row for row in wrong if regression(row) > 0), key=lambda row: (-regression(row), row.id)),
            OTHER_UTTERANCES,
        ),
        (
            "Confident and wrong",
            "What would be published without review. A wrong reference often shows here first.",
            sorted(
                (row for row in wrong if row.confidence > 0.8),
                key=lambda row: (-row.confidence * min(rate(row), 1.0), row.id),
            ),
            OTHER_UTTERANCES,
        ),
    ]
    shown: set[str] = set()
    lists = []
    for title, reason, rows, most in plans:
        chosen = [row for row in rows if row.id not in shown][:most]
        shown.update(row.id for row in chosen)
        entries = []
        for row in chosen:
            sound, no_sound = sounds.uri(set_name, row.id)
            rival = theirs.get(row.id)
            entries.append(
                AlignedUtterance(
                    row, edits[row.id], errors[row.id], rival, _errors(rival) if rival is not None else None, sound,
                    no_sound,
                )
            )  # fmt: skip
        if entries:
            lists.append((title, reason, entries))
    return lists


def _errors(edits: Iterable[Edit]) -> int:
    return sum(edit.kind != "equal" for edit in edits)


def _both(plot: Callable[..., bytes], *arguments: Any, **options: Any) -> dict[str, str]:
    """A plot for light and for dark pages, as data: URIs."""
    return {
        mode: "data:image/png;base64," + base64.b64encode(plot(*arguments, dark=mode == "dark", **options)).decode()
        for mode in ("light", "dark")
    }


def _title(evaluation: Evaluation) -> str:
    found = re.search(r"\d{4}-(01|04|07|10)", evaluation.partition)
    return f"{quarter_title(found[0])}, {evaluation.language}" if found else evaluation.partition


def gate_title(gate: GateResult) -> str:
    """A gate as people read it: "WER (benchmark)"."""
    name = {
        "wer": "WER",
        "cer": "CER",
        "evidence": "Evidence",
        "slice_wer": "WER of a slice",
        "not_worse_than_champion": "Not worse than the champion",
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


def _measured(gate: GateResult, value: float) -> str:
    """A gate's value or threshold in its own unit."""
    if not math.isfinite(value):
        return "not measured"
    if gate.unit.startswith("share"):
        return _percent(value)
    if gate.unit.startswith("WER difference"):
        return _points(value)
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:.1f} %"


def _points(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value * 100:+.2f} pt"


def _span(interval: Interval | None) -> str:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "no interval"
    return f"{interval.low * 100:.1f} to {interval.high * 100:.1f}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
