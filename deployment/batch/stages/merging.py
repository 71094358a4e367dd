"""From what was heard to a transcript."""

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import Chosen, Heard, Languages, NormalizedRecording, SpeakerTurns
from deployment.batch.stages.recognition import CONFIDENCE_DIGITS, order_of
from deployment.batch.stages.speakers import with_speakers
from deployment.batch.stages.understanding import understood
from deployment.serving.transcription import segments_from_words
from speech.labels import UNKNOWN
from speech.language import Spoken, spoken_in
from speech.transcript import Segment, Transcript
from speech.understanding.intents import IntentModel

RECOGNITION, SPOKEN_LANGUAGE = "recognition", "spoken_language"  # of the digests in a transcript


def transcript_from(
    recording: NormalizedRecording,
    heard: Iterable[Heard],
    languages: Sequence[Languages],
    by: Mapping[str, Chosen],
    turns: Sequence[SpeakerTurns],
    settings: InferenceSettings,
    intents: Mapping[str, IntentModel] | None = None,
) -> Transcript:
    """The transcript that is kept of a recording: every stage after recognition, and the settings of all of them."""
    said = with_speakers(merged(recording, heard, languages, by), turns)
    said = understood(said, settings, writes=by[spoken_of(languages).language].writes, intents=intents)
    return replace(said, settings=settings.heard_with())


def spoken_of(languages: Sequence[Languages]) -> Spoken:
    """What is spoken in most of a recording, from its sounds, of which there is one at least."""
    return spoken_in(part for one in languages for part in one.parts) or languages[0].spoken


def recognizer_of(spoken: str) -> str:
    """Under which name the digests in a transcript have who heard a language that is not spoken in most of it."""
    return f"{RECOGNITION}.{spoken}"


def merged(
    recording: NormalizedRecording, heard: Iterable[Heard], languages: Sequence[Languages], by: Mapping[str, Chosen]
) -> Transcript:
    """The transcript of a recording, from what was heard in its stretches, in order of time.

    `languages` is what is spoken in its sounds, and `by` says who heard each language. A stretch of speech in which no
    word was recognised is a segment without words: somebody speaks there.
    """
    pieces = sorted(heard, key=order_of)
    spoken = spoken_of(languages)
    main = by[spoken.language]
    every = {part.spoken.language for one in languages for part in one.parts} | {spoken.language}
    others = [by[language] for language in sorted(every - {spoken.language})]
    listened = sorted({one.model for one in languages if one.model is not None})
    segments: list[Segment] = []
    for piece in pieces:
        silent = Segment((), piece.stretch.start_s, piece.stretch.end_s)
        language = (piece.spoken or spoken).language
        segments += [
            replace(
                said,
                language=language if language not in (main.language, UNKNOWN) else None,
                channel=piece.channel,
            )
            for said in segments_from_words(piece.words) or (silent,)
        ]
    scores = [word.confidence for piece in pieces for word in piece.words]
    return Transcript(
        id=f"{recording.id}-1",
        language=main.language,
        language_confidence=spoken.confidence,
        confidence=round(sum(scores) / len(scores), CONFIDENCE_DIGITS) if scores else 0.0,
        duration_s=recording.recording.duration_s,
        source_key=recording.recording.key,
        source_digest=recording.recording.digest,
        models={
            RECOGNITION: main.model,
            "bundle": main.bundle,
            **{recognizer_of(choice.spoken): choice.model for choice in others},
        },
        model_digests={
            RECOGNITION: main.bundle,
            **{recognizer_of(choice.spoken): choice.bundle for choice in others},
            **({SPOKEN_LANGUAGE: listened[0]} if listened else {}),
        },
        code_version=importlib.metadata.version("soundstage"),
        degraded=("language",) * any(choice.instead for choice in (main, *others))
        + ("end",) * recording.recording.open_end,
        quality=recording.sounds[0].quality,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
    )
