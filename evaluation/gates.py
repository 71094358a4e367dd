"""Gates: thresholds turn an evaluation into a verdict, and a verdict into permission.

An orchestrator's check can be skipped, run for another partition, or pass in another run than the one that promotes. So
the verdict is a file of its own, named by the digest of the bundle it judged, and everything that moves a model forward
reads it again (`require_passed`). Whatever is missing, not a number, stale, foreign or altered is a refusal.

The checksum inside a verdict shows accidents and stray edits, and contradictions are looked for besides: a gate marked
passed whose value misses its threshold, a gate that is absent. It is no signature: someone who may write to the store
and recomputes everything consistently is kept out by the store's permissions, not by this module.

A failed gate can be overridden by people, who do so in the promotion ledger; this module only takes the names of the
gates that were (`overridden`). A verdict that is missing, altered, stale or foreign cannot be overridden by anyone.
"""

import functools
import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from evaluation.results import BENCHMARK, QUARTER, Evaluation, Interval, Number, SetResult
from speech.settings import Section
from speech.store.objects import Missing, Objects
from speech.store.outputs import DIGEST, parse_json, to_json

VERDICT_SCHEMA = 1
VERDICTS = "verdicts"  # in the data store

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

    wer: float = Field(0.15, ge=0, le=1, description="Highest word error rate on each test set (share, 0.15 = 15 %).")
    cer: float = Field(0.08, ge=0, le=1, description="Highest character error rate on each test set (share).")
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
    max_unreadable_share: float = Field(
        0.0, ge=0, le=1, description="Highest share of test utterances that could not be decoded or recognised (share)."
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
    parity: float = Field(
        0.99,
        ge=0,
        le=1,
        description="Lowest share of utterances on which the exported network gives the checkpoint's text (share).",
    )


@dataclass(frozen=True)
class GateResult:
    """One gate: what was measured, what was asked, and in words why it passed or not."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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


class _Unchecked:
    """Stands for a question that the caller did not ask."""


UNCHECKED = _Unchecked()


@dataclass(frozen=True)
class Verdict:
    """The judgement over one bundle on given test data with given thresholds.

    `judged_at` (UTC, ISO 8601) is the age of the evidence; empty in verdicts of times that did not note it.
    `file_sha256` is of the file that it was read from, and empty before that; it is no part of the verdict.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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
    schema_version: int = VERDICT_SCHEMA
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

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; NaN becomes null."""
        content: dict[str, Any] = json.loads(_adapter().dump_json(self))
        return content

    def require_passed(
        self,
        *,
        language: str | None = None,
        settings: GateSettings | None = None,
        champion_digest: str | _Unchecked | None = UNCHECKED,
        overridden: Collection[str] = (),
    ) -> None:
        """Raise GateRefused unless this verdict opens the way.

        With `language`, a verdict on another language is refused; with `settings`, one judged by other thresholds; with
        `champion_digest` (None: there is none), one that compared with another champion than today's. `overridden` are
        the labels of gates whose failure people have decided to accept; any other failure is still a refusal.
        """
        name = f"{self.model_name} ({self.bundle_digest[:12]})"
        if language is not None and self.language != language:
            raise GateRefused(f"The verdict of {name} is foreign: it is on {self.language}, not on {language}.")
        if settings is not None and dict(self.settings) != settings.model_dump(mode="json"):
            raise GateRefused(f"The verdict of {name} is stale: it was judged by other thresholds, so judge again.")
        if not isinstance(champion_digest, _Unchecked) and self.champion_digest != champion_digest:
            compared = (self.champion_digest or "none")[:12]
            today = (champion_digest or "none")[:12]
            raise GateRefused(
                f"The verdict of {name} is stale: it compared with champion {compared}, today's is {today}; "
                "evaluate again."
            )
        if refusal := self.refusal(overridden):
            raise GateRefused(f"{name} did not pass gate {refusal}")


@functools.cache
def _adapter() -> TypeAdapter[Verdict]:
    return TypeAdapter(Verdict)  # building one takes longer than reading a verdict with it


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
    gates = tuple(
        gate
        for judged in (
            _evidence(evaluation, settings),
            _error_rates(evaluation, settings),
            _slices(evaluation, settings),
            _champion(evaluation, settings),
            _insertions(evaluation, settings),
            _parity(evaluation, settings),
        )
        for gate in judged
    )
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
        if result is None:
            yield _gate(
                "evidence",
                math.nan,
                settings.min_words,
                f"The {name} set was not scored: evaluate the bundle on it.",
                test_set=name,
                sense=AT_LEAST,
                unit="words",
            )
            continue
        words, speakers = result.score.words, result.score.speakers
        yield _gate(
            "evidence",
            words,
            settings.min_words,
            f"{words:,} reference words in the {name} set; {settings.min_words:,} are needed to prove a rate.",
            test_set=name,
            sense=AT_LEAST,
            unit="words",
        )
        yield _gate(
            "evidence",
            speakers,
            settings.min_speakers,
            f"{speakers} speakers in the {name} set; {settings.min_speakers} are needed for an interval to hold.",
            test_set=name,
            sense=AT_LEAST,
            unit="speakers",
        )
        attempted = result.score.utterances + len(result.unreadable)
        share = len(result.unreadable) / attempted if attempted else math.nan
        yield _gate(
            "evidence",
            share,
            settings.max_unreadable_share,
            f"{len(result.unreadable)} of {attempted} utterances of the {name} set could not be decoded or recognised.",
            test_set=name,
            unit="share undecoded",
        )


def _error_rates(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    for measure, threshold in (("wer", settings.wer), ("cer", settings.cer)):
        for name, result in _sets(evaluation):
            if result is None:
                value, interval = math.nan, None
            elif measure == "wer":
                value, interval = result.score.wer, result.score.wer_interval
            else:
                value, interval = result.score.cer, result.score.cer_interval
            known = math.isfinite(value)
            found = f"{measure.upper()} {_percent(value)}" if known else f"No {measure.upper()} was measured"
            yield _gate(
                measure,
                value,
                threshold,
                f"{found} on the {name} set; at most {_percent(threshold)} is allowed.",
                interval=interval,
                test_set=name,
                unit="share",
            )


def _slices(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    judged: set[str] = set()
    for set_name, result in _sets(evaluation):
        for name, score in (result.slices if result else {}).items():
            if score.words < settings.slice_min_words:
                continue
            judged.add(name)
            limit = settings.slice_limits.get(name, settings.slice_wer)
            yield _gate(
                "slice_wer",
                score.wer,
                limit,
                f"WER {_percent(score.wer)} over {score.words:,} words of {name} in the {set_name} set; "
                f"at most {_percent(limit)} is allowed.",
                interval=score.wer_interval,
                test_set=set_name,
                slice=name,
                unit="share",
            )
    missing = [name for name in settings.required_slices if name not in judged]
    if not judged and not missing:
        missing = [""]
    for name in missing:
        what = f"Slice {name}" if name else "Not one slice"
        verb = "has not" if name else "has"
        yield _gate(
            "slice_wer",
            math.nan,
            settings.slice_limits.get(name, settings.slice_wer),
            f"{what} {verb} {settings.slice_min_words:,} words in any test set, so its rate is not known.",
            slice=name,
            unit="share",
        )


def _champion(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    name = COMPARISON_GATE
    if evaluation.champion_digest is None:
        yield _gate(
            name,
            0.0,
            settings.champion_margin,
            f"{evaluation.language} has no champion yet: nothing to be worse than.",
            test_set=BENCHMARK,
            unit="WER difference",
        )
        return
    benchmark = evaluation.sets.get(BENCHMARK)
    if benchmark is None or benchmark.champion is None:
        yield _gate(
            name,
            math.nan,
            settings.champion_margin,
            "The champion was not scored on the frozen benchmark: evaluate both models on it.",
            test_set=BENCHMARK,
            unit="WER difference",
        )
        return
    difference = benchmark.champion.difference
    interval = Interval(difference.low, difference.high, difference.estimate)
    points = f"{difference.estimate * 100:+.2f} points of WER"
    against = f"{points} against champion {evaluation.champion_name} on the benchmark"
    failed = {row.id for row in (*benchmark.unreadable, *benchmark.champion.unreadable)}
    if failed:
        attempted = len(benchmark.rows) + len(benchmark.unreadable)
        against += f" ({attempted - len(failed)} of {attempted} utterances, which both heard)"
    span = f"95 % interval {difference.low * 100:+.2f} to {difference.high * 100:+.2f}"
    yield _gate(
        name,
        difference.low,
        settings.champion_margin,
        f"{against} ({span}): "
        + (
            "not significantly worse."
            if _within(difference.low, settings.champion_margin, AT_MOST)
            else f"the whole interval must not lie above {settings.champion_margin * 100:g} points."
        ),
        interval=interval,
        test_set=BENCHMARK,
        unit="WER difference, lower end",
    )
    yield _gate(
        name,
        difference.estimate,
        settings.champion_max_regression,
        f"{against}; never more than {settings.champion_max_regression * 100:g} points worse, whatever the interval.",
        interval=interval,
        test_set=BENCHMARK,
        unit="WER difference",
    )


def _insertions(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    measured = evaluation.nonspeech
    if measured is None:
        value, explanation = math.nan, "Silence and noise were not tried: evaluate again."
    else:
        value = measured.words_per_minute
        worst = max(measured.by_probe, key=lambda probe: measured.by_probe[probe], default="none")
        explanation = (
            f"{value:.2f} words per minute made up over {measured.minutes:.1f} minutes without speech, "
            f"most on {worst}; at most {settings.insertions_per_minute:g} are allowed."
        )
    yield _gate("insertions_per_minute", value, settings.insertions_per_minute, explanation, unit="words per minute")


def _parity(evaluation: Evaluation, settings: GateSettings) -> Iterator[GateResult]:
    equal, compared = evaluation.parity.get("equal"), evaluation.parity.get("utterances")
    value = math.nan
    if isinstance(equal, int | float) and isinstance(compared, int) and compared > 0:
        value = float(equal)
        explanation = (
            f"The exported network gives the checkpoint's text on {_percent(value)} of {compared} utterances; "
            f"at least {_percent(settings.parity)} is asked."
        )
    else:
        explanation = "The bundle does not say how far its network agrees with the checkpoint: export it again."
    yield _gate("export_parity", value, settings.parity, explanation, sense=AT_LEAST, unit="share")


# ----------------------------------------------------------------------------------------------------------- keeping


def _sealed(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def verdict_key(bundle_digest: str) -> str:
    """Where the verdict of a bundle is stored; raises GateRefused for what is no digest."""
    if not DIGEST.fullmatch(bundle_digest):
        raise GateRefused(f"{bundle_digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected.")
    return f"{VERDICTS}/{bundle_digest}.json"


def sealed(verdict: Verdict) -> bytes:
    """A verdict as it is stored, with its own checksum."""
    content = verdict.to_dict()
    return to_json({**content, "sha256": _sealed(content)})


def save_verdict(verdict: Verdict, store: Objects) -> None:
    """Store the verdict under the digest of its bundle; one that judged it before is replaced."""
    store.put(verdict_key(verdict.bundle_digest), sealed(verdict))


def load_verdict(store: Objects, bundle_digest: str) -> Verdict:
    """Read the verdict of exactly this bundle and verify it, passed or not.

    Raises GateRefused when it is missing, unreadable, of another schema version, altered, incomplete, contradicts
    itself, or judges another bundle.
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
    short = bundle_digest[:12]
    try:
        content = parse_json(data)
    except ValueError as error:
        raise GateRefused(f"The verdict of bundle {short} is not readable ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise GateRefused(f"The verdict of bundle {short} is not readable (no JSON object).")
    if content.get("schema_version") != VERDICT_SCHEMA:
        raise GateRefused(
            f"The verdict of bundle {short} has the stale schema version {content.get('schema_version')!r}, "
            f"not {VERDICT_SCHEMA}: judge again."
        )
    seal = content.pop("sha256", None)
    try:
        intact = seal == _sealed(content)
    except ValueError:  # NaN or Infinity, which a verdict never holds
        intact = False
    if not intact:
        raise GateRefused(f"The verdict of bundle {short} was altered after judging: its checksum does not match.")
    try:
        verdict = _adapter().validate_python({**content, "file_sha256": hashlib.sha256(data).hexdigest()})
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise GateRefused(f"The verdict of bundle {short} is malformed at {place}: judge again.") from None
    if verdict.bundle_digest != bundle_digest:
        raise GateRefused(
            f"The verdict filed for bundle {short} is foreign: it judges bundle {verdict.bundle_digest[:12]}."
        )
    _require_consistent(verdict, short)
    return verdict


def _require_consistent(verdict: Verdict, short: str) -> None:
    """Refuse a verdict whose conclusions do not follow from its own figures."""
    judged = {gate.name for gate in verdict.gates} | {f"{gate.name} on {gate.test_set}" for gate in verdict.gates}
    wanted = [*REQUIRED_GATES]
    wanted += [f"{name} on {test_set}" for name in ("wer", "cer", "evidence") for test_set in (QUARTER, BENCHMARK)]
    if absent := [name for name in wanted if name not in judged]:
        raise GateRefused(f"The verdict of bundle {short} is incomplete: gate {absent[0]} was not judged.")
    for gate in verdict.gates:
        if gate.passed and not _within(gate.value, gate.threshold, gate.sense):
            raise GateRefused(
                f"The verdict of bundle {short} contradicts itself: gate {gate.name} is marked passed "
                f"with {gate.value:g}, not {gate.sense} {gate.threshold:g}."
            )
    if verdict.passed != all(gate.passed for gate in verdict.gates):
        raise GateRefused(f"The verdict of bundle {short} contradicts itself: passed does not follow from its gates.")


def require_passed(
    store: Objects,
    bundle_digest: str,
    *,
    language: str | None = None,
    settings: GateSettings | None = None,
    champion_digest: str | _Unchecked | None = UNCHECKED,
    overridden: Collection[str] = (),
) -> Verdict:
    """The verdict of exactly this bundle, or GateRefused when it is missing, not valid or does not open the way.

    What else is asked of it is explained at `Verdict.require_passed`.
    """
    verdict = load_verdict(store, bundle_digest)
    verdict.require_passed(language=language, settings=settings, champion_digest=champion_digest, overridden=overridden)
    return verdict
