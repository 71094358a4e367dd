"""Where somebody speaks."""

import math

from deployment.batch.stages.items import Sound, Speech
from deployment.batch.stages.models import Models
from speech.audio.decode import decode_chunks
from speech.vad import Stretch, VadSettings, stretches


def speech_in(sound: Sound, models: Models, settings: VadSettings) -> Speech:
    """Where somebody speaks in a sound."""
    place = models.objects.located(sound.audio)
    found = stretches(models.detector.probabilities(decode_chunks(place)), sound.quality.duration_s, settings)
    return Speech(id=sound.id, channel=sound.channel, stretches=found)


def not_looked_through(sound: Sound, settings: VadSettings) -> Speech:
    """All of a sound in which speech could not be looked for, in pieces: nothing said in it is passed over."""
    duration_s = sound.quality.duration_s
    starts = [settings.longest_s * place for place in range(math.ceil(duration_s / settings.longest_s))]
    pieces = tuple(Stretch(start_s, min(duration_s, start_s + settings.longest_s)) for start_s in starts)
    return Speech(id=sound.id, channel=sound.channel, stretches=pieces)
