"""Gates: thresholds turn an evaluation into a verdict, and a verdict into permission.

An orchestrator's check can be skipped, run for another partition, or pass in another run than the one that promotes. So
the verdict is a file of its own, named by the digest of the bundle it judged, and everything that moves a model forward
reads it again and asks it (`Verdict.require_passed`). Whatever is missing, not a number, stale, foreign or altered is a
refusal.

The checksum inside a verdict shows accidents and stray edits, and a verdict of a time that asked for less lacks a gate.
It is no signature: someone who may write to the store and recomputes it is kept out by the store's permissions, not by
this module.

A failed gate can be overridden by people, who do so in the promotion ledger; this module only takes the names of the
gates that were (`overridden`). A verdict that is missing, altered, stale or foreign cannot be overridden by anyone.
"""

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from types import EllipsisType
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field

from evaluation.results import BENCHMARK, QUARTER, Evaluation, Interval, SetResult
from speech.plain import Number, Record
from speech.settings import Section, Share
from speech.store.objects import Missing, Objects
from speech.store.outputs import DIGEST, parse_json, to_json

VERDICTS = "verdicts"  # in the data store
VerdictT = TypeVar("VerdictT", bound=Record)

COMPARISON_GATE = "not_worse_than_champion"

# A verdict without one of these has not been judged in full.
REQUIRED_GATES = (
    "wer",
    "cer",
    "evidence",
    "slice_wer",
    COMPARISON_GATE,
    "insertions_per_minute",
    "export_parity",
)

WORST_GATES = 3  # named in a refusal; the others are counted
AT_MOST, AT_LEAST = "at most", "at least"


class GateRefused(Exception):
    """A model may not move forward; the message is one sentence that says why."""


class GateSettings(Section):
    """Thresholds a model has to meet before it may be registered, as `[gates]` in soundstage.toml."""

    wer: Share = Field(0.15, description="Highest word error rate on each test set (share, 0.15 = 15 %).")
    cer: Share = Field(0.08, description="Highest character error rate on each test set (share).")
    slice_wer: float = Field(
        0.30, ge=0, description="Highest word error rate on any slice: domain, speaker group, duration, signal (share)."
    )
    slice_limits: dict[str, float] = Field(
        default_factory=dict,
        description='Own limits of single slices, in place of slice_wer (share), e.g. {"domain=call-centre" = 0.4}.',
    )
    slice_min_words: int = Field(
        200, ge=1, description="Slices with fewer reference words are shown but not judged (words)."
    )
    required_slices: tuple[str, ...] = Field(
        (), description='Slices that must be present with enough words, e.g. ["gender=female"] (slice names).'
    )
    min_words: int = Field(500, ge=1, description="Fewest reference words on which a test set proves anything (words).")
    min_speakers: int = Field(
        5, ge=1, description="Fewest speakers in a test set; below five no interval can be trusted (speakers)."
    )
    max_unreadable_share: Share = Field(
        0.0, description="Highest share of test utterances that could not be decoded or recognised (share)."
    )
    champion_margin: float = Field(
        0.0,
        ge=0,
        description="WER the candidate may be worse than the champion: refused when the whole paired interval lies "
        "above it (absolute share; 0.005 = half a point).",
    )
    champion_max_regression: float = Field(
        0.02,
        ge=0,
        description="Refused when the measured difference exceeds this, however wide its interval "
        "(absolute share; 0.02 = two points).",
    )
    insertions_per_minute: float = Field(
        2.0, ge=0, description="Most words made up on silence and noise (words per minute)."
    )
    parity: Share = Field(
        0.99,
        description="Lowest share of utterances on which the exported network gives the checkpoint's text (share).",
    )


@dataclass(frozen=True)
class GateResult(Record):
    """One gate: what was measured, what was asked, and in words why it passed or not."""

    name: str
    value: Number
    threshold: Number
    passed: bool
    explanation: str
    interval: Interval | None = None
    test_set: str = ""
    slice: str = ""  # "domain=call-centre"; empty for the whole set
    sense: str = AT_MOST  # or AT_LEAST: how value relates to threshold
    unit: str = ""

    @property
    def label(self) -> str:
        """Name, test set and slice, such as "slice_wer on quarter (domain=calls)"."""
        return (
            self.name + (f" on {self.test_set}" if self.test_set else "") + (f" ({self.slice})" if self.slice else "")
        )


