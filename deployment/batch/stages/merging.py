"""From what was heard to a transcript."""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import replace

from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import Chosen, Heard, NormalizedRecording
from deployment.batch.stages.recognition import CONFIDENCE_DIGITS, order_of
from deployment.batch.stages.understanding import understood
from deployment.serving.transcription import segments_from_words
from speech.transcript import Segment, Transcript


def transcript_from(
    recording: NormalizedRecording, heard: Iterable[Heard], by: Chosen, settings: InferenceSettings
) -> Transcript:
    """The transcript that is kept of a recording: every stage after recognition, and the settings of all of them."""
    said = understood(merged(recording, heard, by), settings, writes=by.writes)
    return replace(said, settings=settings.heard_with())


def merged(recording: NormalizedRecording, heard: Iterable[Heard], by: Chosen) -> Transcript:
    """The transcript of a recording, from what was heard in its stretches, in order of time.

    A stretch of speech in which no word was recognised is a segment without words: somebody speaks there. Where a
    recording has several sounds, each has its speaker, who is called by the channel.
    """
    apart = len(recording.sounds) > 1
    pieces = sorted(heard, key=order_of)
    segments: list[Segment] = []
    for piece in pieces:
        silent = Segment((), piece.stretch.start_s, piece.stretch.end_s)
        speaker = f"channel {piece.channel}" if apart else None
        segments += [
            replace(said, speaker=speaker, channel=piece.channel)
            for said in segments_from_words(piece.words) or (silent,)
        ]
    scores = [word.confidence for piece in pieces for word in piece.words]
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
        degraded=("language",) * by.instead + ("end",) * recording.recording.open_end,
        quality=recording.sounds[0].quality,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
    )
