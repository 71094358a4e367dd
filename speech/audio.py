"""Any recording in, 16 kHz mono float32 out: decoding, encoding, limits and typed refusals.

Recordings arrive in every container there is, and some arrive broken, mislabelled or hostile. This module decides from
the bytes alone (never from a file's extension) and promises three things:

* The same bytes give the same samples, whole or in chunks of any length.
* Memory stays bounded whatever the header claims: limits are enforced on what is really decoded.
* A recording that cannot be trusted raises `AudioError` with a short code; nothing is guessed or quietly repaired.

Decoders. WAV, RF64, AIFF and FLAC go to libsndfile; everything else, and whatever libsndfile refuses, goes to FFmpeg's
libraries through PyAV, which may read the given bytes only: no network protocol, no second file, no playlist.

Truncation. A recording is refused as "truncated" when its header declares a length and less is decoded than
`declared - (0.1 s + 1 % of declared, at most 5 s)`; codec delay and rounding stay below that. Where the container
declares no length (Ogg, ADTS, AMR, MP3 without a Xing or VBRI header, WAV written to a pipe) a cut cannot be seen, and
all that decodes is delivered. Gaps in a container's time stamps are closed up, not filled.

Mixdown. Several channels become their mean. Channels in opposite phase would erase each other, so every half second
whose mean holds less than a tenth of the energy that unrelated channels of that loudness would give takes its loudest
channel instead, cross-faded over 10 ms. Partial cancellation at some frequencies is not noticed.

Among several audio streams the one flagged default is decoded, else the first.
"""

import contextlib
import functools
import hashlib
import io
import os
import secrets
import stat
import struct
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import soundfile
import soxr

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SAMPLE_RATE = 16_000  # Hz; what every model of the platform listens to
RESAMPLER_QUALITY = "HQ"  # soxr: 20 bit precision, passband to 0.91 of the lower Nyquist frequency

AudioSource = str | os.PathLike[str] | bytes | BinaryIO

_BLOCK_FRAMES = 1 << 16  # frames read from libsndfile at a time
_FLAC_BLOCK_FRAMES = 1 << 12  # FLAC's usual frame
_IO_BUFFER_BYTES = 1 << 16
_MIX_BLOCK_S = 0.5  # the mixdown is decided anew for each such stretch of source audio
_MIX_FADE_S = 0.010
_CANCELLED = 0.1  # mean / expected energy under which channels count as cancelling; above twice this the mean is back
_LOUDEST_PLAUSIBLE = 128.0  # +42 dBFS; float files beyond it are scaled as integers or damaged

# FFmpeg demuxers that may open a recording. Left out on purpose: playlists (hls, concat, dash, sdp), images, devices,
# text renderings (tty) and headerless formats, all of which either read elsewhere or turn any bytes into "audio".
_CONTAINERS = (
    "aac,ac3,act,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dss,dts,dtshd,eac3,flac,flv,iff,ircam,loas,matroska,mlp,"
    "mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qcp,rm,shn,sox,tak,truehd,tta,voc,w64,wav,webm,wtv,wv,wve,"
    "xwma"
)
# Containers whose header states how long the chosen track is; elsewhere FFmpeg's number is a guess from the bit rate.
_DECLARES_TRACK = frozenset(
    {
        "aiff",
        "ape",
        "au",
        "caf",
        "dsf",
        "flac",
        "iff",
        "mov",
        "mpc",
        "mpc8",
        "nistsphere",
        "tak",
        "tta",
        "w64",
        "wav",
        "wv",
    }
)
# Containers that state the length of the whole: true of the audio only when it is alone in there.
_DECLARES_WHOLE = frozenset({"asf", "avi", "flv", "matroska"})

