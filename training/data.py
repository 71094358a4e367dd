"""Rows of validated manifests as training reads them: one split, located, normalised, decoded into memory."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from speech.corpus.manifest import ManifestError, Utterance, audio_location, hours_of, read_manifest
from speech.scripts import join_words, primary_language
from speech.store.objects import Objects
from speech.text import normalize
from training.batches import SAMPLE_RATE, AudioCache, Corpus
from training.recipe import Recipe, TrainingError

Split = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, with audio located and text normalised, and what was left out."""

    utterances: tuple[Utterance, ...]
    texts: tuple[str, ...]
    left_out: Mapping[str, int]
    digests: Mapping[str, str]  # sha256 of each manifest
    store: Objects | None = None  # of the keys that name audio

    @property
    def hours(self) -> float:
        """Audio in hours, as the manifests state it."""
        return hours_of(self.utterances)


def read_split(manifests: Sequence[str | Path], split: Split, language: str, store: Objects | None = None) -> SplitRows:
    """Rows of `split` in order. Raises TrainingError when a manifest is missing or wrong, or no row is left."""
    utterances: list[Utterance] = []
    texts: list[str] = []
    left_out = {"no text": 0, "other language": 0}
    languages: Counter[str] = Counter()  # of the split's rows in another language
    digests: dict[str, str] = {}
    seen: dict[str, int] = {}
    speakers: set[str] = set()
    wanted = primary_language(language)
    if wanted is None:
        raise TrainingError(f"'{language}' is not a language: write its tag, such as en or de.")
    if not manifests:
        raise TrainingError(f"No {split} manifest was given: name at least one.")
    for manifest in manifests:
        path = Path(manifest)
        if not path.is_file():
            raise TrainingError(f"Manifest {path} does not exist: build the corpus partition first.")
        digests[str(manifest)] = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            for row in read_manifest(path):
                speakers.add(row.speaker)
                if row.split != split:
                    continue
                if primary_language(row.language) != wanted:
                    left_out["other language"] += 1
                    languages[row.language] += 1
                    continue
                text = normalize(row.text, language)
                if not text:
                    left_out["no text"] += 1
                    continue
                # Ids are unique in a partition only; the data order must be well defined over several.
                seen[row.id] = seen.get(row.id, 0) + 1
                name = row.id if seen[row.id] == 1 else f"{row.id}+{seen[row.id]}"
                utterances.append(replace(row, id=name, audio=audio_location(row, path)))
                texts.append(join_words(text.split()))
        except ManifestError as error:
            raise TrainingError(f"Manifest cannot be used: {str(error).rstrip('.')}.") from error
    if not utterances:
        where = ", ".join(map(str, manifests))
        if not speakers:
            raise TrainingError(f"No {split} rows in {where}: the partition is empty.")
        if len(speakers) == 1 and not any(left_out.values()):
            raise TrainingError(
                f"No {split} rows in {where}: a single speaker ('{min(speakers)}') leaves nobody else to measure on;"
                " add recordings of at least two more speakers."
            )
        if languages:
            held = ", ".join(f"{count} in '{name}'" for name, count in languages.most_common())
            wordless = f" and {left_out['no text']} without a word" if left_out["no text"] else ""
            raise TrainingError(
                f"No {split} rows in '{language}' in {where}, but {held}{wordless}:"
                " name their language, or manifests in this one."
            )
        if left_out["no text"]:
            raise TrainingError(
                f"No {split} rows with words in {where}: none of its {left_out['no text']} transcripts has a word that"
                f" '{language}' is written in; look at the texts, and at their language."
            )
        raise TrainingError(
            f"No {split} rows in {where}: none of its {len(speakers)} speakers is in the {split} split; add speakers."
        )
    return SplitRows(tuple(utterances), tuple(texts), left_out, digests, store)


def require_disjoint_speakers(train: SplitRows, dev: SplitRows) -> None:
    """Raise TrainingError when a dev speaker is also trained on: its WER would be about memory."""
    shared = sorted({row.speaker for row in train.utterances} & {row.speaker for row in dev.utterances})
    if shared:
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise TrainingError(
            f"{len(shared)} speaker{'s are' if len(shared) > 1 else ' is'} in both train and dev ({shown}):"
            " the dev set must hold speakers of its own; add speakers or assign the splits again."
        )


def corpus_of(rows: SplitRows, recipe: Recipe, *, bound_s: float | None = None) -> Corpus:
    """Rows with known durations, within the recipe's bounds; `bound_s` takes a fixed sample of that length."""
    cache = AudioCache(recipe.batch.cache_mb * 2**20, rows.store)
    pairs = list(zip(rows.utterances, rows.texts, strict=True))
    if bound_s is not None:
        pairs.sort(key=lambda pair: hashlib.sha256(pair[0].id.encode()).digest())
    utterances: list[Utterance] = []
    texts: list[str] = []
    durations: list[float] = []
    for row, text in pairs:
        duration = row.duration_s if row.duration_s is not None else len(cache.samples(row)) / SAMPLE_RATE
        if bound_s is not None and utterances and sum(durations) + duration > bound_s:
            break
        if bound_s is None and not recipe.batch.shortest_s <= duration <= recipe.batch.longest_s:
            continue
        utterances.append(row)
        texts.append(text)
        durations.append(duration)
    if not utterances:
        raise TrainingError(
            f"No training utterance lasts between {recipe.batch.shortest_s} and {recipe.batch.longest_s} s:"
            " check the segmentation, or change batch.shortest_s and batch.longest_s."
        )
    return Corpus(utterances, texts, durations, cache)
