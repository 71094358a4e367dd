"""Word and character error rates that say how sure they are.

A single WER invites a release decision on noise: the same model, tested on other speakers of the same population, would
have scored differently. So every rate here carries an interval, and two models are compared on the same utterances.

- Texts are compared in the scoring form of `speech.text.normalize`. Languages written without spaces between words have
  one "word" a character, as is usual for them.
- A corpus rate is all edits over all reference words. An utterance whose reference is empty (noise, a closed line) adds
  its hypothesis words as insertions to the numerator and nothing to the denominator. A set without one reference word
  has no rate: it is NaN, never 0, and gates refuse NaN.
- Intervals come from a bootstrap (Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance
  evaluation", ICASSP 2004) that resamples whole speakers, because errors within a speaker go together (Liu & Peng,
  "Statistical Testing on ASR Performance via Blockwise Bootstrap", Interspeech 2020).
- A percentile interval over few speakers is too narrow; the percentiles are widened as in Hesterberg, "What Teachers
  Should Know About the Bootstrap" (2015). Below about five speakers no interval is to be trusted: the evidence gate
  stops that.

Not covered: how good the references are. A wrong transcript counts against every model alike.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from evaluation.calibration import Reliability, reliability
from speech.manifest import age_band
from speech.store import write_json
from speech.text import normalize

if TYPE_CHECKING:
    from speech.manifest import Utterance
    from speech.recognition import Recognition
    from speech.transcript import Word

EVALUATION_SCHEMA = 1
EVALUATION_NAME = "evaluation.json"
CONFIDENCE_LEVEL = 0.95
QUARTER = "quarter"  # the name of the quarter's own test set
BENCHMARK = "benchmark"  # the name of the language's frozen test set

# Written without spaces between words: a word error rate counts characters there.
UNSPACED_LANGUAGES = frozenset({"ja", "zh", "yue", "th", "lo", "my", "km"})

DURATION_BANDS_S = (2.0, 5.0, 15.0)
SNR_BANDS_DB = (10.0, 20.0)
TELEPHONE_BANDWIDTH_HZ = 4_200.0  # 8 kHz recordings end at 4 kHz; the rest is the filter's slope

BATCH_AUDIO_S = 240.0  # padded seconds a batch may hold: bounds memory whatever the utterances' length
BATCH_UTTERANCES = 32
RESAMPLES_AT_ONCE = 128  # bounds the weight matrix to RESAMPLES_AT_ONCE x speakers

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
    """A test utterance that could not be decoded, so it was not scored."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    id: str
    reason: str


