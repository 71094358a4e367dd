"""Any recording in, 16 kHz mono float32 out: decoding, encoding, limits and typed refusals.

Recordings arrive in every container there is, and some arrive broken, mislabelled or hostile. This module decides from
the bytes alone (never from a file's extension) and promises three things:

* The same bytes give the same samples, whole or in chunks of any length.
* Memory stays bounded whatever the header claims: limits are enforced on what is really decoded.
* A recording that cannot be trusted raises `AudioError` with a short code; nothing is guessed or quietly repaired.

The way of a recording: its bytes (`speech.audio.source`), blocks of frames (`speech.audio.decoders`, which also says
when a recording counts as truncated), mono at 16 kHz (`speech.audio.mixdown`).
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speech.audio.decoders import AudioInfo, header
from speech.audio.mixdown import SAMPLE_RATE, cut_anew, resampled
from speech.audio.source import AudioError as AudioError  # what decoding raises is imported from here
from speech.audio.source import AudioLimits, AudioSource, opened

DEFAULT_LIMITS = AudioLimits()


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio: `samples` is float32 of shape [n], nominally within [-1, 1]."""

    samples: np.ndarray
    sample_rate: int = SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


def decode(
    source: AudioSource, limits: AudioLimits = DEFAULT_LIMITS, name: str | None = None, channel: int | None = None
) -> Waveform:
    """Decode a whole recording to 16 kHz mono.

    Args:
        source: a path, the file's bytes, or an open binary stream (read from its beginning; one that cannot seek is
            spooled to a temporary file first).
        limits: what is accepted.
        name: what errors call the recording; by default the path.
        channel: the one to take, counted from 0; None mixes all of them.

    Raises:
        AudioError: the recording is refused.
    """
    with opened(source, limits, name) as recording:
        return Waveform(np.concatenate(list(resampled(recording, limits, channel))))


def decode_chunks(
    source: AudioSource,
    limits: AudioLimits = DEFAULT_LIMITS,
    chunk_s: float = 30.0,
    name: str | None = None,
    channel: int | None = None,
) -> Iterator[np.ndarray]:
    """Decode a recording piece by piece in bounded memory.

    Yields float32 arrays of shape [chunk_s * 16_000], the last one shorter but never empty; joined they equal the
    samples of `decode` bit for bit. Refusals that only show at the end (truncated, damaged) are raised after the chunks
    before them, so a consumer must not publish what it made of them before the iterator has ended.

    Raises:
        AudioError: the recording is refused.
    """
    size = round(chunk_s * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"chunk_s is {chunk_s}, which is less than one sample; give a positive length in seconds")
    with opened(source, limits, name) as recording:
        yield from cut_anew(resampled(recording, limits, channel), size)


def probe(source: AudioSource, name: str | None = None) -> AudioInfo:
    """Read what the header claims without decoding; no limit is applied, since nothing of it is certain yet.

    Raises:
        AudioError: the recording is no audio or its header cannot be read.
    """
    with opened(source, DEFAULT_LIMITS, name) as recording:
        return header(recording)


def write_flac_chunks(chunks: Iterable[np.ndarray], path: str | os.PathLike[str]) -> float:
    """Write 16 kHz mono float chunks as one PCM16 FLAC, atomically and in bounded memory; returns its seconds.

    Values outside [-1, 1] are clipped, and no dither is added: the bytes depend on the samples only, not on how they
    were cut. If `chunks` raises, `path` is left as it was, and a reader sees the whole file or none.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    frames = 0
    try:
        with (
            open(part, "xb+") as file,
            soundfile.SoundFile(file, "w", SAMPLE_RATE, channels=1, format="FLAC", subtype="PCM_16") as sound,
        ):
            for chunk in chunks:
                sound.write(_pcm16(chunk))
                frames += len(chunk)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return frames / SAMPLE_RATE


def _pcm16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(np.asarray(samples, dtype=np.float64) * 32768.0)
    if not np.isfinite(scaled).all():
        raise ValueError("cannot write samples that are not finite numbers; mend the processing step before this one")
    return np.clip(scaled, -32768, 32767).astype(np.int16)