@dataclass(frozen=True)
class Verdict(Record):
    """The judgement over one bundle on given test data with given thresholds.

    `judged_at` (UTC, ISO 8601) is the age of the evidence; empty in verdicts of times that did not note it.
    `file_sha256` is of the file that it was read from, and empty before that; it is no part of the verdict.
    """

    bundle_digest: str
    model_name: str
    language: str
    partition: str
    passed: bool
    gates: tuple[GateResult, ...]
    dataset_digests: Mapping[str, str]
    evaluation_digest: str
    champion_digest: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)  # the thresholds used
    schema_version: Literal[1] = 1
    judged_at: str = ""
    file_sha256: Annotated[str, Field(exclude=True)] = field(default="", compare=False)

    @property
    def failures(self) -> tuple[GateResult, ...]:
        """The gates that were not passed."""
        return tuple(gate for gate in self.gates if not gate.passed)

    def refusal(self, overridden: Collection[str] = ()) -> str | None:
        """Why this verdict does not open the way, in a few sentences: its worst gates, and how many more failed.

        Of gates with the same name, as of the slices, the one that is furthest from its threshold speaks for all. None
        where no gate failed, those left out whose labels are `overridden`.
        """
        failed = [gate for gate in self.failures if gate.label not in overridden]
        if not failed:
            return None
        by_name = {gate.name: gate for gate in sorted(failed, key=_excess)}  # of each name the worst comes last
        worst = sorted(by_name.values(), key=_excess, reverse=True)[:WORST_GATES]
        told = " ".join(f"{gate.name}: {gate.explanation}" for gate in failed if gate in worst)
        more = len(failed) - len(worst)
        return told + (f" ({more} more failed.)" if more else "")

    @property
    def comparison(self) -> Interval | None:
        """Candidate's WER minus the champion's on the frozen benchmark, paired; None when there was no champion."""
        compared = (gate for gate in self.gates if gate.name == COMPARISON_GATE and gate.interval is not None)
        return next((gate.interval for gate in compared), None)

    @property
    def improves(self) -> bool:
        """Whether the whole paired interval lies below zero: better than the champion, and not by chance."""
        compared = self.comparison
        return compared is not None and all(map(math.isfinite, (compared.low, compared.high))) and compared.high < 0

    def require_passed(
        self,
        *,
        language: str | None = None,
        settings: GateSettings | None = None,
        champion_digest: str | EllipsisType | None = ...,
        overridden: Collection[str] = (),
    ) -> Self:
        """This verdict, or GateRefused where it does not open the way.

        With `language`, a verdict on another language is refused; with `settings`, one judged by other thresholds; with
        `champion_digest` (None: there is none), one that compared with another champion than today's, unless it is not
        given. `overridden` are the labels of gates whose failure people have decided to accept; any other failure is
        still a refusal.
        """
        name = f"{self.model_name} ({self.bundle_digest[:12]})"
        if language is not None and self.language != language:
            raise GateRefused(f"The verdict of {name} is foreign: it is on {self.language}, not on {language}.")
        if settings is not None and dict(self.settings) != settings.model_dump(mode="json"):
            raise GateRefused(f"The verdict of {name} is stale: it was judged by other thresholds, so judge again.")
        if not isinstance(champion_digest, EllipsisType) and self.champion_digest != champion_digest:
            compared = (self.champion_digest or "none")[:12]
            today = (champion_digest or "none")[:12]
            raise GateRefused(
                f"The verdict of {name} is stale: it compared with champion {compared}, today's is {today}; "
                "evaluate again."
            )
        if refusal := self.refusal(overridden):
            raise GateRefused(f"{name} did not pass gate {refusal}")
        return self


# ----------------------------------------------------------------------------------------------------------- judging


