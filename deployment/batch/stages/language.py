"""What is spoken where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deployment.batch.stages.items import Languages, Sound, Speech
from deployment.batch.stages.models import Models
from deployment.batch.stages.recognition import samples_of
from speech.language import Clip, LanguageSettings, Part, Spoken, clips_of, parts_of, spoken_in


@dataclass(frozen=True, kw_only=True)
class Speaking:
    """A sound in which somebody speaks."""

    sound: Sound
    speech: Speech
    otherwise: Spoken  # where nobody speaks, or nobody could listen


def languages_in(item: Speaking, models: Models, settings: LanguageSettings) -> Languages:
    """What is spoken where in a sound, by the language model, which has to be there."""
    network = models.label_network("language")
    clips = clips_of(item.speech.stretches)
    sounds = [_heard_together(clip, item.sound.audio, models) for clip in clips]
    threshold = network.bundle.threshold if settings.threshold is None else settings.threshold
    parts = parts_of(clips, network.log_probabilities(sounds), network.bundle.labels, threshold, settings)
    return _languages(item, parts, network.bundle.digest)


def as_given(item: Speaking) -> Languages:
    """A sound in whose language nobody listened."""
    return _languages(item, [Part(stretch, item.otherwise) for stretch in item.speech.stretches])


def _languages(item: Speaking, parts: Sequence[Part], model: str | None = None) -> Languages:
    spoken = spoken_in(parts) or item.otherwise
    return Languages(id=item.sound.id, channel=item.sound.channel, spoken=spoken, parts=tuple(parts), model=model)


def _heard_together(clip: Clip, audio: str, models: Models) -> np.ndarray:
    return np.concatenate([samples_of(audio, piece, models.objects) for piece in clip.pieces])
