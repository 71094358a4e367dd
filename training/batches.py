"""From manifests to batches: the same seed gives the same examples in the same order, step by step.

An epoch is every utterance once, some joined with others of the same speaker. Lhotse's dynamic
bucketing turns the endless row of epochs into batches of similar durations; which batch belongs to a
step is a function of the seed, the step and the number of devices alone, and what augmentation does
to an example is a function of the seed, the epoch and the example. So a run that was killed goes on
with the very batch it had reached, without any state but the step.

Resuming replays the order of all earlier batches, without their audio: about a second per hundred
thousand examples.
"""

import itertools
import math
import os
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from speech.corpus.manifest import Utterance
from speech.store.objects import REFERENCE, Objects, StoreError
from training.recipe import AugmentationSettings, BatchSettings, JoinSettings, TrainingError

SAMPLE_RATE = 16_000
TELEPHONE_BAND_HZ = (300.0, 3_400.0)
NONSPEECH_LEVEL_DBFS = (-70.0, -10.0)
_INT16 = 32_768.0


class AudioCache:
    """Decoded 16 kHz mono audio as int16, kept up to a bound; files beyond it are read at each use."""

    def __init__(self, limit_bytes: int, store: Objects | None = None) -> None:
        self.limit_bytes = limit_bytes
        self.store = store  # of the keys that utterances name their audio by
        self.bytes = 0
        self._kept: dict[tuple[str, float, float | None], np.ndarray] = {}

    def samples(self, utterance: Utterance) -> np.ndarray:
        """Return the utterance as int16 [n]. Raises TrainingError naming the file that cannot be used."""
        key = (utterance.audio, utterance.offset_s, utterance.duration_s)
        found = self._kept.get(key)
        if found is not None:
            return found
        samples = _read(replace(utterance, audio=self._file(utterance)))
        if self.bytes + samples.nbytes <= self.limit_bytes:
            self._kept[key] = samples
            self.bytes += samples.nbytes
        return samples

    def _file(self, utterance: Utterance) -> str:
        if self.store is not None:
            try:
                return self.store.located(utterance.audio)
            except StoreError as error:
                raise TrainingError(f"Audio of utterance '{utterance.id}' is missing: {error}.") from error
        if utterance.audio.startswith(REFERENCE):
            raise TrainingError(f"{utterance.audio} is a key of a data store: say in `store` of which.")
        return utterance.audio

    def fill(self, utterances: Sequence[Utterance]) -> None:
        """Decode ahead until the bound is reached: faults show before training, worker processes share it."""
        for utterance in utterances:
            self.samples(utterance)
            if self.bytes >= self.limit_bytes * 0.98:
                return


def _read(utterance: Utterance) -> np.ndarray:
    import soundfile

    try:
        with soundfile.SoundFile(utterance.audio) as audio:
            return _segment(audio, utterance)
    except (OSError, RuntimeError, ValueError) as error:
        there = os.path.exists(utterance.audio)
        what = f"cannot be read ({str(error).strip().rstrip('.')})" if there else "is missing"
        raise TrainingError(
            f"Audio of utterance '{utterance.id}' {what}: {utterance.audio}. Run normalisation again or drop the row."
        ) from error


def _segment(audio: Any, utterance: Utterance) -> np.ndarray:
    if audio.samplerate != SAMPLE_RATE or audio.channels != 1:
        raise TrainingError(
            f"Audio of utterance '{utterance.id}' has {audio.samplerate} Hz and {audio.channels} channels:"
            f" {utterance.audio}. Training reads normalised audio, {SAMPLE_RATE} Hz mono."
        )
    if utterance.offset_s > 0:
        audio.seek(round(utterance.offset_s * SAMPLE_RATE))
    frames = -1 if utterance.duration_s is None else round(utterance.duration_s * SAMPLE_RATE)
    samples: np.ndarray = audio.read(frames, dtype="int16")
    if not len(samples):
        raise TrainingError(f"Audio of utterance '{utterance.id}' is empty: {utterance.audio}.")
    return samples


@dataclass(frozen=True)
class Example:
    """What one row of a batch is made of: utterances of one speaker, one after the other."""

    id: str
    epoch: int
    parts: tuple[int, ...]  # indices into the corpus
    gaps_s: tuple[float, ...]  # pause after each part but the last
    duration_s: float


@dataclass
class Corpus:
    """Utterances with their token ids; what a run learns from or is measured on."""

    utterances: list[Utterance]
    texts: list[str]  # normalised
    durations_s: list[float]
    cache: AudioCache
    tokens: list[list[int]] = field(default_factory=list)


