"""From a recording's bytes to blocks of float frames, by libsndfile or FFmpeg, and what its header claims.

WAV, RF64, AIFF and FLAC go to libsndfile; everything else, and whatever libsndfile refuses, goes to FFmpeg's libraries
through PyAV, which may read the given bytes only: no network protocol, no second file, no playlist.

Truncation. A recording is refused as "truncated" when its header declares a length and less is decoded than
`declared - (0.1 s + 1 % of declared, at most 5 s)`; codec delay and rounding stay below that. An Ogg file declares no
length and is truncated where it ends within a page (`audio.ogg`). In other containers without one (ADTS, AMR, MP3
without a Xing or VBRI header, WAV written to a pipe) a cut cannot be seen, and all that decodes is delivered. A
recording that goes on behind what its header declares is refused too (`audio.tail`).

Time. Sample n lies n / rate after the container's start, which is where its earliest track starts: a sound track that
starts after the pictures, or that pauses, has silence there, so that times and subtitles fit the recording as it plays.
Time stamps that go back, or on by more than an hour, are a clock that was set anew: the sound goes on without a gap.

Among several audio streams the one flagged default is decoded, else the first.
"""

import contextlib
import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from speech.audio import ogg
from speech.audio.mpeg import MpegFrame
from speech.audio.source import AudioError, AudioLimits, OpenAudio, sentence_of
from speech.audio.tail import end_of_sound, refuse_more_behind, refuse_more_behind_flac, refuse_second_movie

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

Block = tuple[np.ndarray, int]  # float32 [frames, channels], sample rate

_BLOCK_FRAMES = 1 << 16  # frames read from libsndfile at a time
_FLAC_BLOCK_FRAMES = 1 << 12  # FLAC's usual frame
_IO_BUFFER_BYTES = 1 << 16
_JITTER_S = 0.1  # how far time stamps may be off before silence is put in; FFmpeg's resampler takes the same
_LONGEST_PAUSE_S = 3_600.0  # a longer jump of the time stamps is no pause, but a clock that was set anew

# FFmpeg demuxers that may open a recording. Left out on purpose: playlists (hls, concat, dash, sdp), images, devices,
# text renderings (tty) and headerless formats, all of which either read elsewhere or turn any bytes into "audio".
_CONTAINERS = (
    "aac,ac3,act,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dsf,dss,dts,dtshd,eac3,flac,flv,iff,ircam,loas,matroska,mlp,"
    "mov,mp3,mpc,mpc8,mpeg,mpegts,mxf,nistsphere,nut,ogg,oma,qcp,rm,shn,sox,tak,truehd,tta,voc,w64,wav,webm,wtv,wv,wve,"
    "xwma"
)
# Containers whose header states how long the chosen track is; elsewhere FFmpeg's number is a guess from the bit rate.
_DECLARES_TRACK = frozenset("aiff ape au caf dsf flac iff mov mpc mpc8 nistsphere tak tta w64 wav wv".split())
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


class _OnwardSound(soundfile.SoundFile):
    """Read from beginning to end without going back.

    soundfile seeks to the new place after every block of a file that can seek. libFLAC drops what it has buffered then,
    and reads 8 KiB anew: hundreds of times the file where a block is a few bytes, as in silence. The seek also fails
    close to damage, which hides that damage and the sound before it.
    """

    def seekable(self) -> bool:
        """Never; see above."""
        return False


