"""The evaluation report: one HTML file that a speech engineer can open, send and archive.

Numbers say whether a model is refused; listening says why. The report holds both: gates, slices and plots, and the
worst utterances aligned word by word with their sound. It is one file without scripts and without a reference to any
server (a strict Content-Security-Policy enforces that), because transcripts are strangers' text and may hold anything.
Sounds are MP3 at about 30 kbit/s: good enough to hear what was said, a tenth of FLAC; not for measuring.
"""

import base64
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.gates import Verdict
from evaluation.plots import champion_png, reliability_png, wer_by_condition_png, wer_by_slice_png, wer_by_speaker_png
from evaluation.presentation import CSP, gate_title, template
from evaluation.results import BENCHMARK, QUARTER, Evaluation, Scored, SetResult
from evaluation.scoring import Edit, align, score_by_speaker, slice_order
from speech.corpus.manifest import QUARTER_KEY, quarter_title
from speech.store.outputs import write_atomically

REPORT_NAME = "report.html"
WORST_UTTERANCES = 20
OTHER_UTTERANCES = 8  # in each of the shorter lists
SPEAKERS_SHOWN = 8
FREQUENT_ERRORS = 12
AUDIO_BUDGET_BYTES = 6_000_000  # of encoded sound in one report
LONGEST_CLIP_S = 30.0

AudioSource = str | os.PathLike[str] | bytes | np.ndarray
FindAudio = Callable[[str, str], AudioSource | None]  # (name of the set, utterance id) -> its sound


# ------------------------------------------------------------------------------------------------------------ tables


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
        from speech.audio.decode import AudioError, decode

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
    by_speaker = score_by_speaker(result.rows, evaluation.language)
    hardest = sorted(
        ((speaker, found) for speaker, found in by_speaker.items() if found.words),
        key=lambda item: (-item[1].wer, item[0]),
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
        "speakers": hardest[:SPEAKERS_SHOWN],
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
    found = QUARTER_KEY.search(evaluation.partition)
    return f"{quarter_title(found[0])}, {evaluation.language}" if found else evaluation.partition
