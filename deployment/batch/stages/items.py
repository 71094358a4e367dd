"""What one stage hands to the next: plain records, in which audio is named and never held."""

from dataclasses import dataclass

from speech.audio.channels import Span
from speech.audio.recording import Recording
from speech.quality import Quality
from speech.transcript import Word
from speech.vad import Stretch


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A recording that could not be used, and why."""

    id: str
    name: str
    code: str
    reason: str
    tries: int = 1  # that it failed


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A line of sound as 16 kHz mono: all of a recording, or one of its channels that has speakers of its own."""

    id: str  # of its recording
    channel: int | None  # counted from 0; None: all channels, mixed
    audio: str  # beside the manifest, or by its key in the data store
    quality: Quality  # as received: before loudness and noise were changed, where settings ask for it
    echoes: tuple[Span, ...] = ()  # where it holds only what leaked from other channels: nothing is transcribed there


@dataclass(frozen=True, kw_only=True)
class NormalizedRecording:
    """A recording that can be used, and its sound."""

    id: str
    name: str  # of its upload
    language: str | None  # as its upload says
    recording: Recording
    sounds: tuple[Sound, ...]  # in the order of channels, at least one


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Where somebody speaks in a sound."""

    id: str  # of its recording
    channel: int | None
    stretches: tuple[Stretch, ...]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch that is to be recognised."""

    id: str  # of its recording
    channel: int | None
    place: int  # of the stretch in its sound, from 0
    audio: str
    stretch: Stretch
    language: str  # whose champion hears it


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was recognised in a stretch; words carry times of the recording."""

    id: str
    channel: int | None
    place: int
    stretch: Stretch
    words: tuple[Word, ...]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Whose champion hears a recording."""

    id: str
    language: str
    bundle: str  # digest
    model: str  # what people call it
    instead: bool  # the recording is of another language, which has no champion
    writes: bool = False  # what it gives is as people write it, and not as they speak
