"""Where somebody speaks."""

import math

from deployment.batch.stages.items import Sound, Speech
from deployment.batch.stages.models import Models
from speech.audio.decode import decode_chunks
from speech.vad import WINDOW_S, Stretch, VadSettings, stretches


def speech_in(sound: Sound, models: Models, settings: VadSettings) -> Speech:
    """Where somebody speaks in a sound; who is heard across from another channel speaks there, and not here."""
    place = models.objects.located(sound.audio)
    probabilities = models.detector.probabilities(decode_chunks(place))
    for echo in sound.echoes:
        probabilities[round(echo.start_s / WINDOW_S) : round(echo.end_s / WINDOW_S)] = 0.0
    return Speech(
        id=sound.id, channel=sound.channel, stretches=stretches(probabilities, sound.quality.duration_s, settings)
    )


def not_looked_through(sound: Sound, settings: VadSettings) -> Speech:
    """All of a sound in which speech could not be looked for, in pieces: nothing said in it is passed over."""
    duration_s = sound.quality.duration_s
    starts = [settings.longest_s * place for place in range(math.ceil(duration_s / settings.longest_s))]
    pieces = tuple(Stretch(start_s, min(duration_s, start_s + settings.longest_s)) for start_s in starts)
    return Speech(id=sound.id, channel=sound.channel, stretches=pieces)
