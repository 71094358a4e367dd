"""Plots of an evaluation: functions that return PNG bytes, for use wherever an image is shown."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.calibration import Reliability
from evaluation.presentation import one_line, percent
from evaluation.results import QUARTER, Evaluation, Score, Scored
from evaluation.scoring import score, score_by_speaker, slice_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED_SLICES = 40

# Okabe & Ito's palette: told apart by colour-blind readers.
CANDIDATE, CHAMPION, LIMIT = "#0072B2", "#E69F00", "#D55E00"
CANDIDATE_ON_DARK = "#56B4E9"


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
    labels = ["all utterances", *(one_line(name.replace("=", ": ", 1)) for name in names)]
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
    title = f"Confidence against correctness (calibration error {percent(found.expected_calibration_error)})"
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
    rows = evaluation.sets[set_name].rows if set_name in evaluation.sets else ()
    scores = [found for found in score_by_speaker(rows, evaluation.language).values() if found.words]
    if not scores:
        return _empty(figure, title, dark)
    axes = figure.subplots()
    scores.sort(key=lambda found: found.wer)
    words = np.array([found.words for found in scores], dtype=float)
    axes.scatter(
        np.arange(len(scores)) + 1,
        [found.wer for found in scores],
        s=12 + 120 * words / words.max(),
        color=CANDIDATE_ON_DARK if dark else CANDIDATE,
        alpha=0.7,
        linewidths=0,
    )
    overall = evaluation.sets[set_name].score.wer
    axes.axhline(overall, color="#8793a1", linestyle="--", linewidth=1, label=f"all speakers {percent(overall)}")
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
    axes.set_yticks(np.arange(len(found)), [one_line(name) for name, _ in found])
    axes.set_ylim(len(found) - 0.4, -0.7)
    axes.set_xlabel("percentage points of WER")
    _style(axes, dark, title)
    axes.grid(False, axis="y")
    return _png(figure)
