"""What an evaluation found: one record of a bundle on its test sets, which gates judge and reports show.

A rate that was not measured is NaN, never 0; JSON has no NaN, so it is null there.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from evaluation.calibration import Reliability
from speech.store.outputs import parse_json, write_json

EVALUATION_SCHEMA = 1
EVALUATION_NAME = "evaluation.json"
SUMMARY_NAME = "summary.json"
QUARTER = "quarter"  # the name of the quarter's own test set
BENCHMARK = "benchmark"  # the name of the language's frozen test set

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]  # JSON has no NaN


class EvaluationError(Exception):
    """An evaluation cannot be made or read; the message says which part and what to do."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; all three are NaN where nothing was measured."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    low: Number
    high: Number
    estimate: Number = math.nan


@dataclass(frozen=True)
class Difference:
    """Candidate's WER minus champion's on the same utterances: below zero, the candidate is better."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    estimate: Number
    low: Number
    high: Number
    probability_of_improvement: Number  # share of resamples in which the candidate is better (Bisani & Ney, section 3)
    words: int
    speakers: int


@dataclass(frozen=True)
class Scored:
    """One utterance with what a model made of it; texts as given, not normalised."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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
class Score:
    """Error rates of one set of utterances. A rate is NaN when the references hold no word."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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
class Unreadable:
    """A test utterance that could not be decoded, or that a model failed on, so it was not scored."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    reason: str


@dataclass(frozen=True)
class ChampionResult:
    """What the model in production does on the same utterances; the difference is over those that both heard."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    score: Score
    slices: Mapping[str, Score]
    rows: tuple[Scored, ...]
    difference: Difference
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class SetResult:
    """One test set: the candidate's score, slices and rows, and the champion's where there is one."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    score: Score
    slices: Mapping[str, Score]
    rows: tuple[Scored, ...]
    reliability: Reliability
    champion: ChampionResult | None = None
    unreadable: tuple[Unreadable, ...] = ()


@dataclass(frozen=True)
class NonSpeech:
    """Words a model makes up where nobody speaks."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    words_per_minute: Number
    minutes: Number
    by_probe: Mapping[str, Number]  # words per minute of each kind and level of noise


@dataclass(frozen=True)
class Evaluation:
    """Everything measured of one bundle for one partition: what gates judge and reports show."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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
    schema_version: int = EVALUATION_SCHEMA

    @property
    def digest(self) -> str:
        """SHA-256 of what was measured of the model; the speed of the machine (`rtfx`) stays out."""
        content = self.to_dict()
        del content["rtfx"]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; NaN becomes null."""
        content: dict[str, Any] = json.loads(TypeAdapter(Evaluation).dump_json(self))
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Read what `to_dict` gave. Raises EvaluationError on another schema version or shape."""
        found = content.get("schema_version")
        if found != EVALUATION_SCHEMA:
            raise EvaluationError(
                f"This evaluation has schema version {found}, this program reads {EVALUATION_SCHEMA}: evaluate again."
            )
        try:
            return TypeAdapter(Evaluation).validate_python(dict(content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise EvaluationError(
                f"This evaluation is not readable at {place} ({first['msg']}): evaluate again."
            ) from None

    def save(self, folder: Path) -> None:
        """Write it into a folder as JSON, and its summary beside it, each atomically."""
        write_json(folder / EVALUATION_NAME, self.to_dict())
        summary = Summary(self.bundle_digest, self.digest, {name: found.score for name, found in self.sets.items()})
        write_json(folder / SUMMARY_NAME, json.loads(TypeAdapter(Summary).dump_json(summary)))

    @classmethod
    def load(cls, folder: Path) -> "Evaluation":
        """Read what was saved into a folder. Raises EvaluationError when it is missing or not one."""
        return cls.from_dict(_json_object(folder / EVALUATION_NAME))


@dataclass(frozen=True)
class Summary:
    """What a list of evaluations shows of one: reading every utterance of each would take too long."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    bundle_digest: str
    evaluation_digest: str
    scores: Mapping[str, Score]  # by test set

    @classmethod
    def load(cls, folder: Path) -> "Summary":
        """Read the summary of the evaluation in a folder. Raises EvaluationError when it is missing or not one."""
        path = folder / SUMMARY_NAME
        try:
            return TypeAdapter(Summary).validate_python(_json_object(path))
        except ValidationError:
            raise EvaluationError(f"{path} is not a summary: evaluate again.") from None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(f"There is no evaluation at {path}: evaluate the bundle first.") from None
    except ValueError:
        raise EvaluationError(f"{path} is not JSON: evaluate again.") from None
    if not isinstance(content, dict):
        raise EvaluationError(f"{path} is not an evaluation: evaluate again.")
    return content
