"""What a speaker wants, and the values that belong to it: a small linear model over the words of a segment.

Features are words, pairs of words, and runs of characters that still fit where a word was heard half wrong; and the
words that the other speaker said before, without which "yes" means nothing. A word's slot is told by the words around
it and by the intent. Such a model is learnt in seconds, read as a table of weights, and takes a fraction of a
millisecond a sentence.

Confidences are probabilities: a temperature (Guo et al., ICML 2017) is fitted on ways to say it that were not learnt.
Below its threshold, and where the model knows the sentence for one of no intent, the answer is none.
"""

import hashlib
import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from speech.scripts import join_words
from speech.text import words_of
from speech.transcript import Intent, Segment, Word

UNKNOWN = "unknown"
NO_SLOT = ""
NGRAMS = (3, 4)  # characters, with the ends of words
BEFORE_S = 30.0  # what the other said longer ago is no question to this
BEFORE_WORDS = 20  # the last ones
CONFIDENCE_DIGITS = 4
FORMAT = 1


class IntentModelError(ValueError):
    """Bytes that are not an intent model of this version."""


@dataclass(frozen=True)
class Linear:
    """A log-linear model: weights [terms + 1, labels] (the last row is the bias)."""

    terms: tuple[str, ...]
    labels: tuple[str, ...]
    weights: np.ndarray = field(compare=False)

    @cached_property
    def _places(self) -> Mapping[str, int]:
        return {term: place for place, term in enumerate(self.terms)}

    def logits(self, features: Mapping[str, float]) -> np.ndarray:
        """Of each label, float64 [labels]; terms that were never learnt say nothing."""
        known = [(self._places[term], value) for term, value in features.items() if term in self._places]
        found: np.ndarray = self.weights[-1].astype(np.float64)
        for place, value in sorted(known):
            found = found + value * self.weights[place]
        return found


@dataclass(frozen=True)
class IntentModel:
    """Tells the intents of one language."""

    language: str
    intents: Linear
    slots: Linear | None  # None: the sentences that it was learnt from have no slots
    temperature: float
    threshold: float  # of confidence
    lineage: Mapping[str, Any] = field(default_factory=dict, hash=False)
    digest: str = field(default="", compare=False)  # of the bytes that it was read from

    def probabilities(self, words: Sequence[str], before: Sequence[str] = ()) -> np.ndarray:
        """Of each of `intents.labels`, calibrated; words are of the scoring form."""
        scaled = self.intents.logits(features_of(words, before)) / self.temperature
        grown = np.exp(scaled - scaled.max())
        told: np.ndarray = grown / grown.sum()
        return told

    def intent(self, words: Sequence[str], before: Sequence[str] = ()) -> tuple[str, float]:
        """The likeliest intent, or UNKNOWN where it is not likely enough, and its probability."""
        told = self.probabilities(words, before)
        best = int(told.argmax())
        name, confidence = self.intents.labels[best], float(told[best])
        return (name if confidence >= self.threshold else UNKNOWN), confidence

    def tags(self, words: Sequence[str], intent: str) -> list[str]:
        """The slot of each word, or NO_SLOT."""
        if self.slots is None:
            return [NO_SLOT] * len(words)
        around = (word_features(words, place, intent) for place in range(len(words)))
        return [self.slots.labels[int(self.slots.logits(features).argmax())] for features in around]

    def to_bytes(self) -> bytes:
        """The model as a file of arrays (NumPy's npz, which holds no code); the same model gives the same bytes."""
        said = {
            "format": FORMAT,
            "language": self.language,
            "temperature": self.temperature,
            "threshold": self.threshold,
            "lineage": dict(self.lineage),
            "intents": [self.intents.terms, self.intents.labels],
            "slots": self.slots and [self.slots.terms, self.slots.labels],
        }
        text = json.dumps(said, sort_keys=True, ensure_ascii=False).encode()
        arrays = {"about": np.frombuffer(text, np.uint8), "intents": self.intents.weights}
        if self.slots is not None:
            arrays["slots"] = self.slots.weights
        data = io.BytesIO()
        np.savez_compressed(data, **arrays)  # type: ignore[arg-type]
        return data.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, digest: str) -> "IntentModel":
        """The model of that digest. Raises IntentModelError for other bytes, and for what this version cannot read."""
        if digest_of(data) != digest:
            raise IntentModelError(f"the bytes of intent model {digest[:12]} are others: materialise `intent_model`")
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                said = json.loads(arrays["about"].tobytes())
                if said["format"] != FORMAT:
                    raise IntentModelError(f"intent models of format {said['format']} cannot be read; this is {FORMAT}")
                linear = {
                    name: Linear(tuple(said[name][0]), tuple(said[name][1]), arrays[name])
                    for name in ("intents", "slots")
                    if said[name]
                }
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise IntentModelError(f"intent model {digest[:12]} cannot be read ({error})") from error
        return cls(
            language=said["language"],
            intents=linear["intents"],
            slots=linear.get("slots"),
            temperature=said["temperature"],
            threshold=said["threshold"],
            lineage=said["lineage"],
            digest=digest,
        )


