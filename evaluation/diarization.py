"""How well speakers are told apart: DER of who speaks when, and cpWER of who says what.

Diarisation error rate (NIST RT-09): the time in which somebody is missed, heard where nobody speaks, or taken for
another, over the time that is spoken, with the best one-to-one naming of speakers. It is counted by pyannote.metrics
(Bredin, 2017), whose collar is the whole width around an edge: NIST's quarter of a second on either side is 0.5 there.
A collar hides errors at edges, and leaving overlap out hides the speech of whoever is talked over, so a figure
says both, and `diarization_errors` gives all four. Concatenated minimum-permutation WER (Watanabe et al., 2020) is
counted by meeteval;
both sides are compared as they are given, so bring them to the scoring form first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from speech.diarization import Turn

NIST_COLLAR_S = 0.25  # on either side of an edge of the reference


@dataclass(frozen=True)
class DiarizationError:
    """Seconds of error of each kind, over the speech of the reference that was counted."""

    collar_s: float  # on either side of an edge, in which nothing counts
    overlap: bool  # whether the time in which several speak counts
    spoken_s: float
    missed_s: float
    false_alarm_s: float
    confused_s: float

    @property
    def rate(self) -> float:
        """DER; nan where nothing that counts was spoken."""
        errors_s = self.missed_s + self.false_alarm_s + self.confused_s
        return errors_s / self.spoken_s if self.spoken_s else float("nan")


@dataclass(frozen=True)
class Diarized:
    """A recording with who really speaks when, and who was taken to."""

    duration_s: float
    reference: Sequence[Turn]
    hypothesis: Sequence[Turn]


def diarization_error(recordings: Iterable[Diarized], collar_s: float, *, overlap: bool) -> DiarizationError:
    """Errors of all recordings together; speakers are named anew in each. `collar_s`: on either side of an edge."""
    from pyannote.core import Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate(collar=2 * collar_s, skip_overlap=not overlap)
    sums = dict.fromkeys(("total", "missed detection", "false alarm", "confusion"), 0.0)
    for recording in recordings:
        whole = Timeline([Segment(0.0, recording.duration_s)])
        found = metric.compute_components(_annotated(recording.reference), _annotated(recording.hypothesis), uem=whole)
        for name in sums:
            sums[name] += found[name]
    return DiarizationError(
        collar_s=collar_s,
        overlap=overlap,
        spoken_s=sums["total"],
        missed_s=sums["missed detection"],
        false_alarm_s=sums["false alarm"],
        confused_s=sums["confusion"],
    )


def diarization_errors(recordings: Sequence[Diarized]) -> tuple[DiarizationError, ...]:
    """With NIST's collar and with none, each without overlap and with it."""
    return tuple(
        diarization_error(recordings, collar_s, overlap=overlap)
        for collar_s in (NIST_COLLAR_S, 0.0)
        for overlap in (False, True)
    )


def cpwer(reference: Mapping[str, str], hypothesis: Mapping[str, str]) -> tuple[int, int]:
    """Errors and words of the reference, when each one's words are joined and speakers are named as suits best.

    Args:
        reference: by speaker, all that they say, words between spaces.
        hypothesis: the same, as recognised; speakers may have other names and be more or fewer.
    """
    from meeteval.wer import cp_word_error_rate

    if not reference:  # every word is one too many, and there is nothing to name anybody by
        return sum(len(said.split()) for said in hypothesis.values()), 0
    found = cp_word_error_rate(dict(reference), dict(hypothesis), reference_sort=False, hypothesis_sort=False)
    return int(found.errors), int(found.length)


def turns_of_rttm(text: str) -> list[Turn]:
    """The turns of an RTTM file of one recording. Raises ValueError for a line that is none."""
    turns = []
    for number, line in enumerate(text.splitlines(), 1):
        columns = line.split()
        if not columns or columns[0] != "SPEAKER":  # NIST's files hold other lines, too
            continue
        try:
            start_s, length_s, speaker = float(columns[3]), float(columns[4]), columns[7]
        except (ValueError, IndexError):
            raise ValueError(f"line {number} is no speaker's turn: {line!r}") from None
        turns.append(Turn(start_s, start_s + length_s, speaker))
    return turns


def _annotated(turns: Iterable[Turn]) -> object:
    from pyannote.core import Annotation, Segment

    annotation = Annotation()
    for number, turn in enumerate(turns):
        if turn.end_s > turn.start_s:
            annotation[Segment(turn.start_s, turn.end_s), number] = turn.speaker
    return annotation