@dataclass(frozen=True)
class AudioInfo:
    """What a recording's header claims; `duration_s` is None where the container states none.

    `start_s` is what the container's own clock shows where its earliest track starts: 0 where there is no clock.
    `open_end`: the container could say that the sound ends where the file does, and does not.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    duration_s: float | None
    start_s: float = 0.0
    open_end: bool = False


def blocks(recording: OpenAudio, limits: AudioLimits) -> Iterator[Block]:
    """Decode a recording; blocks are as long as the decoder cuts them, and rate and channels may change between them.

    Raises:
        AudioError: it is refused; what only shows at the end (truncated, damaged) comes after the blocks before it.
    """
    sound = _open_soundfile(recording)
    if sound is not None:
        with sound:
            yield from _soundfile_blocks(sound, recording, limits)
    else:
        with _open_container(recording) as container:
            yield from _container_blocks(container, recording, limits)


def header(recording: OpenAudio) -> AudioInfo:
    """What the header claims, without decoding."""
    sound = _open_soundfile(recording)
    if sound is not None:
        with sound:
            frames = _declared_frames(recording, sound)
            duration = None if frames is None else frames / sound.samplerate
            return AudioInfo(sound.format.lower(), sound.subtype.lower(), sound.samplerate, sound.channels, duration)
    with _open_container(recording) as container:
        stream = _audio_stream(container, recording)
        context = stream.codec_context
        return AudioInfo(
            _container_name(container),
            context.name,
            context.sample_rate,
            context.channels,
            _declared_duration_s(container, stream, recording),
            (container.start_time or 0) / 1e6,  # in microseconds
            _container_name(container) == "ogg" and ogg.ending(recording) == "open",
        )


def _open_soundfile(recording: OpenAudio) -> soundfile.SoundFile | None:
    """The recording in libsndfile if that is the right reader for it, else None."""
    if recording.head[:4] not in (b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC"):
        return None
    if recording.head[:4] == b"fLaC":  # libFLAC takes a tag at the end for damage
        recording.end_at(end_of_sound(recording))
    recording.reader.seek(0)
    try:
        if recording.descriptor is None:
            sound = _OnwardSound(recording.reader)
        else:  # by descriptor libsndfile reads without a call back into Python for every 8 KiB
            os.lseek(recording.descriptor, 0, os.SEEK_SET)
            sound = _OnwardSound(recording.descriptor, closefd=False)
    except soundfile.LibsndfileError:
        return None
    known = sound.format in ("WAV", "WAVEX", "RF64", "AIFF", "FLAC")
    if not known or sound.subtype in ("MPEG_LAYER_III", "MPEG_LAYER_II", "MPEG_LAYER_I") or sound.frames == 0:
        # No frames: FFmpeg also reads a WAV whose writer never went back to fill in its sizes.
        sound.close()
        return None
    return sound


def _soundfile_blocks(sound: soundfile.SoundFile, recording: OpenAudio, limits: AudioLimits) -> Iterator[Block]:
    rate, channels = sound.samplerate, sound.channels
    _check_shape(recording, limits, rate, channels)
    declared = _declared_frames(recording, sound)
    # A failing read returns nothing of its block: with FLAC, which can fail, the blocks are small.
    size = _FLAC_BLOCK_FRAMES if sound.format == "FLAC" else _BLOCK_FRAMES
    frames, damage = 0, ""
    while True:
        if sound.format == "FLAC" and declared is not None:  # a tag or padding behind the sound is none of it
            size = min(size, declared - frames)
        try:
            block = sound.read(size, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            damage = error.error_string.removeprefix("Error : ").rstrip(".")
            break
        if not len(block):
            break
        frames += len(block)
        yield block, rate
    if sound.format == "FLAC" and frames == declared:
        refuse_more_behind_flac(recording, recording.place())
    cut = not damage or recording.place() >= recording.size
    _check_complete(recording, frames / rate, None if declared is None else declared / rate, damage, cut)


def _check_shape(recording: OpenAudio, limits: AudioLimits, rate: int, channels: int) -> None:
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


def _check_complete(recording: OpenAudio, got_s: float, declared_s: float | None, damage: str, cut: bool) -> None:
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


def _declared_frames(recording: OpenAudio, sound: soundfile.SoundFile) -> int | None:
    """Frames that the header promises; libsndfile itself reports no more than the file has room for."""
    if sound.format == "FLAC":
        # A FLAC without a total (piped encoders) shows as the largest count libsndfile can hold.
        return sound.frames if 0 < sound.frames < 1 << 40 else None
    declared = _declared_data_bytes(recording)
    if declared is None:
        return None
    start, length = declared
    present = recording.size - start
    refuse_more_behind(recording, start + length, length)
    if length <= present or present <= 0:
        return sound.frames
    return round(sound.frames * (length / present))


def _declared_data_bytes(recording: OpenAudio) -> tuple[int, int] | None:
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


@functools.cache
def _silence_ffmpeg() -> None:
    import av

    av.logging.set_level(None)


def _refuse_other_files(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError("a recording may not open other files")


@contextlib.contextmanager
def _open_container(recording: OpenAudio) -> "Iterator[InputContainer]":
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
        if _container_name(container) == "mp3" and not MpegFrame.chain(recording):
            # FFmpeg takes anything with one stray sync word for MP3, headerless PCM included.
            raise _unopenable(recording)
        yield container


def _check_alone(container: "InputContainer", recording: OpenAudio) -> None:
    """Refuse what holds more than FFmpeg decodes, which stops after the first recording, or less than was sent."""
    kind = _container_name(container)
    if kind in ("wav", "aiff") and (declared := _declared_data_bytes(recording)):
        refuse_more_behind(recording, sum(declared), declared[1])
    elif kind == "mov":
        refuse_second_movie(recording)
    elif kind == "ogg" and ogg.ending(recording) == "cut":
        raise recording.refuse("truncated", "the file ends within a page, before its sound does; deliver it again")


def _unopenable(recording: OpenAudio) -> AudioError:
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


def _audio_stream(container: "InputContainer", recording: OpenAudio) -> "AudioStream":
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


def _declared_duration_s(container: "InputContainer", stream: "AudioStream", recording: OpenAudio) -> float | None:
    kind = _container_name(container)
    if kind == "mp3":
        return MpegFrame.declared_s(recording)
    if kind in _DECLARES_TRACK and stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base)) or None
    alone = sum(s.type in ("audio", "video") for s in container.streams) == 1
    if kind in _DECLARES_WHOLE and alone and container.duration:
        begun = container.start_time or 0 if kind == "matroska" else 0  # Matroska counts its duration from 0
        return max(0.0, (container.duration - begun) / 1e6) or None  # in microseconds
    return None


def _container_blocks(container: "InputContainer", recording: OpenAudio, limits: AudioLimits) -> Iterator[Block]:
    import av
    from av.stream import Discard

    _check_alone(container, recording)
    stream = _audio_stream(container, recording)
    stream.codec_context.thread_count = 1
    for other in container.streams:
        if other is not stream:  # else pictures stored apart from the sound are read too, back and forth
            other.discard = Discard.all
    declared_s = _declared_duration_s(container, stream, recording)
    tick_s = float(stream.time_base or 0)
    got_s = lost_s = 0.0
    first_s = end_s = None
    clock = _Clock((container.start_time or 0) / 1e6)  # in microseconds
    lost, ends_lost, stopped = 0, False, ""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            stopped = sentence_of(error)
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
            for silence in clock.before(None if frame.pts is None else frame.pts * tick_s, block, rate):
                yield silence, rate
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
    # Pauses in time stamps are no loss elsewhere: what counts is how far the audio reaches.
    _check_complete(recording, got_s and reach_s, declared_s, damage, cut=not damage or ends_lost or bool(stopped))


class _Clock:
    """Where the sound of a track is in its recording: puts silence in where the track has none."""

    def __init__(self, start_s: float) -> None:
        self._start_s = start_s  # the time stamp of the recording's beginning
        self._delivered_s = 0.0

    def before(self, stamp_s: float | None, block: np.ndarray, rate: int) -> Iterator[np.ndarray]:
        """The silence, float32 [frames, channels], that belongs before a block with this time stamp."""
        late_s = 0.0 if stamp_s is None else stamp_s - self._start_s - self._delivered_s
        if late_s < -_JITTER_S or late_s > _LONGEST_PAUSE_S:
            self._start_s += late_s
        elif late_s > _JITTER_S:
            frames = round(late_s * rate)
            self._delivered_s += frames / rate
            for start in range(0, frames, _BLOCK_FRAMES):
                yield np.zeros((min(_BLOCK_FRAMES, frames - start), block.shape[1]), np.float32)
        self._delivered_s += len(block) / rate


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