_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    # offset, bytes, name, code when no decoder takes it
    (0, b"RIFF", "a RIFF/WAV file", "unreadable"),
    (0, b"RF64", "an RF64 file", "unreadable"),
    (0, b"riff", "a Wave64 file", "unreadable"),
    (0, b"fLaC", "a FLAC file", "unreadable"),
    (0, b"FORM", "an AIFF/IFF file", "unreadable"),
    (0, b"FRM8", "a DSDIFF file", "unreadable"),
    (0, b"DSD ", "a DSF file", "unreadable"),
    (0, b".snd", "an AU file", "unreadable"),
    (0, b"caff", "a CAF file", "unreadable"),
    (0, b"NIST_1A", "a NIST SPHERE file", "unreadable"),
    (0, b"OggS", "an Ogg file", "unreadable"),
    (4, b"ftyp", "an MP4 file", "unreadable"),
    (4, b"moov", "an MP4 file", "unreadable"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska/WebM file", "unreadable"),
    (0, b"\x30\x26\xb2\x75", "an ASF/WMA file", "unreadable"),
    (0, b"MAC ", "a Monkey's Audio file", "unreadable"),
    (0, b"TTA1", "a True Audio file", "unreadable"),
    (0, b"wvpk", "a WavPack file", "unreadable"),
    (0, b"tBaK", "a TAK file", "unreadable"),
    (0, b"MPCK", "a Musepack file", "unreadable"),
    (0, b"MP+", "a Musepack file", "unreadable"),
    (0, b"#!AMR", "an AMR file", "unreadable"),
    (0, b"OFR ", "an OptimFROG file, for which no open decoder exists", "unsupported"),
    (0, b"ADIF", "an ADIF AAC file, for which no demuxer is built in", "unsupported"),
    (0, b"MThd", "a MIDI score, which holds notes and no sound", "not-audio"),
    (0, b"\xff\xd8\xff", "a JPEG image", "not-audio"),
    (0, b"\x89PNG", "a PNG image", "not-audio"),
    (0, b"GIF8", "a GIF image", "not-audio"),
    (0, b"%PDF", "a PDF document", "not-audio"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it first", "not-audio"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it first", "not-audio"),
    (0, b"#EXTM3U", "a playlist; give the recordings that it names instead", "not-audio"),
    (0, b"ffconcat", "a concat script; give the recordings that it names instead", "not-audio"),
)


class AudioError(Exception):
    """A recording that is refused.

    Attributes:
        path: the file, or the name given for bytes and streams.
        reason: one sentence for a person: what is wrong and what to do about it.
        code: "not-audio", "empty", "truncated", "too-long", "too-many-channels", "implausible-rate", "too-large",
            "unreadable" (missing, forbidden, damaged) or "unsupported" (known, but no decoder).
    """

    def __init__(self, path: str, reason: str, code: str) -> None:
        super().__init__(path, reason, code)  # all three as args, so that the error crosses process boundaries
        self.path = path
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} [{self.code}]"


@dataclass(frozen=True)
class AudioLimits:
    """What is accepted, enforced on decoded samples."""

    max_duration_s: float = 36_000.0
    max_channels: int = 16
    min_rate_hz: int = 4_000
    max_rate_hz: int = 768_000  # 16 x 48 kHz; one-bit DSD decodes to at most 705.6 kHz
    max_decoded_bytes: int = 64 << 30  # as float32 at the source's rate: 10 h of stereo at 192 kHz are 55 GB
    max_encoded_bytes: int = 32 << 30  # of the file itself; also bounds the spool of a stream that cannot seek


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio: `samples` is float32 of shape [n], nominally within [-1, 1]."""

    samples: np.ndarray
    sample_rate: int = SAMPLE_RATE

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header claims; `duration_s` is None where the container states none."""

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration_s: float | None


DEFAULT_LIMITS = AudioLimits()


def decode(source: AudioSource, limits: AudioLimits = DEFAULT_LIMITS, name: str | None = None) -> Waveform:
    """Decode a whole recording to 16 kHz mono.

    Args:
        source: a path, the file's bytes, or an open binary stream (read from its beginning; one that cannot seek is
            spooled to a temporary file first).
        limits: what is accepted.
        name: what errors call the recording; by default the path.

    Raises:
        AudioError: the recording is refused.
    """
    with _opened(source, limits, name) as recording:
        return Waveform(np.concatenate(list(_resampled(recording, limits))))


def decode_chunks(
    source: AudioSource, limits: AudioLimits = DEFAULT_LIMITS, chunk_s: float = 30.0, name: str | None = None
) -> Iterator[np.ndarray]:
    """Decode a recording piece by piece in bounded memory.

    Yields float32 arrays of shape [chunk_s * 16_000], the last one shorter but never empty; joined they equal
    `decode(source).samples` bit for bit. Refusals that only show at the end (truncated, damaged) are raised after the
    chunks before them, so a consumer must not publish what it made of them before the iterator has ended.

    Raises:
        AudioError: the recording is refused.
    """
    size = round(chunk_s * SAMPLE_RATE)
    if size < 1:
        raise ValueError(f"chunk_s is {chunk_s}, which is less than one sample; give a positive length in seconds")
    return _chunked(source, limits, size, name)


