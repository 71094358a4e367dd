"""What is said in each stretch of speech."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import soundfile

from deployment.batch.stages.items import Chosen, Heard, Languages, NormalizedRecording, Piece
from deployment.batch.stages.models import BATCH, Models
from speech.audio.decode import SAMPLE_RATE
from speech.store.objects import Objects
from speech.transcript import Word
from speech.vad import Stretch

CONFIDENCE_DIGITS, TIME_DIGITS = 4, 3  # what sums in another order leave equal


def pieces_of(
    recordings: Iterable[NormalizedRecording], languages: Iterable[Languages], by: Mapping[str, Chosen]
) -> list[Piece]:
    """Every stretch of speech in one language; `by` says whose champion hears a language."""
    audio = {(sound.id, sound.channel): sound.audio for row in recordings for sound in row.sounds}
    return [
        Piece(
            id=found.id,
            channel=found.channel,
            place=place,
            audio=audio[found.id, found.channel],
            stretch=part.stretch,
            language=by[part.spoken.language].language,
            spoken=part.spoken,
        )
        for found in languages
        for place, part in enumerate(found.parts)
    ]


def order_of(piece: Piece | Heard) -> tuple[str, int, int]:
    """Sorts pieces by recording, channel and time."""
    return piece.id, -1 if piece.channel is None else piece.channel, piece.place


def batches(pieces: Iterable[Piece]) -> list[tuple[Piece, ...]]:
    """Pieces of one language and about one length together, the same whoever works on them."""

    def seconds(piece: Piece) -> float:
        return piece.stretch.end_s - piece.stretch.start_s

    ordered = sorted(pieces, key=lambda piece: (piece.language, -seconds(piece), *order_of(piece)))
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
            channel=piece.channel,
            place=piece.place,
            stretch=piece.stretch,
            words=tuple(_in_recording(word, piece) for word in said.words),
            spoken=piece.spoken,
        )
        for piece, said in zip(batch, heard, strict=True)
    )


def not_recognized(piece: Piece) -> Heard:
    """A piece that nobody could recognise: speech without words, which goes to people."""
    return Heard(
        id=piece.id, channel=piece.channel, place=piece.place, stretch=piece.stretch, words=(), spoken=piece.spoken
    )


def samples_of(audio: str, stretch: Stretch, objects: Objects) -> np.ndarray:
    """A stretch of normalised audio, as far as the file goes: float32 [n], 16 kHz."""
    start, end = (round(at * SAMPLE_RATE) for at in (stretch.start_s, stretch.end_s))
    with soundfile.SoundFile(objects.located(audio)) as audio_file:
        audio_file.seek(min(start, audio_file.frames))
        samples: np.ndarray = audio_file.read(end - start, dtype="float32")
        return samples


def _in_recording(word: Word, piece: Piece) -> Word:
    return replace(
        word,
        start_s=round(word.start_s + piece.stretch.start_s, TIME_DIGITS),
        end_s=round(word.end_s + piece.stretch.start_s, TIME_DIGITS),
        confidence=round(word.confidence, CONFIDENCE_DIGITS),
        channel=piece.channel,
    )