@dataclass(frozen=True)
class ChampionResult:
    """What the model in production does on the same utterances."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

    score: Score
    slices: Mapping[str, Score]
    rows: tuple[Scored, ...]
    difference: Difference


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
    partition: str  # "2024-04|en", as the partition's key reads
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

    def save(self, path: Path) -> Path:
        """Write as JSON, atomically."""
        write_json(path, self.to_dict())
        return path

    @classmethod
    def load(cls, path: Path) -> "Evaluation":
        """Read a saved evaluation. Raises EvaluationError when it is missing or not one."""
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise EvaluationError(f"There is no evaluation at {path}: evaluate the bundle first.") from None
        except ValueError:
            raise EvaluationError(f"{path} is not JSON: evaluate again.") from None
        if not isinstance(content, dict):
            raise EvaluationError(f"{path} is not an evaluation: evaluate again.")
        return cls.from_dict(content)


# ---------------------------------------------------------------------------------------------------------- counting


def words_of(text: str, language: str) -> list[str]:
    """The words that are compared: of the normalised text; one a character where the script has no spaces."""
    return list(_words_of(text, language))


@functools.lru_cache(maxsize=50_000)  # a reference is read for every model, slice list, alignment and plot
def _words_of(text: str, language: str) -> tuple[str, ...]:
    normalized = normalize(text, language)
    if language in UNSPACED_LANGUAGES:
        return tuple(character for character in normalized if not character.isspace())
    return tuple(normalized.split())


@dataclass(frozen=True)
class Edit:
    """One step of an alignment: `kind` is "equal", "substitute", "delete" or "insert"."""

    kind: str
    reference: str  # "" when inserted
    hypothesis: str  # "" when deleted


def align(reference: str, hypothesis: str, language: str) -> list[Edit]:
    """The cheapest word-by-word alignment of two texts, in reading order."""
    import jiwer

    expected, heard = words_of(reference, language), words_of(hypothesis, language)
    if not expected:
        return [Edit("insert", "", word) for word in heard]
    if not heard:
        return [Edit("delete", word, "") for word in expected]
    (chunks,) = jiwer.process_words(" ".join(expected), " ".join(heard)).alignments
    edits = []
    for chunk in chunks:
        left = expected[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        for position in range(max(len(left), len(right))):
            edits.append(
                Edit(
                    chunk.type,
                    left[position] if position < len(left) else "",
                    right[position] if position < len(right) else "",
                )
            )
    return edits


def word_outcomes(reference: str, words: Sequence["Word"], language: str) -> list[tuple[float, bool]]:
    """Confidence and correctness of each recognised word, by alignment with the reference.

    A written form that is spoken as several words ("42") is right when all of them are.
    """
    spoken = [words_of(word.text, language) for word in words]
    hypothesis = " ".join("".join(parts) if language in UNSPACED_LANGUAGES else " ".join(parts) for parts in spoken)
    hits = [edit.kind == "equal" for edit in align(reference, hypothesis, language) if edit.kind != "delete"]
    if len(hits) != sum(len(parts) for parts in spoken):
        return []  # normalisation joined words across their borders: no outcome can be told for this utterance
    outcomes, position = [], 0
    for word, parts in zip(words, spoken, strict=True):
        if parts and not math.isnan(word.confidence):
            outcomes.append((float(word.confidence), all(hits[position : position + len(parts)])))
        position += len(parts)
    return outcomes


@dataclass(frozen=True, eq=False)
class _Counts:
    """Edits per utterance: rows are utterances, in the order of the items."""

    table: np.ndarray  # int64 [utterances, len(COLUMNS)]
    speakers: np.ndarray  # int64 [utterances], the block of each utterance
    durations_s: np.ndarray  # float64 [utterances]

    def only(self, chosen: np.ndarray) -> "_Counts":
        return _Counts(self.table[chosen], self.speakers[chosen], self.durations_s[chosen])


WORDS, SUBSTITUTIONS, DELETIONS, INSERTIONS, CHARACTERS, CHARACTER_EDITS = range(6)
WORD_EDITS = slice(SUBSTITUTIONS, INSERTIONS + 1)


def _count(items: Sequence[Scored], language: str) -> _Counts:
    import jiwer

    pairs = [(words_of(item.reference, language), words_of(item.hypothesis, language)) for item in items]
    separator = "" if language in UNSPACED_LANGUAGES else " "
    table = np.zeros((len(items), 6), dtype=np.int64)
    spoken = [row for row, (expected, _) in enumerate(pairs) if expected]
    if spoken:
        by_words = jiwer.process_words(
            [" ".join(pairs[row][0]) for row in spoken], [" ".join(pairs[row][1]) for row in spoken]
        )
        by_characters = jiwer.process_characters(
            [separator.join(pairs[row][0]) for row in spoken], [separator.join(pairs[row][1]) for row in spoken]
        )
        column = {"substitute": SUBSTITUTIONS, "delete": DELETIONS, "insert": INSERTIONS}
        for row, words, characters in zip(spoken, by_words.alignments, by_characters.alignments, strict=True):
            for chunk in words:
                if chunk.type != "equal":
                    table[row, column[chunk.type]] += _length(chunk)
            table[row, CHARACTER_EDITS] = sum(_length(chunk) for chunk in characters if chunk.type != "equal")
    for row, (expected, heard) in enumerate(pairs):
        if not expected:
            table[row, INSERTIONS] = len(heard)
            table[row, CHARACTER_EDITS] = len(separator.join(heard))
        table[row, WORDS] = len(expected)
        table[row, CHARACTERS] = len(separator.join(expected))
    _, blocks = np.unique([item.speaker for item in items], return_inverse=True)
    return _Counts(table, blocks.astype(np.int64), np.array([item.duration_s for item in items], dtype=np.float64))


def _length(chunk: Any) -> int:
    return int(max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))


# ------------------------------------------------------------------------------------------------------- intervals


def _block_sums(values: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Sum the rows of each block: [utterances, columns] -> [blocks, columns]."""
    _, codes = np.unique(blocks, return_inverse=True)
    sums = np.zeros((int(codes.max()) + 1, values.shape[1]), dtype=np.float64)
    np.add.at(sums, codes, values)
    return sums


