"""What the words of a transcript mean, told beside them."""

from collections.abc import Mapping
from dataclasses import replace

from deployment.batch.settings import InferenceSettings
from speech.transcript import Transcript
from speech.understanding.conversation import measured
from speech.understanding.intents import IntentModel, with_intents
from speech.understanding.personal import redacted
from speech.understanding.written import with_written_forms

INTENTS = "intents."  # begins the names of the digests of intent models in a transcript; their language follows


def understood(
    transcript: Transcript,
    settings: InferenceSettings,
    *,
    writes: bool = False,
    intents: Mapping[str, IntentModel] | None = None,
) -> Transcript:
    """The transcript with what `settings` ask for, and with intents where there is a model of their language.

    `writes`: its recogniser gave the words as people write them. Intents come last, so that no slot holds what was
    taken out.
    """
    if settings.written_forms and not writes:
        segments = (with_written_forms(part, part.language or transcript.language) for part in transcript.segments)
        transcript = replace(transcript, segments=tuple(segments))
    # of all words, before a label stands for several
    transcript = replace(transcript, conversation=measured(transcript.segments, transcript.duration_s))
    if settings.redact:
        transcript = redacted(transcript, settings.redact)
    spoken = {part.language or transcript.language for part in transcript.segments if part.words}
    used = {language: model for language, model in sorted((intents or {}).items()) if language in spoken}
    if not used:
        return transcript
    digests = {f"{INTENTS}{language}": model.digest for language, model in used.items()}
    return replace(
        transcript,
        segments=with_intents(transcript.segments, used, transcript.language),
        model_digests={**transcript.model_digests, **digests},
    )
