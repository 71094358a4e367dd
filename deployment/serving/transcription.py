"""From an uploaded recording to a transcript: decode in chunks, recognise, cut into readable segments."""

import hashlib
import importlib.metadata
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from deployment.serving.routing import LoadedModel
from speech.audio.decode import DEFAULT_LIMITS, AudioLimits, decode_chunks
from speech.recognition.offline import Recognizer
from speech.segments import PAUSE_S, phrases
from speech.transcript import Segment, Transcript, Word

SEGMENT_S = 14.0  # longest segment; about what a person remembers of a sentence
CHUNK_S = 30.0  # decoded at once: memory stays bounded on recordings of hours


class Cancelled(Exception):
    """The caller has gone; the work was stopped."""


def transcribe(
    audio: BinaryIO,
    name: str,
    model: LoadedModel,
    limits: AudioLimits,
    cancelled: threading.Event,
) -> Transcript:
    """Transcribe one recording in bounded memory, whatever its length.

    Raises:
        AudioError: it is not audio that can be used.
        Cancelled: `cancelled` was set meanwhile.
    """

    def watched(chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for chunk in chunks:
            if cancelled.is_set():
                raise Cancelled("the client closed the connection")
            yield chunk

    called = f"{model.name}/{model.route.version or '-'}"
    return transcript_of(audio, name, model.recognizer, called, limits, watched)


def transcript_of(
    audio: BinaryIO,
    name: str,
    recognizer: Recognizer,
    model: str,
    limits: AudioLimits = DEFAULT_LIMITS,
    watched: Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]] = iter,
) -> Transcript:
    """The transcript of one recording, read from its beginning.

    Args:
        name: what errors call the recording.
        model: what people call the recogniser's bundle.
        limits: what is accepted.
        watched: is given the chunks of samples on their way, and may stop them.

    Raises:
        AudioError: it is not audio that can be used.
    """
    audio.seek(0)
    source_digest = hashlib.file_digest(audio, "sha256").hexdigest()  # type: ignore[arg-type]
    heard = recognizer.transcribe_chunks(watched(decode_chunks(audio, limits, chunk_s=CHUNK_S, name=name)))
    bundle = recognizer.bundle
    return Transcript(
        language=bundle.language,
        segments=segments_from_words(heard.words),
        confidence=heard.confidence,
        source_digest=source_digest,
        duration_s=heard.duration_s,
        models={"recognition": model, "bundle": bundle.digest},
        model_digests={"recognition": bundle.digest},
        code_version=importlib.metadata.version("soundstage"),
    )


def segments_from_words(
    words: Sequence[Word], pause_s: float = PAUSE_S, longest_s: float = SEGMENT_S
) -> tuple[Segment, ...]:
    """Cut words (in order of time) at pauses, and what is still longer than `longest_s` at its widest gap.

    Every word is in exactly one segment, in order. A single word may be longer than `longest_s`.
    """
    parts = phrases(words, lambda some: some[-1].end_s - some[0].start_s <= longest_s, pause_s)
    return tuple(Segment(tuple(part), part[0].start_s, part[-1].end_s) for part in parts)
