"""Decoding: every format or a typed refusal, the same samples every time, and never more memory than promised."""

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio import decode as audio
from speech.audio import decoders
from speech.audio.decode import AudioError, AudioLimits
from speech.audio.source import opened
from speech.store.outputs import digest_file
from tests.sounds import muxed, sound_bytes, tone

RATE = audio.SAMPLE_RATE
ROOT = Path(__file__).parents[2]
CODES = {
    "not-audio",
    "empty",
    "truncated",
    "too-long",
    "too-many-channels",
    "no-such-channel",
    "implausible-rate",
    "too-large",
    "unreadable",
    "unsupported",
}


def level_and_frequency(samples: np.ndarray) -> tuple[float, float]:
    """Amplitude and frequency of a tone, from its middle half."""
    middle = samples[len(samples) // 4 : 3 * len(samples) // 4].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 8 * len(middle)))
    return float(np.sqrt(2 * np.mean(middle**2))), float(spectrum.argmax() * RATE / (8 * len(middle)))


def refusal(source: audio.AudioSource, limits: AudioLimits = audio.DEFAULT_LIMITS) -> AudioError:
    with pytest.raises(AudioError) as caught:
        audio.decode(source, limits)
    assert caught.value.code in CODES
    assert caught.value.reason
    return caught.value


def with_field(wav: bytes, offset: int, form: str, value: int) -> bytes:
    changed = bytearray(wav)
    struct.pack_into(form, changed, offset, value)
    return bytes(changed)


# --- faithful -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_tone_keeps_its_frequency_and_level(rate, channels):
    """Whatever the source's rate and channels, the model must hear the same tone at the same loudness and length."""
    samples = np.repeat(tone(1000, 1, rate)[:, None], channels, axis=1)
    wave = audio.decode(sound_bytes(samples, rate))
    assert wave.samples.dtype == np.float32
    assert wave.duration_s == pytest.approx(1.0, abs=0.001)
    amplitude, frequency = level_and_frequency(wave.samples)
    assert amplitude == pytest.approx(0.5, rel=0.005)
    assert frequency == pytest.approx(1000, abs=1)


@pytest.mark.parametrize(
    ("form", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("WAV", "ALAW"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "GSM610"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("AIFF", "PCM_24"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_24"),
        ("NIST", "PCM_16"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
    ],
)
def test_files_equal_what_libsndfile_reads(form, subtype):
    """For formats that libsndfile knows it is the independent reference; 16 kHz mono must pass through untouched."""
    data = sound_bytes(tone(440, 1.5), RATE, form, subtype)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    np.testing.assert_array_equal(audio.decode(data).samples, expected)


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        ("mp3", "mp3"),
        ("ipod", "aac"),
        ("adts", "aac"),
        ("mp4", "alac"),
        ("ogg", "libopus"),
        ("webm", "libopus"),
        ("matroska", "pcm_s16le"),
        ("mpegts", "mp2"),
        ("wv", "wavpack"),
        ("tta", "tta"),
        ("ac3", "ac3"),
        ("avi", "pcm_s16le"),
        ("flv", "aac"),
    ],
)
def test_compressed_formats_keep_the_tone(container, codec):
    samples = tone(1000, 3, 48_000)
    wave = audio.decode(muxed(container, [(codec, samples)]))
    amplitude, frequency = level_and_frequency(wave.samples)
    assert wave.duration_s == pytest.approx(3.0, abs=0.1)
    assert amplitude == pytest.approx(0.5, rel=0.06)  # LAME scales what it encodes by 0.95
    assert frequency == pytest.approx(1000, abs=2)


@pytest.mark.parametrize("chunk_s", [0.01, 0.7, 30.0])
def test_chunks_joined_equal_the_whole(chunk_s):
    """A recording must not sound different because it was processed in other pieces."""
    rng = np.random.default_rng(0)
    stereo = (0.2 * rng.standard_normal((44_100 * 4 + 17, 2))).astype(np.float32)
    for data in (
        sound_bytes(stereo, 44_100),
        sound_bytes(stereo[:, 0], RATE, "FLAC"),
        muxed("mp3", [("mp3", stereo[:, 1])]),
    ):
        chunks = list(audio.decode_chunks(data, chunk_s=chunk_s))
        assert {len(chunk) for chunk in chunks[:-1]} <= {round(chunk_s * RATE)}
        assert 0 < len(chunks[-1]) <= round(chunk_s * RATE)
        np.testing.assert_array_equal(np.concatenate(chunks), audio.decode(data).samples)


def test_the_same_bytes_give_the_same_samples_however_they_are_handed_in(tmp_path):
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    for name, data in (
        ("a.wav", sound_bytes(tone(rate=44_100), 44_100)),
        ("a.mp3", muxed("mp3", [("mp3", tone(rate=48_000))])),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        ways = [data, bytearray(data), path, str(path), io.BytesIO(data), Pipe(data), path.open("rb")]
        waves = [audio.decode(way).samples.tobytes() for way in ways]
        assert len(set(waves)) == 1


def test_content_decides_and_not_the_extension(tmp_path):
    """Uploads are misnamed all the time."""
    for name, data in (
        ("flac.mp3", sound_bytes(tone(), form="FLAC")),
        ("mp3.wav", muxed("mp3", [("mp3", tone(rate=48_000))])),
        ("wav.raw", sound_bytes(tone())),
        ("opus.txt", muxed("ogg", [("libopus", tone(rate=48_000))])),
    ):
        (tmp_path / name).write_bytes(data)
        assert audio.decode(tmp_path / name).duration_s == pytest.approx(1.0, abs=0.06)


def test_of_several_audio_tracks_the_first_is_decoded():
    wave = audio.decode(muxed("matroska", [("pcm_s16le", tone(300, 2, 48_000)), ("pcm_s16le", tone(3000, 2, 48_000))]))
    assert level_and_frequency(wave.samples)[1] == pytest.approx(300, abs=2)


def test_the_sound_of_a_video_is_decoded():
    wave = audio.decode(muxed("mp4", [("aac", tone(1000, 2, 48_000))], video=True))
    assert level_and_frequency(wave.samples)[1] == pytest.approx(1000, abs=2)


def test_a_rate_that_changes_inside_the_recording_is_followed():
    """Joined MP3s (a dictation continued, a radio capture) may change their rate: each part keeps its own pitch."""
    first = sound_bytes(tone(500, 2, 48_000), 48_000, "MP3", None)
    second = sound_bytes(tone(500, 2, 22_050), 22_050, "MP3", None)
    samples = audio.decode(first + second).samples
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.15)
    for half in (samples[: 2 * RATE], samples[2 * RATE :]):
        assert level_and_frequency(half)[1] == pytest.approx(500, abs=2)


def test_chained_ogg_is_decoded_to_its_end_or_refused():
    """FFmpeg cannot follow a chain that changes its rate; ending there quietly would lose the rest of the recording."""
    first, second = (sound_bytes(tone(500, 2, rate), rate, "OGG", "VORBIS") for rate in (48_000, 22_050))
    assert audio.decode(first + first).duration_s == pytest.approx(4.0, abs=0.1)
    assert refusal(first + second).code == "unreadable"


# --- mixdown ------------------------------------------------------------------------------------------------------


def test_channels_become_their_mean():
    left, right = tone(440, 2), tone(1000, 2)
    samples = audio.decode(sound_bytes(np.stack([left, right], 1), subtype="FLOAT")).samples
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(("form", "rate"), [("WAV", RATE), ("FLAC", 8_000), ("OGG", 48_000)])
def test_a_channel_that_is_asked_for_comes_alone(form, rate):
    """Whatever reads the container: of the other party not a trace."""
    data = sound_bytes(np.stack([tone(440, 2, rate), tone(1000, 2, rate)], 1), rate, form, None)
    for channel, wanted, other in ((0, 440, 1000), (1, 1000, 440)):
        samples = audio.decode(data, channel=channel).samples
        spectrum = np.abs(np.fft.rfft(samples[RATE // 2 : RATE // 2 + RATE]))  # a bin a hertz
        assert np.argmax(spectrum) == wanted
        assert spectrum[other - 2 : other + 3].max() < 0.02 * spectrum[wanted]
        np.testing.assert_array_equal(np.concatenate(list(audio.decode_chunks(data, channel=channel))), samples)


def test_a_channel_that_is_not_there_is_refused():
    """Another one in its place would put other people's words under the transcript."""
    with pytest.raises(AudioError, match="has no channel 2: it holds 2, counted from 0") as caught:
        audio.decode(sound_bytes(np.stack([tone(), tone()], 1)), channel=2)
    assert caught.value.code == "no-such-channel"


def test_a_caller_on_one_channel_is_not_mistaken_for_cancellation():
    left = tone(440, 2)
    samples = audio.decode(sound_bytes(np.stack([left, np.zeros_like(left)], 1), subtype="FLOAT")).samples
    np.testing.assert_allclose(samples, left / 2, atol=1e-6)


def test_channels_in_opposite_phase_do_not_erase_the_speech():
    """A wrongly wired cable delivers the same signal twice with opposite sign: its mean is silence."""
    left = tone(440, 3)
    samples = audio.decode(sound_bytes(np.stack([left, -0.9 * left], 1), subtype="FLOAT")).samples
    amplitude, frequency = level_and_frequency(samples)
    assert amplitude == pytest.approx(0.5, rel=0.01)
    assert frequency == pytest.approx(440, abs=1)


def test_a_change_of_mixdown_makes_no_click():
    left = tone(440, 4)
    right = np.concatenate([left[: 2 * RATE], -left[2 * RATE :]])
    samples = audio.decode(sound_bytes(np.stack([left, right], 1), subtype="FLOAT")).samples
    assert np.abs(np.diff(samples)).max() < 1.2 * np.abs(np.diff(left)).max()


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_is_decoded_to_its_end(size):
    """Writers to a pipe cannot go back to fill in the size; that is no damage."""
    assert audio.decode(with_field(sound_bytes(tone()), 40, "<I", size)).duration_s == 1.0


def test_a_header_that_promises_more_than_there_is_means_truncated():
    data = sound_bytes(tone(seconds=10))
    assert refusal(data[: len(data) // 2]).code == "truncated"
    assert refusal(with_field(data, 40, "<I", 2 * len(data))).code == "truncated"
    assert audio.decode(data[: -RATE // 10]).duration_s == pytest.approx(9.95, abs=0.01)  # inside the tolerance


def onset_s(samples: np.ndarray) -> float:
    return float(np.argmax(np.abs(samples) > 0.1)) / RATE


@pytest.mark.parametrize("container", ["mp4", "matroska", "mov", "mpegts"])
def test_sound_that_starts_after_the_pictures_keeps_its_time(container):
    """Subtitles of a film whose sound starts late would otherwise all be early."""
    samples = audio.decode(muxed(container, [("aac", tone(440, 1, 48_000))], video=True, starts_s=3.0)).samples
    assert onset_s(samples) == pytest.approx(3.0, abs=0.1)
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("matroska", "libopus"), ("flv", "aac")])
def test_a_pause_in_the_time_stamps_is_silence(container, codec):
    """Browsers and call recorders write nothing while a microphone is muted."""
    samples = audio.decode(muxed(container, [(codec, tone(440, 2, 48_000))], pause=(1.0, 2.0))).samples
    assert len(samples) / RATE == pytest.approx(4.0, abs=0.1)
    assert np.abs(samples[round(1.3 * RATE) : round(2.7 * RATE)]).max() < 0.01
    assert np.abs(samples[round(3.2 * RATE) : round(3.8 * RATE)]).max() > 0.3


def test_a_clock_that_was_set_anew_is_no_pause():
    """Broadcasts are cut together from streams with clocks of their own."""
    track = [("aac", tone(440, 2, 48_000))]
    assert audio.decode(muxed("matroska", track, pause=(1.0, 5_000.0))).duration_s == pytest.approx(2.0, abs=0.1)
    alone = audio.decode(muxed("matroska", track, starts_s=7_000.0))
    assert alone.duration_s == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize(
    ("container", "codec"), [("mp3", "mp3"), ("matroska", "libopus"), ("wv", "wavpack"), ("tta", "tta")]
)
def test_half_a_file_is_truncated(container, codec):
    data = muxed(container, [(codec, tone(440, 10, 48_000))])
    assert refusal(data[: len(data) // 2]).code == "truncated"


def test_half_a_flac_is_truncated_and_a_damaged_one_is_refused():
    rng = np.random.default_rng(0)
    data = sound_bytes((0.1 * rng.standard_normal(20 * RATE)).astype(np.float32), form="FLAC")
    assert refusal(data[: len(data) // 2]).code == "truncated"
    damaged = bytearray(data)
    damaged[len(data) // 2] ^= 0xFF
    assert refusal(bytes(damaged)).code == "unreadable"


def test_an_ogg_with_lost_pages_is_refused():
    """Ogg drops a page whose checksum fails: without a check a second of speech would vanish from the transcript."""
    data = bytearray(muxed("ogg", [("libopus", tone(440, 20, 48_000))]))
    data[len(data) // 2] ^= 0xFF
    assert refusal(bytes(data)).code == "unreadable"


@pytest.mark.parametrize("rate", [1, 3_999, 768_001, 1_092_676])
def test_an_absurd_rate_is_refused(rate):
    assert refusal(with_field(sound_bytes(tone()), 24, "<I", rate)).code == "implausible-rate"


def test_too_many_channels_are_refused():
    assert refusal(sound_bytes(np.zeros((100, 17), np.float32))).code == "too-many-channels"


@pytest.mark.parametrize("form", ["WAV", "MP3"])
def test_limits_hold_for_what_is_decoded(form):
    data = muxed("mp3", [("mp3", tone(seconds=5, rate=48_000))]) if form == "MP3" else sound_bytes(tone(seconds=5))
    assert refusal(data, AudioLimits(max_duration_s=4)).code == "too-long"
    assert refusal(data, AudioLimits(max_decoded_bytes=100_000)).code == "too-large"
    assert refusal(data, AudioLimits(max_encoded_bytes=1_000)).code == "too-large"
    assert audio.decode(data, AudioLimits(max_duration_s=6)).duration_s == pytest.approx(5, abs=0.1)


def test_an_hour_of_silence_decodes_whole(tmp_path):
    """A muted line is half a megabyte of FLAC an hour: sixteen bytes a block, and no sign of damage."""
    path = tmp_path / "muted.flac"
    with soundfile.SoundFile(path, "w", 16_000, 2, "PCM_16", format="FLAC") as sound:
        for _ in range(60):
            sound.write(np.zeros((60 * 16_000, 2), np.int16))
    for source in (path, path.read_bytes()):
        with opened(source, AudioLimits(), None) as recording:
            assert sum(len(block) for block, _ in decoders.blocks(recording, AudioLimits())) == 3_600 * 16_000


class Counting(io.BytesIO):
    """Bytes that know how many of them were read, again and again included."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self.count += len(piece)
        return piece


def test_a_flac_is_read_once():
    stream = Counting(sound_bytes(np.zeros((30 * 192_000, 8), np.float32), 192_000, "FLAC"))
    assert audio.decode(stream).duration_s == 30
    assert stream.count < 2 * len(stream.getvalue())


def test_pictures_stored_apart_from_the_sound_are_left_alone():
    """Some cameras and editors write all pictures, then all sound: reading both in turn is many times the file."""
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mov") as output:
        video = output.add_stream("mjpeg", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuvj420p"
        sound = output.add_stream("pcm_s16le", rate=8_000, layout="mono")
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        for _ in range(25 * 60):
            for packet in video.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")):
                output.mux_one(packet)
        for start in range(0, 60 * 8_000, 160):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 160), np.int16), format="s16", layout="mono")
            frame.sample_rate, frame.pts = 8_000, start
            for packet in sound.encode(frame):
                output.mux_one(packet)
    stream = Counting(buffer.getvalue())
    assert audio.decode(stream).duration_s == 60
    assert stream.count < 2 * len(stream.getvalue())


def test_a_decoder_that_goes_round_in_circles_is_cut_off():
    with opened(bytes(1 << 20), AudioLimits(), "a.mp4") as recording:
        for _ in range(300):
            recording.reader.seek(0)
            recording.reader.read()
        assert recording.reader.read() == b""
        assert "leads in circles" in str(recording.refuse("empty", "holds nothing"))


def test_an_endless_stream_is_cut_off():
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            return bytes(size)

    assert refusal(Endless(), AudioLimits(max_encoded_bytes=1 << 24)).code == "too-large"


def test_a_stream_that_breaks_is_reported_with_its_cause():
    class Breaking(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size is None or size < 0 or self.tell() + size > 5_000:
                raise OSError("the connection was reset")
            return super().read(size)

    for data in (sound_bytes(tone()), muxed("mp3", [("mp3", tone(seconds=5, rate=48_000))])):
        error = refusal(Breaking(data))
        assert error.code == "unreadable"
        assert "connection was reset" in error.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 30_000.0])
def test_samples_that_are_no_plausible_numbers_are_refused(value):
    samples = tone()
    samples[7_000] = value
    assert refusal(sound_bytes(samples, subtype="FLOAT")).code == "unreadable"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (sound_bytes(np.zeros(0, np.float32)), "empty"),
        (sound_bytes(tone())[:20], "unreadable"),
        (b"Dear all, please find the minutes below.\n" * 50, "not-audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not-audio"),
        (b"OFR \x0f" + bytes(200), "unsupported"),
        (bytes(100_000), "not-audio"),
        (b"\xff" * 100_000, "not-audio"),
        (b"\xff\xfb\x90\x64" + bytes(100_000), "not-audio"),
    ],
)
def test_what_is_no_recording_is_refused_with_its_code(data, code):
    assert refusal(data).code == code


def test_raw_samples_are_never_guessed():
    """Headerless PCM has no rate: any guess gives plausible nonsense."""
    rng = np.random.default_rng(1)
    for kind in range(60):
        noise = rng.standard_normal(30_000) * 10 ** rng.uniform(0, 4)
        data = (
            rng.bytes(60_000)
            if kind % 3 == 0
            else (np.cumsum(noise) if kind % 3 == 1 else noise).astype("<i2").tobytes()
        )
        assert refusal(data).code == "not-audio"


def test_missing_forbidden_and_special_paths_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    started = time.monotonic()
    for path in (tmp_path / "absent.wav", tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b", "http://127.0.0.1:9/a.wav"):
        error = refusal(path)
        assert error.code == "unreadable"
        assert error.path == str(path)
    assert time.monotonic() - started < 5
    locked = tmp_path / "locked.wav"
    locked.write_bytes(sound_bytes(tone()))
    locked.chmod(0)
    if os.geteuid() != 0:  # root may read everything
        assert refusal(locked).code == "unreadable"


def test_playlists_open_neither_files_nor_the_network(tmp_path):
    """A playlist is a request to read something else: another tenant's file, or a host inside the network."""
    secret = tmp_path / "secret.mp3"
    secret.write_bytes(muxed("mp3", [("mp3", tone(rate=48_000))]))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.mp3"
        for target in (str(secret), f"file://{secret}", url):
            for text in (
                f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{target}\n#EXT-X-ENDLIST\n",
                f"ffconcat version 1.0\nfile '{target}'\n",
                f"<?xml version='1.0'?><MPD><Period><BaseURL>{target}</BaseURL></Period></MPD>",
                f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 {target}\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
            ):
                playlist = tmp_path / "list.m3u8"
                playlist.write_text(text)
                assert refusal(playlist).code == "not-audio"
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):  # a call would be waiting in the queue
            server.accept()


def test_decoding_prints_nothing(tmp_path):
    """FFmpeg and mpg123 complain on the process's stderr; a batch of a million recordings would drown its log."""
    data = bytearray(muxed("mp3", [("mp3", tone(seconds=3, rate=48_000))]))
    data[3_000:3_400] = os.urandom(400)
    (tmp_path / "damaged.mp3").write_bytes(data)
    (tmp_path / "cut.flac").write_bytes(sound_bytes(tone(), form="FLAC")[:5_000])
    script = (
        "import sys; from speech.audio import decode as audio\n"
        "for path in sys.argv[1:]:\n"
        "    try: audio.decode(path)\n"
        "    except audio.AudioError: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, tmp_path.iterdir())], cwd=ROOT, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_errors_cross_process_boundaries():
    """Workers hand their refusals to the parent by pickling; an error that cannot be pickled kills the pool."""
    error = pickle.loads(pickle.dumps(AudioError("a.wav", "holds nothing", "empty")))
    assert (error.path, error.reason, error.code) == ("a.wav", "holds nothing", "empty")
    assert str(error) == "a.wav: holds nothing [empty]"


# --- writing ------------------------------------------------------------------------------------------------------


def test_flac_bytes_depend_on_the_samples_only(tmp_path):
    """Data versions are content digests: the same recording must give the same bytes, however it was cut."""
    samples = (0.2 * np.random.default_rng(0).standard_normal(5 * RATE)).astype(np.float32)
    audio.write_flac_chunks([samples], tmp_path / "whole.flac")
    seconds = audio.write_flac_chunks(
        (samples[i : i + 777] for i in range(0, len(samples), 777)), tmp_path / "cut.flac"
    )
    assert seconds == 5.0
    assert digest_file(tmp_path / "whole.flac") == digest_file(tmp_path / "cut.flac")
    info = soundfile.info(tmp_path / "whole.flac")
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (RATE, 1, "PCM_16", 5 * RATE)


def test_pcm16_survives_a_round_trip_unchanged(tmp_path):
    values = np.arange(-32_768, 32_768, dtype=np.int16)
    samples = (values / 32_768).astype(np.float32)
    audio.write_flac_chunks([samples], tmp_path / "a.flac")
    np.testing.assert_array_equal(audio.decode(tmp_path / "a.flac").samples, samples)


def test_values_beyond_full_scale_are_clipped_and_do_not_wrap(tmp_path):
    audio.write_flac_chunks([np.array([2.0, -2.0, 1.0, -1.0], np.float32)], tmp_path / "a.flac")
    values = soundfile.read(tmp_path / "a.flac", dtype="int16")[0]
    assert values.tolist() == [32_767, -32_768, 32_767, -32_768]


def test_a_failing_writer_leaves_the_old_file_and_no_debris(tmp_path):
    """Decoding refuses some recordings only at their end; half of one must never be taken for the whole."""
    target = tmp_path / "a.flac"
    audio.write_flac_chunks([tone()], target)
    before = digest_file(target)
    truncated = sound_bytes(tone(seconds=10))[:200_000]
    with pytest.raises(AudioError, match="truncated"):
        audio.write_flac_chunks(audio.decode_chunks(truncated, chunk_s=1), target)
    with pytest.raises(ValueError, match="finite"):
        audio.write_flac_chunks([np.array([np.nan], np.float32)], target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.flac"]
    assert digest_file(target) == before


def test_probe_tells_what_the_header_claims():
    assert audio.probe(sound_bytes(tone(seconds=2))) == audio.AudioInfo("wav", "pcm_16", RATE, 1, 2.0)
    info = audio.probe(muxed("ogg", [("libopus", tone(rate=48_000))]))
    assert (info.container, info.codec, info.channels, info.duration_s) == ("ogg", "opus", 1, None)


# --- bounded ------------------------------------------------------------------------------------------------------

# The high-water mark in /proc starts anew with a program; getrusage's would carry over the test process's own peak.
_PEAK = """
import pathlib
def peak_kib():
    return next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").open() if line.startswith("VmHWM"))
"""

_MEASURED = (
    _PEAK
    + """
import json, sys
from speech.audio import decode as audio
next(audio.decode_chunks(sys.argv[1]))
before = peak_kib()
samples = sum(len(chunk) for chunk in audio.decode_chunks(sys.argv[1]))
print(json.dumps([samples, before, peak_kib()]))
"""
)


@pytest.mark.parametrize("form", ["flac", "mp3"])
def test_two_hours_decode_in_bounded_memory(tmp_path, form):
    """Two hours are 460 MB as float32; decoded in chunks they must cost next to nothing above the libraries."""
    path = tmp_path / f"long.{form}"
    minute = (0.1 * np.random.default_rng(0).standard_normal(8_000 * 60)).astype(np.float32)
    if form == "mp3":  # frames of MPEG audio may simply follow each other
        path.write_bytes(sound_bytes(minute, 8_000, "MP3", None) * 120)
    else:
        with soundfile.SoundFile(path, "w", 8_000, 1, format="FLAC") as sound:
            for _ in range(120):
                sound.write(minute)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    samples, before_kib, after_kib = json.loads(done.stdout)
    assert samples == pytest.approx(7_200 * RATE, rel=0.01)
    assert after_kib - before_kib < 20 * 1024


_SWEEP = (
    _PEAK
    + """
import json, pathlib, sys, time
import numpy as np
from speech.audio import decode as audio
rows = []
for path in sorted(p for p in pathlib.Path(sys.argv[1]).rglob("*") if p.is_file()):
    started = time.monotonic()
    try:
        wave = audio.decode(path)
        sound = np.isfinite(wave.samples).all() and wave.samples.dtype == np.float32
        outcome = ["decoded", wave.duration_s, bool(sound)]
    except audio.AudioError as error:
        outcome = [error.code, error.reason, error.path == str(path)]
    rows.append([path.name, *outcome, time.monotonic() - started])
print(json.dumps({"rows": rows, "rss_kib": peak_kib()}))
"""
)


def _formats() -> Path:
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: no collection of odd files to decode")
    return Path(root, "formats")


@pytest.mark.timeout(120)
def test_every_odd_file_decodes_or_is_refused_by_name():
    """140 real, broken and lying files: each gives finite samples or a typed reason, fast and in bounded memory."""
    done = subprocess.run(
        [sys.executable, "-c", _SWEEP, str(_formats())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert done.stderr == ""
    result = json.loads(done.stdout)
    rows = {row[0]: row[1:] for row in result["rows"]}
    assert len(rows) > 100
    for name, (outcome, detail, sound, seconds) in rows.items():
        assert outcome == "decoded" or outcome in CODES, name
        assert sound, name
        assert seconds < 20, name
        assert detail if outcome != "decoded" else 0 < detail < 60, name
    assert result["rss_kib"] < 1024 * 1024
    refused = {name: row[0] for name, row in rows.items() if row[0] != "decoded"}
    for ending, code in (
        (".raw", "not-audio"),
        (".jpg", "not-audio"),
        (".mid", "not-audio"),
        (".ofr", "unsupported"),
        (".apev2", "not-audio"),
        ("awful.wav", "implausible-rate"),
        ("null.wav", "empty"),
        ("evil.wav", "unreadable"),
        ("emptyfile.mp3", "empty"),
        ("issue_29.wma", "truncated"),
        ("vbri.mp3", "truncated"),
    ):
        matching = [name for name in rows if name.endswith(ending)]
        assert matching
        assert {refused.get(name) for name in matching} == {code}, ending
    for good in (
        "silence-44-s.mp3",
        "silence-44-s.tak",
        "silence-44-s.wv",
        "empty.tta",
        "silence-3.wma",
        "click.mpc",
        "mac-399.ape",
        "example.opus",
        "empty.spx",
        "empty.oggflac",
        "alac.m4a",
        "no-tags.3g2",
        "silence-44-s.eac3",
        "stereo.sph",
    ):
        assert [row[0] for name, row in rows.items() if name.endswith(good)] == ["decoded"], good


def test_real_lossless_files_equal_libsndfile():
    """Real recordings at 16 kHz mono pass through bit for bit."""
    compared = 0
    for path in sorted(_formats().rglob("*")):
        if path.suffix not in (".wav", ".flac", ".sph", ".aif"):
            continue
        try:
            expected, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError:
            continue
        if (rate, expected.shape[1]) == (RATE, 1) and len(expected):
            np.testing.assert_array_equal(audio.decode(path).samples, expected[:, 0])
            compared += 1
    assert compared >= 10
