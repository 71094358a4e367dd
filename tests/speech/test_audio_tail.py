"""What stands behind the sound that a header declares: tags and padding are fine, more sound is never lost unseen."""

import struct

import numpy as np
import pytest

from speech.audio.decode import AudioError, decode
from tests.sounds import RATE, muxed, sound_bytes, tone

ID3V1 = b"TAG" + b"A title".ljust(125, b"\0")
APE = b"APETAGEX" + struct.pack("<IIII", 2_000, 32, 1, 0) + bytes(8)
APEV2 = bytes(2_000 - 32) + APE
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"LYRICS200"
LYRICS3 = LYRICS[:-9] + b"000021" + LYRICS[-9:]


def chunk(tag: bytes, content: bytes) -> bytes:
    return tag + struct.pack("<I", len(content)) + content + bytes(len(content) & 1)


def refused(data: bytes) -> str:
    with pytest.raises(AudioError) as caught:
        decode(data)
    assert caught.value.code == "unreadable"
    return caught.value.reason


def declaring(wav: bytes, length: int) -> bytes:
    """A WAV whose header was never brought up to date."""
    return wav[:40] + struct.pack("<I", length) + wav[44:]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8"])
@pytest.mark.parametrize("frequency", [440.0, 1_000.0])
def test_a_wav_that_holds_more_than_it_declares_is_refused(subtype, frequency):
    """Eight-bit samples near silence read like a chunk's name: only a chain of chunks up to the end is one."""
    wav = sound_bytes(tone(frequency, 10, amplitude=0.02), subtype=subtype)
    assert "more follow" in refused(declaring(wav, 4_032))


@pytest.mark.parametrize(
    "behind",
    [
        chunk(b"LIST", bytes(5_000)),
        chunk(b"LIST", bytes(4_999)) + chunk(b"bext", bytes(700)),
        chunk(b"LIST", bytes(5_000))[:-100],
        bytes(70_000),
        ID3V1,
        chunk(b"id3 ", bytes(900)) + ID3V1,
    ],
    ids=["chunk", "odd-chunk-and-another", "cut-chunk", "zeros", "id3v1", "id3-chunk-and-id3v1"],
)
def test_chunks_tags_and_padding_behind_a_wav_are_no_sound(behind):
    assert decode(sound_bytes(tone()) + behind).duration_s == 1.0


@pytest.mark.parametrize("form", ["WAV", "AIFF", "FLAC"])
def test_a_second_recording_in_the_same_file_is_never_passed_over(form):
    first, second = sound_bytes(tone(440, 0.5), form=form), sound_bytes(tone(880, 1.5), form=form)
    assert "another recording follows" in refused(first + second)


def test_a_second_movie_in_the_same_file_is_never_passed_over():
    movie = muxed("mp4", [("aac", tone(440, 1, 48_000))])
    assert "another recording follows" in refused(movie + movie)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 7.77])
@pytest.mark.parametrize(
    "behind", [ID3V1, APEV2, APEV2 + ID3V1, LYRICS3 + ID3V1, bytes(50_000)], ids=["id3v1", "ape", "both", "lyrics", "0"]
)
def test_a_healthy_flac_with_tags_or_padding_behind_it_decodes_whole(behind, seconds, tmp_path):
    """libFLAC takes such a tail for damage and drops the block before it."""
    noise = (0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)
    data = sound_bytes(noise, form="FLAC")
    path = tmp_path / "tagged.flac"
    path.write_bytes(data + behind)
    np.testing.assert_array_equal(decode(path).samples, decode(data).samples)
    np.testing.assert_array_equal(decode(data + behind).samples, decode(data).samples)


def test_a_flac_that_holds_more_than_it_declares_is_refused():
    """STREAMINFO keeps the number of samples in its last 36 bits before the checksum (RFC 9639, 8.2)."""
    data = bytearray(
        sound_bytes((0.1 * np.random.default_rng(0).standard_normal(20 * RATE)).astype(np.float32), form="FLAC")
    )
    data[22:26] = struct.pack(">I", RATE)
    assert "follow the last sample" in refused(bytes(data))
