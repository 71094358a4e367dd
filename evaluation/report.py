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
from speech.audio.decode import AudioError, decode
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
class AlignedUtterance:
    """An utterance as the report shows it."""

    row: Scored
    edits: tuple[Edit, ...]
    errors: int
    champion: tuple[Edit, ...] | None
    champion_errors: int | None
    sound: str  # data: URI or ""
    no_sound: str  # why there is none


def frequent_errors(edits: Iterable[Edit], most: int = FREQUENT_ERRORS) -> dict[str, list[tuple[Edit, int]]]:
    """The commonest substitutions, deletions and insertions with their number, most frequent first."""
    counts = Counter(edit for edit in edits if edit.kind != "equal")
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0].reference, item[0].hypothesis))
    kinds = ("substitute", "delete", "insert")
    return {kind: [(edit, count) for edit, count in ordered if edit.kind == kind][:most] for kind in kinds}


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
    folder: Path, evaluation: Evaluation, verdict: Verdict | None = None, audio: FindAudio | None = None
) -> Path:
    """Write report.html into `folder` and return its path; see `render_report`."""
    path = folder / REPORT_NAME
    write_atomically(path, render_report(evaluation, verdict, audio))
    return path


def render_report(
    evaluation: Evaluation,
    verdict: Verdict | None = None,
    audio: FindAudio | None = None,
    audio_budget_bytes: int = AUDIO_BUDGET_BYTES,
) -> str:
    """The report as text.

    `audio(set name, utterance id)` gives an utterance's sound as a path, encoded bytes or float32 samples at 16 kHz,
    or None. At most `audio_budget_bytes` of encoded sound go into it.
    """
    sounds = _Sounds(audio, audio_budget_bytes)
    order = [name for name in (QUARTER, BENCHMARK) if name in evaluation.sets]
    order += sorted(set(evaluation.sets) - set(order))
    return template("report.html.j2").render(
        csp=CSP,
        evaluation=evaluation,
        verdict=verdict,
        title=_title(evaluation),
        set_titles={QUARTER: "The quarter's test set", BENCHMARK: "Frozen benchmark"},
        sets=[_set_context(evaluation, name, verdict, sounds) for name in order],
        gate_title=gate_title,
        champion=_both(champion_png, evaluation) if evaluation.champion_digest else None,
    )


def _set_context(evaluation: Evaluation, name: str, verdict: Verdict | None, sounds: _Sounds) -> Mapping[str, Any]:
    result, language = evaluation.sets[name], evaluation.language
    gates = {gate.slice: gate for gate in verdict.gates if gate.slice and gate.test_set == name} if verdict else {}
    speakers = [(speaker, found) for speaker, found in score_by_speaker(result.rows, language).items() if found.words]
    edits = _aligned(result.rows, language)
    return {
        "name": name,
        "result": result,
        "slices": [(slice_name, result.slices[slice_name]) for slice_name in sorted(result.slices, key=slice_order)],
        "slice_gates": gates,
        "plots": {
            "slices": _both(
                wer_by_slice_png, evaluation, name, limit=verdict.settings.get("slice_wer") if verdict else None
            ),
            "condition": _both(wer_by_condition_png, evaluation, name),
            "reliability": _both(reliability_png, result.reliability),
            "speakers": _both(wer_by_speaker_png, evaluation, name),
        },
        "speakers": sorted(speakers, key=lambda item: (-item[1].wer, item[0]))[:SPEAKERS_SHOWN],
        "errors": frequent_errors(edit for aligned in edits.values() for edit in aligned),
        "lists": _utterance_lists(name, result, edits, language, sounds),
    }


def _aligned(rows: Iterable[Scored], language: str) -> dict[str, tuple[Edit, ...]]:
    return {row.id: tuple(align(row.reference, row.hypothesis, language)) for row in rows}


def _utterance_lists(
    set_name: str, result: SetResult, edits: Mapping[str, tuple[Edit, ...]], language: str, sounds: _Sounds
) -> list[tuple[str, str, list[AlignedUtterance]]]:
    """Lists worth listening to; an utterance is in the first that it belongs to."""
    errors = {identity: _errors(found) for identity, found in edits.items()}
    theirs = _aligned(result.champion.rows, language) if result.champion else {}

    def regression(row: Scored) -> int:
        return errors[row.id] - _errors(theirs[row.id]) if row.id in theirs else 0

    def rate(row: Scored) -> float:
        return errors[row.id] / max(1, sum(edit.kind != "insert" for edit in edits[row.id]))

    wrong = [row for row in result.rows if errors[row.id]]
    most_errors = sorted(wrong, key=lambda row: (-errors[row.id], -rate(row), row.id))
    lost = sorted((row for row in wrong if regression(row) > 0), key=lambda row: (-regression(row), row.id))
    sure = sorted(
        (row for row in wrong if row.confidence > 0.8), key=lambda row: (-row.confidence * min(rate(row), 1.0), row.id)
    )
    worst = WORST_UTTERANCES if set_name == QUARTER else WORST_UTTERANCES // 2
    plans = (
        ("Most errors", "What costs the most words, and so the most WER.", most_errors, worst),
        (
            "Worse than the champion",
            "What the candidate lost: errors that the champion does not make.",
            lost,
            OTHER_UTTERANCES,
        ),
        (
            "Confident and wrong",
            "What would be published without review. A wrong reference often shows here first.",
            sure,
            OTHER_UTTERANCES,
        ),
    )
    shown: set[str] = set()
    lists = []
    for title, reason, rows, most in plans:
        entries = []
        for row in [row for row in rows if row.id not in shown][:most]:
            shown.add(row.id)
            rival = theirs.get(row.id)
            rival_errors = None if rival is None else _errors(rival)
            sound = sounds.uri(set_name, row.id)
            entries.append(AlignedUtterance(row, edits[row.id], errors[row.id], rival, rival_errors, *sound))
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
