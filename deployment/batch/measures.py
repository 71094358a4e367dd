"""What an hour is measured by: how long each stage took, what failed and why, how sure and how right transcripts are.

Two kinds are kept apart. What follows from an hour's content (`HourMeasures`) is the same however often it is run, and
is an output like any other. How long its stages took (`StageTime`) is another each time: it lies in a document beside
the outputs, which enters no digest.

Word error rates are known where a reference is: of recordings that a file of truth names, and of those that people
corrected. The latter are mostly those that models were unsure of, so the two are never added up.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deployment.batch.hour import Hour
from deployment.batch.versions import Version, Versions, corrected, in_force, recording_of
from evaluation.scoring import align
from speech.plain import from_plain, to_plain
from speech.store.objects import Objects
from speech.store.outputs import parse_json, to_json
from speech.store.records import Document
from speech.transcript import Transcript

PLACE, TIMES = "hour_measures", "stage_times"  # in the data store: an output an hour, and an object an hour
OTHER = "other"
REASONS = (  # why a recording cannot be used: the codes of `AudioError`, one that kills its worker, and what is none
    *("not-audio", "empty", "truncated", "too-long", "too-many-channels", "no-such-channel", "implausible-rate"),
    *("too-large", "unreadable", "unsupported", "crashed", OTHER),
)
PERCENTILES = (50, 95, 99)


class TruthError(ValueError):
    """A file of truth that cannot be used; the message says which line, and what it must be."""


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What was really said in a recording."""

    text: str
    name: str | None = None  # of its upload
    digest: str | None = None  # SHA-256 of its bytes; one of the two is enough
    domain: str | None = None


@dataclass(frozen=True, kw_only=True)
class Errors:
    """Word edits between what was said and what was heard."""

    recordings: int = 0
    words: int = 0  # that were said
    edits: int = 0

    @property
    def wer(self) -> float | None:
        """Edits over words; None where nothing was said."""
        return self.edits / self.words if self.words else None


@dataclass(frozen=True, kw_only=True)
class HourMeasures:
    """What an hour's content says of its quality."""

    arrived: int
    published: int
    asked_about: int
    failed: int
    same_as_before: int
    failed_by_reason: Mapping[str, int]  # all of `REASONS`
    audio_s: float
    words: int
    confidence: float | None  # mean over transcripts that have words; None: there is none
    errors_by_language: Mapping[str, Errors] = field(default_factory=dict)
    errors_by_domain: Mapping[str, Errors] = field(default_factory=dict)
    reviewed_by_language: Mapping[str, Errors] = field(default_factory=dict)  # against what people wrote

    @property
    def failed_share(self) -> float:
        """Of the recordings that were not there before."""
        fresh = self.arrived - self.same_as_before
        return self.failed / fresh if fresh else 0.0


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """How long a stage took for an hour's recordings."""

    recordings: int
    work_s: float  # of all workers together
    p50_s: float  # of work for a recording
    p95_s: float
    p99_s: float
    elapsed_s: float
    audio_s: float  # that it worked through

    @classmethod
    def of(cls, seconds: Iterable[tuple[str, float]], elapsed_s: float, audio_s: float) -> "StageTime":
        """From seconds of work by the id of the recording, which may come several times."""
        by_recording: defaultdict[str, float] = defaultdict(float)
        for recording, took_s in seconds:
            by_recording[recording] += took_s
        values = np.array([*by_recording.values()] or [0.0], dtype=np.float64)
        p50_s, p95_s, p99_s = (round(float(value), 6) for value in np.percentile(values, PERCENTILES))
        return cls(
            recordings=len(by_recording),
            work_s=round(float(values.sum()), 6),
            p50_s=p50_s,
            p95_s=p95_s,
            p99_s=p99_s,
            elapsed_s=round(elapsed_s, 6),
            audio_s=round(audio_s, 3),
        )

    @property
    def speed(self) -> float:
        """Seconds of audio a second (RTFx); 0 where there was none."""
        return self.audio_s / self.elapsed_s if self.elapsed_s > 0 else 0.0