def digest_of(data: bytes) -> str:
    """SHA-256 that names a model."""
    return hashlib.sha256(data).hexdigest()


def features_of(words: Sequence[str], before: Sequence[str]) -> dict[str, float]:
    """The terms of a sentence with their weights; each kind of term has length 1, however long the sentence is."""
    kinds = (
        Counter(f"w {word}" for word in words),
        Counter(f"w {a} {b}" for a, b in itertools.pairwise(("<", *words, ">"))),
        Counter(f"c {run}" for word in words for run in _runs(word)),
        Counter(f"b {word}" for word in before[-BEFORE_WORDS:]) or Counter(("b",)),
    )
    found: dict[str, float] = {}
    for terms in kinds:
        length = sum(count * count for count in terms.values()) ** 0.5
        found |= {term: count / length for term, count in terms.items()}
    return found


def word_features(words: Sequence[str], place: int, intent: str) -> dict[str, float]:
    """The terms of a word among its neighbours."""
    at = {step: words[place + step] if 0 <= place + step < len(words) else "<>" for step in (-2, -1, 0, 1, 2)}
    terms = [f"{step} {word}" for step, word in at.items()]
    terms += [f"{intent} 0 {at[0]}", f"{intent} -1 {at[-1]}", f"{intent} 1 {at[1]}", f"-1 {at[-1]} {at[0]}"]
    return dict.fromkeys((*terms, f"end {at[0][-3:]}", intent), 1.0)


def _runs(word: str) -> Iterator[str]:
    bounded = f"<{word}>"
    return (bounded[at : at + size] for size in NGRAMS for at in range(len(bounded) - size + 1))


def with_intents(segments: Sequence[Segment], models: Mapping[str, IntentModel], language: str) -> tuple[Segment, ...]:
    """Segments with what their speakers want, by the model of their language, which else is `language`.

    Nothing is said of what has no words, is not known, or is of a language without a model. What was said before is
    what others said last; without speakers and channels, the segment before.
    """
    found: list[Segment] = []
    said: list[tuple[str | None, float, list[str]]] = []  # by whom, until when, which words
    for segment in segments:
        model = models.get(segment.language or language)
        if model is None or not segment.words:
            found.append(segment)
            continue
        words, owners = _scored(segment.words, model.language)
        by = segment.speaker or _channel(segment.words[0])
        before = [
            word
            for speaker, end_s, theirs in said
            if segment.start_s - end_s <= BEFORE_S and (by is None or speaker != by)
            for word in theirs
        ]
        found.append(replace(segment, intent=_intent(segment, words, owners, before, model)))
        said = [*(said[-3:] if by is not None else []), (by, segment.end_s, words)]
    return tuple(found)


def _channel(word: Word) -> str | None:
    return None if word.channel is None else f"channel_{word.channel}"


def _scored(words: Sequence[Word], language: str) -> tuple[list[str], list[int]]:
    """The words of the scoring form, and which word each is of."""
    pairs = [(part, place) for place, word in enumerate(words) for part in words_of(word.text, language)]
    return [part for part, _ in pairs], [place for _, place in pairs]


def _intent(
    segment: Segment, words: Sequence[str], owners: Sequence[int], before: Sequence[str], model: IntentModel
) -> Intent | None:
    name, confidence = model.intent(words, before)
    if name == UNKNOWN:
        return None
    tagged: dict[int, list[str]] = {}
    for owner, tag in zip(owners, model.tags(words, name), strict=True):
        tagged.setdefault(owner, []).append(tag)
    slots: dict[str, str] = {}
    for slot, pieces in itertools.groupby(_pieces(segment.words, tagged), lambda piece: piece[0]):
        if slot != NO_SLOT:
            number = sum(other == slot or other.startswith(f"{slot}_") for other in slots) + 1
            slots[slot if number == 1 else f"{slot}_{number}"] = join_words(form for _, form in pieces)
    return Intent(name, round(confidence, CONFIDENCE_DIGITS), slots)


def _pieces(words: Sequence[Word], tagged: Mapping[int, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Words that are written as one, with the slot that most of them belong to if any does: "$42" is one value."""
    firsts = [place for place, word in enumerate(words) if not place or word.written != ""]
    for first, end in zip(firsts, [*firsts[1:], len(words)], strict=True):
        slots = Counter(tag for place in range(first, end) for tag in tagged.get(place, ()) if tag != NO_SLOT)
        written = words[first].written
        yield (slots.most_common(1)[0][0] if slots else NO_SLOT), (words[first].text if written is None else written)