def probe(source: AudioSource, name: str | None = None) -> AudioInfo:
    """Read what the header claims without decoding; no limit is applied, since nothing of it is certain yet.

    Raises:
        AudioError: the recording is no audio or its header cannot be read.
    """
    with _opened(source, DEFAULT_LIMITS, name) as recording:
        sound = _open_soundfile(recording)
        if sound is not None:
            with sound:
                frames = recording.declared_frames(sound)
                duration = None if frames is None else frames / sound.samplerate
                return AudioInfo(
                    sound.format.lower(), sound.subtype.lower(), sound.samplerate, sound.channels, duration
                )
        with _open_container(recording) as container:
            stream = _audio_stream(container, recording)
            context = stream.codec_context
            return AudioInfo(
                _container_name(container),
                context.name,
                context.sample_rate,
                context.channels,
                _declared_duration_s(container, stream, recording),
            )


def encode_flac(waveform: Waveform, path: str | os.PathLike[str]) -> None:
    """Write PCM16 FLAC atomically; values outside [-1, 1] are clipped and no dither is added, so bytes repeat."""
    _write_flac([waveform.samples], path, waveform.sample_rate)


def write_flac_chunks(chunks: Iterable[np.ndarray], path: str | os.PathLike[str]) -> float:
    """Write 16 kHz mono float chunks as one PCM16 FLAC, atomically and in bounded memory; returns its seconds.

    The bytes depend on the samples only, not on how they were cut. If `chunks` raises, `path` is left as it was.
    """
    return _write_flac(chunks, path, SAMPLE_RATE) / SAMPLE_RATE