def read_truth(path: Path) -> list[Truth]:
    """What was really said, of JSON lines with `text`, `name` or `digest`, and perhaps `domain`.

    Raises:
        TruthError: the file cannot be read, or a line is none of these.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise TruthError(
            f"{path} cannot be read ({error.strerror}): correct `truth` in [inference], or take it out"
        ) from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = from_plain(Truth, parse_json(line))
            if row.name is None and row.digest is None:
                raise ValueError("neither `name` nor `digest` says which recording it is of")
        except (ValueError, TypeError) as error:
            raise TruthError(f"{path}, line {number}: {error}") from None
        found.append(row)
    return found


def measured(hour: Hour, truth: Iterable[Truth] = ()) -> HourMeasures:
    """An hour that went through to the end, measured.

    Raises:
        StoreError: an asset of it is not there.
    """
    arrivals, dead, transcripts = hour.arrivals(), hour.dead_letters(), hour.transcripts()
    scores = [transcript.confidence for transcript in transcripts if transcript.words]
    reasons = Counter(letter.code if letter.code in REASONS else OTHER for letter in dead)
    known = {name: row for row in truth for name in (row.digest, row.name) if name is not None}
    rows = {a.digest: row for a in arrivals if (row := known.get(a.digest) or known.get(a.name)) is not None}
    by_language: dict[str, Errors] = {}
    by_domain: dict[str, Errors] = {}
    for transcript in transcripts:
        row = rows.get(transcript.source_digest)
        if row is not None:
            _add(by_language, transcript.language, row.text, transcript)
            if row.domain is not None:
                _add(by_domain, row.domain, row.text, transcript)
    reviewed: dict[str, Errors] = {}
    versions = Versions(hour.store.objects).of_each(map(recording_of, transcripts))
    for transcript, every in zip(transcripts, versions, strict=True):
        wrote = _by_people(every)
        if wrote is not None:
            _add(reviewed, transcript.language, wrote.text, transcript)
    return HourMeasures(
        arrived=len(arrivals),
        published=len(hour.published()),
        asked_about=len({task.transcript for task in hour.tasks() if task.why != "control"}),
        failed=len(dead),
        same_as_before=sum(arrival.same_as is not None for arrival in arrivals),
        failed_by_reason={reason: reasons[reason] for reason in REASONS},
        audio_s=round(sum(transcript.duration_s for transcript in transcripts), 3),
        words=sum(len(transcript.words) for transcript in transcripts),
        confidence=round(sum(scores) / len(scores), 4) if scores else None,
        errors_by_language=by_language,
        errors_by_domain=by_domain,
        reviewed_by_language=reviewed,
    )


def _by_people(versions: tuple[Version, ...]) -> Transcript | None:
    found = in_force(versions)
    return found.transcript if found is not None and corrected(versions) is not None else None


def _add(errors: dict[str, Errors], key: str, said: str, heard: Transcript) -> None:
    edits = Counter(edit.kind for edit in align(said, heard.text, heard.language))
    before = errors.get(key, Errors())
    errors[key] = Errors(
        recordings=before.recordings + 1,
        words=before.words + edits.total() - edits["insert"],
        edits=before.edits + edits.total() - edits["equal"],
    )


class StageTimes:
    """How long the stages of hours took, as each was run last."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def of(self, hour: str) -> dict[str, StageTime]:
        """By stage; empty where none was timed."""
        stored = self._document(hour).read()
        return _stages(stored.data) if stored else {}

    def note(self, hour: str, stage: str, time: StageTime) -> None:
        """Keep how long a stage took; others of its hour may be noted at the same moment."""

        def with_it(data: bytes | None) -> bytes:
            stages = {**(_stages(data) if data else {}), stage: time}
            return to_json({name: to_plain(one) for name, one in stages.items()})

        self._document(hour).change(with_it)

    def _document(self, hour: str) -> Document:
        return Document(self.objects, f"{TIMES}/{hour}.json")


def _stages(data: bytes) -> dict[str, StageTime]:
    try:
        return {name: from_plain(StageTime, time) for name, time in parse_json(data).items()}
    except (ValueError, AttributeError):
        return {}  # nothing hangs on it: the next run of the hour writes it anew
