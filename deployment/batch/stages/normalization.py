"""From an upload to 16 kHz mono, or the reason why not."""

from pathlib import Path

from deployment.batch.arrivals import Arrival
from deployment.batch.stages.items import DeadLetter, NormalizedRecording, Sound
from deployment.batch.stages.models import Models
from speech.audio.decode import DEFAULT_LIMITS, AudioError, AudioLimits, decode_chunks, probe, write_flac_chunks
from speech.audio.recording import Recording
from speech.quality import measure

AUDIO_FOLDER = "audio"


def normalized(
    arrival: Arrival, models: Models, folder: Path, limits: AudioLimits = DEFAULT_LIMITS
) -> NormalizedRecording | DeadLetter:
    """An upload as 16 kHz mono FLAC in `folder`, or why it cannot be used.

    Raises:
        StoreError: its bytes are not in the data store.
    """
    name = arrival.recording
    place = folder / AUDIO_FOLDER / f"{name}.flac"
    place.parent.mkdir(parents=True, exist_ok=True)
    source = models.objects.local(arrival.key)
    try:
        info = probe(source, arrival.name)
        duration_s = write_flac_chunks(decode_chunks(source, limits, name=arrival.name), place)
    except AudioError as error:
        return DeadLetter(id=name, name=arrival.name, code=error.code, reason=error.reason)
    return NormalizedRecording(
        id=name,
        name=arrival.name,
        language=arrival.language,
        recording=Recording.said(info, arrival.key, arrival.digest, arrival.received_at, duration_s),
        sounds=(
            Sound(
                id=name,
                channel=None,
                audio=place.relative_to(folder).as_posix(),
                quality=measure(decode_chunks(place)),
            ),
        ),
    )


def not_normalized(arrival: Arrival) -> DeadLetter:
    """A recording whose decoding kills whoever tries it."""
    reason = "decoding it ends the process that does, each time: send it to those who keep Soundstage"
    return DeadLetter(id=arrival.recording, name=arrival.name, code="crashed", reason=reason)
