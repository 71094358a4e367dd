"""What is kept of a quarter's corpus so that the next quarter can be compared with it: figures and words, no data."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from speech.corpus.manifest import Utterance
from speech.text import words_of

PROFILE_SCHEMA = 1
VOCABULARY_WORDS = 5_000
# Fixed edges, so that quarters can be compared without keeping their data.
DURATION_EDGES_S = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0)
SNR_EDGES_DB = (-10.0, 0.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0)


class ProfileError(Exception):
    """A stored corpus profile cannot be read; the message says what to do."""


@dataclass(frozen=True)
class CorpusProfile:
    """What the next quarter is compared with. Counts have one bin a stretch between edges, and one beyond the last."""

    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="null")

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
    schema_version: int = PROFILE_SCHEMA

    def to_json(self) -> str:
        """As JSON text."""
        return TypeAdapter(CorpusProfile).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "CorpusProfile":
        """Read what `to_json` gave. Raises ProfileError."""
        try:
            profile = TypeAdapter(CorpusProfile).validate_json(text)
        except ValidationError as error:
            raise ProfileError(
                f"The corpus profile is not readable ({error.errors()[0]['msg']}): validate the earlier quarter again."
            ) from None
        if profile.schema_version != PROFILE_SCHEMA:
            raise ProfileError(
                f"The corpus profile has schema version {profile.schema_version}, not {PROFILE_SCHEMA}: "
                "validate the earlier quarter again."
            )
        return profile


def profile_corpus(utterances: Sequence[Utterance], *, language: str, quarter: str) -> CorpusProfile:
    """Measure what is compared from quarter to quarter."""
    durations = np.array([u.duration_s for u in utterances if u.duration_s is not None], dtype=float)
    qualities = [u.quality for u in utterances if u.quality is not None]
    ratios = np.array([q.snr_db for q in qualities if math.isfinite(q.snr_db)], dtype=float)
    words = Counter(word for u in utterances for word in words_of(u.text, language))
    common = sorted(words, key=lambda word: (-words[word], word))[:VOCABULARY_WORDS]
    telephone = [q.narrow_band for q in qualities]
    return CorpusProfile(
        language=language,
        quarter=quarter,
        utterances=len(utterances),
        speakers=len({u.speaker for u in utterances}),
        hours=float(durations.sum()) / 3600,
        mean_duration_s=float(durations.mean()) if len(durations) else None,
        mean_snr_db=float(ratios.mean()) if len(ratios) else None,
        telephone_share=float(np.mean(telephone)) if telephone else None,
        duration_counts=_histogram(durations, DURATION_EDGES_S),
        snr_counts=_histogram(ratios, SNR_EDGES_DB),
        vocabulary=tuple(common),
    )


def _histogram(values: np.ndarray, edges: Sequence[float]) -> tuple[int, ...]:
    """Counts per bin; what lies outside the edges falls into the first or the last bin."""
    bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 1)
    return tuple(int(count) for count in np.bincount(bins, minlength=len(edges)))


def stability_index(now: Sequence[int], before: Sequence[int]) -> float:
    """Population stability index of two histograms, 0 for equal shapes; NaN when one of them is empty.

    The sum of (p - q) ln(p / q) over bins, each bin half a count fuller, less what chance alone gives with so few
    utterances: (bins - 1) (1/n + 1/m). Usual reading: 0.1 a shift worth noting, 0.25 a large one.
    """
    if not sum(now) or not sum(before):
        return math.nan
    current, earlier = np.asarray(now, float) + 0.5, np.asarray(before, float) + 0.5
    p, q = current / current.sum(), earlier / earlier.sum()
    chance = (len(p) - 1) * (1 / sum(now) + 1 / sum(before))
    return max(0.0, float(((p - q) * np.log(p / q)).sum()) - chance)
