"""What judges an intent model: ways to say it that it never saw, words heard wrong, and what nobody asked it for.

Sentences of one way (one template) are alike, so each way counts as one, and intervals come from drawing ways again.
A verdict is kept as a recogniser's is: a file named by the digest of the model that it judged, with a checksum, read
again by whoever takes the model into use.
"""

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from evaluation.calibration import reliability
from evaluation.gates import AT_LEAST, AT_MOST, GateRefused, GateResult, refuse_unless, sealed, stored, verdict_key
from evaluation.scoring import Interval
from speech.corpus.intents import LabelledSentence
from speech.plain import Number, Record
from speech.settings import Section, Share
from speech.store.objects import Objects
from speech.understanding.intents import UNKNOWN, IntentModel

WORD_ERRORS = 0.15  # of the noisy sentences: as many as the gates let a recogniser make
RESAMPLES = 1_000
REQUIRED = ("intent_accuracy", "noisy_intent_accuracy", "out_of_scope", "calibration", "evidence")


class IntentGateSettings(Section):
    """What an intent model has to meet before it is used, as `[intent_gates]` in soundstage.toml."""

    accuracy: Share = Field(
        0.7,
        description="Lowest share of ways to say an intent, none of which was learnt, that are understood. Callers "
        "mostly speak in ways that were; a model below learnt its sentences by heart.",
    )
    noisy_accuracy: Share = Field(
        0.55, description="Lowest share of the same with 15 % of the words heard wrong, left out or made up."
    )
    out_of_scope: Share = Field(
        0.5, description="Lowest share of sentences without an intent, none of which was learnt, that get none."
    )
    calibration: Share = Field(
        0.15,
        description="Highest mean gap between confidence and the share that is right (expected calibration error).",
    )
    ways: int = Field(12, ge=2, description="Fewest ways to say intents that were kept to judge by.")
    unknown_ways: int = Field(4, ge=1, description="Fewest sentences without an intent that were kept to judge by.")


@dataclass(frozen=True)
class IntentScores(Record):
    """How well a model does on sentences that it did not learn; shares of ways, with 95 % intervals."""

    accuracy: Interval
    noisy_accuracy: Interval
    out_of_scope: Interval
    alone: Number  # accuracy without what was said before
    slots: Number  # share of ways whose slots are all right, given the intent
    calibration: Number  # expected calibration error
    ways: int
    unknown_ways: int
    confused: Mapping[str, str] = field(default_factory=dict)  # ways that are mostly misunderstood, and for what


@dataclass(frozen=True)
class IntentVerdict(Record):
    """The judgement over one intent model."""

    language: str
    model_digest: str
    passed: bool
    gates: tuple[GateResult, ...]
    scores: IntentScores
    sentences_digest: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # the thresholds used
    schema_version: Literal[1] = 1

    def require_passed(self) -> Self:
        """This verdict, or GateRefused where it does not open the way."""
        refuse_unless(self.passed, self.gates, REQUIRED, f"Intent model {self.model_digest[:12]}")
        return self


def score(model: IntentModel, kept: Sequence[LabelledSentence]) -> IntentScores:
    """How well a model understands sentences that were kept from it."""
    asked = [each for each in kept if each.intent != UNKNOWN]
    others = [each for each in kept if each.intent == UNKNOWN]
    answers = [model.intent(each.words, each.before) for each in kept]
    right = [name == each.intent for (name, _), each in zip(answers, kept, strict=True)]
    told = [(confidence, hit) for (name, confidence), hit in zip(answers, right, strict=True) if name != UNKNOWN]
    ways: dict[tuple[str, str], list[str]] = defaultdict(list)
    for (name, _), each in zip(answers, kept, strict=True):
        ways[each.way].append(name)
    mostly = {way: max(sorted(set(names)), key=names.count) for way, names in ways.items()}
    noisy = _misheard(asked)
    return IntentScores(
        accuracy=_share(asked, [model.intent(each.words, each.before)[0] == each.intent for each in asked]),
        noisy_accuracy=_share(noisy, [model.intent(each.words, each.before)[0] == each.intent for each in noisy]),
        out_of_scope=_share(others, [model.intent(each.words, each.before)[0] == UNKNOWN for each in others]),
        alone=_share(asked, [model.intent(each.words)[0] == each.intent for each in asked]).estimate,
        slots=_share(asked, [tuple(model.tags(each.words, each.intent)) == each.tags for each in asked]).estimate,
        calibration=reliability([sure for sure, _ in told], [hit for _, hit in told]).expected_calibration_error,
        ways=len({each.way for each in asked}),
        unknown_ways=len({each.way for each in others}),
        confused={way[1]: name for way, name in sorted(mostly.items()) if name != way[0]},
    )


