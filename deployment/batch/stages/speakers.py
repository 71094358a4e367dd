"""Who speaks when in a recording, and the words of its transcript given to them.

Each channel that has a sound of its own is looked at by itself, and a speaker is called by when they first speak in the
recording: speaker_0 is who speaks first, on whichever channel. Whoever sounds like an enrolled voice has its name in
place of that. Without a speaker model everybody on a channel counts as one, and the transcript says that this is less
than was asked for.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from deployment.batch.enrolment import KnownVoices
from deployment.batch.stages.items import NormalizedRecording, SpeakerTurns, Speech
from deployment.batch.stages.models import Models
from deployment.batch.stages.recognition import samples_of
from speech.attribution import attributed
from speech.diarization import DiarizationSettings, Turn, diarized
from speech.labels import LabelBundle
from speech.transcript import Transcript

STAGE = "speakers"  # as transcripts call it
Spoken = tuple[NormalizedRecording, tuple[Speech, ...]]  # a recording, and where somebody speaks in each of its sounds
_Found = list[tuple[float, float, int]]


def spoken_of(recordings: Iterable[NormalizedRecording], speech: Iterable[Speech]) -> list[Spoken]:
    """Each recording with where somebody speaks in its sounds, in the order of its channels."""
    found = {(part.id, part.channel): part for part in speech}
    return [(row, tuple(found[sound.id, sound.channel] for sound in row.sounds)) for row in recordings]


def turns_in(
    spoken: Spoken, models: Models, settings: DiarizationSettings, known: KnownVoices | None = None
) -> tuple[SpeakerTurns, ...]:
    """Who speaks when in each sound of a recording; `known` are people who have names, heard by the same model."""
    bundle = models.labels.get("speaker")
    if bundle is None:
        return undivided(spoken)
    recording, parts = spoken
    network = models.label_network("speaker")
    found: list[_Found] = []
    names: dict[tuple[int, int], str] = {}
    for place, (sound, speech) in enumerate(zip(recording.sounds, parts, strict=True)):
        samples = partial(samples_of, sound.audio, objects=models.objects)
        said, speakers = diarized(speech.stretches, samples, network.embeddings, bundle.threshold, settings)
        found.append(said)
        if known is not None:
            names.update({(place, number): name for number, name in known.names_of(speakers).items()})
    return _labelled(parts, found, names, bundle)


def undivided(spoken: Spoken) -> tuple[SpeakerTurns, ...]:
    """All that is said in each sound of a recording as one speaker's."""
    _, parts = spoken
    found = [[(stretch.start_s, stretch.end_s, 0) for stretch in speech.stretches] for speech in parts]
    return _labelled(parts, found, {}, None)


def with_speakers(transcript: Transcript, found: Sequence[SpeakerTurns]) -> Transcript:
    """The transcript with its words given to the speakers of its recording, and the model that told them apart."""
    said = attributed(transcript, {part.channel: part.turns for part in found})
    models = {part.bundle: part.model for part in found if part.bundle is not None and part.model is not None}
    for digest, name in models.items():
        said = replace(
            said,
            models={**said.models, STAGE: name},
            model_digests={**said.model_digests, STAGE: digest},
        )
    less = any(part.turns and part.bundle is None for part in found)
    return replace(said, degraded=(*said.degraded, STAGE)) if less else said


def _labelled(
    parts: Sequence[Speech], found: Sequence[_Found], names: dict[tuple[int, int], str], bundle: LabelBundle | None
) -> tuple[SpeakerTurns, ...]:
    """Turns whose speakers have names, or numbers in the order that they first speak in the recording."""
    first = sorted((said[0], place, said[2]) for place, sound in enumerate(found) for said in sound)
    order = list(dict.fromkeys((place, speaker) for _, place, speaker in first))
    labels = {speaker: names.get(speaker, f"speaker_{number}") for number, speaker in enumerate(order)}
    return tuple(
        SpeakerTurns(
            id=speech.id,
            channel=speech.channel,
            turns=tuple(Turn(start_s, end_s, labels[place, speaker]) for start_s, end_s, speaker in sound),
            model=bundle.name if bundle else None,
            bundle=bundle.digest if bundle else None,
        )
        for place, (speech, sound) in enumerate(zip(parts, found, strict=True))
    )