def epoch_of(corpus: Corpus, epoch: int, seed: int, join: JoinSettings) -> list[Example]:
    """Every utterance once, in this epoch's order; some joined with others of the same speaker."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(corpus.utterances))
    by_speaker: dict[str, list[int]] = {}
    for index in order:
        by_speaker.setdefault(corpus.utterances[index].speaker, []).append(int(index))
    examples = []
    for indices in by_speaker.values():
        waiting = deque(indices)
        while waiting:
            parts, gaps = [waiting.popleft()], []
            duration = corpus.durations_s[parts[0]]
            wanted = int(rng.integers(2, join.parts + 1)) if rng.random() < join.probability else 1
            while len(parts) < wanted and waiting:
                gap = float(rng.uniform(*join.gap_s))
                longer = duration + gap + corpus.durations_s[waiting[0]]
                if longer > join.longest_s:
                    break
                parts.append(waiting.popleft())
                gaps.append(gap)
                duration = longer
            name = corpus.utterances[parts[0]].id
            examples.append(Example(f"{name}-{epoch}", epoch, tuple(parts), tuple(gaps), duration))
    return [examples[index] for index in rng.permutation(len(examples))]


class _EndlessCuts:
    """All epochs in a row as lhotse cuts that carry their example; lhotse reads it lazily."""

    def __init__(self, corpus: Corpus, seed: int, join: JoinSettings) -> None:
        self.corpus, self.seed, self.join = corpus, seed, join

    def __iter__(self) -> Iterator[Any]:
        from lhotse import MonoCut

        for epoch in itertools.count():
            for example in epoch_of(self.corpus, epoch, self.seed, self.join):
                duration = round(example.duration_s, 4)
                yield MonoCut(example.id, start=0.0, duration=duration, channel=0, custom={"example": example})


@dataclass
class StepSampler:
    """The number and examples of each batch from `start` on, for one of `world_size` devices."""

    corpus: Corpus
    batch: BatchSettings
    join: JoinSettings
    seed: int
    start: int = 0
    rank: int = 0
    world_size: int = 1
    start_longest_s: float = 0.0
    lengthen_s_per_step: float = 0.01

    @property
    def graded_steps(self) -> int:
        """Steps until utterances of any length occur."""
        if not self.start_longest_s:
            return 0
        return max(0, math.ceil((max(self.corpus.durations_s) - self.start_longest_s) / self.lengthen_s_per_step))

    def __iter__(self) -> Iterator[tuple[int, list[Example]]]:
        for step in range(self.start, self.graded_steps):
            yield step, self._short_batch(step)
        yield from self._bucketed(max(self.start, self.graded_steps))

    @cached_property
    def _by_length(self) -> tuple[np.ndarray, np.ndarray]:
        """The utterances' seconds, and their places from the shortest to the longest."""
        durations = np.asarray(self.corpus.durations_s)
        return durations, np.argsort(durations, kind="stable")

    def _short_batch(self, step: int) -> list[Example]:
        """Utterances below the limit of a step and of about equal length, drawn by the step alone.

        Of the buckets that they fall into one is drawn, by its seconds: so each utterance is as likely, as in an epoch.
        """
        rng = np.random.default_rng([self.seed, step, self.rank])
        durations, shortest = self._by_length
        below = np.searchsorted(durations[shortest], self.start_longest_s + step * self.lengthen_s_per_step, "right")
        allowed = shortest[: max(int(below), self.batch.utterances)]
        buckets = np.array_split(allowed, max(1, min(self.batch.buckets, len(allowed) // self.batch.utterances)))
        weights = np.array([durations[bucket].sum() for bucket in buckets])
        bucket = buckets[rng.choice(len(buckets), p=weights / weights.sum())]
        examples: list[Example] = []
        seconds = 0.0
        for index in rng.choice(bucket, self.batch.utterances):
            seconds += float(durations[index])
            if examples and seconds > self.batch.seconds:
                break
            name = f"{self.corpus.utterances[index].id}-step{step}-{len(examples)}"
            examples.append(Example(name, 0, (int(index),), (), float(durations[index])))
        return examples

    def _bucketed(self, start: int) -> Iterator[tuple[int, list[Example]]]:
        """Batches of examples of about equal length, from the one of step `start` on."""
        from lhotse import CutSet
        from lhotse.dataset import DynamicBucketingSampler

        durations = sorted(example.duration_s for example in epoch_of(self.corpus, 0, self.seed, self.join))
        count = len(durations)
        buckets = max(2, min(self.batch.buckets, count // 8))
        sampler = DynamicBucketingSampler(
            CutSet(_EndlessCuts(self.corpus, self.seed, self.join)),
            max_duration=max(self.batch.seconds, durations[-1]),
            max_cuts=self.batch.utterances,
            # Buckets of equally many examples; lhotse's own estimate needs more data than a small corpus has.
            duration_bins=sorted({durations[count * place // buckets] for place in range(1, buckets)}),
            shuffle=True,
            seed=self.seed,
            # The buffer holds about two epochs of a small corpus, so that epochs mix little.
            buffer_size=min(20_000, max(2 * count, 8 * self.batch.utterances)),
            world_size=self.world_size,
            rank=self.rank,
        )
        for number, cuts in enumerate(itertools.islice(iter(sampler), start - self.graded_steps, None), start):
            yield number, [cut.custom["example"] for cut in cuts]


class BatchMaker:
    """Loads, joins and augments the examples of a batch; runs in worker processes too."""

    def __init__(self, corpus: Corpus, augmentation: AugmentationSettings, seed: int, unchanged: int = 0) -> None:
        """`unchanged`: so many batches at the start are left as recorded."""
        self.corpus = corpus
        self.augment = Augmentation(augmentation, seed)
        self.unchanged = unchanged

    def __getitem__(self, numbered: tuple[int, list[Example]]) -> dict[str, Any]:
        """Return the batch as a dictionary, which every data loader and device mover understands."""
        number, examples = numbered
        sounds: list[np.ndarray] = []
        tokens: list[list[int]] = []
        for example in examples:
            sound = self._joined(example)
            wordless = self.augment.nonspeech(sound, example.id)
            if wordless is not None:
                sounds.append(wordless)
                tokens.append([])
                continue
            sounds.append(sound if number < self.unchanged else self.augment(sound, example.id))
            tokens.append([token for part in example.parts for token in self.corpus.tokens[part]])
        return collate(sounds, tokens, epoch=max(example.epoch for example in examples))

    def _joined(self, example: Example) -> np.ndarray:
        pieces = []
        for place, part in enumerate(example.parts):
            pieces.append(self.corpus.cache.samples(self.corpus.utterances[part]).astype(np.float32) / _INT16)
            if place < len(example.gaps_s):
                pieces.append(np.zeros(round(example.gaps_s[place] * SAMPLE_RATE), np.float32))
        return np.concatenate(pieces) if len(pieces) > 1 else pieces[0]


def collate(sounds: Sequence[np.ndarray], tokens: Sequence[Sequence[int]], epoch: int = 0) -> dict[str, Any]:
    """Pad to the longest. Keys: audio, audio_lengths, tokens, token_lengths, seconds, epoch."""
    import torch

    audio = np.zeros((len(sounds), max(map(len, sounds))), np.float32)
    labels = np.zeros((len(tokens), max(1, *map(len, tokens)) if tokens else 1), np.int64)
    for row, (sound, ids) in enumerate(zip(sounds, tokens, strict=True)):
        audio[row, : len(sound)] = sound
        labels[row, : len(ids)] = ids
    return {
        "audio": torch.from_numpy(audio),
        "audio_lengths": torch.tensor([len(sound) for sound in sounds]),
        "tokens": torch.from_numpy(labels),
        "token_lengths": torch.tensor([len(ids) for ids in tokens]),
        "seconds": sum(map(len, sounds)) / SAMPLE_RATE,
        "epoch": epoch,
    }


class Augmentation:
    """Speed, gain, telephone band, noise: drawn for each example from its name, so any process draws the same."""

    def __init__(self, settings: AugmentationSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.noises = _noises(settings.noise_folder) if settings.noise_folder else []

    def __call__(self, samples: np.ndarray, key: str) -> np.ndarray:
        """Return float32 [n'] within [-1, 1]."""
        settings = self.settings
        rng = np.random.default_rng([self.seed, zlib.crc32(key.encode())])
        if rng.random() < settings.speed_probability:
            samples = _played_at(samples, float(rng.uniform(*settings.speed)))
        if settings.silence_s[1] > 0:
            before, after = (round(float(rng.uniform(*settings.silence_s)) * SAMPLE_RATE) for _ in range(2))
            samples = np.pad(samples, (before, after))
        if rng.random() < settings.telephone_probability:
            samples = _band_limited(samples)
        samples = samples * np.float32(10 ** (rng.uniform(*settings.gain_db) / 20))
        if rng.random() < settings.noise_probability:
            samples = self._noisy(samples, rng)
        loudest = float(np.abs(samples).max(initial=0.0))
        return (samples / np.float32(loudest) if loudest > 1 else samples).astype(np.float32, copy=False)

    def nonspeech(self, sound: np.ndarray, key: str) -> np.ndarray | None:
        """Noise, babble, hum or near silence, as long as `sound`, for a share of the examples; None for the others.

        A model that has only ever heard speech writes words for whatever it hears. Babble is noise with the spectrum of
        `sound` and an uneven swell, as many voices at once have it (ICRA noise, Dreschler et al. 2001).
        """
        from scipy import fft

        count = len(sound)
        rng = np.random.default_rng([self.seed, zlib.crc32(f"nonspeech {key}".encode())])
        if rng.random() >= self.settings.nonspeech_probability:
            return None
        times = np.arange(count) / SAMPLE_RATE
        kind = rng.choice(("hum", "noise", "babble"), p=(0.2, 0.4, 0.4))
        if kind == "hum":
            mains_hz = rng.choice((50.0, 60.0))
            signal = sum(np.sin(2 * np.pi * mains_hz * h * times + rng.uniform(0, 6)) / h for h in range(1, 10))
        else:
            size = fft.next_fast_len(count, real=True)
            if kind == "babble":
                spectrum = np.abs(fft.rfft(sound, size))
            else:
                spectrum = np.maximum(fft.rfftfreq(size, 1 / SAMPLE_RATE), 30.0) ** -rng.uniform(0.0, 1.2)
            white = fft.rfft(rng.standard_normal(size, dtype=np.float32))
            signal = fft.irfft(white * spectrum.astype(np.float32), size)[:count]
            changes = rng.random(2 + int(count / SAMPLE_RATE * rng.uniform(2.0, 16.0)))
            swell = np.interp(np.linspace(0, len(changes) - 1, count), np.arange(len(changes)), changes)
            signal = signal * (1 - rng.uniform(0.0, 0.9) * swell)
        unit = signal / (np.sqrt(np.mean(np.square(signal))) + 1e-9)
        level = 10 ** (rng.uniform(*NONSPEECH_LEVEL_DBFS) / 20)
        return np.clip(unit * level, -1.0, 1.0).astype(np.float32)

    def _noisy(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        power = float(np.mean(np.square(samples)))
        if power == 0:
            return samples
        if self.noises:
            noise = self.noises[int(rng.integers(len(self.noises)))]
            start = int(rng.integers(len(noise)))
            noise = np.take(noise, np.arange(start, start + len(samples)), mode="wrap")
        else:
            noise = rng.standard_normal(len(samples), dtype=np.float32)
            colour = np.float32(rng.uniform(0.0, 0.9))  # from hiss towards rumble, as rooms and lines have it
            noise[1:] += colour * noise[:-1]
        level = power / 10 ** (rng.uniform(*self.settings.noise_snr_db) / 10)
        return samples + noise * np.float32(np.sqrt(level / (float(np.mean(np.square(noise))) + 1e-12)))


def _played_at(samples: np.ndarray, speed: float) -> np.ndarray:
    import soxr

    resampled: np.ndarray = soxr.resample(samples, SAMPLE_RATE * speed, SAMPLE_RATE, quality="LQ")
    return resampled if len(resampled) else samples


def _band_limited(samples: np.ndarray) -> np.ndarray:
    from scipy import fft

    size = fft.next_fast_len(len(samples), real=True)
    spectrum = fft.rfft(samples, size)
    frequencies = fft.rfftfreq(size, 1 / SAMPLE_RATE)
    low, high = TELEPHONE_BAND_HZ
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    limited: np.ndarray = fft.irfft(spectrum, size)[: len(samples)]
    return limited.astype(np.float32, copy=False)


def _noises(folder: Path) -> list[np.ndarray]:
    from speech.audio.decode import AudioError, decode

    recordings = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".wav", ".flac", ".ogg")]
    if not recordings:
        raise TrainingError(f"Noise folder {folder} holds no .wav, .flac or .ogg recording.")
    try:
        return [decode(path).samples for path in recordings]
    except AudioError as error:
        raise TrainingError(f"Noise recording {error.path} cannot be read: {error.reason}.") from error
