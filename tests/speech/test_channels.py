"""Channels: told apart where they hold different speakers, mixed where they are one scene, and rid of echoes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from speech.audio.channels import Apart, channels_apart, every_channel
from speech.audio.decode import decode, decode_channels, write_flac_chunks
from tests.calls import RATE, call, scene
from tests.sounds import sound_bytes, tone

Voices = Sequence[Sequence[np.ndarray]]


@pytest.fixture(scope="module")
def voices() -> Voices:
    """Two synthetic people, some sentences each."""
    from speech.corpus.synthetic import Voicebox, sentences, speaker_of

    box, drawn = Voicebox(), sentences("en")
    people = [[box.say(next(drawn).spoken, speaker_of(name, "en"), RATE) for _ in range(4)] for name in ("Ada", "Bo")]
    box.close()
    return people


def files_of(samples: np.ndarray, folder: Path) -> list[Path]:
    paths = [folder / f"{channel}.flac" for channel in range(samples.shape[1])]
    for channel, path in enumerate(paths):
        write_flac_chunks([samples[:, channel]], path)
    return paths


def heard_apart(samples: np.ndarray, folder: Path) -> tuple[Apart, ...]:
    return channels_apart(files_of(samples, folder))


@pytest.mark.parametrize("leak_db", [None, -30.0, -15.0])
@pytest.mark.parametrize("gains_db", [(0.0, 0.0), (0.0, -15.0)])
def test_a_speaker_a_channel_is_told_apart_whatever_leaks_across(
    voices: Voices, tmp_path: Path, leak_db: float | None, gains_db: tuple[float, float]
) -> None:
    made = call(voices, np.random.default_rng(1), leak_db=leak_db, gains_db=gains_db)
    assert [found.channel for found in heard_apart(made.samples, tmp_path)] == [0, 1]


@pytest.mark.parametrize(("pan_db", "spaced_s", "noise_db"), [(0, 0, -60), (5, 0, -60), (2, 0.004, -60), (3, 0, -30)])
def test_stereo_of_one_scene_is_mixed(
    voices: Voices, tmp_path: Path, pan_db: float, spaced_s: float, noise_db: float
) -> None:
    made = scene(voices, np.random.default_rng(2), pan_db=pan_db, spaced_s=spaced_s, noise_db=noise_db)
    assert heard_apart(made, tmp_path) == ()


@pytest.mark.parametrize("kind", ["zeros", "hum", "echo"])
def test_a_dead_channel_is_left_out(voices: Voices, tmp_path: Path, kind: str) -> None:
    """A mix would halve the speech and bring the hum in."""
    draw = np.random.default_rng(3)
    both = call(voices, draw).samples.sum(axis=1)
    other = {
        "zeros": np.zeros_like(both),
        "hum": tone(50.0, len(both) / RATE, amplitude=0.1)[: len(both)],
        "echo": 0.05 * np.roll(both, 900),
    }[kind]
    assert [found.channel for found in heard_apart(np.stack([other, both], axis=1), tmp_path)] == [1]


def test_silence_on_all_channels_is_mixed(tmp_path: Path) -> None:
    assert heard_apart(np.zeros((RATE, 2), np.float32), tmp_path) == ()
    assert heard_apart(np.zeros((10, 3), np.float32), tmp_path) == ()


def test_each_of_three_people_has_a_channel(voices: Voices, tmp_path: Path) -> None:
    made = call(voices, np.random.default_rng(4), leak_db=-20.0).samples
    later = np.concatenate([np.zeros((len(made), 1), np.float32), made[:, :1]])
    three = np.concatenate([np.pad(made, ((0, len(made)), (0, 0))), later], axis=1)
    assert [found.channel for found in heard_apart(three, tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(("leak_db", "delay_s"), [(-15.0, 0.01), (-25.0, 0.3)])
def test_what_leaked_is_an_echo_and_what_somebody_says_meanwhile_is_not(
    voices: Voices, tmp_path: Path, leak_db: float, delay_s: float
) -> None:
    made = call(voices, np.random.default_rng(5), leak_db=leak_db, delay_s=delay_s)
    for found in heard_apart(made.samples, tmp_path):
        echo = np.zeros(len(made.samples), bool)
        for span in found.echoes:
            assert span.start_s < span.end_s
            echo[round(span.start_s * RATE) : round(span.end_s * RATE)] = True
        own, other = made.speaking[:, found.channel], made.speaking[:, 1 - found.channel]
        delay = round(delay_s * RATE)
        leaked = np.pad(other, (delay, 0))[: len(other)] & ~np.convolve(own, np.ones(RATE // 2), "same").astype(bool)
        assert echo[leaked].mean() > 0.8
        assert echo[own].mean() < 0.02


def test_an_announcement_that_both_channels_hear_is_of_one(voices: Voices, tmp_path: Path) -> None:
    """A queue's greeting is on both legs; transcripts of calls that begin with it have shown it twice."""
    made = call(voices, np.random.default_rng(8), count=8).samples
    said = np.concatenate([voices[0][0], voices[1][1]])
    announcement = 0.1 * said / np.sqrt(np.mean(said**2))
    first, second = heard_apart(np.concatenate([np.stack([announcement] * 2, axis=1), made]), tmp_path)
    end_s = len(announcement) / RATE
    assert not [span for span in first.echoes if span.start_s < end_s]
    heard_s = sum(min(span.end_s, end_s) - span.start_s for span in second.echoes if span.start_s < end_s)
    assert heard_s > 0.9 * end_s


def test_unrelated_channels_have_no_echoes(voices: Voices, tmp_path: Path) -> None:
    made = call(voices, np.random.default_rng(6))
    own = made.speaking
    for found in every_channel(files_of(made.samples, tmp_path)):
        for span in found.echoes:
            assert not own[round(span.start_s * RATE) : round(span.end_s * RATE), found.channel].any()


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_all_channels_are_decoded_at_once_as_each_alone(rate: int) -> None:
    """One pass over a source must hear what a pass a channel hears, and mix as before."""
    draw = np.random.default_rng(7)
    data = sound_bytes(draw.uniform(-0.5, 0.5, (3 * rate + 77, 3)).astype(np.float32), rate)
    pieces = list(decode_channels(data))
    mixed, channels = (np.concatenate(some) for some in zip(*pieces, strict=True))
    assert np.array_equal(mixed, decode(data).samples)
    for channel in range(3):
        assert np.array_equal(channels[:, channel], decode(data, channel=channel).samples)
    assert max(len(piece) for piece, _ in pieces) <= RATE
