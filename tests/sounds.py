"""Sounds in memory, and the files that hold them."""

import io
from fractions import Fraction

import numpy as np
import soundfile

RATE = 16_000


def tone(frequency: float = 440.0, seconds: float = 1.0, rate: int = RATE, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def sound_bytes(samples: np.ndarray, rate: int = RATE, form: str = "WAV", subtype: str | None = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=form) as sound:
        for start in range(0, len(samples), 4096):  # libsndfile's Vorbis writer overflows the stack on large blocks
            sound.write(samples[start : start + 4096])
    return buffer.getvalue()


def muxed(
    container: str,
    tracks: list[tuple[str, np.ndarray]],
    rate: int = 48_000,
    video: bool = False,
    starts_s: float = 0.0,
    pause: tuple[float, float] = (0.0, 0.0),
) -> bytes:
    """Mono tracks in any container FFmpeg writes; `video` puts a picture track before them.

    The sound starts `starts_s` after the container, and pauses at the second `pause[0]` for `pause[1]` seconds.
    """
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as output:
        if video:
            picture = output.add_stream("mpeg4", rate=25)
            picture.width = picture.height = 64
            picture.pix_fmt = "yuv420p"
        streams = [output.add_stream(codec, rate=rate, layout="mono") for codec, _ in tracks]
        if video:
            for _ in range(25):
                frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                for packet in picture.encode(frame):
                    output.mux(packet)
            for packet in picture.encode(None):
                output.mux(packet)
        for stream, (_, samples) in zip(streams, tracks, strict=True):
            source = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="fltp", layout="mono")
            source.sample_rate = rate
            context = stream.codec_context
            position = 0
            resampler = av.AudioResampler(context.format, "mono", rate, context.frame_size or 1024)
            for frame in [*resampler.resample(source), *resampler.resample(None)]:
                if starts_s or pause[1]:
                    frame.pts = position + round((starts_s + (pause[1] if position / rate >= pause[0] else 0.0)) * rate)
                    frame.time_base = Fraction(1, rate)
                    position += frame.samples
                for packet in stream.encode(frame):
                    output.mux(packet)
            for packet in stream.encode(None):
                if packet.size:  # FLAC's encoder ends with its header once more, which Ogg cannot take
                    output.mux(packet)
    return buffer.getvalue()
