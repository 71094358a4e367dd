"""What one stage hands to the next: plain records, in which audio is named and never held."""

from dataclasses import dataclass

from speech.audio.channels import Span
from speech.audio.recording import Recording
from speech.diarization import Turn
from speech.language import Part, Spoken
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
class SpeakerTurns:
    """Who speaks when in a sound."""

    id: str  # of its recording
    channel: int | None
    turns: tuple[Turn, ...]  # in order of time; those of two speakers may overlap
    model: str | None  # that told speakers apart, as people call it; None: all of the sound counts as one speaker's
    bundle: str | None  # its digest


@dataclass(frozen=True, kw_only=True)
class Languages:
    """What is spoken where in a sound."""

    id: str  # of its recording
    channel: int | None
    spoken: Spoken  # in most of it; where nobody speaks, as its upload says or as usual
    parts: tuple[Part, ...]  # its stretches of speech, cut where the language changes
    model: str | None = None  # digest of the one that listened; None: nobody did


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch that is to be recognised."""

    id: str  # of its recording
    channel: int | None
    place: int  # of the stretch in its sound, from 0
    audio: str
    stretch: Stretch
    language: str  # whose champion hears it
    spoken: Spoken | None = None  # None: as its recording


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What was recognised in a stretch; words carry times of the recording."""

    id: str
    channel: int | None
    place: int
    stretch: Stretch
    words: tuple[Word, ...]
    spoken: Spoken | None = None  # None: as its recording


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Whose champion hears a language."""

    spoken: str  # or `unknown`
    language: str
    bundle: str  # digest
    model: str  # what people call it
    writes: bool = False  # what it gives is as people write it, and not as they speak

    @property
    def instead(self) -> bool:
        """Whether what is spoken is unknown, or has no champion, and another language's hears it."""
        return self.spoken != self.language