def judge(evaluation: Evaluation, settings: GateSettings | None = None, judged_at: datetime | None = None) -> Verdict:
    """Hold every measure against its threshold. What was not measured has failed. `judged_at` is now unless given.

    A candidate is refused against the champion when it is significantly worse on the frozen benchmark (the paired 95 %
    interval lies above `champion_margin`) or by more than `champion_max_regression` whatever the interval. A
    difference that is within the noise and small may pass: asking for a better point estimate would refuse every other
    equally good model, and asking for proof of non-inferiority would need far larger test sets. Whether an equal model
    takes the champion's place is another question, which promotion answers from the same interval (`Verdict.improves`).
    """
    settings = settings or GateSettings()
    judged = (_evidence, _error_rates, _slices, _champion, _insertions, _parity)
    gates = tuple(gate for judge_one in judged for gate in judge_one(evaluation, settings))
    return Verdict(
        bundle_digest=evaluation.bundle_digest,
        model_name=evaluation.model_name,
        language=evaluation.language,
        partition=evaluation.partition,
        passed=all(gate.passed for gate in gates),
        gates=gates,
        dataset_digests=dict(evaluation.dataset_digests),
        evaluation_digest=evaluation.digest,
        champion_digest=evaluation.champion_digest,
        settings=settings.model_dump(mode="json"),
        judged_at=(judged_at or datetime.now(UTC)).isoformat(timespec="seconds"),
    )


def _within(value: float, threshold: float, sense: str) -> bool:
    """Whether a value meets its threshold; NaN and infinity never do."""
    if not math.isfinite(value) or not math.isfinite(threshold):
        return False
    return value <= threshold if sense == AT_MOST else value >= threshold


def _excess(gate: GateResult) -> float:
    """How far a failed gate is from its threshold, as a share of it; without bound where nothing was measured."""
    if not math.isfinite(gate.value) or not gate.threshold:
        return math.inf
    return abs(gate.value - gate.threshold) / abs(gate.threshold)


def _gate(name: str, value: float, threshold: float, explanation: str, **more: Any) -> GateResult:
    sense = more.get("sense", AT_MOST)
    return GateResult(name, value, threshold, _within(value, threshold, sense), explanation, **more)


def _percent(value: float) -> str:
    return f"{value:.2%}".replace("%", " %")


def _sets(evaluation: Evaluation) -> Iterator[tuple[str, SetResult | None]]:
    """The two test sets that must exist, and any others the evaluation brings."""
    for name in dict.fromkeys((QUARTER, BENCHMARK, *evaluation.sets)):
        yield name, evaluation.sets.get(name)


