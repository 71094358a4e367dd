"""Plots of an evaluation: functions that return PNG bytes, for use wherever an image is shown."""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.calibration import Reliability
from evaluation.presentation import one_line, percent
from evaluation.results import QUARTER, Evaluation, Score, Scored
from evaluation.scoring import score, score_by_speaker, slice_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

PLOTTED_SLICES = 40

# Okabe & Ito's palette: told apart by colour-blind readers.
CANDIDATE, CHAMPION, LIMIT = "#0072B2", "#E69F00", "#D55E00"
CANDIDATE_ON_DARK = "#56B4E9"
GREY = "#8793a1"


_LOOK = {
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelsize": 9,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "figure.titlesize": 10.5,
    "figure.titleweight": "bold",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.framealpha": 0.0,
    "text.parse_math": False,  # a domain may be called "$x$"
    "xtick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


@contextlib.contextmanager
def _figure(width_in: float, height_in: float, dark: bool) -> Iterator["Figure"]:
    """An empty figure in our look: C0 is the candidate's colour, C1 the champion's, C2 a limit's."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.rcsetup import cycler

    ink, faint = ("#d7dde5", "#3a4552") if dark else ("#1f2933", "#dde3ea")
    look = _LOOK | dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    look |= {"axes.edgecolor": faint, "grid.color": faint, "figure.facecolor": "none" if dark else "#ffffff"}
    look["axes.prop_cycle"] = cycler(color=[CANDIDATE_ON_DARK if dark else CANDIDATE, CHAMPION, LIMIT])
    with rc_context(look):
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    stream = io.BytesIO()
    figure.set_dpi(120)
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})  # savefig would lay out and draw twice
    return stream.getvalue()


def _in_percent(axis: "Axis") -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))


def _nothing(axes: "Axes", text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color=GREY, transform=axes.transAxes)


def _empty(figure: "Figure", title: str) -> bytes:
    axes = figure.subplots()
    _nothing(axes, "nothing was measured")
    axes.set(title=title, xticks=[], yticks=[])
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
    with _figure(9.6, 1.3 + 0.27 * max(len(names), 3), dark) as figure:
        if result is None or not names:
            return _empty(figure, title)
        axes = figure.subplots()
        places = np.arange(len(names) + 1)
        shift = 0.14 if result.champion else 0.0
        ours: list[Score | None] = [result.score, *(result.slices[name] for name in names)]
        _whiskers(axes, places - shift, ours, "C0", "candidate", True)
        if result.champion:
            theirs = [result.champion.score, *(result.champion.slices.get(name) for name in names)]
            _whiskers(axes, places + shift, theirs, "C1", "champion", True)
        if limit is not None:
            axes.axvline(limit, color="C2", linestyle="--", linewidth=1.2, label=f"slice limit {limit:.0%}")
        axes.set_yticks(places, ["all utterances", *(one_line(name.replace("=", ": ", 1)) for name in names)])
        axes.set(ylim=(len(names) + 0.6, -0.6), xlim=(0, None))
        _in_percent(axes.xaxis)
        axes.legend(loc="lower right", ncols=3, bbox_to_anchor=(1.0, 1.0), borderaxespad=0.1)
        axes.grid(False, axis="y")
        figure.suptitle(title, x=0.01, ha="left")
        return _png(figure)


def reliability_png(found: Reliability, *, dark: bool = False) -> bytes:
    """How often words of each confidence are right, and how many words there are."""
    title = f"Confidence against correctness (calibration error {percent(found.expected_calibration_error)})"
    bins = [group for group in found.bins if group.words]
    with _figure(5.6, 4.2, dark) as figure:
        if not bins:
            return _empty(figure, title)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="perfect")
        sure = [group.confidence for group in bins]
        right = [group.accuracy for group in bins]
        upper.plot(sure, right, color="C0", linewidth=1.4, label="measured")
        most = max(group.words for group in bins)
        sizes = [8 + 70 * group.words / most for group in bins]
        upper.scatter(sure, right, s=sizes, color="C0", linewidths=0, zorder=3)
        upper.set(title=title, ylim=(-0.02, 1.04), ylabel="share of words right")
        upper.legend(loc="upper left")
        _in_percent(upper.yaxis)
        middles = [(group.low + group.high) / 2 for group in found.bins]
        width = (found.bins[0].high - found.bins[0].low) * 0.9
        lower.bar(middles, [group.words for group in found.bins], width=width, color="C0", alpha=0.75)
        lower.set(xlim=(0, 1), xlabel="confidence", ylabel="words")
        return _png(figure)


def wer_by_condition_png(
    evaluation: Evaluation, set_name: str = QUARTER, *, groups: int = 5, dark: bool = False
) -> bytes:
    """WER against duration and against signal-to-noise ratio: utterances in groups of equal size."""
    result = evaluation.sets.get(set_name)
    measures: tuple[tuple[str, str, Callable[[Scored], float]], ...] = (
        ("WER by duration", "seconds (groups of equal size, at their median)", lambda row: row.duration_s),
        ("WER by signal-to-noise ratio", "dB (groups of equal size, at their median)", lambda row: row.snr_db),
    )
    with _figure(5.6, 4.8, dark) as figure:
        if result is None or not result.rows:
            return _empty(figure, "WER by duration and signal quality")
        rivals = [(result.rows, "C0", "candidate")]
        if result.champion:
            rivals.append((result.champion.rows, "C1", "champion"))
        for axes, (title, unit, measure) in zip(figure.subplots(2, 1, sharey=True), measures, strict=True):
            for rows, colour, label in rivals:
                known = sorted((row for row in rows if math.isfinite(measure(row))), key=measure)
                parts = [part for part in np.array_split(np.arange(len(known)), groups) if len(part)]
                medians = np.array([measure(known[part[len(part) // 2]]) for part in parts])
                scores = [score([known[i] for i in part], evaluation.language, bootstrap=200) for part in parts]
                _whiskers(axes, medians, scores, colour, label, False)
                axes.plot(medians, [found.wer for found in scores], color=colour, linewidth=1, alpha=0.6)
            axes.set(title=title, xlabel=unit, ylim=(0, None))
            _in_percent(axes.yaxis)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="best")
            else:
                _nothing(axes, "not measured")
        return _png(figure)


def wer_by_speaker_png(evaluation: Evaluation, set_name: str = QUARTER, *, dark: bool = False) -> bytes:
    """Every speaker's WER, sorted: does the model fail everyone a little or a few people badly."""
    title = f"WER by speaker, {set_name} set (area = words)"
    rows = evaluation.sets[set_name].rows if set_name in evaluation.sets else ()
    scores = [found for found in score_by_speaker(rows, evaluation.language).values() if found.words]
    scores.sort(key=lambda found: found.wer)
    with _figure(5.6, 3.2, dark) as figure:
        if not scores:
            return _empty(figure, title)
        axes = figure.subplots()
        words = np.array([found.words for found in scores], dtype=float)
        places, rates = np.arange(len(scores)) + 1, [found.wer for found in scores]
        axes.scatter(places, rates, s=12 + 120 * words / words.max(), color="C0", alpha=0.7, linewidths=0)
        overall = evaluation.sets[set_name].score.wer
        axes.axhline(overall, color=GREY, linestyle="--", linewidth=1, label=f"all speakers {percent(overall)}")
        axes.set(title=title, xlabel="speakers, best first", xticks=[], ylim=(0, None))
        _in_percent(axes.yaxis)
        axes.legend(loc="upper left")
        return _png(figure)


def champion_png(evaluation: Evaluation, *, dark: bool = False) -> bytes:
    """Candidate's WER minus champion's on each set with its paired interval: left of zero is better."""
    title = "Against the champion, same utterances (left is better)"
    found = [(name, result.champion.difference) for name, result in evaluation.sets.items() if result.champion]
    with _figure(5.6, 2.2, dark) as figure:
        if not found:
            return _empty(figure, title)
        axes = figure.subplots()
        for place, (_, difference) in enumerate(found):
            colour = "C2" if difference.low > 0 else "C0"
            low, middle, high = (value * 100 for value in (difference.low, difference.estimate, difference.high))
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot(middle, place, marker="o", color=colour, markersize=7)
            above: dict[str, Any] = {"textcoords": "offset points", "xytext": (0, 9), "ha": "center"}
            axes.annotate(f"{middle:+.2f}", (middle, place), **above, fontsize=9, color=colour)
        axes.axvline(0, color=GREY, linewidth=1)
        ends = (abs(value) for _, item in found for value in (item.low, item.high) if math.isfinite(value))
        reach = max(max(ends, default=0) * 115, 0.5)
        axes.set(title=title, xlim=(-reach, reach), xlabel="percentage points of WER")
        axes.set_yticks(np.arange(len(found)), [one_line(name) for name, _ in found])
        axes.set_ylim(len(found) - 0.4, -0.7)
        axes.grid(False, axis="y")
        return _png(figure)