def encode_wav(waveform: Waveform) -> bytes:
    """PCM16 WAV bytes; values outside [-1, 1] are clipped."""
    buffer = io.BytesIO()
    soundfile.write(buffer, _pcm16(waveform.samples), waveform.sample_rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the recording as bytes -------------------------------------------------------------------------------------------


class _Reader:
    """A seekable byte source for libsndfile and FFmpeg that hides the name and stops endless reading.

    Both libraries call back from C, where an exception of the caller's stream would be printed or lost: it is kept in
    `failure` and reported as end of file. A demuxer that loops over damaged data is cut off the same way once it has
    read many times what the file holds.
    """

    def __init__(self, file: BinaryIO, size: int, descriptor: int | None) -> None:
        self._file = file
        self._descriptor = descriptor
        self._position = 0
        self._budget = 8 * size + (256 << 20)
        self.size = size
        self.failure: Exception | None = None

    def read(self, count: int = -1) -> bytes:
        if self.failure is not None:
            return b""
        count = self.size - self._position if count < 0 else min(count, self.size - self._position)
        if count <= 0:
            return b""
        self._budget -= count
        try:
            if self._budget < 0:
                raise OSError("its index leads in circles")
            if self._descriptor is not None:  # leaves the descriptor's own position to libsndfile
                data = os.pread(self._descriptor, count, self._position)
            else:
                self._file.seek(self._position)
                data = self._file.read(count)
        except Exception as error:
            self.failure = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


@dataclass
class _Recording:
    name: str
    file: BinaryIO
    size: int
    head: bytes
    descriptor: int | None  # of a plain file that this module opened itself
    reader: _Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = _Reader(self.file, self.size, self.descriptor)

    def refuse(self, code: str, reason: str) -> AudioError:
        if self.reader.failure is not None:
            return AudioError(self.name, f"reading stopped: {_sentence(self.reader.failure)}", "unreadable")
        return AudioError(self.name, reason, code)

    def peek(self, offset: int, count: int) -> bytes:
        """Bytes from anywhere, without moving the place where a decoder reads."""
        place = self.reader.tell()
        self.reader.seek(offset)
        data = self.reader.read(count)
        self.reader.seek(place)
        return data

    def read_to_end(self) -> bool:
        """Whether libsndfile has taken all bytes there are."""
        place = self.reader.tell() if self.descriptor is None else os.lseek(self.descriptor, 0, os.SEEK_CUR)
        return place >= self.size

    def declared_frames(self, sound: soundfile.SoundFile) -> int | None:
        """Frames that the header promises; libsndfile itself reports no more than the file has room for."""
        if sound.format == "FLAC":
            # A FLAC without a total (piped encoders) shows as the largest count libsndfile can hold.
            return sound.frames if 0 < sound.frames < 1 << 40 else None
        declared = _declared_data_bytes(self)
        if declared is None:
            return None
        start, length = declared
        present = self.size - start
        self._check_remainder(start + length + (length & 1), length)
        if length <= present or present <= 0:
            return sound.frames
        return round(sound.frames * (length / present))

    def _check_remainder(self, start: int, length: int) -> None:
        """Refuse a WAV or AIFF with more behind its samples than they declare, unless that is a further chunk.

        A recorder that died before it wrote the final size leaves such files: most of the speech would go unheard.
        """
        rest = self.size - start
        if rest <= 8 + length // 100:
            return
        tag = self.peek(start, 4)
        if not all(32 <= byte < 127 for byte in tag):
            raise self.refuse(
                "unreadable",
                f"the header declares {length:,} bytes of samples, but {rest:,} more follow; mend the header and retry",
            )


@contextlib.contextmanager
def _opened(source: AudioSource, limits: AudioLimits, name: str | None) -> Iterator[_Recording]:
    with contextlib.ExitStack() as stack:
        file: BinaryIO
        descriptor = None
        if isinstance(source, bytes | bytearray | memoryview):
            label, file = name or "<bytes>", io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            label = name or os.fspath(source)
            file = stack.enter_context(_open_regular(os.fspath(source), label))
            descriptor = file.fileno()
        else:
            label = name or str(getattr(source, "name", "<stream>"))
            file = source
        try:
            if not file.seekable():
                file = stack.enter_context(_spooled(file, limits, label))
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(64) if size else b""
        except (OSError, ValueError) as error:
            raise AudioError(label, f"cannot be read: {_sentence(error)}", "unreadable") from error
        if not size:
            raise AudioError(label, "the file is empty (0 bytes); deliver it again", "empty")
        if size > limits.max_encoded_bytes:
            raise AudioError(label, f"{size:,} bytes exceed the limit of {limits.max_encoded_bytes:,}", "too-large")
        yield _Recording(label, file, size, head, descriptor)


def _open_regular(path: str, label: str) -> BinaryIO:
    """Open a path only if it is a plain file: opening a pipe would wait for a writer, a device could never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AudioError(label, f"cannot be opened: {_sentence(error)}", "unreadable") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise AudioError(label, f"is {kind}, not a file; give the path of one recording", "unreadable")
    return os.fdopen(descriptor, "rb", buffering=0)


def _spooled(stream: BinaryIO, limits: AudioLimits, label: str) -> BinaryIO:
    spool: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  the caller's ExitStack closes it
    try:
        total = 0
        while data := stream.read(1 << 20):
            total += len(data)
            if total > limits.max_encoded_bytes:
                raise AudioError(
                    label, f"the stream exceeds the limit of {limits.max_encoded_bytes:,} bytes", "too-large"
                )
            spool.write(data)
    except BaseException:
        spool.close()
        raise
    return spool


def _sentence(error: Exception) -> str:
    cause = getattr(error, "strerror", None)  # of the operating system and of FFmpeg
    return str(cause).lower() if cause else str(error) or type(error).__name__


# --- from bytes to blocks of frames -----------------------------------------------------------------------------------

_Block = tuple[np.ndarray, int]  # float32 [frames, channels], sample rate


def _blocks(recording: _Recording, limits: AudioLimits) -> Iterator[_Block]:
    sound = _open_soundfile(recording)
    if sound is not None:
        with sound:
            yield from _soundfile_blocks(sound, recording, limits)
    else:
        with _open_container(recording) as container:
            yield from _container_blocks(container, recording, limits)


def _open_soundfile(recording: _Recording) -> soundfile.SoundFile | None:
    """The recording in libsndfile if that is the right reader for it, else None."""
    if recording.head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC"):
        return None
    recording.reader.seek(0)
    try:
        if recording.descriptor is None:
            sound = soundfile.SoundFile(recording.reader)
        else:  # by descriptor libsndfile reads without a call back into Python for every 8 KiB
            os.lseek(recording.descriptor, 0, os.SEEK_SET)
            sound = soundfile.SoundFile(recording.descriptor, closefd=False)
    except soundfile.LibsndfileError:
        return None
    known = sound.format in ("WAV", "WAVEX", "RF64", "AIFF", "FLAC")
    if not known or sound.subtype in ("MPEG_LAYER_III", "MPEG_LAYER_II", "MPEG_LAYER_I") or sound.frames == 0:
        # No frames: FFmpeg also reads a WAV whose writer never went back to fill in its sizes.
        sound.close()
        return None
    return sound


def _soundfile_blocks(sound: soundfile.SoundFile, recording: _Recording, limits: AudioLimits) -> Iterator[_Block]:
    rate, channels = sound.samplerate, sound.channels
    _check_shape(recording, limits, rate, channels)
    declared = recording.declared_frames(sound)
    # A failing read returns nothing of its block: with FLAC, which can fail, the blocks are small.
    size = _FLAC_BLOCK_FRAMES if sound.format == "FLAC" else _BLOCK_FRAMES
    frames, damage = 0, ""
    while True:
        try:
            block = sound.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            damage = error.error_string.removeprefix("Error : ").rstrip(".")
            break
        if not len(block):
            break
        frames += len(block)
        yield block, rate
    cut = not damage or recording.read_to_end()
    _check_complete(recording, frames / rate, None if declared is None else declared / rate, damage, cut)


def _check_shape(recording: _Recording, limits: AudioLimits, rate: int, channels: int) -> None:
    if channels > limits.max_channels:
        raise recording.refuse("too-many-channels", f"{channels} channels exceed the limit of {limits.max_channels}")
    if not limits.min_rate_hz <= rate <= limits.max_rate_hz:
        raise recording.refuse(
            "implausible-rate",
            f"a sample rate of {rate:,} Hz lies outside {limits.min_rate_hz:,} to {limits.max_rate_hz:,} Hz; "
            "the header is probably damaged",
        )


def _tolerance_s(declared_s: float) -> float:
    """How much may be missing: codec delay, rounding, a header's coarse clock."""
    return min(0.1 + 0.01 * declared_s, 5.0)


def _check_complete(recording: _Recording, got_s: float, declared_s: float | None, damage: str, cut: bool) -> None:
    """Refuse a recording that ended early (`cut`: the bytes ran out) or that could not be decoded throughout."""
    if recording.reader.failure is not None:
        raise recording.refuse("unreadable", "")
    if cut and declared_s is not None and got_s < declared_s - _tolerance_s(declared_s):
        raise recording.refuse(
            "truncated", f"the header declares {declared_s:.2f} s but only {got_s:.2f} s are there; deliver it again"
        )
    if damage:
        raise recording.refuse(
            "unreadable", f"the audio is damaged ({damage}), only {got_s:.2f} s are sound; deliver it again"
        )
    if not got_s:
        raise recording.refuse("empty", "holds a header but no audio samples; deliver it again")


def _declared_data_bytes(recording: _Recording) -> tuple[int, int] | None:
    """Where a WAV's or AIFF's samples start and how many bytes its header promises; None when it leaves that open."""
    order = "<" if recording.head[:4] in (b"RIFF", b"RF64") else ">"
    offset, wide = 12, None
    while offset + 8 <= recording.size:
        tag, length = struct.unpack(f"{order}4sI", recording.peek(offset, 8))
        if tag == b"ds64":
            wide = struct.unpack("<Q", recording.peek(offset + 16, 8))[0]
        elif tag in (b"data", b"SSND"):
            if length == 0xFFFFFFFF and wide is not None:
                return (offset + 8, wide) if wide < 1 << 62 else None
            # Writers to a pipe cannot know the size and leave 0 or the largest 31 or 32 bit value, less a header.
            piped = length == 0 or 0x7FFFF000 <= length <= 0x80000000 or length >= 0xFFFFF000
            return None if piped else (offset + 8, length)
        offset += 8 + length + (length & 1)
    return None


# --- FFmpeg -----------------------------------------------------------------------------------------------------------


@functools.cache
def _silence_ffmpeg() -> None:
    import av

    av.logging.set_level(None)


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError("a recording may not open other files")


@contextlib.contextmanager
def _open_container(recording: _Recording) -> "Iterator[InputContainer]":
    import av

    _silence_ffmpeg()
    recording.reader.seek(0)
    try:
        container = av.open(
            recording.reader,
            # Three locks: no demuxer that names other files, no protocol to reach them by (some demuxers do
            # not ask io_open), and a refusal for those that ask.
            container_options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"},
            metadata_errors="replace",
            buffer_size=_IO_BUFFER_BYTES,
            io_open=_refuse_other_files,
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise _unopenable(recording) from error
    with container:
        if _container_name(container) == "mp3" and not _MpegFrame.chain(recording):
            # FFmpeg takes anything with one stray sync word for MP3, headerless PCM included.
            raise _unopenable(recording)
        yield container


def _unopenable(recording: _Recording) -> AudioError:
    for offset, magic, kind, code in _SIGNATURES:
        if recording.head[offset : offset + len(magic)] == magic:
            if code == "unreadable":
                return recording.refuse(code, f"looks like {kind}, but its header or its data cannot be read")
            return recording.refuse(code, f"is {kind}")
    if recording.head[:3] == b"ID3":
        return recording.refuse("unreadable", "holds ID3 tags, but no audio that can be read follows them")
    return recording.refuse(
        "not-audio",
        "no audio format is recognised in its bytes; headerless (raw) PCM must be given a header, for example as WAV",
    )


def _container_name(container: "InputContainer") -> str:
    return container.format.name.split(",")[0]


def _audio_stream(container: "InputContainer", recording: _Recording) -> "AudioStream":
    from av.stream import Disposition

    streams = container.streams.audio
    if not streams:
        if container.streams.video:
            raise recording.refuse("not-audio", "holds pictures but no audio track")
        raise _unopenable(recording)
    stream = next((s for s in streams if s.disposition & Disposition.default), streams[0])
    if stream.codec_context is None:
        raise recording.refuse("unsupported", "no decoder is built in for its audio; convert it to FLAC or WAV")
    if _container_name(container) in _DECLARES_TRACK and stream.codec_context.channels < 1:
        raise recording.refuse("unreadable", "its header declares no channels; deliver it again")
    return stream


def _declared_duration_s(container: "InputContainer", stream: "AudioStream", recording: _Recording) -> float | None:
    kind = _container_name(container)
    if kind == "mp3":
        return _MpegFrame.declared_s(recording)
    if kind in _DECLARES_TRACK and stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base)) or None
    alone = sum(s.type in ("audio", "video") for s in container.streams) == 1
    if kind in _DECLARES_WHOLE and alone and container.duration:
        return max(0.0, container.duration / 1e6) or None  # in microseconds
    return None


