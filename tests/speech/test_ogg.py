"""Ogg files that were cut are refused, whole ones and live captures are not."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio.decode import AudioError, decode, probe
from tests.sounds import muxed, sound_bytes, tone

CODECS = ("libvorbis", "libopus", "flac", "speex")
END_OF_STREAM = 4


def sound_in(codec: str, seconds: float = 6.0) -> bytes:
    """Sound in Ogg that fills many pages: noise over a tone."""
    draw = np.random.default_rng(0)
    samples = tone(300, seconds, 48_000, 0.3) + 0.1 * draw.standard_normal(round(48_000 * seconds)).astype(np.float32)
    if codec == "libvorbis":
        return sound_bytes(samples, 48_000, "OGG", "VORBIS")
    if codec == "speex":
        root = os.environ.get("SOUNDSTAGE_REAL_DATA")
        if not root:
            pytest.skip("SOUNDSTAGE_REAL_DATA is not set: nothing here writes Speex")
        return Path(root, "formats/mutagen/tests__data__empty.spx").read_bytes()
    return muxed("ogg", [(codec, samples)])


def pages(data: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(data):
        assert data[place : place + 4] == b"OggS"
        count = data[place + 26]
        size = 27 + count + sum(data[place + 27 : place + 27 + count])
        found.append(data[place : place + size])
        place += size
    return found


def unmarked(data: bytes) -> bytes:
    """The same without the flag that ends it, as recorders leave it that are stopped: checksums are right."""
    *before, last = pages(data)
    head = bytearray(last)
    head[5] &= ~END_OF_STREAM
    head[22:26] = bytes(4)
    head[22:26] = struct.pack("<I", checksum(bytes(head)))
    return b"".join([*before, bytes(head)])


def checksum(page: bytes) -> int:
    """RFC 3533, section 6: CRC-32 with polynomial 0x04c11db7, not reflected."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("codec", CODECS)
def test_a_whole_file_is_whole(codec: str) -> None:
    data = sound_in(codec)
    assert len(decode(data).samples)
    assert not probe(data).open_end


@pytest.mark.parametrize("share", [0.3, 0.5, 0.77, 0.999])
@pytest.mark.parametrize("codec", CODECS)
def test_a_file_that_was_cut_is_truncated(codec: str, share: float) -> None:
    data = sound_in(codec)
    with pytest.raises(AudioError) as refused:
        decode(data[: int(len(data) * share)])
    assert refused.value.code == "truncated"


@pytest.mark.parametrize("left", [1, 4, 20, 30])
def test_a_file_that_was_cut_just_behind_the_begin_of_a_page_is_truncated(left: int) -> None:
    some = pages(sound_in("libvorbis"))
    half = len(some) // 2
    with pytest.raises(AudioError) as refused:
        decode(b"".join(some[:half]) + some[half][:left])
    assert refused.value.code == "truncated"


@pytest.mark.parametrize("codec", CODECS)
def test_a_live_capture_is_taken_and_its_end_is_called_open(codec: str) -> None:
    """A recorder that never marks its end must not lose all its recordings; whether it was cut nobody can tell."""
    data = unmarked(sound_in(codec))
    assert len(decode(data).samples)
    assert probe(data).open_end


def test_a_file_that_was_cut_between_two_pages_has_an_open_end() -> None:
    some = pages(sound_in("libopus"))
    data = b"".join(some[: len(some) // 2])
    assert len(decode(data).samples)
    assert probe(data).open_end


def test_a_chain_is_judged_by_its_last_link() -> None:
    one, two = sound_in("libvorbis", 2.0), sound_in("libvorbis", 3.0)
    assert not probe(unmarked(one) + two).open_end
    assert probe(one + unmarked(two)).open_end
    with pytest.raises(AudioError, match="truncated"):
        decode(one + two[: len(two) // 2])


def test_a_track_beside_the_sound_does_not_end_it() -> None:
    """Pages of another stream lie behind the last one of the sound; only the sound's flag counts."""
    some = pages(sound_in("libvorbis"))
    last = some[-1]
    other = bytearray(last)
    other[14:18] = b"\x01\x02\x03\x04"
    other[5] = 0
    other[22:26] = bytes(4)
    other[22:26] = struct.pack("<I", checksum(bytes(other)))
    assert not probe(b"".join([*some, bytes(other)])).open_end


def test_what_players_append_is_no_cut() -> None:
    data = sound_in("libvorbis")
    for behind in (bytes(1_000), b"TAG" + bytes(125), b"APETAGEX" + bytes(24)):
        assert len(decode(data + behind).samples) == len(decode(data).samples)


def test_no_whole_file_of_others_is_called_cut_or_open() -> None:
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: no foreign files here")
    found = {}
    for path in sorted(Path(root, "formats").rglob("*")):
        if path.is_file() and path.read_bytes()[:4] == b"OggS":
            try:
                decode(path)
                found[path.name] = "open" if probe(path).open_end else "whole"
            except AudioError as error:
                found[path.name] = error.code
    assert len(found) == 12
    heads = {"tests__data__sample_bitrate.oggtheora", "tests__data__sample_length.oggtheora"}  # cut by their makers
    assert {name for name, code in found.items() if code == "truncated"} <= heads
    assert "open" not in found.values()


def test_a_stream_that_libsndfile_writes_is_marked() -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds=1.0), 16_000, format="OGG", subtype="OPUS")
    assert not probe(buffer.getvalue()).open_end
