"""From an uploaded recording to a transcript: decode in chunks, recognise, cut into readable segments."""

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from deployment.serving.routing import LoadedModel
from speech.audio.decode import AudioLimits, decode_chunks
from speech.segments import PAUSE_S, phrases
from speech.transcript import Segment, Transcript, Word

SEGMENT_S = 14.0  # longest segment; about what a person remembers of a sentence
CHUNK_S = 30.0


class Cancelled(Exception):
    """The caller has gone; the work was stopped."""


@dataclass(frozen=True)
class Transcribed:
    """A transcript and what it cost."""

    transcript: Transcript
    seconds: float


def transcribe(
    audio: BinaryIO,
    name: str,
    model: LoadedModel,
    limits: AudioLimits,
    cancelled: threading.Event,
) -> Transcribed:
    """Transcribe one recording in bounded memory, whatever its length.

    Raises:
        AudioError: it is not audio that can be used.
        Cancelled: `cancelled` was set meanwhile.
    """
    began = time.monotonic()
    audio.seek(0)
    source_digest = hashlib.file_digest(audio, "sha256").hexdigest()  # type: ignore[arg-type]
    chunks = decode_chunks(audio, limits, chunk_s=CHUNK_S, name=name)
    heard = model.recognizer.transcribe_chunks(_until(cancelled, chunks))
    transcript = Transcript(
        language=model.language,
        segments=segments_from_words(heard.words),
        confidence=heard.confidence,
        source_digest=source_digest,
        duration_s=heard.duration_s,
        models={"recognition": f"{model.name}/{model.route.version or '-'}", "bundle": model.digest},
    )
    return Transcribed(transcript, time.monotonic() - began)


def segments_from_words(
    words: Sequence[Word], pause_s: float = PAUSE_S, longest_s: float = SEGMENT_S
) -> tuple[Segment, ...]:
    """Cut words (in order of time) at pauses, and what is still longer than `longest_s` at its widest gap.

    Every word is in exactly one segment, in order. A single word may be longer than `longest_s`.
    """
    parts = phrases(words, lambda some: some[-1].end_s - some[0].start_s <= longest_s, pause_s)
    return tuple(Segment(tuple(part), part[0].start_s, part[-1].end_s) for part in parts)


def _until(cancelled: threading.Event, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        if cancelled.is_set():
            raise Cancelled("the client closed the connection")
        yield chunk
