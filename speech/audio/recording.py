"""A recording as it was received: what is known of it before anybody has said what is spoken in it.

Everything here is taken from the bytes, never from a name or from what a sender claims; the sound itself stays where it
is and is named by its key.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from speech.audio.decode import DEFAULT_LIMITS, SAMPLE_RATE
from speech.audio.decoders import AudioInfo, header
from speech.audio.mixdown import resampled
from speech.audio.source import AudioLimits, AudioSource, opened

# Where the subtype is not called as the container is.
_SUBTYPES = {"wavex": "wav", "rf64": "wav", "mp3": "mpeg", "mov": "mp4", "asf": "x-ms-wma"}


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One recording, by reference."""

    key: str  # where its bytes are in the data store
    digest: str  # SHA-256 of the bytes as received
    received_at: datetime  # with its zone
    media_type: str  # told from the bytes: "audio/flac"
    channels: int
    duration_s: float  # of what was decoded, at 16 kHz: times of transcripts lie within
    container_start_s: float  # what the container's clock shows where the recording, and time 0 of transcripts, begins
    open_end: bool = False  # nothing says that its sound ends where the file does: it may have been cut

    def __post_init__(self) -> None:
        """Refuse a time that means another moment elsewhere."""
        if self.received_at.utcoffset() is None:
            raise ValueError(f"received_at {self.received_at.isoformat()} has no time zone; give one")

    @classmethod
    def of(
        cls, source: AudioSource, key: str, received_at: datetime, limits: AudioLimits = DEFAULT_LIMITS
    ) -> "Recording":
        """What a recording is, decoded to its end in bounded memory; errors call it by its key.

        Raises:
            AudioError: it is no recording that can be used.
        """
        with opened(source, limits, key) as audio:
            digest = hashlib.sha256()
            while data := audio.reader.read(1 << 20):
                digest.update(data)
            info = header(audio)
            samples = sum(len(piece) for piece in resampled(audio, limits))
        return cls.said(info, key, digest.hexdigest(), received_at, samples / SAMPLE_RATE)

    @classmethod
    def said(cls, info: AudioInfo, key: str, digest: str, received_at: datetime, duration_s: float) -> "Recording":
        """What a recording is, where it was hashed and decoded already; `info` is what its header says."""
        return cls(
            key=key,
            digest=digest,
            received_at=received_at,
            media_type=f"audio/{_SUBTYPES.get(info.container, info.container)}",
            channels=info.channels,
            duration_s=duration_s,
            open_end=info.open_end,
            container_start_s=info.start_s,
        )
