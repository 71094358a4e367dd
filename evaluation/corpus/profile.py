"""What is kept of a quarter's corpus so that the next quarter can be compared with it: figures and words, no data."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.corpus.chance import by_speaker, effective_rows
from speech.corpus.manifest import Utterance
from speech.plain import Record
from speech.text import words_of

VOCABULARY_WORDS = 5_000
# Fixed edges, so that quarters can be compared without keeping their data.
DURATION_EDGES_S = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
SNR_EDGES_DB = (-10.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0)


@dataclass(frozen=True)
class CorpusProfile(Record):
    """What the next quarter is compared with. Counts have one bin a stretch between edges, and one beyond the last.

    `worth` says of each figure how many independent rows (of `known_share`: words) its speakers amount to.
    """

    language: str
    quarter: str
    utterances: int
    speakers: int
    hours: float
    mean_duration_s: float | None
    mean_snr_db: float | None
    telephone_share: float | None
    duration_counts: tuple[int, ...]
    snr_counts: tuple[int, ...]
    vocabulary: tuple[str, ...]  # the commonest words, most frequent first
    known_share: float | None  # of words that another speaker uses too, among the commonest; None for one speaker
    worth: Mapping[Literal["duration", "snr", "telephone", "words"], float]
    schema_version: Literal[2] = 2


def profile_corpus(utterances: Sequence[Utterance], *, quarter: str, language: str) -> CorpusProfile:
    """Measure what is compared from quarter to quarter."""
    timed = [u for u in utterances if u.duration_s is not None]
    measured = [u for u in utterances if u.quality is not None and math.isfinite(u.quality.snr_db)]
    durations = np.array([u.duration_s for u in timed], dtype=float)
    ratios = np.array([u.quality.snr_db for u in measured if u.quality], dtype=float)
    telephone = np.array([u.quality.narrow_band for u in measured if u.quality], dtype=bool)
    spoken = words_by_speaker(utterances, language)
    words: Counter[str] = Counter()
    speakers = Counter(word for said in spoken.values() for word in said)
    for said in spoken.values():
        words.update(said)
    common = sorted(words, key=lambda word: (-words[word], word))[:VOCABULARY_WORDS]
    known = known_words(spoken, {word for word in common if speakers[word] > 1})
    duration_bins, snr_bins = _binned(durations, DURATION_EDGES_S), _binned(ratios, SNR_EDGES_DB)
    return CorpusProfile(
        language=language,
        quarter=quarter,
        utterances=len(utterances),
        speakers=len(spoken),
        hours=float(durations.sum()) / 3600,
        mean_duration_s=float(durations.mean()) if len(durations) else None,
        mean_snr_db=float(ratios.mean()) if len(ratios) else None,
        telephone_share=float(np.mean(telephone)) if len(telephone) else None,
        duration_counts=_counts(duration_bins, DURATION_EDGES_S),
        snr_counts=_counts(snr_bins, SNR_EDGES_DB),
        vocabulary=tuple(common),
        known_share=float(known[:, 1].sum() / known.sum()) if len(spoken) > 1 and known.sum() else None,
        worth={
            "duration": effective_rows(by_speaker([u.speaker for u in timed], duration_bins, len(DURATION_EDGES_S))),
            "snr": effective_rows(by_speaker([u.speaker for u in measured], snr_bins, len(SNR_EDGES_DB))),
            "telephone": effective_rows(by_speaker([u.speaker for u in measured], telephone, 2)),
            "words": effective_rows(known),
        },
    )


def words_by_speaker(utterances: Iterable[Utterance], language: str) -> dict[str, Counter[str]]:
    """How often each speaker says each word."""
    spoken: dict[str, Counter[str]] = {}
    for u in utterances:
        spoken.setdefault(u.speaker, Counter()).update(words_of(u.text, language))
    return spoken


def known_words(spoken: Mapping[str, Counter[str]], known: Collection[str]) -> NDArray[np.int64]:
    """Words by speaker, unknown and known ones: [speakers, 2]."""
    table = [(said.total(), sum(count for word, count in said.items() if word in known)) for said in spoken.values()]
    return np.array([(total - found, found) for total, found in table], dtype=np.int64).reshape(-1, 2)


def _binned(values: NDArray[np.float64], edges: Sequence[float]) -> NDArray[np.int64]:
    """The bin of each value; what lies outside the edges falls into the first or the last bin."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 1)


def _counts(bins: NDArray[np.int64], edges: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(count) for count in np.bincount(bins, minlength=len(edges)))
