"""From an upload to 16 kHz mono, a sound a channel where each holds a speaker, or the reason why not."""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deployment.batch.arrivals import Arrival
from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import DeadLetter, NormalizedRecording, Sound
from deployment.batch.stages.models import Models
from speech.audio.channels import Apart, Span, channels_apart, every_channel
from speech.audio.decode import (
    DEFAULT_LIMITS,
    SAMPLE_RATE,
    AudioError,
    AudioLimits,
    decode_channels,
    decode_chunks,
    flac_writer,
    probe,
    write_flac_chunks,
)
from speech.audio.decoders import AudioInfo
from speech.audio.recording import Recording
from speech.noise_reduction import reduced
from speech.quality import at_loudness, measure

AUDIO_FOLDER = "audio"


def normalized(
    arrival: Arrival,
    models: Models,
    folder: Path,
    settings: InferenceSettings,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> NormalizedRecording | DeadLetter:
    """An upload as 16 kHz mono FLAC in `folder`, one or one a channel, or why it cannot be used.

    Raises:
        StoreError: its bytes are not in the data store.
    """
    name = arrival.recording
    source = models.objects.local(arrival.key)
    audio = folder / AUDIO_FOLDER
    audio.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soundstage-channels-") as scratch:
        try:
            info = probe(source, arrival.name)
            lines, duration_s = _decoded(source, info, arrival.name, Path(scratch), settings, limits)
        except AudioError as error:
            return _dead(arrival, error.code, error.reason)
        sounds = [_sound(name, line, audio, settings) for line in lines]
    return NormalizedRecording(
        id=name,
        name=arrival.name,
        language=arrival.language,
        recording=Recording.said(info, arrival.key, arrival.digest, arrival.received_at, duration_s),
        sounds=tuple(sounds),
    )


def not_normalized(arrival: Arrival) -> DeadLetter:
    """A recording whose decoding kills whoever tries it."""
    reason = "decoding it ends the process that does, each time: send it to those who keep Soundstage"
    return _dead(arrival, "crashed", reason)


def _dead(arrival: Arrival, code: str, reason: str) -> DeadLetter:
    return DeadLetter(id=arrival.recording, name=arrival.name, code=code, reason=reason, tries=arrival.tries)


@dataclass(frozen=True)
class _Line:
    """A line of sound that is to be heard, as it was decoded."""

    path: Path
    channel: int | None = None  # None: all, mixed
    echoes: tuple[Span, ...] = ()


def _decoded(
    source: Path, info: AudioInfo, name: str, folder: Path, settings: InferenceSettings, limits: AudioLimits
) -> tuple[list[_Line], float]:
    """What is to be heard of a source, which is decoded once for its mix and all its channels, and its seconds."""
    mixed = folder / "mixed.flac"
    if settings.channels == "mix" or info.channels == 1:
        return [_Line(mixed)], write_flac_chunks(decode_chunks(source, limits, name=name), mixed)
    samples = 0
    counts: set[int] = set()
    paths: list[Path] = []
    writers: list[Callable[[np.ndarray], None]] = []
    with ExitStack() as stack:
        write_mix = stack.enter_context(flac_writer(mixed))
        for mono, channels in decode_channels(source, limits, name):
            if not writers:
                paths = [folder / f"{channel}.flac" for channel in range(channels.shape[1])]
                writers = [stack.enter_context(flac_writer(path)) for path in paths]
            counts.add(channels.shape[1])
            samples += len(mono)
            write_mix(mono)
            for write, line in zip(writers, channels.T, strict=False):
                write(line)
    apart: tuple[Apart, ...] = ()
    if len(counts) == 1:  # else nobody can say which channel of one part is which of the next
        apart = every_channel(paths) if settings.channels == "separate" else channels_apart(paths)
    lines = [_Line(paths[found.channel], found.channel, found.echoes) for found in apart]
    return lines or [_Line(mixed)], samples / SAMPLE_RATE


def _sound(name: str, line: _Line, folder: Path, settings: InferenceSettings) -> Sound:
    """A line of sound in `folder`, as settings want it; its quality is that of before."""
    place = folder / (f"{name}.flac" if line.channel is None else f"{name}-{line.channel}.flac")
    quality = now = measure(decode_chunks(line.path))
    path = line.path
    if settings.noise_reduction:
        path = path.with_suffix(".quiet.flac")
        write_flac_chunks(reduced(decode_chunks(line.path)), path)
        now = measure(decode_chunks(path))
    if settings.loudness == "off":
        shutil.move(path, place)
    else:
        write_flac_chunks(at_loudness(decode_chunks(path), now, settings.loudness), place)
    audio = f"{folder.name}/{place.name}"
    return Sound(id=name, channel=line.channel, audio=audio, quality=quality, echoes=line.echoes)