def _container_blocks(container: "InputContainer", recording: _Recording, limits: AudioLimits) -> Iterator[_Block]:
    import av

    stream = _audio_stream(container, recording)
    stream.codec_context.thread_count = 1
    declared_s = _declared_duration_s(container, stream, recording)
    tick_s = float(stream.time_base or 0)
    got_s = lost_s = 0.0
    first_s = end_s = None
    lost, ends_lost, stopped = 0, False, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            stopped = _sentence(error)
            break
        if packet is None:
            break
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            lost, ends_lost = lost + 1, True
            lost_s += (packet.duration or 0) * tick_s
            continue
        for frame in frames:
            rate = frame.sample_rate
            block = _float_frames(frame)
            _check_shape(recording, limits, rate, block.shape[1])
            got_s += len(block) / rate
            if frame.pts is not None:
                first_s = frame.pts * tick_s if first_s is None else first_s
                end_s = frame.pts * tick_s + len(block) / rate
            ends_lost = ends_lost and not packet.size  # the last, empty packet only drains what came before
            yield block, rate
    reach_s = got_s if first_s is None or end_s is None else max(got_s, end_s - first_s)
    if _container_name(container) == "ogg":  # pages follow each other without gaps: one means a page lost to damage
        lost_s += reach_s - got_s
        lost += reach_s > got_s
    # Some demuxers end a header that declares (next to) nothing with an error: that is empty, not damaged.
    damage = f"reading stops with: {stopped}" if stopped and (got_s or declared_s is None) else ""
    if lost and (not got_s or lost_s > _tolerance_s(got_s + lost_s)):
        damage = f"{lost} parts of {lost_s:.2f} s could not be decoded"
    # Gaps in time stamps are no loss elsewhere: what counts is how far the audio reaches.
    _check_complete(recording, got_s and reach_s, declared_s, damage, cut=not damage or ends_lost or bool(stopped))


