"""The stages of batch transcription, each a function of one item: audio by reference in, annotations out.

A stage writes nothing but what it returns (and, where audio comes out, the file that it names), and takes its models
from `Models`. So a pool, a cluster and a stream's worker can call it alike, twice gives the same, and an item that
fails costs itself alone.
"""

import importlib.metadata
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from deployment.batch.arrivals import Arrival
from deployment.serving.transcription import segments_from_words
from speech.audio.decode import (
    DEFAULT_LIMITS,
    SAMPLE_RATE,
    AudioError,
    AudioLimits,
    decode_chunks,
    probe,
    write_flac_chunks,
)
from speech.audio.recording import Recording
from speech.bundle import ModelBundle
from speech.quality import Quality, measure
from speech.recognition.offline import Recognizer
from speech.store.objects import Objects
from speech.transcript import Segment, Transcript, Word
from speech.vad import SpeechDetector, Stretch, VadSettings, stretches

AUDIO_FOLDER = "audio"
BATCH = 16  # stretches that are recognised together
CONFIDENCE_DIGITS, TIME_DIGITS = 4, 3  # what sums in another order leave equal


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A recording that could not be used, and why."""

    id: str
    name: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NormalizedRecording:
    """A recording as 16 kHz mono, with what was measured."""

    id: str
    name: str  # of its upload
    language: str | None  # as its upload says
    recording: Recording
    audio: str  # beside the manifest, or by its key in the data store
    quality: Quality


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Where somebody speaks in a recording."""

    id: str
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch that is to be recognised."""

    id: str  # of its recording
    place: int  # of the stretch in it, from 0
    audio: str
    stretch: Stretch
    language: str  # whose champion hears it


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was recognised in a stretch; words carry times of the recording."""

    id: str
    place: int
    stretch: Stretch
    words: tuple[Word, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Whose champion hears a recording."""

    id: str
    language: str
    bundle: str  # digest
    model: str  # what people call it
    instead: bool  # the recording is of another language, which has no champion


class Models:
    """The networks of the stages, each opened once in a process, when it is first asked for."""

    def __init__(self, objects: Objects, bundles: Mapping[str, ModelBundle]) -> None:
        """`bundles`: the champion of each language that has one."""
        self.objects, self.bundles = objects, bundles
        self.detector = SpeechDetector()
        self._recognizers: dict[str, Recognizer] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # open networks do not travel to another process
        return type(self), (self.objects, self.bundles)

    def recognizer(self, language: str) -> Recognizer:
        """Of the champion of a language, which has to be there."""
        if language not in self._recognizers:
            self._recognizers[language] = Recognizer(self.bundles[language], max_batch=BATCH)
        return self._recognizers[language]


def normalized(
    arrival: Arrival, models: Models, folder: Path, limits: AudioLimits = DEFAULT_LIMITS
) -> NormalizedRecording | DeadLetter:
    """An upload as 16 kHz mono FLAC in `folder`, or why it cannot be used.

    Raises:
        StoreError: its bytes are not in the data store.
    """
    name = arrival.recording
    place = folder / AUDIO_FOLDER / f"{name}.flac"
    place.parent.mkdir(parents=True, exist_ok=True)
    source = models.objects.local(arrival.key)
    try:
        info = probe(source, arrival.name)
        duration_s = write_flac_chunks(decode_chunks(source, limits, name=arrival.name), place)
    except AudioError as error:
        return DeadLetter(id=name, name=arrival.name, code=error.code, reason=error.reason)
    return NormalizedRecording(
        id=name,
        name=arrival.name,
        language=arrival.language,
        recording=Recording.said(info, arrival.key, arrival.digest, arrival.received_at, duration_s),
        audio=place.relative_to(folder).as_posix(),
        quality=measure(decode_chunks(place)),
    )


def not_normalized(arrival: Arrival) -> DeadLetter:
    """A recording whose decoding kills whoever tries it."""
    reason = "decoding it ends the process that does, each time: send it to those who keep Soundstage"
    return DeadLetter(id=arrival.recording, name=arrival.name, code="crashed", reason=reason)


def not_looked_through(recording: NormalizedRecording, settings: VadSettings) -> Speech:
    """All of a recording in which speech could not be looked for, in pieces: nothing said in it is passed over."""
    duration_s = recording.recording.duration_s
    starts = [settings.longest_s * place for place in range(math.ceil(duration_s / settings.longest_s))]
    pieces = tuple(Stretch(start_s, min(duration_s, start_s + settings.longest_s)) for start_s in starts)
    return Speech(id=recording.id, stretches=pieces)


def not_recognized(piece: Piece) -> Heard:
    """A piece that nobody could recognise: speech without words, which goes to people."""
    return Heard(id=piece.id, place=piece.place, stretch=piece.stretch, words=())


def speech_in(recording: NormalizedRecording, models: Models, settings: VadSettings) -> Speech:
    """Where somebody speaks in a recording."""
    audio = decode_chunks(models.objects.located(recording.audio))
    found = stretches(models.detector.probabilities(audio), recording.recording.duration_s, settings)
    return Speech(id=recording.id, stretches=found)


def batches(pieces: Iterable[Piece]) -> list[tuple[Piece, ...]]:
    """Pieces of one language and about one length together, the same whoever works on them."""

    def seconds(piece: Piece) -> float:
        return piece.stretch.end_s - piece.stretch.start_s

    ordered = sorted(pieces, key=lambda piece: (piece.language, -seconds(piece), piece.id, piece.place))
    found: list[list[Piece]] = []
    for piece in ordered:
        if not found or len(found[-1]) == BATCH or found[-1][0].language != piece.language:
            found.append([])
        found[-1].append(piece)
    return [tuple(batch) for batch in found]


def recognized(batch: Sequence[Piece], models: Models) -> tuple[Heard, ...]:
    """What is said in each piece of a batch, which is of one language."""
    recognizer = models.recognizer(batch[0].language)
    heard = recognizer.transcribe_batch([samples_of(piece.audio, piece.stretch, models.objects) for piece in batch])
    return tuple(
        Heard(
            id=piece.id,
            place=piece.place,
            stretch=piece.stretch,
            words=tuple(_in_recording(word, piece.stretch.start_s) for word in said.words),
        )
        for piece, said in zip(batch, heard, strict=True)
    )


def merged(recording: NormalizedRecording, heard: Sequence[Heard], by: Chosen) -> Transcript:
    """The transcript of a recording, from what was heard in its stretches.

    A stretch of speech in which no word was recognised is a segment without words: somebody speaks there.
    """
    segments: list[Segment] = []
    for piece in sorted(heard, key=lambda piece: piece.place):
        silent = Segment((), piece.stretch.start_s, piece.stretch.end_s)
        segments += segments_from_words(piece.words) or (silent,)
    scores = [word.confidence for piece in heard for word in piece.words]
    return Transcript(
        id=f"{recording.id}-1",
        language=by.language,
        confidence=round(sum(scores) / len(scores), CONFIDENCE_DIGITS) if scores else 0.0,
        duration_s=recording.recording.duration_s,
        source_key=recording.recording.key,
        source_digest=recording.recording.digest,
        models={"recognition": by.model, "bundle": by.bundle},
        model_digests={"recognition": by.bundle},
        code_version=importlib.metadata.version("soundstage"),
        degraded=("language",) if by.instead else (),
        quality=recording.quality,
        segments=tuple(segments),
    )


def samples_of(audio: str, stretch: Stretch, objects: Objects) -> np.ndarray:
    """A stretch of normalised audio, as far as the file goes: float32 [n], 16 kHz."""
    start, end = (round(at * SAMPLE_RATE) for at in (stretch.start_s, stretch.end_s))
    with soundfile.SoundFile(objects.located(audio)) as audio_file:
        audio_file.seek(min(start, audio_file.frames))
        samples: np.ndarray = audio_file.read(end - start, dtype="float32")
        return samples


def _in_recording(word: Word, start_s: float) -> Word:
    return replace(
        word,
        start_s=round(word.start_s + start_s, TIME_DIGITS),
        end_s=round(word.end_s + start_s, TIME_DIGITS),
        confidence=round(word.confidence, CONFIDENCE_DIGITS),
    )
