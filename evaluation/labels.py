"""What judges a label model: how well it tells voices or languages apart, and what it says of what it cannot know.

A verdict is kept as a recogniser's is: a file named by the digest of the bundle that it judged, with a checksum, read
again by whoever takes the model into use. Whatever is missing, not a number, altered or of another bundle is a refusal.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field

from evaluation.evaluate import nonspeech_probes
from evaluation.gates import AT_LEAST, AT_MOST, GateRefused, GateResult, refuse_unless, sealed, stored, verdict_key
from evaluation.results import Interval
from speech.corpus.background import Set, foreign, music, numbers_read
from speech.corpus.manifest import Utterance
from speech.corpus.synthetic import SynthesisError
from speech.diarization import DiarizationSettings
from speech.labels import UNKNOWN, Kind, LabelBundle, LabelNetwork, with_thresholds
from speech.language import CLIP_S, vote
from speech.plain import Record
from speech.scripts import primary_language
from speech.settings import Section, Share
from speech.store.objects import Objects

CLIPS_OF_SPEAKER = 6  # at most: who talks most does not count most, and pairs stay few
SPEAKERS = 80  # of a language, at most
FOREIGN_CLIPS = 6  # of each language that is none of the model's
MUSIC_CLIPS = 12
LONGEST_CLIP_S = 2 * CLIP_S
RESAMPLES = 200
_SEEDS: Mapping[Set, int] = {"train": 0, "dev": 1, "test": 2}

# A verdict without one of these has not been judged in full.
REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "speaker": ("equal_error_rate", "evidence", "export_parity"),
    "language": ("language_accuracy", "unknown_languages", "unknown_nonspeech", "evidence", "export_parity"),
}


class LabelGateSettings(Section):
    """What a label model has to meet before it is used, as `[label_gates]` in soundstage.toml."""

    equal_error_rate: Share = Field(
        0.2,
        description="Highest equal error rate on held-out speakers of one language, clips of some 3 s. Clustering "
        "averages over the clips of a turn, so a rate of single clips that verification could not use serves it: above "
        "one in five, more pairs are confused than a turn's clips make up for.",
    )
    speakers: int = Field(
        4, ge=2, description="Fewest held-out speakers: three pairs of voices say nothing of voices in general."
    )
    language_accuracy: Share = Field(
        0.9,
        description="Lowest share of clips of held-out speakers whose language is told, of each language. The clips of "
        "a recording vote, so a recording is told more surely than its clips.",
    )
    unknown_languages: Share = Field(
        0.5,
        description="Lowest share of clips in languages that were never heard for which the model says `unknown`. Most "
        "deployments hear few such recordings, and what is taken for a known language still has low word confidences.",
    )
    unknown_nonspeech: Share = Field(
        0.95,
        description="Lowest share of silence, noise and music for which the model says `unknown`; nearly all of it was "
        "kept out by the detection of speech before.",
    )
    parity: Share = Field(
        0.99, description="Lowest share of clips on which the exported network agrees with the checkpoint."
    )


@dataclass(frozen=True)
class LabelVerdict(Record):
    """The judgement over one label bundle."""

    kind: Kind
    bundle_digest: str
    model_name: str
    passed: bool
    gates: tuple[GateResult, ...]
    dataset_digests: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # the thresholds used
    schema_version: Literal[1] = 1

    def require_passed(self) -> Self:
        """This verdict, or GateRefused where it does not open the way."""
        name = f"{self.model_name} ({self.bundle_digest[:12]})"
        refuse_unless(self.passed, self.gates, REQUIRED[self.kind], name)
        return self


def save_label_verdict(verdict: LabelVerdict, store: Objects) -> None:
    """Store the verdict under the digest of its bundle; one that judged it before is replaced."""
    store.put(verdict_key(verdict.bundle_digest), sealed(verdict))


def load_label_verdict(store: Objects, bundle_digest: str) -> LabelVerdict:
    """The verdict of exactly this bundle, passed or not; GateRefused where it is missing, altered or foreign."""
    verdict = stored(LabelVerdict, store, bundle_digest, "label model", "materialise its asset again")
    if (judged := verdict.bundle_digest) != bundle_digest:
        raise GateRefused(
            f"The verdict of label model {bundle_digest[:12]} is foreign: it judges bundle {judged[:12]}."
        )
    return verdict


# ----------------------------------------------------------------------------------------------------------- material


@dataclass(frozen=True)
class Clips:
    """Clips (float32 [n], 16 kHz) of known speakers and languages."""

    sounds: tuple[np.ndarray, ...]
    speakers: tuple[str, ...]
    languages: tuple[str, ...]


def clips_of_rows(rows: Iterable[Utterance], split: Set, samples_of: Callable[[Utterance], np.ndarray]) -> Clips:
    """The utterances of a split as clips of `CLIP_S` or more, each of one speaker, as inference joins stretches."""
    of_speaker: dict[tuple[str, str], list[Utterance]] = defaultdict(list)
    for row in rows:
        if row.split == split:
            of_speaker[primary_language(row.language) or row.language, row.speaker].append(row)
    taken: dict[str, int] = defaultdict(int)
    sounds, speakers, languages = list[np.ndarray](), list[str](), list[str]()
    for (language, speaker), uttered in sorted(of_speaker.items()):
        taken[language] += 1
        if taken[language] > SPEAKERS:
            continue
        held: list[np.ndarray] = []
        count = 0
        for row in sorted(uttered, key=lambda row: row.id):
            held.append(samples_of(row))
            if sum(map(len, held)) < CLIP_S * 16_000:
                continue
            sounds.append(np.concatenate(held)[: round(LONGEST_CLIP_S * 16_000)])
            speakers.append(f"{language} {speaker}")
            languages.append(language)
            held, count = [], count + 1
            if count == CLIPS_OF_SPEAKER:
                break
    return Clips(tuple(sounds), tuple(speakers), tuple(languages))


def windowed(clips: Clips) -> Clips:
    """The clips in pieces as long as diarisation's windows: two shorter ones of a voice are less alike."""
    size = round(DiarizationSettings().window_s * 16_000)
    cut = [
        (sound[start : start + size], speaker, language)
        for sound, speaker, language in zip(clips.sounds, clips.speakers, clips.languages, strict=True)
        for start in range(0, max(1, len(sound) - size + 1), size)
    ]
    return Clips(*map(tuple, zip(*cut, strict=True))) if cut else clips


