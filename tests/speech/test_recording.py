"""Recordings: what is said of a file is taken from its bytes, and crosses JSON unchanged."""

import hashlib
import io
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from speech.audio.decode import AudioError, AudioLimits, decode
from speech.audio.recording import Recording
from speech.plain import from_plain, to_plain
from tests.sounds import muxed, sound_bytes, tone

RECEIVED = datetime(2026, 11, 26, 14, 30, tzinfo=timezone(timedelta(hours=1)))


@pytest.mark.parametrize(
    ("data", "media_type", "channels"),
    [
        (lambda: sound_bytes(tone(seconds=2)), "audio/wav", 1),
        (lambda: sound_bytes(np.stack([tone(seconds=2), tone(seconds=2)], axis=1), form="FLAC"), "audio/flac", 2),
        (lambda: muxed("ogg", [("libopus", tone(rate=48_000))]), "audio/ogg", 1),
        (lambda: muxed("mp3", [("libmp3lame", tone(rate=48_000))]), "audio/mpeg", 1),
        (lambda: muxed("mp4", [("aac", tone(rate=48_000))], starts_s=0.5), "audio/mp4", 1),
        (lambda: muxed("mpegts", [("mp2", tone(rate=48_000))]), "audio/mpegts", 1),
    ],
    ids=["wav", "flac", "ogg", "mp3", "mp4", "mpegts"],
)
def test_a_recording_is_what_its_bytes_are(data, media_type, channels, tmp_path):
    """Names and what senders claim are wrong too often to steer anything by."""
    content = data()
    recording = Recording.of(content, "incoming/2026-11-26/call.bin", RECEIVED)
    assert recording.digest == hashlib.sha256(content).hexdigest()
    assert (recording.media_type, recording.channels) == (media_type, channels)
    assert recording.duration_s == decode(content).duration_s
    (tmp_path / "call").write_bytes(content)
    for source in (tmp_path / "call", io.BytesIO(content)):
        assert Recording.of(source, recording.key, RECEIVED) == recording


@pytest.mark.parametrize(("container", "codec"), [("mpegts", "mp2"), ("matroska", "libopus")])
def test_a_containers_clock_is_kept_apart_from_the_times_of_its_sound(container, codec):
    """Some players show the container's clock: a word at 0.5 s of a capture that began at 3 s is at 3.5 s there."""
    captured = Recording.of(muxed(container, [(codec, tone(rate=48_000))], starts_s=3.0), "a", RECEIVED)
    from_zero = Recording.of(muxed(container, [(codec, tone(rate=48_000))]), "a", RECEIVED)
    assert captured.container_start_s - from_zero.container_start_s == pytest.approx(3.0, abs=0.05)
    assert captured.duration_s == pytest.approx(from_zero.duration_s, abs=0.05)
    assert Recording.of(sound_bytes(tone()), "a", RECEIVED).container_start_s == 0


def test_a_recording_crosses_json_unchanged():
    """What is passed on is the record, and never the sound."""
    recording = Recording.of(sound_bytes(tone(seconds=2)), "incoming/a.wav", RECEIVED)
    plain = json.loads(json.dumps(to_plain(recording)))
    assert plain == {
        "key": "incoming/a.wav",
        "digest": recording.digest,
        "received_at": "2026-11-26T14:30:00+01:00",
        "media_type": "audio/wav",
        "channels": 1,
        "duration_s": 2.0,
        "container_start_s": 0.0,
        "open_end": False,
    }
    assert from_plain(Recording, plain) == recording
    for change, says in (({"received_at": "2026-11-26T14:30:00"}, "time zone"), ({"channels": "1"}, "channels")):
        with pytest.raises(ValueError, match=says):
            from_plain(Recording, {**plain, **change})
    with pytest.raises(ValueError, match=r"key: Field required|key: Missing"):
        from_plain(Recording, {})


def test_what_cannot_be_used_is_refused_by_its_key(tmp_path: Path):
    """It goes to quarantine under the name it has in the store."""
    whole = sound_bytes(tone(seconds=10))
    for content, limits, code in (
        (whole[:200_000], AudioLimits(), "truncated"),
        (b"", AudioLimits(), "empty"),
        (whole, AudioLimits(max_duration_s=5), "too-long"),
        (b"hello " * 100, AudioLimits(), "not-audio"),
    ):
        with pytest.raises(AudioError) as caught:
            Recording.of(content, "incoming/bad", RECEIVED, limits)
        assert (caught.value.path, caught.value.code) == ("incoming/bad", code)


def test_a_time_without_a_zone_is_refused():
    """Two sites would mean two moments by it."""
    with pytest.raises(ValueError, match="no time zone"):
        Recording.of(sound_bytes(tone()), "a", datetime(2026, 11, 26))
    assert Recording.of(sound_bytes(tone()), "a", datetime(2026, 11, 26, tzinfo=UTC)).received_at.year == 2026
