"""What label models learn from: utterances by speaker or by language, and what is none of the languages.

An example is a function of the seed, the step and its place in the step, so a training that was killed goes on with the
very batch that it had reached.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from speech.corpus.background import foreign, music, numbers_read
from speech.corpus.manifest import ManifestError, Utterance, audio_location, read_manifest
from speech.corpus.synthetic import SynthesisError
from speech.labels import UNKNOWN, Kind
from speech.scripts import primary_language
from speech.store.objects import Objects
from training.batches import SAMPLE_RATE, AudioCache, Augmentation
from training.labels.settings import LabelTrainingSettings
from training.recipe import AugmentationSettings, TrainingError

# A voice is told from a second of it, a language hardly.
CROP_S: Mapping[Kind, tuple[float, float]] = {"speaker": (1.0, 3.0), "language": (1.5, 3.0)}
MIN_SPEAKERS = 8  # fewer voices teach a network these voices, and not what tells voices apart
READ_SHARE = 0.15  # of a language's examples are numbers read by a synthetic voice, as those of unknown languages are
UNKNOWN_SHARE = 0.2  # of the examples of a language model: most recordings are in a known language
NONSPEECH_SHARE = 0.3  # of those
TUNES = 40
_INT16 = np.float32(32_768)
_Sound = Callable[[str], np.ndarray]  # from the name of an example


@dataclass(frozen=True)
class Examples:
    """Sounds (int16 [n], 16 kHz) by class; the classes in order."""

    kind: Kind
    labels: tuple[str, ...]
    recorded: tuple[tuple[np.ndarray, ...], ...]
    read: tuple[tuple[np.ndarray, ...], ...] = ()  # numbers in each language; of UNKNOWN, other languages

    @property
    def hours(self) -> float:
        """Recorded audio."""
        return sum(len(sound) for sounds in self.recorded for sound in sounds) / SAMPLE_RATE / 3600


def rows_of_manifests(manifests: Iterable[Path]) -> tuple[list[Utterance], dict[str, str]]:
    """All rows with their audio located, and the digest of each manifest. Raises TrainingError."""
    rows: list[Utterance] = []
    digests: dict[str, str] = {}
    for path in manifests:
        if not path.is_file():
            raise TrainingError(f"Manifest {path} does not exist: build the corpus partition first.")
        digests[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            rows += [replace(row, audio=audio_location(row, path)) for row in read_manifest(path)]
        except ManifestError as error:
            raise TrainingError(f"Manifest cannot be used: {str(error).rstrip('.')}.") from error
    return rows, digests


def examples_of(
    kind: Kind, rows: Sequence[Utterance], settings: LabelTrainingSettings, store: Objects | None = None
) -> Examples:
    """What a model of a kind learns from the train rows. Raises TrainingError where they cannot teach it."""
    chosen = _chosen([row for row in rows if row.split == "train"], settings)
    by_label: dict[str, list[Utterance]] = defaultdict(list)
    for row in chosen:
        language = primary_language(row.language) or row.language
        by_label[language if kind == "language" else f"{language}\0{row.speaker}"].append(row)
    cache = AudioCache(0, store)  # each sound is read once, and kept here
    if kind == "speaker":
        voices = sorted(label for label, of in by_label.items() if len(of) > 1)
        if len(voices) < MIN_SPEAKERS:
            raise TrainingError(
                f"{len(voices)} speakers have two utterances or more in the train split, and a speaker model needs"
                f" {MIN_SPEAKERS}: add recordings, or name their speakers."
            )
        return Examples(kind, tuple(voices), tuple(tuple(map(cache.samples, by_label[voice])) for voice in voices))
    languages = tuple(sorted(by_label))
    if not languages:
        raise TrainingError("No row is in the train split: a language model has nothing to learn.")
    others = foreign("train", languages)
    read: dict[str, list[np.ndarray]] = defaultdict(list)
    for tags, label in ((languages, None), (others, UNKNOWN)):
        for tag in tags:
            try:
                for _, clip in numbers_read([tag], settings.foreign_clips * (1 if label else 2), "train"):
                    read[label or tag].append(_as_int16(clip))
            except SynthesisError:  # a language that the synthesiser does not know is learnt from recordings alone
                continue
    labels = (*languages, UNKNOWN)
    return Examples(
        kind,
        labels,
        (*(tuple(map(cache.samples, by_label[language])) for language in languages), ()),
        tuple(tuple(read[label]) for label in labels),
    )


class Batches:
    """The batch of each step: crops of one length, augmented, with their classes."""

    def __init__(self, examples: Examples, settings: LabelTrainingSettings) -> None:
        self.examples, self.settings = examples, settings
        self._music = [
            music(CROP_S[examples.kind][1], number) for number in range(TUNES if examples.kind == "language" else 0)
        ]
        self._augment = Augmentation(
            AugmentationSettings(
                # a voice played faster is another voice; a language is not
                speed_probability=0.5 if examples.kind == "language" else 0.0,
                noise_probability=0.6,
                noise_snr_db=(5.0, 35.0),
                telephone_probability=0.35,
                nonspeech_probability=0.99,
            ),
            settings.seed,
        )

    def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Clips float32 [batch, n] and their classes [batch]."""
        draw = np.random.default_rng([self.settings.seed, step])
        count = round(float(draw.uniform(*CROP_S[self.examples.kind])) * SAMPLE_RATE)
        sounds, classes = [], []
        for place in range(self.settings.batch):
            label, sound = self._drawn(draw, count)
            sounds.append(_cut(sound(f"{step}-{place}"), count, draw))
            classes.append(label)
        return np.stack(sounds), np.array(classes)

    def _drawn(self, draw: np.random.Generator, count: int) -> tuple[int, _Sound]:
        examples = self.examples
        label = int(draw.integers(len(examples.labels)))
        if examples.kind == "language":
            known = len(examples.labels) - 1
            unknown = draw.random() < UNKNOWN_SHARE
            label = known if unknown else int(draw.integers(known))
            if unknown and draw.random() < NONSPEECH_SHARE:
                return label, self._nonspeech(draw, count)
        recorded = examples.recorded[label]
        read = examples.read[label] if examples.read else ()
        among = read if read and (not recorded or draw.random() < READ_SHARE) else recorded
        sound = among[int(draw.integers(len(among)))]
        longer = round(count * 1.2)  # what is played faster is shorter afterwards
        start = int(draw.integers(max(1, len(sound) - longer + 1)))
        clip = sound[start : start + longer].astype(np.float32) / _INT16
        return label, lambda key: self._augment(clip, key)

    def _nonspeech(self, draw: np.random.Generator, count: int) -> _Sound:
        kind, seed = draw.random(), int(draw.integers(2**31))
        if kind < 0.05:
            return lambda key: np.zeros(count, np.float32)
        if kind < 0.35:
            tune = self._music[seed % len(self._music)]
            return lambda key: tune * np.float32(10 ** (-(seed % 30) / 20))
        recorded = self.examples.recorded[int(draw.integers(len(self.examples.labels) - 1))]
        like = np.resize(recorded[int(draw.integers(len(recorded)))], count).astype(np.float32) / _INT16

        def noise(key: str) -> np.ndarray:
            found = self._augment.nonspeech(like, key)
            return np.zeros(count, np.float32) if found is None else found

        return noise


def _chosen(rows: Sequence[Utterance], settings: LabelTrainingSettings) -> list[Utterance]:
    """A fixed sample: so many utterances of a speaker, and so many hours in all."""
    ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{row.language}\0{row.id}".encode()).digest())
    of_speaker: dict[tuple[str, str], int] = defaultdict(int)
    chosen: list[Utterance] = []
    left_s = settings.longest_hours * 3600
    for row in ordered:
        of_speaker[row.language, row.speaker] += 1
        if of_speaker[row.language, row.speaker] > settings.per_speaker or left_s <= 0:
            continue
        left_s -= row.duration_s or 0.0
        chosen.append(row)
    return sorted(chosen, key=lambda row: (row.language, row.id, row.audio))


def _cut(sound: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """A crop of so many samples; a shorter sound is repeated."""
    if len(sound) < count:
        return np.resize(sound, count)
    start = int(draw.integers(len(sound) - count + 1))
    return sound[start : start + count]


def _as_int16(clip: np.ndarray) -> np.ndarray:
    return (np.clip(clip, -1.0, 1.0) * 32_767).astype(np.int16)
