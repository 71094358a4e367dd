"""What the words of a transcript mean, told beside them."""

from dataclasses import replace

from deployment.batch.settings import InferenceSettings
from speech.transcript import Transcript
from speech.understanding.conversation import measured
from speech.understanding.personal import redacted
from speech.understanding.written import with_written_forms


def understood(transcript: Transcript, settings: InferenceSettings, *, writes: bool = False) -> Transcript:
    """The transcript with what `settings` ask for; `writes`: its model gave the words as people write them."""
    if settings.written_forms and not writes:
        segments = (with_written_forms(part, part.language or transcript.language) for part in transcript.segments)
        transcript = replace(transcript, segments=tuple(segments))
    conversation = measured(
        transcript.segments, transcript.duration_s
    )  # of all words, before a label stands for several
    if settings.redact:
        transcript = redacted(transcript, settings.redact)
    return replace(transcript, conversation=conversation)
