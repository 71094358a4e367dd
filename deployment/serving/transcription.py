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
from speech.transcript import Segment, Transcript, Word

PAUSE_S = 0.6  # a gap between words that a listener hears as a pause
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
    segments: list[Segment] = []
    first = 0
    for place in range(1, len(words) + 1):
        if place == len(words) or words[place].start_s - words[place - 1].end_s > pause_s:
            segments.extend(_shortened(words[first:place], longest_s))
            first = place
    return tuple(segments)


def _shortened(words: Sequence[Word], longest_s: float) -> Iterator[Segment]:
    """One segment, or several cut at the widest gap in the later half of what may go together."""
    while words:
        fitting = sum(1 for word in words if word.end_s - words[0].start_s <= longest_s) or 1
        cut = fitting
        if fitting < len(words):
            half = max(1, fitting // 2)
            cut = max(range(half, fitting + 1), key=lambda at: (words[at].start_s - words[at - 1].end_s, at))
        yield Segment(tuple(words[:cut]), words[0].start_s, words[cut - 1].end_s)
        words = words[cut:]


def _until(cancelled: threading.Event, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for chunk in chunks:
        if cancelled.is_set():
            raise Cancelled("the client closed the connection")
        yield chunk