def _evidence(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    for name, result in _sets(evaluation):
        gate = partial(_gate, "evidence", test_set=name)
        if result is None:
            missing = f"The {name} set was not scored: evaluate the bundle on it."
            yield gate(math.nan, settings.min_words, missing, sense=AT_LEAST, unit="words")
            continue
        words, speakers = result.score.words, result.score.speakers
        told = f"{words:,} reference words in the {name} set; {settings.min_words:,} are needed to prove a rate."
        yield gate(words, settings.min_words, told, sense=AT_LEAST, unit="words")
        told = f"{speakers} speakers in the {name} set; {settings.min_speakers} are needed for an interval to hold."
        yield gate(speakers, settings.min_speakers, told, sense=AT_LEAST, unit="speakers")
        lost, attempted = len(result.unreadable), result.score.utterances + len(result.unreadable)
        share = lost / attempted if attempted else math.nan
        told = f"{lost} of {attempted} utterances of the {name} set could not be decoded or recognised."
        yield gate(share, settings.max_unreadable_share, told, unit="share undecoded")


def _error_rates(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    for measure in ("wer", "cer"):
        threshold = getattr(settings, measure)
        for name, result in _sets(evaluation):
            value = getattr(result.score, measure) if result else math.nan
            interval = getattr(result.score, f"{measure}_interval") if result else None
            known = math.isfinite(value)
            found = f"{measure.upper()} {_percent(value)}" if known else f"No {measure.upper()} was measured"
            told = f"{found} on the {name} set; at most {_percent(threshold)} is allowed."
            yield _gate(measure, value, threshold, told, interval=interval, test_set=name, unit="share")


def _slices(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    judged: set[str] = set()
    gate = partial(_gate, "slice_wer", unit="share")
    for set_name, result in _sets(evaluation):
        for name, score in (result.slices if result else {}).items():
            if score.words < settings.slice_min_words:
                continue
            judged.add(name)
            limit = settings.slice_limits.get(name, settings.slice_wer)
            told = (
                f"WER {_percent(score.wer)} over {score.words:,} words of {name} in the {set_name} set; "
                f"at most {_percent(limit)} is allowed."
            )
            yield gate(score.wer, limit, told, interval=score.wer_interval, test_set=set_name, slice=name)
    missing = [name for name in settings.required_slices if name not in judged]
    for name in missing or ([] if judged else [""]):
        told = f"Slice {name} has not" if name else "Not one slice has"
        told += f" {settings.slice_min_words:,} words in any test set, so its rate is not known."
        yield gate(math.nan, settings.slice_limits.get(name, settings.slice_wer), told, slice=name)


def _champion(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    gate = partial(_gate, COMPARISON_GATE, test_set=BENCHMARK, unit="WER difference")
    margin, most = settings.champion_margin, settings.champion_max_regression
    if evaluation.champion_digest is None:
        yield gate(0.0, margin, f"{evaluation.language} has no champion yet: nothing to be worse than.")
        return
    benchmark = evaluation.sets.get(BENCHMARK)
    if benchmark is None or benchmark.champion is None:
        yield gate(math.nan, margin, "The champion was not scored on the frozen benchmark: evaluate both models on it.")
        return
    difference = benchmark.champion.difference
    interval = Interval(difference.low, difference.high, difference.estimate)
    points = f"{difference.estimate * 100:+.2f} points of WER"
    against = f"{points} against champion {evaluation.champion_name} on the benchmark"
    failed = {row.id for row in (*benchmark.unreadable, *benchmark.champion.unreadable)}
    if failed:
        attempted = len(benchmark.rows) + len(benchmark.unreadable)
        against += f" ({attempted - len(failed)} of {attempted} utterances, which both heard)"
    told = f"{against} (95 % interval {difference.low * 100:+.2f} to {difference.high * 100:+.2f}): "
    if _within(difference.low, margin, AT_MOST):
        told += "not significantly worse."
    else:
        told += f"the whole interval must not lie above {margin * 100:g} points."
    yield gate(difference.low, margin, told, interval=interval, unit="WER difference, lower end")
    told = f"{against}; never more than {most * 100:g} points worse, whatever the interval."
    yield gate(difference.estimate, most, told, interval=interval)


def _insertions(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    measured, most = evaluation.nonspeech, settings.insertions_per_minute
    value, told = math.nan, "Silence and noise were not tried: evaluate again."
    if measured is not None:
        value = measured.words_per_minute
        worst = max(measured.by_probe, key=lambda probe: measured.by_probe[probe], default="none")
        told = (
            f"{value:.2f} words per minute made up over {measured.minutes:.1f} minutes without speech, "
            f"most on {worst}; at most {most:g} are allowed."
        )
    yield _gate("insertions_per_minute", value, most, told, unit="words per minute")


def _parity(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    equal, compared = evaluation.parity.get("equal"), evaluation.parity.get("utterances")
    value = math.nan
    told = "The bundle does not say how far its network agrees with the checkpoint: export it again."
    if isinstance(equal, int | float) and isinstance(compared, int) and compared > 0:
        value = float(equal)
        told = (
            f"The exported network gives the checkpoint's text on {_percent(value)} of {compared} utterances; "
            f"at least {_percent(settings.parity)} is asked."
        )
    yield _gate("export_parity", value, settings.parity, told, sense=AT_LEAST, unit="share")


# ----------------------------------------------------------------------------------------------------------- keeping


def checksum_of(content: Mapping[str, Any]) -> str:
    """SHA-256, as hex, of JSON values."""
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def verdict_key(bundle_digest: str) -> str:
    """Where the verdict of a bundle is stored; raises GateRefused for what is no digest."""
    if not DIGEST.fullmatch(bundle_digest):
        raise GateRefused(f"{bundle_digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected.")
    return f"{VERDICTS}/{bundle_digest}.json"


def sealed(verdict: Record) -> bytes:
    """A verdict as it is stored, with its own checksum."""
    content = verdict.to_dict()
    return to_json({**content, "sha256": checksum_of(content)})


def unsealed(kind: type[VerdictT], data: bytes, name: str, again: str = "judge again") -> VerdictT:
    """The verdict that was stored as `data`, called `name`; `again` says how to make another.

    Raises GateRefused where it is not readable, altered, or not of the schema.
    """
    try:
        content = dict(parse_json(data))
        seal = content.pop("sha256", None)
        intact = seal == checksum_of(content)
    except (ValueError, TypeError) as error:
        raise GateRefused(f"{name} is not readable ({type(error).__name__}).") from None
    if not intact:
        raise GateRefused(f"{name} was altered after judging: its checksum does not match.")
    try:
        return kind.from_dict(content)
    except (ValueError, TypeError) as error:
        raise GateRefused(f"{name} is malformed ({error}): {again}.") from None


def stored(kind: type[VerdictT], store: Objects, digest: str, model: str, again: str) -> VerdictT:
    """The verdict that is stored under a digest; `model` is the kind of model, as people call it.

    Raises GateRefused where it is missing, or as `unsealed` does.
    """
    try:
        data = store.read(verdict_key(digest)).data
    except Missing:
        raise GateRefused(f"{model.capitalize()} {digest[:12]} has no verdict: {again}.") from None
    return unsealed(kind, data, f"The verdict of {model} {digest[:12]}", again)


def refuse_unless(passed: bool, gates: Sequence[GateResult], required: Iterable[str], name: str) -> None:
    """GateRefused unless each required gate was judged, and everything passed; `name` is the model's."""
    judged = {gate.name for gate in gates}
    if absent := [gate for gate in required if gate not in judged]:
        raise GateRefused(f"The verdict of {name} is incomplete: gate {absent[0]} was not judged.")
    failed = [gate for gate in gates if not gate.passed]
    if failed or not passed:
        told = " ".join(f"{gate.label}: {gate.explanation}" for gate in failed)
        raise GateRefused(f"{name} did not pass gate {told}" if told else f"{name} was not passed.")


def save_verdict(verdict: Verdict, store: Objects) -> None:
    """Store the verdict under the digest of its bundle; one that judged it before is replaced."""
    store.put(verdict_key(verdict.bundle_digest), sealed(verdict))


def load_verdict(store: Objects, bundle_digest: str) -> Verdict:
    """Read the verdict of exactly this bundle and verify it, passed or not.

    Raises GateRefused when it is missing, unreadable, altered, of another schema version, incomplete, or judges another
    bundle.
    """
    key = verdict_key(bundle_digest)
    try:
        data = store.read(key).data
    except Missing:
        raise GateRefused(f"Bundle {bundle_digest[:12]} has no verdict: evaluate and judge it first.") from None
    except OSError as error:
        raise GateRefused(
            f"The verdict of bundle {bundle_digest[:12]} is not readable ({type(error).__name__})."
        ) from error
    return parse_verdict(data, bundle_digest)


def parse_verdict(data: bytes, bundle_digest: str) -> Verdict:
    """The verdict that was stored as `data`; raises GateRefused as `load_verdict` does."""
    name = f"The verdict of bundle {bundle_digest[:12]}"
    verdict = replace(unsealed(Verdict, data, name), file_sha256=hashlib.sha256(data).hexdigest())
    if verdict.bundle_digest != bundle_digest:
        raise GateRefused(f"{name} is foreign: it judges bundle {verdict.bundle_digest[:12]}.")
    judged = {each for gate in verdict.gates for each in (gate.name, f"{gate.name} on {gate.test_set}")}
    on_each = (f"{gate} on {test_set}" for gate in ("wer", "cer", "evidence") for test_set in (QUARTER, BENCHMARK))
    if absent := [gate for gate in (*REQUIRED_GATES, *on_each) if gate not in judged]:
        raise GateRefused(f"{name} is incomplete: gate {absent[0]} was not judged.")
    return verdict