def _float_frames(frame: Any) -> np.ndarray:
    """A decoded frame as float32 [frames, channels], scaled like libsndfile does: integers over 2^(bits - 1)."""
    data = frame.to_ndarray()
    data = data.T if frame.format.is_planar else data.reshape(-1, frame.layout.nb_channels)
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - np.float32(128)) * np.float32(1 / 128)
    if data.dtype.kind == "i":
        full_scale = 2.0 ** (8 * data.dtype.itemsize - 1)
        if data.dtype.itemsize > 2:  # float32 holds 24 bits: divide in double, round once
            return (data * (1 / full_scale)).astype(np.float32)
        return data.astype(np.float32) * np.float32(1 / full_scale)
    return data.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _MpegFrame:
    """One MPEG audio frame header (ISO/IEC 11172-3, 2.4.1.3 and 13818-3)."""

    offset: int
    length: int
    samples: int
    rate: int
    side_info: int

    _SEARCH_BYTES = 1 << 16

    @classmethod
    def parse(cls, data: bytes, offset: int, base: int = 0) -> "_MpegFrame | None":
        if offset + 4 > len(data):
            return None
        header = int.from_bytes(data[offset : offset + 4], "big")
        version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
        bit_rate_index, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
        if header >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate_index in (0, 15) or rate_index == 3:
            return None
        mono = header >> 6 & 3 == 3
        low = version != 3
        rate = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
        kbps = _KBPS[low, layer][bit_rate_index - 1]
        samples = 384 if layer == 1 else 576 if layer == 3 and low else 1152
        slot = 4 if layer == 1 else 1
        length = (samples // 8 * kbps * 1000 // rate // slot + padding) * slot
        side = (17 if mono else 32) if not low else (9 if mono else 17)
        return cls(base + offset, length, samples, rate, side)

    @classmethod
    def chain(cls, recording: _Recording) -> "_MpegFrame | None":
        """The first frame that two more follow (or the end of the file): three in a row are no accident."""
        start = 0
        while (head := recording.peek(start, 10))[:3] == b"ID3" and len(head) == 10:
            start += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        data = recording.peek(start, cls._SEARCH_BYTES)
        for offset in range(len(data) - 3):
            if data[offset] != 0xFF or (first := cls.parse(data, offset, start)) is None:
                continue
            frame, position = first, offset
            for _ in range(2):
                position += frame.length
                if start + position >= recording.size - 4:
                    return first
                following = cls.parse(data, position) or cls.parse(recording.peek(start + position, 4), 0)
                if following is None or following.rate != first.rate:
                    break
                frame = following
            else:
                return first
        return None

    @classmethod
    def declared_s(cls, recording: _Recording) -> float | None:
        """Seconds stated by a Xing/Info or VBRI header; without one an MP3 does not say how long it is."""
        first = cls.chain(recording)
        if first is None:
            return None
        body = recording.peek(first.offset + 4, 256)
        tag = body[first.side_info :]
        frames = trimmed = 0
        if tag[:4] in (b"Xing", b"Info") and len(tag) >= 12 and tag[7] & 1:
            frames = int.from_bytes(tag[8:12], "big")
            # An encoder's extension follows the optional fields; it says how many samples players cut off both ends.
            extension = tag[12 + sum(size for bit, size in ((2, 4), (4, 100), (8, 4)) if tag[7] & bit) :]
            ends = int.from_bytes(extension[21:24], "big") if extension[:4] in (b"LAME", b"Lavf", b"Lavc") else 0
            trimmed = (ends >> 12) + (ends & 0xFFF)
        elif body[32:36] == b"VBRI":
            frames = int.from_bytes(body[46:50], "big")
        return max(0, frames * first.samples - trimmed) / first.rate if frames else None


_KBPS = {  # (low sampling frequencies, layer) -> bit rate by index
    (False, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (False, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (True, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (True, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


# --- from frames to 16 kHz mono ---------------------------------------------------------------------------------------


def _chunked(source: AudioSource, limits: AudioLimits, size: int, name: str | None) -> Iterator[np.ndarray]:
    pending: list[np.ndarray] = []
    held = 0
    with _opened(source, limits, name) as recording:
        for piece in _resampled(recording, limits):
            pending.append(piece)
            held += len(piece)
            if held >= size:
                joined = np.concatenate(pending)
                whole = held - held % size
                for start in range(0, whole, size):
                    yield joined[start : start + size]
                pending, held = [joined[whole:]], held - whole
        if held:
            yield np.concatenate(pending)


def _resampled(recording: _Recording, limits: AudioLimits) -> Iterator[np.ndarray]:
    """Mono pieces at 16 kHz; a change of rate or channels inside the recording starts a new mixdown and resampler."""
    line: _Line | None = None
    seconds, decoded_bytes, delivered = 0.0, 0, 0
    for block, rate in _blocks(recording, limits):
        seconds += len(block) / rate
        decoded_bytes += block.size * 4
        if seconds > limits.max_duration_s:
            raise recording.refuse("too-long", f"is longer than the limit of {limits.max_duration_s:,.0f} s; split it")
        if decoded_bytes > limits.max_decoded_bytes:
            raise recording.refuse(
                "too-large", f"decodes to more than the limit of {limits.max_decoded_bytes:,} bytes; split it"
            )
        if line is None or (line.rate, line.channels) != (rate, block.shape[1]):
            if line is not None:
                for piece in line.flush():
                    delivered += len(piece)
                    yield piece
            line = _Line(recording, rate, block.shape[1])
        for piece in line.push(block):
            delivered += len(piece)
            yield piece
    for piece in line.flush() if line is not None else ():
        delivered += len(piece)
        yield piece
    if not delivered:
        raise recording.refuse("empty", "holds less than one sample at 16 kHz; deliver it again")


class _Line:
    """Mixdown and resampler of one stretch of constant rate and channel count.

    Works on blocks of half a second of source audio counted from the stretch's start, so that the result does not
    depend on how decoders cut their frames.
    """

    def __init__(self, recording: _Recording, rate: int, channels: int) -> None:
        self.rate, self.channels = rate, channels
        self._recording = recording
        self._size = max(1, round(rate * _MIX_BLOCK_S))
        self._fade = np.linspace(0, 1, max(1, round(rate * _MIX_FADE_S)), dtype=np.float32)
        self._pending: list[np.ndarray] = []
        self._held = 0
        self._channel: int | None = None  # None: the mean of all
        self._resampler = (
            None
            if rate == SAMPLE_RATE
            else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=RESAMPLER_QUALITY)
        )

    def push(self, block: np.ndarray) -> Iterator[np.ndarray]:
        if self.channels == 1 and self._resampler is None:
            yield self._through(block, last=False)
            return
        self._pending.append(block)
        self._held += len(block)
        if self._held >= self._size:
            joined = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
            whole = self._held - self._held % self._size
            for start in range(0, whole, self._size):
                yield self._through(joined[start : start + self._size], last=False)
            self._pending, self._held = [joined[whole:]], self._held - whole

    def flush(self) -> Iterator[np.ndarray]:
        rest = np.concatenate(self._pending) if self._pending else np.zeros((0, self.channels), np.float32)
        yield self._through(rest, last=True)

    def _through(self, block: np.ndarray, last: bool) -> np.ndarray:
        mono = self._mix(block)
        if len(mono) and not max(mono.max(), -mono.min()) <= _LOUDEST_PLAUSIBLE:  # also false for NaN
            raise self._recording.refuse(
                "unreadable",
                f"holds samples that are not numbers or lie far outside [-1, 1] (above {_LOUDEST_PLAUSIBLE:g}); "
                "it is damaged or wrongly scaled: export it again",
            )
        if self._resampler is None:
            return mono
        return self._resampler.resample_chunk(mono, last=last)

    def _mix(self, block: np.ndarray) -> np.ndarray:
        if self.channels == 1 or not len(block):
            return np.ascontiguousarray(block[:, 0])
        before, self._channel = self._channel, self._choose(block)
        mono = _mixed(block, self._channel)
        if before != self._channel:
            faded = min(len(self._fade), len(mono))
            ramp = self._fade[:faded]
            mono[:faded] = ramp * mono[:faded] + (1 - ramp) * _mixed(block[:faded], before)
        return mono

    def _choose(self, block: np.ndarray) -> int | None:
        """None for the mean, or the channel that stands in for channels which cancel each other."""
        energy = np.array([np.square(block[:, c]).sum(dtype=np.float64) for c in range(self.channels)])
        expected = energy.sum() / self.channels**2  # of the mean, were the channels unrelated
        if not expected > 0:
            return self._channel
        kept = np.square(_mixed(block, None)).sum(dtype=np.float64) / expected
        # Twice the threshold to go back, and 3 dB to change the channel: no flicker between near equals.
        if not kept < (_CANCELLED if self._channel is None else 2 * _CANCELLED):
            return None
        loudest = int(energy.argmax())
        if self._channel is not None and energy[self._channel] > 0.5 * energy[loudest]:
            return self._channel
        return loudest


def _mixed(block: np.ndarray, channel: int | None) -> np.ndarray:
    if channel is not None:
        return block[:, channel].copy()
    mean = block[:, 0] + block[:, 1]
    for c in range(2, block.shape[1]):
        mean += block[:, c]
    mean *= np.float32(1 / block.shape[1])
    return mean


# --- writing ----------------------------------------------------------------------------------------------------------


def _pcm16(samples: np.ndarray) -> np.ndarray:
    scaled = np.rint(np.asarray(samples, dtype=np.float64) * 32768.0)
    if not np.isfinite(scaled).all():
        raise ValueError("cannot write samples that are not finite numbers; mend the processing step before this one")
    return np.clip(scaled, -32768, 32767).astype(np.int16)


def _write_flac(chunks: Iterable[np.ndarray], path: str | os.PathLike[str], sample_rate: int) -> int:
    """Write under a temporary name in the same folder, then rename: a reader sees the whole file or none."""
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    frames = 0
    try:
        with (
            open(part, "xb+") as file,
            soundfile.SoundFile(file, "w", sample_rate, channels=1, format="FLAC", subtype="PCM_16") as sound,
        ):
            for chunk in chunks:
                sound.write(_pcm16(chunk))
                frames += len(chunk)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return frames