def foreign_clips(split: Set, known: Iterable[str]) -> dict[str, list[np.ndarray]]:
    """Speech in languages that are none of the known ones, and in the other splits are not heard."""
    found: dict[str, list[np.ndarray]] = {}
    for language in foreign(split, known):
        try:
            read = numbers_read([language], FOREIGN_CLIPS, split)
            found[language] = [sound[: round(LONGEST_CLIP_S * 16_000)] for _, sound in read]
        except SynthesisError:  # pragma: no cover - a voice that another version of the synthesiser lacks
            continue
    return found


def nonspeech_clips(split: Set) -> list[np.ndarray]:
    """Silence, noise and music."""
    seed = _SEEDS[split]
    probes = [sound[: round(LONGEST_CLIP_S * 16_000)] for _, sound in nonspeech_probes(seed)]
    return probes + [music(4.0, 1000 * seed + number) for number in range(MUSIC_CLIPS)]


# -------------------------------------------------------------------------------------------------------- calibrating


def calibrated(bundle: LabelBundle, dev: Clips, destination: Path) -> LabelBundle:
    """A copy of a bundle with its threshold, and of a language model its temperature, chosen on dev clips.

    Raises GateRefused where these are too few.
    """
    network = LabelNetwork(bundle)
    if bundle.kind == "speaker":
        pairs = _pairs(network, windowed(dev))
        if not pairs.same.any() or pairs.same.all():
            raise GateRefused("The dev set has no two clips of one speaker, or no two speakers: add recordings.")
        return with_thresholds(bundle, destination, threshold=round(pairs.equal_error()[1], 4))
    known = bundle.labels[:-1]
    sounds, wanted = list(dev.sounds), [_place(bundle, language) for language in dev.languages]
    for others in (*foreign_clips("dev", known).values(), nonspeech_clips("dev")):
        sounds += others
        wanted += [len(known)] * len(others)
    if missing := [language for place, language in enumerate(known) if place not in wanted]:
        raise GateRefused(f"The dev set has no clip in {', '.join(missing)}: add speakers of it.")
    logits, right = network.logits(sounds).astype(np.float64), np.array(wanted)
    weights = 1.0 / np.bincount(right, minlength=len(bundle.labels))[right]
    temperature = min(np.geomspace(0.25, 8.0, 41), key=lambda t: _negative_log_likelihood(logits / t, right, weights))
    probabilities = np.exp(_log_softmax(logits / temperature))
    threshold = max(
        np.arange(0.3, 0.96, 0.01), key=lambda t: (_balanced(probabilities, right, float(t)), -abs(float(t) - 0.6))
    )
    return with_thresholds(
        bundle, destination, threshold=round(float(threshold), 2), temperature=round(float(temperature), 4)
    )


