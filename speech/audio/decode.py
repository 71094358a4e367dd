"""Any recording in, 16 kHz mono float32 out: decoding, encoding, limits and typed refusals.

Recordings arrive in every container there is, and some arrive broken, mislabelled or hostile. This module decides from
the bytes alone (never from a file's extension) and promises three things:

* The same bytes give the same samples, whole or in chunks of any length.
* Memory stays bounded whatever the header claims: limits are enforced on what is really decoded.
* A recording that cannot be trusted raises `AudioError` with a short code; nothing is guessed or quietly repaired.

The way of a recording: its bytes (`speech.audio.source`), blocks of frames (`speech.audio.decoders`, which also says
when a recording counts as truncated), mono at 16 kHz (`speech.audio.mixdown`).
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from speech.audio.decoders import AudioInfo, header
from speech.audio.mixdown import SAMPLE_RATE, cut_anew, resampled, resampled_with_channels
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


def decode_channels(
    source: AudioSource, limits: AudioLimits = DEFAULT_LIMITS, name: str | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode a recording once for all its channels, piece by piece in bounded memory.

    Yields what `decode` gives, float32 [n], and beside it each channel, float32 [m, channels]. Pieces of the two may
    end at other samples; joined they are as long. Where a recording changes its channels on the way, so do the pieces.
    Refusals come as `decode_chunks` raises them.

    Raises:
        AudioError: the recording is refused.
    """
    with opened(source, limits, name) as recording:
        yield from resampled_with_channels(recording, limits)


def probe(source: AudioSource, name: str | None = None) -> AudioInfo:
    """Read what the header claims without decoding; no limit is applied, since nothing of it is certain yet.

    Raises:
        AudioError: the recording is no audio or its header cannot be read.
    """
    with opened(source, DEFAULT_LIMITS, name) as recording:
        return header(recording)


def write_flac_chunks(chunks: Iterable[np.ndarray], path: str | os.PathLike[str]) -> float:
    """Write 16 kHz mono float chunks as `flac_writer` does; returns their seconds."""
    frames = 0
    with flac_writer(path) as write:
        for chunk in chunks:
            write(chunk)
            frames += len(chunk)
    return frames / SAMPLE_RATE


@contextlib.contextmanager
def flac_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[np.ndarray], None]]:
    """What 16 kHz mono float chunks are given to, to become one PCM16 FLAC, atomically and in bounded memory.

    Values outside [-1, 1] are clipped, and no dither is added: the bytes depend on the samples only, not on how they
    were cut. If anything is raised within, `path` is left as it was, and a reader sees the whole file or none.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with (
            open(part, "xb+") as file,
            soundfile.SoundFile(file, "w", SAMPLE_RATE, channels=1, format="FLAC", subtype="PCM_16") as sound,
        ):
            yield lambda chunk: sound.write(_pcm16(chunk))
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _pcm16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(np.asarray(samples, dtype=np.float64) * 32768.0)
    if not np.isfinite(scaled).all():
        raise ValueError("cannot write samples that are not finite numbers; mend the processing step before this one")
    return np.clip(scaled, -32768, 32767).astype(np.int16)
