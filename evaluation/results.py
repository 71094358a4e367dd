"""What an evaluation found: one record of a bundle on its test sets, which gates judge and reports show.

A rate that was not measured is NaN, never 0; JSON has no NaN, so it is null there.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from evaluation.calibration import Reliability
from speech.plain import Number, Record
from speech.store.outputs import parse_json, write_json

EVALUATION_NAME = "evaluation.json"
SUMMARY_NAME = "summary.json"
QUARTER = "quarter"  # the name of the quarter's own test set
BENCHMARK = "benchmark"  # the name of the language's frozen test set
Kept = TypeVar("Kept", bound=Record)


class EvaluationError(Exception):
    """An evaluation cannot be made or read; the message says which part and what to do."""


@dataclass(frozen=True)
class Interval(Record):
    """An estimate with its 95 % interval; all three are NaN where nothing was measured."""

    low: Number
    high: Number
    estimate: Number = math.nan


@dataclass(frozen=True)
class Difference(Record):
    """Candidate's WER minus champion's on the same utterances: below zero, the candidate is better."""

    estimate: Number
    low: Number
    high: Number
    probability_of_improvement: Number  # share of resamples in which the candidate is better (Bisani & Ney, section 3)
    words: int
    speakers: int


@dataclass(frozen=True)
class Scored(Record):
    """One utterance with what a model made of it; texts as given, not normalised."""

    id: str
    reference: str
    hypothesis: str
    confidence: Number
    duration_s: Number
    speaker: str
    domain: str
    slices: Mapping[str, str] = field(default_factory=dict)  # dimension -> value, e.g. {"domain": "call-centre"}
    snr_db: Number = math.nan


@dataclass(frozen=True)
class Score(Record):
    """Error rates of one set of utterances. A rate is NaN when the references hold no word."""

    wer: Number
    wer_interval: Interval
    cer: Number
    cer_interval: Interval
    words: int  # in the references
    utterances: int
    speakers: int
    substitutions: int
    deletions: int
    insertions: int
    hours: Number
    empty_references: int = 0
    resampled: str = "speakers"  # "utterances" when there is one speaker only: such an interval says less


@dataclass(frozen=True)
class Unreadable(Record):
    """A test utterance that could not be decoded, or that a model failed on, so it was not scored."""

    id: str
    reason: str


@dataclass(frozen=True)
class ChampionResult(Record):
    """What the model in production does on the same utterances; the difference is over those that both heard."""

    score: Score
    slices: Mapping[str, Score]
    rows: tuple[Scored, ...]
    difference: Difference
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class SetResult(Record):
    """One test set: the candidate's score, slices and rows, and the champion's where there is one."""

    score: Score
    slices: Mapping[str, Score]
    rows: tuple[Scored, ...]
    reliability: Reliability
    champion: ChampionResult | None = None
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class NonSpeech(Record):
    """Words a model makes up where nobody speaks."""

    words_per_minute: Number
    minutes: Number
    by_probe: Mapping[str, Number]  # words per minute of each kind and level of noise


@dataclass(frozen=True)
class Evaluation(Record):
    """Everything measured of one bundle for one partition: what gates judge and reports show."""

    bundle_digest: str
    model_name: str
    language: str
    partition: str  # "en|2024-04", as the partition's key reads
    dataset_digests: Mapping[str, str]
    sets: Mapping[str, SetResult]
    champion_digest: str | None  # None: the language has no champion yet
    champion_name: str | None
    nonspeech: NonSpeech | None
    parity: Mapping[str, Any]  # as the bundle carries it: exported network against the checkpoint
    rtfx: Number  # seconds of audio recognised per second of computing on this machine
    schema_version: Literal[1] = 1

    @property
    def digest(self) -> str:
        """SHA-256 of what was measured of the model; the speed of the machine (`rtfx`) stays out."""
        content = self.to_dict()
        del content["rtfx"]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write it into a folder as JSON, and its summary beside it, each atomically."""
        write_json(folder / EVALUATION_NAME, self.to_dict())
        summary = Summary(self.bundle_digest, self.digest, {name: found.score for name, found in self.sets.items()})
        write_json(folder / SUMMARY_NAME, summary.to_dict())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what was saved into a folder. Raises EvaluationError when it is missing or not one."""
        return _read(cls, folder / EVALUATION_NAME)


@dataclass(frozen=True)
class Summary(Record):
    """What a list of evaluations shows of one: reading every utterance of each would take too long."""

    bundle_digest: str
    evaluation_digest: str
    scores: Mapping[str, Score]  # by test set

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the summary of the evaluation in a folder. Raises EvaluationError when it is missing or not one."""
        return _read(cls, folder / SUMMARY_NAME)


def _read(kind: type[Kept], path: Path) -> Kept:
    try:
        return kind.from_dict(parse_json(path.read_bytes()))
    except FileNotFoundError:
        raise EvaluationError(f"There is no evaluation at {path}: evaluate the bundle first.") from None
    except (ValueError, TypeError) as error:
        raise EvaluationError(f"{path} is not readable ({error}): evaluate again.") from None