def _place(bundle: LabelBundle, language: str) -> int:
    return bundle.labels.index(language) if language in bundle.labels else len(bundle.labels) - 1


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(axis=1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _negative_log_likelihood(logits: np.ndarray, right: np.ndarray, weights: np.ndarray) -> float:
    chosen = _log_softmax(logits)[np.arange(len(right)), right]
    return float(-(chosen * weights).sum() / weights.sum())


def _balanced(probabilities: np.ndarray, right: np.ndarray, threshold: float) -> float:
    """Mean over the labels of the share that is told right with a threshold."""
    told = _told(np.log(np.maximum(probabilities, 1e-12)), threshold)
    return float(np.mean([np.mean(told[right == label] == label) for label in np.unique(right)]))


def _told(log_probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """The label of each clip, as inference tells it of a recording of this clip alone: int [clips]."""
    count = log_probabilities.shape[1]
    names = [str(place) for place in range(count - 1)] + [UNKNOWN]
    said = [vote(row[None], np.ones(1), names, threshold).language for row in log_probabilities]
    return np.array([count - 1 if name == UNKNOWN else int(name) for name in said], np.intp)


# ------------------------------------------------------------------------------------------------------------ judging


@dataclass(frozen=True)
class Pairs:
    """Pairs of clips in one language: how alike they are, and whose they are."""

    cosines: np.ndarray  # float64 [pairs], ascending
    same: np.ndarray  # bool [pairs]
    first: np.ndarray  # int [pairs]: the speaker of one
    second: np.ndarray
    speakers: int

    def equal_error(self, counts: np.ndarray | None = None) -> tuple[float, float]:
        """The rate at which as many pairs of one voice are missed as of two are taken for one, and that cosine.

        `counts` says how often each speaker counts.
        """
        often = np.ones(self.speakers) if counts is None else counts
        weights = np.where(self.same, often[self.first], often[self.first] * often[self.second])
        missed = np.cumsum(weights * self.same)
        taken = np.cumsum(weights * ~self.same)
        if not missed.size or not missed[-1] or not taken[-1]:
            return math.nan, math.nan
        misses, false_alarms = missed / missed[-1], 1.0 - taken / taken[-1]
        place = int(np.abs(misses - false_alarms).argmin())
        return float(misses[place] + false_alarms[place]) / 2, float(self.cosines[place])

    def interval(self, seed: int = 0) -> Interval:
        """The rate with its 95 % interval, by resampling speakers: pairs of one speaker are not independent."""
        draw = np.random.default_rng(seed)
        rates = [
            self.equal_error(np.bincount(draw.integers(self.speakers, size=self.speakers), minlength=self.speakers))[0]
            for _ in range(RESAMPLES)
        ]
        known = [rate for rate in rates if math.isfinite(rate)]
        low, high = np.percentile(known, [2.5, 97.5]).tolist() if known else (math.nan, math.nan)
        return Interval(low, high, self.equal_error()[0])


def judge_labels(
    bundle: LabelBundle,
    test: Clips,
    settings: LabelGateSettings | None = None,
    dataset_digests: Mapping[str, str] | None = None,
) -> LabelVerdict:
    """Hold a calibrated model against its gates. What was not measured has failed."""
    settings = settings or LabelGateSettings()
    judged = _speaker_gates if bundle.kind == "speaker" else _language_gates
    gates = (*judged(bundle, test, settings), _evidence(test, settings), _parity(bundle, settings))
    return LabelVerdict(
        kind=bundle.kind,
        bundle_digest=bundle.digest,
        model_name=bundle.name,
        passed=all(gate.passed for gate in gates),
        gates=gates,
        dataset_digests=dict(dataset_digests or {}),
        settings=settings.model_dump(mode="json"),
    )


def _pairs(network: LabelNetwork, clips: Clips) -> Pairs:
    embeddings = network.embeddings(clips.sounds).astype(np.float64)
    names = sorted(set(clips.speakers))
    owners = np.array([names.index(speaker) for speaker in clips.speakers], np.intp)
    languages = np.array(clips.languages)
    one, other = np.triu_indices(len(embeddings), 1)
    alike = languages[one] == languages[other] if len(languages) else np.zeros(0, bool)
    one, other = one[alike], other[alike]
    cosines = np.round((embeddings[one] * embeddings[other]).sum(axis=1), 6)
    order = np.argsort(cosines, kind="stable")
    first, second = owners[one[order]], owners[other[order]]
    return Pairs(cosines[order], first == second, first, second, len(names))


def _gate(name: str, value: float, threshold: float, told: str, sense: str, **more: Any) -> GateResult:
    passed = math.isfinite(value) and (value <= threshold if sense == AT_MOST else value >= threshold)
    return GateResult(name, value, threshold, passed, told, sense=sense, **more)


def _speaker_gates(bundle: LabelBundle, test: Clips, settings: LabelGateSettings) -> list[GateResult]:
    pairs = _pairs(LabelNetwork(bundle), test)
    rate = pairs.interval()
    told = (
        f"Equal error rate {rate.estimate:.1%} (95 % interval {rate.low:.1%} to {rate.high:.1%}) over "
        f"{len(pairs.cosines):,} pairs of clips of {pairs.speakers} held-out speakers; at most "
        f"{settings.equal_error_rate:.0%} is allowed."
    )
    limit = settings.equal_error_rate
    return [_gate("equal_error_rate", rate.estimate, limit, told, AT_MOST, interval=rate, unit="share")]


def _language_gates(bundle: LabelBundle, test: Clips, settings: LabelGateSettings) -> list[GateResult]:
    network, known = LabelNetwork(bundle), bundle.labels[:-1]
    spoken: dict[str, list[np.ndarray]] = {language: [] for language in known}
    for sound, language in zip(test.sounds, test.languages, strict=True):
        if language in spoken:
            spoken[language].append(sound)
    gates = []
    for place, language in enumerate(known):
        share = _share(network, spoken[language], place)
        told = f"{share:.1%} of {len(spoken[language])} clips of held-out speakers of {language} are told to be."
        limit = settings.language_accuracy
        gates.append(
            _gate("language_accuracy", share, limit, told, AT_LEAST, unit="share", slice=f"language={language}")
        )
    others = foreign_clips("test", known)
    unheard = [sound for of_language in others.values() for sound in of_language]
    share = _share(network, unheard, len(known))
    told = f"{share:.1%} of {len(unheard)} clips in {', '.join(others)} are told to be in no language of the model."
    gates.append(_gate("unknown_languages", share, settings.unknown_languages, told, AT_LEAST, unit="share"))
    silent = nonspeech_clips("test")
    share = _share(network, silent, len(known))
    told = f"{share:.1%} of {len(silent)} clips of silence, noise and music are told to be in no language."
    gates.append(_gate("unknown_nonspeech", share, settings.unknown_nonspeech, told, AT_LEAST, unit="share"))
    return gates


def _share(network: LabelNetwork, sounds: Sequence[np.ndarray], label: int) -> float:
    """The share of clips that a language model gives a label, as inference tells it; NaN of none."""
    if not sounds:
        return math.nan
    return float(np.mean(_told(network.log_probabilities(sounds), network.bundle.threshold) == label))


def _evidence(test: Clips, settings: LabelGateSettings) -> GateResult:
    by_language: dict[str, set[str]] = defaultdict(set)
    for speaker, language in zip(test.speakers, test.languages, strict=True):
        by_language[language].add(speaker)
    fewest = min(map(len, by_language.values()), default=0)
    told = f"{fewest} held-out speakers of the language that has fewest; {settings.speakers} are needed."
    return _gate("evidence", fewest, settings.speakers, told, AT_LEAST, unit="speakers")


def _parity(bundle: LabelBundle, settings: LabelGateSettings) -> GateResult:
    equal, compared = bundle.parity.get("equal"), bundle.parity.get("clips")
    known = isinstance(equal, int | float) and isinstance(compared, int) and compared > 0
    value = float(equal) if known else math.nan  # type: ignore[arg-type]
    told = f"The exported network agrees with the checkpoint on {value:.1%} of {compared} clips."
    return _gate("export_parity", value, settings.parity, told, AT_LEAST, unit="share")
