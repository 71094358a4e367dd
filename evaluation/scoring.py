"""Word and character error rates that say how sure they are.

A single WER invites a release decision on noise: the same model, tested on other speakers of the same population, would
have scored differently. So every rate here carries an interval, and two models are compared on the same utterances.

- Texts are compared in the scoring form of `speech.text.normalize`. Scripts without spaces between words have one
   "word" a character, as is usual for them.
- A number has several right readings ("1984" is a year, a count, or four digits), and a reference is what was said: of
  all its readings (`speech.text.readings`) the one with the fewest edits is taken, for every model alike. Where each
  stretch of a text has its own readings every combination counts; of one number only the first 16 are known. Ties go
  to the commonest reading. A hypothesis with digits is read in the way closest to the reference.
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

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evaluation.results import Difference, Interval, Score, Scored
from speech.corpus.manifest import age_band
from speech.scripts import join_words
from speech.text import readings, words_of

if TYPE_CHECKING:
    from speech.corpus.manifest import Utterance
    from speech.transcript import Word

CONFIDENCE_LEVEL = 0.95

DURATION_BANDS_S = (2.0, 5.0, 15.0)
SNR_BANDS_DB = (10.0, 20.0)

RESAMPLES_AT_ONCE = 128  # bounds the weight matrix to RESAMPLES_AT_ONCE x speakers


def words_said(text: str, heard: Sequence[str], language: str) -> list[str]:
    """The words of that reading of a text which has the fewest edits to what was heard, the commonest among equals."""
    pieces = readings(text, language)
    if all(len(piece) == 1 for piece in pieces):
        return words_of(text, language)
    # Edit distance over all combinations at once. best[j]: edits to, and words before, the first j words heard.
    best: list[tuple[int, tuple[str, ...]]] = [(count, ()) for count in range(len(heard) + 1)]
    for piece in pieces:
        ends = []
        for reading in piece:
            words = words_of(reading, language)
            ends.append([(edits, (*before, *words)) for edits, before in _advanced(best, words, heard)])
        best = [min(column, key=lambda end: end[0]) for column in zip(*ends, strict=True)]
    return list(best[-1][1])


def _advanced(
    row: list[tuple[int, tuple[str, ...]]], words: Sequence[str], heard: Sequence[str]
) -> list[tuple[int, tuple[str, ...]]]:
    """A row of the edit distance after some more words of the reference; each end keeps where it came from."""
    for word in words:
        after = [(row[0][0] + 1, row[0][1])]
        for index, other in enumerate(heard):
            ways = (row[index], row[index + 1], after[index])
            costs = (ways[0][0] + (word != other), ways[1][0] + 1, ways[2][0] + 1)
            least = min(costs)
            after.append((least, ways[costs.index(least)][1]))
        row = after
    return row


def _compared(reference: str, hypothesis: str, language: str) -> tuple[list[str], list[str]]:
    """The words of a reference and of what was heard, each in the reading that is closest to the other."""
    heard = words_said(hypothesis, words_of(reference, language), language)
    return words_said(reference, heard, language), heard


@dataclass(frozen=True)
class Edit:
    """One step of an alignment: `kind` is "equal", "substitute", "delete" or "insert"."""

    kind: str
    reference: str  # "" when inserted
    hypothesis: str  # "" when deleted


def align(reference: str, hypothesis: str, language: str) -> list[Edit]:
    """The cheapest word-by-word alignment of two texts, in reading order."""
    import jiwer

    expected, heard = _compared(reference, hypothesis, language)
    if not expected:
        return [Edit("insert", "", word) for word in heard]
    if not heard:
        return [Edit("delete", word, "") for word in expected]
    (chunks,) = jiwer.process_words(" ".join(expected), " ".join(heard)).alignments
    edits = []
    for chunk in chunks:
        left = expected[chunk.ref_start_idx : chunk.ref_end_idx]
        right = heard[chunk.hyp_start_idx : chunk.hyp_end_idx]
        edits += [Edit(chunk.type, *pair) for pair in itertools.zip_longest(left, right, fillvalue="")]
    return edits


def word_outcomes(reference: str, words: Sequence["Word"], language: str) -> list[tuple[float, bool]]:
    """Confidence and correctness of each recognised word, by alignment with the reference.

    A written form that is spoken as several words ("42") is right when all of them are.
    """
    spoken = [words_of(word.text, language) for word in words]
    hypothesis = join_words(part for parts in spoken for part in parts)
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
class Counts:
    """Edits per utterance: rows are utterances, in the order of the items."""

    table: np.ndarray  # int64 [utterances, len(COLUMNS)]
    speakers: np.ndarray  # int64 [utterances], the block of each utterance
    durations_s: np.ndarray  # float64 [utterances]

    def only(self, chosen: np.ndarray) -> "Counts":
        """Those of some rows."""
        return Counts(self.table[chosen], self.speakers[chosen], self.durations_s[chosen])


COLUMNS = WORDS, SUBSTITUTIONS, DELETIONS, INSERTIONS, CHARACTERS, CHARACTER_EDITS = range(6)
WORD_EDITS = slice(SUBSTITUTIONS, INSERTIONS + 1)


def count_edits(items: Sequence[Scored], language: str) -> Counts:
    """Align each utterance with its reference, and count the edits."""
    table = [_counted(*_compared(item.reference, item.hypothesis, language)) for item in items]
    _, blocks = np.unique([item.speaker for item in items], return_inverse=True)
    durations_s = np.array([item.duration_s for item in items], dtype=np.float64)
    return Counts(np.array(table, dtype=np.int64).reshape(-1, len(COLUMNS)), blocks.astype(np.int64), durations_s)


def _counted(expected: Sequence[str], heard: Sequence[str]) -> tuple[int, ...]:
    """The COLUMNS of one utterance, from its words and those that were heard."""
    import jiwer

    said, made = join_words(expected), join_words(heard)
    if not expected:
        return 0, 0, 0, len(heard), 0, len(made)
    words, characters = jiwer.process_words(" ".join(expected), " ".join(heard)), jiwer.process_characters(said, made)
    wrong = characters.substitutions + characters.deletions + characters.insertions
    return len(expected), words.substitutions, words.deletions, words.insertions, len(said), wrong


# ------------------------------------------------------------------------------------------------------- intervals


def _block_sums(columns: Sequence[np.ndarray], blocks: np.ndarray) -> np.ndarray:
    """Sum the rows of each block: columns of [utterances] -> [blocks, columns]."""
    _, codes = np.unique(blocks, return_inverse=True)
    return np.column_stack([np.bincount(codes, column) for column in columns])


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


def _blocks(counts: Counts) -> tuple[np.ndarray, str]:
    if len(np.unique(counts.speakers)) > 1:
        return counts.speakers, "speakers"
    return np.arange(len(counts.speakers)), "utterances"


def _ratio(edits: np.ndarray, total: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(total > 0, edits / total, np.nan)


def score_of(counts: Counts, bootstrap: int, seed: int) -> Score:
    """Rates with their intervals, from counts; see `score`."""
    if len(counts.table) == 0:
        nothing = Interval(math.nan, math.nan)
        return Score(math.nan, nothing, math.nan, nothing, 0, 0, 0, 0, 0, 0, 0.0)
    blocks, resampled = _blocks(counts)
    edits = counts.table[:, WORD_EDITS].sum(axis=1)
    columns = [edits, *(counts.table[:, column] for column in (WORDS, CHARACTER_EDITS, CHARACTERS))]
    sums = _block_sums(columns, blocks)
    draws = _resample(sums, bootstrap, seed)
    total = sums.sum(axis=0)
    wer, cer = (float(_ratio(total[start], total[start + 1])) for start in (0, 2))
    words, characters = (_percentiles(_ratio(draws[:, start], draws[:, start + 1]), len(sums)) for start in (0, 2))
    by_kind = counts.table.sum(axis=0)
    return Score(
        wer=wer,
        wer_interval=Interval(*words, wer),
        cer=cer,
        cer_interval=Interval(*characters, cer),
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
    return score_of(count_edits(items, language), bootstrap, seed)


def score_by_speaker(items: Sequence[Scored], language: str) -> dict[str, Score]:
    """Each speaker's score, by name; an interval within one speaker resamples utterances."""
    rows: dict[str, list[Scored]] = {}
    for item in items:
        rows.setdefault(item.speaker, []).append(item)
    return {speaker: score(rows[speaker], language, bootstrap=200) for speaker in sorted(rows)}


def slice_scores(items: Sequence[Scored], counts: Counts, bootstrap: int = 1000, seed: int = 0) -> dict[str, Score]:
    """A score for every value of every slice dimension ("domain=call-centre"), from the counts of the same items."""
    members: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        for dimension, value in item.slices.items():
            members.setdefault(f"{dimension}={value}", []).append(row)
    return {name: score_of(counts.only(np.array(members[name])), bootstrap, seed) for name in sorted(members)}


def paired_difference(candidate: Counts, champion: Counts, bootstrap: int = 1000, seed: int = 0) -> Difference:
    """Candidate's WER minus champion's, from counts of the same utterances in order, resampling speakers for both.

    Pairing takes out what both find hard, so a small real difference shows on few utterances.
    """
    if len(candidate.table) == 0:
        return Difference(math.nan, math.nan, math.nan, math.nan, 0, 0)
    blocks, _ = _blocks(candidate)
    ours = candidate.table[:, WORD_EDITS].sum(axis=1)
    theirs = champion.table[:, WORD_EDITS].sum(axis=1)
    sums = _block_sums([ours - theirs, candidate.table[:, WORDS]], blocks)
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
        slices["bandwidth"] = "telephone" if utterance.quality.narrow_band else "wide"
    return slices