def judge(
    model: IntentModel, digest: str, kept: Sequence[LabelledSentence], settings: IntentGateSettings
) -> IntentVerdict:
    """Hold every measure against its threshold. What was not measured has failed."""
    scores = score(model, kept)
    unseen = f"of {scores.ways} ways to say an intent that were not learnt"
    gates = (
        _share_gate("intent_accuracy", scores.accuracy, settings.accuracy, f"{unseen} are understood"),
        _share_gate(
            "noisy_intent_accuracy",
            scores.noisy_accuracy,
            settings.noisy_accuracy,
            f"{unseen} are understood with {WORD_ERRORS:.0%} of the words heard wrong",
        ),
        _share_gate(
            "out_of_scope",
            scores.out_of_scope,
            settings.out_of_scope,
            f"of {scores.unknown_ways} sentences without an intent get none",
        ),
        _gate(
            "calibration",
            scores.calibration,
            settings.calibration,
            f"Confidence and the share that is right differ by {scores.calibration:.3f} on average; at most "
            f"{settings.calibration:g} is allowed.",
            unit="share",
        ),
        _evidence("ways to say an intent", scores.ways, settings.ways),
        _evidence("sentences without an intent (`unknown`)", scores.unknown_ways, settings.unknown_ways),
    )
    return IntentVerdict(
        language=model.language,
        model_digest=digest,
        passed=all(gate.passed for gate in gates),
        gates=gates,
        scores=scores,
        sentences_digest=str(model.lineage.get("sentences", "")),
        settings=settings.model_dump(mode="json"),
    )


def save_intent_verdict(verdict: IntentVerdict, store: Objects) -> None:
    """Store the verdict under the digest of its model; one that judged it before is replaced."""
    store.put(verdict_key(verdict.model_digest), sealed(verdict))


def load_intent_verdict(store: Objects, digest: str) -> IntentVerdict:
    """The verdict of exactly this model, passed or not; GateRefused where it is missing, altered or foreign."""
    verdict = stored(IntentVerdict, store, digest, "intent model", "materialise `intent_model` again")
    if verdict.model_digest != digest:
        raise GateRefused(
            f"The verdict of intent model {digest[:12]} is foreign: it judges intent model {verdict.model_digest[:12]}."
        )
    return verdict


def _share(sentences: Sequence[LabelledSentence], right: Sequence[bool]) -> Interval:
    """The mean over ways of the share that is right, its interval by drawing ways with replacement (percentiles)."""
    by_way: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for sentence, hit in zip(sentences, right, strict=True):
        by_way[sentence.way].append(hit)
    if not by_way:
        return Interval(math.nan, math.nan, math.nan)
    shares = np.array([np.mean(hits) for _, hits in sorted(by_way.items())])
    drawn = np.random.default_rng(0).integers(0, len(shares), (RESAMPLES, len(shares)))
    low, high = np.percentile(shares[drawn].mean(axis=1), [2.5, 97.5])
    return Interval(float(low), float(high), float(shares.mean()))


def _misheard(sentences: Sequence[LabelledSentence]) -> list[LabelledSentence]:
    """The sentences with WORD_ERRORS of their words replaced, left out, or followed by another, in equal parts."""
    vocabulary = sorted({word for each in sentences for word in each.words})
    draw = random.Random(0)

    def heard(word: str) -> list[str]:
        if draw.random() >= WORD_ERRORS:
            return [word]
        other = draw.choice(vocabulary)
        return draw.choice(([other], [], [word, other]))

    changed = []
    for each in sentences:
        words = tuple(other for word in each.words for other in heard(word))
        changed.append(LabelledSentence(words, each.intent, (), each.template, each.before))
    return changed


def _share_gate(name: str, value: Interval, least: float, told: str) -> GateResult:
    share = f"{value.estimate:.1%} (95 % interval {value.low:.1%} to {value.high:.1%})"
    known = math.isfinite(value.estimate)
    explanation = f"{share if known else 'It was not measured how many'} {told}; at least {least:.0%} is asked."
    return _gate(name, value.estimate, least, explanation, interval=value, sense=AT_LEAST, unit="share of ways")


def _evidence(what: str, count: int, least: int) -> GateResult:
    told = f"{count} {what} were kept to judge by; {least} are needed: add labelled sentences."
    return _gate("evidence", count, least, told, sense=AT_LEAST, unit=what)


def _gate(name: str, value: float, threshold: float, explanation: str, **more: Any) -> GateResult:
    within = value >= threshold if more.get("sense", AT_MOST) == AT_LEAST else value <= threshold
    return GateResult(name, value, threshold, math.isfinite(value) and within, explanation, **more)