def _resample(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Totals of `resamples` draws of as many blocks, with replacement: [blocks, columns] -> [resamples, columns]."""
    generator = np.random.default_rng(seed)
    blocks = len(sums)
    totals = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        draws = min(RESAMPLES_AT_ONCE, resamples - start)
        totals.append(generator.multinomial(blocks, np.full(blocks, 1 / blocks), size=draws) @ sums)
    return np.concatenate(totals)


def _percentiles(values: np.ndarray, blocks: int) -> tuple[float, float]:
    """The 95 % interval of resampled values, its percentiles widened for few blocks (Hesterberg 2015)."""
    from scipy.special import ndtr, stdtrit

    values = values[np.isfinite(values)]
    if len(values) == 0 or blocks < 2:
        return math.nan, math.nan
    tail = (1 - CONFIDENCE_LEVEL) / 2
    widened = float(ndtr(math.sqrt(blocks / (blocks - 1)) * stdtrit(blocks - 1, tail)))
    low, high = np.quantile(values, [widened, 1 - widened])
    return float(low), float(high)


def _blocks(counts: _Counts) -> tuple[np.ndarray, str]:
    if len(np.unique(counts.speakers)) > 1:
        return counts.speakers, "speakers"
    return np.arange(len(counts.speakers)), "utterances"


def _ratio(edits: np.ndarray, total: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, edits / total, np.nan)


def _score(counts: _Counts, bootstrap: int, seed: int) -> Score:
    if len(counts.table) == 0:
        nothing = Interval(math.nan, math.nan)
        return Score(math.nan, nothing, math.nan, nothing, 0, 0, 0, 0, 0, 0, 0.0)
    blocks, resampled = _blocks(counts)
    edits = counts.table[:, WORD_EDITS].sum(axis=1)
    columns = np.column_stack(
        [edits, counts.table[:, WORDS], counts.table[:, CHARACTER_EDITS], counts.table[:, CHARACTERS]]
    )
    sums = _block_sums(columns, blocks)
    draws = _resample(sums, bootstrap, seed)
    total = sums.sum(axis=0)
    wer, cer = (float(_ratio(total[start], total[start + 1])) for start in (0, 2))
    word_low, word_high = _percentiles(_ratio(draws[:, 0], draws[:, 1]), len(sums))
    character_low, character_high = _percentiles(_ratio(draws[:, 2], draws[:, 3]), len(sums))
    by_kind = counts.table.sum(axis=0)
    return Score(
        wer=wer,
        wer_interval=Interval(word_low, word_high, wer),
        cer=cer,
        cer_interval=Interval(character_low, character_high, cer),
        words=int(by_kind[WORDS]),
        utterances=len(counts.table),
        speakers=len(np.unique(counts.speakers)),
        substitutions=int(by_kind[SUBSTITUTIONS]),
        deletions=int(by_kind[DELETIONS]),
        insertions=int(by_kind[INSERTIONS]),
        hours=float(np.nansum(counts.durations_s)) / 3600,
        empty_references=int((counts.table[:, WORDS] == 0).sum()),
        resampled=resampled,
    )


def score(items: Sequence[Scored], language: str, bootstrap: int = 1000, seed: int = 0) -> Score:
    """WER and CER of all items together. Spaces between words count as characters in the CER."""
    return _score(_count(items, language), bootstrap, seed)


def slice_scores(items: Sequence[Scored], language: str, bootstrap: int = 1000, seed: int = 0) -> dict[str, Score]:
    """A score for every value of every slice dimension, keyed "domain=call-centre", in a stable order."""
    return _slice_scores(items, _count(items, language), bootstrap, seed)


def _slice_scores(items: Sequence[Scored], counts: _Counts, bootstrap: int, seed: int) -> dict[str, Score]:
    members: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        for dimension, value in item.slices.items():
            members.setdefault(f"{dimension}={value}", []).append(row)
    return {name: _score(counts.only(np.array(members[name])), bootstrap, seed) for name in sorted(members)}


def paired_difference(
    candidate: Sequence[Scored],
    champion: Sequence[Scored],
    language: str,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Difference:
    """Candidate's WER minus champion's over the same utterances, resampling speakers for both at once.

    Pairing takes out what both find hard, so a small real difference shows on few utterances.
    Raises EvaluationError when the two lists do not hold the same utterances and references.
    """
    by_id = {item.id: item for item in champion}
    if len(by_id) != len(champion) or len({item.id for item in candidate}) != len(candidate):
        raise EvaluationError("A paired comparison needs unique utterance ids: one appears twice.")
    if set(by_id) != {item.id for item in candidate}:
        stray = sorted(set(by_id) ^ {item.id for item in candidate})
        raise EvaluationError(
            f"Candidate and champion were scored on different utterances ({len(stray)}, such as {stray[0]!r}): "
            "transcribe the same set with both."
        )
    same = [by_id[item.id] for item in candidate]
    for ours, theirs in zip(candidate, same, strict=True):
        if ours.reference != theirs.reference:
            raise EvaluationError(f"Utterance {ours.id!r} has two references: score both models against one manifest.")
    return _difference(_count(candidate, language), _count(same, language), bootstrap, seed)


def _difference(candidate: _Counts, champion: _Counts, bootstrap: int, seed: int) -> Difference:
    if len(candidate.table) == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0, 0)
    blocks, _ = _blocks(candidate)
    ours = candidate.table[:, WORD_EDITS].sum(axis=1)
    theirs = champion.table[:, WORD_EDITS].sum(axis=1)
    sums = _block_sums(np.column_stack([ours - theirs, candidate.table[:, WORDS]]), blocks)
    draws = _resample(sums, bootstrap, seed)
    differences = _ratio(draws[:, 0], draws[:, 1])
    low, high = _percentiles(differences, len(sums))
    finite = differences[np.isfinite(differences)]
    total = sums.sum(axis=0)
    return Difference(
        estimate=float(_ratio(total[0], total[1])),
        low=low,
        high=high,
        probability_of_improvement=float((finite < 0).mean()) if len(finite) else math.nan,
        words=int(total[1]),
        speakers=len(np.unique(candidate.speakers)),
    )


# ----------------------------------------------------------------------------------------------------------- slices


def _band(value: float, edges: Sequence[float], unit: str) -> str:
    """Name the half-open band that holds `value`."""
    if value < edges[0]:
        return f"under {edges[0]:g} {unit}"
    for low, high in itertools.pairwise(edges):
        if value < high:
            return f"{low:g} to {high:g} {unit}"
    return f"{edges[-1]:g} {unit} and over"


def slice_order(name: str) -> tuple[str, float, str]:
    """Sort key that puts bands of a dimension in order of size, other values by name."""
    dimension, _, value = name.partition("=")
    first = value.removeprefix("under ").split(" ")[0]
    if not first.replace(".", "", 1).isdigit():
        return dimension, -math.inf, value
    return dimension, float(first) - (0.5 if value.startswith("under ") else 0.0), value


def slices_of(utterance: "Utterance") -> dict[str, str]:
    """The slices an utterance belongs to. What is not known of it is left out, never guessed."""
    slices = {"domain": utterance.domain}
    for attribute in ("gender", "age_band", "accent"):
        if value := utterance.attributes.get(attribute):
            slices[attribute] = value
    if "age_band" not in slices and utterance.attributes.get("age", "").isdigit():
        slices["age_band"] = age_band(int(utterance.attributes["age"]))
    if utterance.duration_s is not None:
        slices["duration"] = _band(utterance.duration_s, DURATION_BANDS_S, "s")
    if utterance.quality is not None:
        if math.isfinite(utterance.quality.snr_db):
            slices["snr"] = _band(utterance.quality.snr_db, SNR_BANDS_DB, "dB")
        telephone = utterance.quality.bandwidth_hz < TELEPHONE_BANDWIDTH_HZ
        slices["bandwidth"] = "telephone" if telephone else "wide"
    return slices


# --------------------------------------------------------------------------------------------------- nothing is said

PROBE_S = 10.0
PROBE_LEVELS_DBFS = (-60.0, -40.0, -20.0)


def nonspeech_probes(seed: int = 0, sample_rate: int = 16_000) -> Iterator[tuple[str, np.ndarray]]:
    """Recordings in which nobody says a word: name and float32 samples, the same for the same seed.

    Silence; white and pink noise; mains hum with its harmonics; and noise with the long-term spectrum and the 4 Hz
    swell of many people talking at once (as ICRA noise, Dreschler et al. 2001), the kind that tempts a recogniser most.
    """
    size = int(PROBE_S * sample_rate)
    yield "silence", np.zeros(size, dtype=np.float32)
    generator = np.random.default_rng(seed)
    times = np.arange(size) / sample_rate
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)

    def shaped(gain: np.ndarray) -> np.ndarray:
        return np.fft.irfft(np.fft.rfft(generator.standard_normal(size)) * gain, size)

    pink = 1 / np.sqrt(np.maximum(frequencies, 20.0))
    speech_spectrum = np.where(frequencies < 100, 0.1, 1.0) / (1 + (frequencies / 500.0) ** 2) ** 0.75
    hum = sum(np.sin(2 * np.pi * 50 * harmonic * times + harmonic) / harmonic for harmonic in range(1, 9))
    swell = np.fft.rfft(generator.standard_normal(size)) * (np.abs(frequencies - 4.0) < 2.5)
    envelope = np.abs(np.fft.irfft(swell, size))
    kinds = {
        "white noise": generator.standard_normal(size),
        "pink noise": shaped(pink),
        "mains hum": np.asarray(hum),
        "babble-like noise": shaped(speech_spectrum) * (0.3 + envelope / envelope.max()),
    }
    for kind, signal in kinds.items():
        unit = signal / np.sqrt(np.mean(signal**2))
        for level in PROBE_LEVELS_DBFS:
            loud = np.clip(unit * 10 ** (level / 20), -1.0, 1.0)
            yield f"{kind} at {level:g} dBFS", loud.astype(np.float32)


def insertions_on_nonspeech(transcribe: Callable[[np.ndarray], str], language: str, seed: int = 0) -> NonSpeech:
    """Words per minute that `transcribe` (float32 16 kHz samples -> text) makes up on silence and noise."""
    by_probe = {
        name: len(words_of(transcribe(samples), language)) * 60 / PROBE_S for name, samples in nonspeech_probes(seed)
    }
    return NonSpeech(
        words_per_minute=float(np.mean(list(by_probe.values()))),
        minutes=len(by_probe) * PROBE_S / 60,
        by_probe=by_probe,
    )


# ------------------------------------------------------------------------------------------------------- evaluation


class Transcriber(Protocol):
    """What an evaluation needs of a recogniser."""

    def transcribe_batch(self, batch: list[np.ndarray]) -> Sequence["Recognition"]:
        """Recognise several recordings: float32 mono 16 kHz each."""
        ...


@dataclass(frozen=True, eq=False)
class Contestant:
    """A model that takes part in an evaluation."""

    name: str
    bundle_digest: str
    recognizer: Transcriber
    parity: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path, expected_digest: str | None = None, threads: int = 1) -> "Contestant":
        """From a bundle's folder, its digests verified. Raises BundleError."""
        from speech.bundle import ModelBundle
        from speech.recognition import Recognizer

        bundle = ModelBundle.load(folder, expected_digest)
        return cls(bundle.name, bundle.digest, Recognizer(bundle, threads=threads), dict(bundle.parity))


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is."""

    set_name: str
    model_name: str
    done: int
    total: int
    audio_s: float
    elapsed_s: float


def evaluate(
    candidate: Contestant,
    sets: Mapping[str, Sequence["Utterance"]],
    resolve_audio: Callable[["Utterance"], str | os.PathLike[str] | bytes],
    *,
    language: str,
    partition: str,
    champion: Contestant | None,
    dataset_digests: Mapping[str, str],
    bootstrap: int = 1000,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Evaluation:
    """Transcribe every set with the candidate and the champion, and measure both.

    `sets` is {"quarter": ..., "benchmark": ...}. `champion` has no default: None is the statement that the language has
    none yet, and must not happen by forgetting. Utterances whose audio cannot be decoded are listed in the result,
    and the evidence gate refuses them. Deterministic but for `rtfx`.
    """
    results = {}
    audio_s = computing_s = 0.0
    for set_name, utterances in sets.items():
        run = _transcribe(candidate, set_name, utterances, resolve_audio, language, progress)
        audio_s, computing_s = audio_s + run.audio_s, computing_s + run.computing_s
        counts = _count(run.rows, language)
        rival = None
        if champion is not None:
            same = champion.bundle_digest == candidate.bundle_digest
            other = run if same else _transcribe(champion, set_name, utterances, resolve_audio, language, progress)
            theirs = _count(other.rows, language)
            rival = ChampionResult(
                score=_score(theirs, bootstrap, seed),
                slices=_slice_scores(other.rows, theirs, bootstrap, seed),
                rows=tuple(other.rows),
                difference=_difference(counts, theirs, bootstrap, seed),
            )
        results[set_name] = SetResult(
            score=_score(counts, bootstrap, seed),
            slices=_slice_scores(run.rows, counts, bootstrap, seed),
            rows=tuple(run.rows),
            reliability=reliability(
                [confidence for confidence, _ in run.outcomes], [correct for _, correct in run.outcomes]
            ),
            champion=rival,
            unreadable=tuple(run.unreadable),
        )
    return Evaluation(
        bundle_digest=candidate.bundle_digest,
        model_name=candidate.name,
        language=language,
        partition=partition,
        dataset_digests=dict(dataset_digests),
        sets=results,
        champion_digest=champion.bundle_digest if champion else None,
        champion_name=champion.name if champion else None,
        nonspeech=insertions_on_nonspeech(
            lambda samples: candidate.recognizer.transcribe_batch([samples])[0].text, language, seed
        ),
        parity=json.loads(json.dumps(dict(candidate.parity))),
        rtfx=audio_s / computing_s if computing_s > 0 else math.nan,
    )


@dataclass(eq=False)
class _Run:
    """What one model made of one set."""

    rows: list[Scored]
    outcomes: list[tuple[float, bool]]
    unreadable: list[Unreadable]
    audio_s: float = 0.0
    computing_s: float = 0.0


def _transcribe(
    contestant: Contestant,
    set_name: str,
    utterances: Sequence["Utterance"],
    resolve_audio: Callable[["Utterance"], str | os.PathLike[str] | bytes],
    language: str,
    progress: Callable[[Progress], None] | None,
) -> _Run:
    identities = {utterance.id for utterance in utterances}
    if len(identities) != len(utterances):
        raise EvaluationError(f"Test set {set_name!r} holds an utterance id twice: rebuild its manifest.")
    run = _Run([], [], [])
    rows: dict[str, Scored] = {}
    outcomes: dict[str, list[tuple[float, bool]]] = {}
    started, done = time.monotonic(), 0
    for batch in _batches(utterances):
        audio: list[tuple[Utterance, np.ndarray]] = []
        for utterance, samples in _decoded(batch, resolve_audio):
            if isinstance(samples, str):
                run.unreadable.append(Unreadable(utterance.id, samples))
            else:
                audio.append((utterance, samples))
        if audio:
            before = time.perf_counter()
            recognitions = contestant.recognizer.transcribe_batch([samples for _, samples in audio])
            run.computing_s += time.perf_counter() - before
            for (utterance, samples), recognition in zip(audio, recognitions, strict=True):
                duration_s = len(samples) / 16_000
                run.audio_s += duration_s
                rows[utterance.id] = Scored(
                    id=utterance.id,
                    reference=utterance.text,
                    hypothesis=recognition.text,
                    confidence=float(recognition.confidence),
                    duration_s=duration_s,
                    speaker=utterance.speaker,
                    domain=utterance.domain,
                    slices=slices_of(utterance),
                    snr_db=utterance.quality.snr_db if utterance.quality else math.nan,
                )
                outcomes[utterance.id] = word_outcomes(utterance.text, recognition.words, language)
        done += len(batch)
        if progress is not None:
            elapsed_s = time.monotonic() - started
            progress(Progress(set_name, contestant.name, done, len(utterances), run.audio_s, elapsed_s))
    run.rows.extend(rows[utterance.id] for utterance in utterances if utterance.id in rows)
    for row in run.rows:
        run.outcomes.extend(outcomes[row.id])
    run.unreadable.sort(key=lambda unread: unread.id)
    return run


def _batches(utterances: Iterable["Utterance"]) -> Iterator[list["Utterance"]]:
    """Utterances of like length together, so little is padded; segments of one file stay together."""
    shared: dict[str, int] = {}
    rows = list(utterances)
    for utterance in rows:
        shared[utterance.audio] = shared.get(utterance.audio, 0) + 1
    rows.sort(
        key=lambda utterance: (
            utterance.audio if shared[utterance.audio] > 1 else "",
            utterance.duration_s or 0.0,
            utterance.id,
        )
    )
    batch: list[Utterance] = []
    longest = 0.0
    for utterance in rows:
        longest = max(longest, utterance.duration_s or 0.0)
        if batch and (len(batch) == BATCH_UTTERANCES or longest * (len(batch) + 1) > BATCH_AUDIO_S):
            yield batch
            batch, longest = [], utterance.duration_s or 0.0
        batch.append(utterance)
    if batch:
        yield batch


def _decoded(
    batch: Iterable["Utterance"], resolve_audio: Callable[["Utterance"], str | os.PathLike[str] | bytes]
) -> Iterator[tuple["Utterance", np.ndarray | str]]:
    """Each utterance with its own stretch of samples, or with the reason why there are none."""
    from speech.audio import SAMPLE_RATE, AudioError, decode

    last: tuple[str, np.ndarray | str] | None = None
    for utterance in batch:
        if last is None or last[0] != utterance.audio:
            try:
                last = (utterance.audio, decode(resolve_audio(utterance)).samples)
            except AudioError as error:
                last = (utterance.audio, error.reason)
            except FileNotFoundError:
                last = (utterance.audio, "the audio file does not exist")
        samples = last[1]
        if not isinstance(samples, str):
            start = round(utterance.offset_s * SAMPLE_RATE)
            end = None if utterance.duration_s is None else start + round(utterance.duration_s * SAMPLE_RATE)
            samples = samples[start:end]
            if len(samples) == 0:
                samples = f"the segment at {utterance.offset_s:g} s lies behind the end of the file"
        yield utterance, samples
