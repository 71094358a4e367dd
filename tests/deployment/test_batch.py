"""The stages of batch transcription, each alone: what comes out of an item, and what becomes of a transcript."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.batch.arrivals import Arrival, original
from deployment.batch.branch import FORMS, asked_about, is_published, task_of, tasks_of, written
from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.items import Chosen, DeadLetter, Heard, Languages, NormalizedRecording, Piece
from deployment.batch.stages.language import Speaking, as_given
from deployment.batch.stages.merging import merged
from deployment.batch.stages.models import BATCH, Models
from deployment.batch.stages.normalization import normalized
from deployment.batch.stages.recognition import batches, pieces_of, recognized
from deployment.batch.stages.speakers import turns_in, with_speakers
from deployment.batch.stages.speech import speech_in
from speech.audio.decode import decode_chunks
from speech.diarization import DiarizationSettings
from speech.language import Spoken
from speech.quality import measure
from speech.store.objects import Objects, open_objects
from speech.transcript import Transcript, Word
from speech.vad import Stretch, VadSettings
from tests.sounds import sound_bytes, tone
from tests.toy_bundle import tones, write_toy_bundle

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
TONES_ARE_SPEECH = VadSettings(threshold=0.02, release=0.002, padding_s=0.6)  # a network of voices doubts them
ENGLISH = Spoken("en", None)


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "home")


def said_in(recording: NormalizedRecording, language: str) -> Languages:
    """A recording whose upload says its language."""
    return Languages(id=recording.id, channel=None, spoken=Spoken(language, None), parts=())


def arrived(store: Objects, data: bytes, name: str = "en/call.wav") -> Arrival:
    digest = hashlib.sha256(data).hexdigest()
    store.put(original(digest), data)
    return Arrival(id="a", name=name, digest=digest, size=len(data), received_at=NOW, language="en", same_as=None)


def recording_of(store: Objects, data: bytes, folder: Path) -> NormalizedRecording:
    made = normalized_as(store, data, folder)
    assert len(made.sounds) == 1
    return made


def normalized_as(store: Objects, data: bytes, folder: Path, **settings: Any) -> NormalizedRecording:
    """A recording normalised with these settings."""
    settings = {"loudness": "off", **settings}  # by it a toy bundle is sure
    made = normalized(arrived(store, data), Models(store, {}), folder, InferenceSettings(**settings))
    assert isinstance(made, NormalizedRecording)
    assert sorted(path.name for path in (folder / "audio").iterdir()) == sorted(
        Path(sound.audio).name for sound in made.sounds
    )
    return replace(made, sounds=tuple(replace(sound, audio=str(folder / sound.audio)) for sound in made.sounds))


def transcribed(recording: NormalizedRecording, models: Models) -> Transcript:
    """By the toy bundle of English."""
    speech = tuple(speech_in(sound, models, TONES_ARE_SPEECH) for sound in recording.sounds)
    languages = [
        as_given(Speaking(sound=sound, speech=found, otherwise=ENGLISH))
        for sound, found in zip(recording.sounds, speech, strict=True)
    ]
    by = {"en": Chosen(spoken="en", language="en", bundle=models.bundles["en"].digest, model="toy")}
    pieces = pieces_of([recording], languages, by)
    heard = [said for batch in batches(pieces) for said in recognized(batch, models)]
    turns = turns_in((recording, speech), models, DiarizationSettings())
    return with_speakers(merged(recording, heard, languages, by), turns)


def call_of(leak: float = 0.0) -> np.ndarray:
    """Two people in turn, a channel each, of whom the other channel hears this share: float32 [n, 2]."""
    pause = np.zeros(16_000, np.float32)
    alone = []
    for who, words in enumerate((["one", "two"], ["three", "two"], ["one", "two"], ["three", "two"])):
        said = np.concatenate([pause, tones(words)])
        alone.append(np.stack([said, leak * said] if who % 2 == 0 else [leak * said, said], axis=1))
    made: np.ndarray = np.concatenate([*alone, np.stack([pause, pause], axis=1)])
    return made


def test_an_upload_becomes_mono_at_16_khz_with_what_is_known_of_it(store: Objects, tmp_path: Path) -> None:
    stereo = np.stack([tone(seconds=1.5, rate=8_000)] * 2, axis=1)
    made = recording_of(store, sound_bytes(stereo, 8_000), tmp_path)
    assert (made.recording.channels, made.recording.media_type) == (2, "audio/wav")
    assert made.recording.duration_s == pytest.approx(1.5, abs=0.01)
    assert made.sounds[0].quality.narrow_band
    assert made.name == "en/call.wav"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"<html>502</html>", "not-audio"),
        (sound_bytes(tone(seconds=3))[:20_000], "truncated"),
    ],
)
def test_what_cannot_be_used_is_a_dead_letter_with_its_reason(
    store: Objects, tmp_path: Path, data: bytes, code: str
) -> None:
    dead = normalized(arrived(store, data), Models(store, {}), tmp_path, InferenceSettings())
    assert isinstance(dead, DeadLetter)
    assert (dead.code, dead.name) == (code, "en/call.wav")
    assert dead.reason
    assert not list((tmp_path / "audio").glob("*"))


def test_words_have_the_times_of_their_recording(store: Objects, tmp_path: Path) -> None:
    pause = np.zeros(32_000, np.float32)
    audio = np.concatenate([pause, tones(["one", "two"]), pause, tones(["three"]), pause])
    recording = recording_of(store, sound_bytes(audio), tmp_path)
    bundle = write_toy_bundle(tmp_path / "bundle")
    transcript = transcribed(recording, Models(store, {"en": bundle}))
    assert transcript.text == "one two three"
    first, third = transcript.words[0], transcript.words[2]
    assert first.start_s == pytest.approx(2.24, abs=0.2)
    assert third.start_s == pytest.approx(2 + len(tones(["one", "two"])) / 16_000 + 2.24, abs=0.2)
    assert transcript.model_digests == {"recognition": bundle.digest}
    assert Transcript.from_json(transcript.to_json()) == transcript


@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_a_call_has_a_speaker_a_channel_and_nothing_twice(store: Objects, tmp_path: Path, leak: float) -> None:
    """What leaks is loud enough to be heard again on the other channel: a toy bundle hears a tone from 0.05 on."""
    recording = normalized_as(store, sound_bytes(call_of(leak)), tmp_path)
    assert [sound.channel for sound in recording.sounds] == [0, 1]
    transcript = transcribed(recording, Models(store, {"en": write_toy_bundle(tmp_path / "bundle")}))
    assert transcript.text == "one two three two one two three two"
    assert [word.channel for word in transcript.words] == [0, 0, 1, 1] * 2
    assert [segment.speaker for segment in transcript.segments] == ["speaker_0", "speaker_1"] * 2
    assert [segment.channel for segment in transcript.segments] == [0, 1] * 2
    assert [line.split()[1] for line in written(transcript, "ctm", "r").splitlines()] == ["1"] * 4 + ["2"] * 4
    assert [line.split()[2] for line in written(transcript, "rttm", "r").splitlines()] == ["1", "2"] * 2


def test_channels_are_mixed_or_kept_apart_where_settings_say_so(store: Objects, tmp_path: Path) -> None:
    call = sound_bytes(call_of())
    assert [sound.channel for sound in normalized_as(store, call, tmp_path, channels="mix").sounds] == [None]
    scene = sound_bytes(np.stack([tones(["one"])] * 2, axis=1))
    found = normalized_as(store, scene, tmp_path / "each", channels="separate").sounds
    assert [sound.channel for sound in found] == [0, 1]


def test_a_dead_channel_takes_nothing_from_the_other(store: Objects, tmp_path: Path) -> None:
    made = call_of()
    one_sided = np.stack([made.sum(axis=1), np.zeros(len(made), np.float32)], axis=1)
    (sound,) = normalized_as(store, sound_bytes(one_sided), tmp_path).sounds
    alone = normalized_as(store, sound_bytes(made.sum(axis=1)), tmp_path / "alone").sounds[0]
    assert (sound.channel, alone.channel) == (0, None)
    assert sound.quality == alone.quality


def test_channels_that_change_on_the_way_are_mixed(store: Objects, tmp_path: Path) -> None:
    """Nobody can say which channel of the first part is which of the second."""
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, (48_000, 2)).astype(np.float32)
    changing = b"".join(sound_bytes(noise[:, :count], 48_000, "MP3", "MPEG_LAYER_III") for count in (2, 1))
    assert [sound.channel for sound in normalized_as(store, changing, tmp_path).sounds] == [None]


def test_sounds_are_brought_to_a_loudness_where_settings_ask_for_it(store: Objects, tmp_path: Path) -> None:
    said = sound_bytes(tones(["one", "two", "three"], amplitude=0.05))
    as_it_came = recording_of(store, said, tmp_path).sounds[0]
    louder = normalized_as(store, said, tmp_path / "louder", loudness=-23.0).sounds[0]
    assert as_it_came.quality == louder.quality
    assert as_it_came.quality.loudness_lufs is not None
    assert as_it_came.quality.loudness_lufs < -27
    assert measure(decode_chunks(louder.audio)).loudness_lufs == pytest.approx(-23.0, abs=0.1)


def test_sounds_are_of_one_loudness_unless_settings_say_otherwise(store: Objects, tmp_path: Path) -> None:
    """Models know the levels of their training: 25 dB softer, the demo's champion lost three words of four."""
    for name, amplitude in (("near", 0.4), ("far", 0.01)):
        arrival = arrived(store, sound_bytes(tones(["one", "two", "three"], amplitude=amplitude)))
        made = normalized(arrival, Models(store, {}), tmp_path / name, InferenceSettings())
        assert isinstance(made, NormalizedRecording)
        found = measure(decode_chunks(tmp_path / name / made.sounds[0].audio))
        assert found.loudness_lufs == pytest.approx(-23.0, abs=0.2)


def test_noise_is_taken_out_where_settings_ask_for_it(store: Objects, tmp_path: Path) -> None:
    noise = 0.02 * np.random.default_rng(0).standard_normal(48_000).astype(np.float32)
    noisy = np.concatenate([noise, tones(["one", "two"]) + 0.0, noise])
    sound = normalized_as(store, sound_bytes(noisy), tmp_path, noise_reduction="spectral-gating").sounds[0]
    quiet = np.concatenate(list(decode_chunks(sound.audio)))
    assert len(quiet) == len(noisy)
    assert np.sqrt(np.mean(quiet[8_000:40_000] ** 2)) < 0.01


def test_a_recording_without_speech_has_an_empty_transcript(store: Objects, tmp_path: Path) -> None:
    recording = recording_of(store, sound_bytes(np.zeros(48_000, np.float32)), tmp_path)
    assert speech_in(recording.sounds[0], Models(store, {}), VadSettings()).stretches == ()
    by = {"fr": Chosen(spoken="fr", language="en", bundle="0" * 64, model="m")}
    transcript = merged(recording, (), [said_in(recording, "fr")], by)
    assert (transcript.text, transcript.confidence, transcript.degraded) == ("", 0.0, ("language",))
    assert is_published(transcript, 0.8)
    for form in FORMS:
        assert isinstance(written(transcript, form, "r"), str)


def test_batches_are_of_one_language_and_the_same_in_any_order() -> None:
    lengths = np.random.default_rng(0).uniform(1, 20, 70)
    pieces = [
        Piece(
            id=f"{n}",
            channel=None,
            place=0,
            audio="a",
            stretch=Stretch(0.0, float(s)),
            language="en" if n % 3 else "de",
        )
        for n, s in enumerate(lengths)
    ]
    made = batches(pieces)
    assert made == batches(reversed(pieces))
    assert sorted(piece.id for batch in made for piece in batch) == sorted(piece.id for piece in pieces)
    assert all(len(batch) <= BATCH and len({piece.language for piece in batch}) == 1 for batch in made)


def transcript_of(store: Objects, tmp_path: Path, *confidences: float) -> Transcript:
    recording = recording_of(store, sound_bytes(tones(["one"])), tmp_path)
    heard = [
        Heard(
            id=recording.id,
            channel=None,
            place=place,
            stretch=Stretch(2.0 * place, 2.0 * place + 0.3),
            words=(Word("one", 2.0 * place, 2.0 * place + 0.3, confidence),) if confidence else (),
        )
        for place, confidence in enumerate(confidences)
    ]
    by = {"en": Chosen(spoken="en", language="en", bundle="b" * 64, model="m")}
    return merged(recording, heard, [said_in(recording, "en")], by)


def test_a_transcript_that_is_above_the_threshold_is_published(store: Objects, tmp_path: Path) -> None:
    assert is_published(transcript_of(store, tmp_path, 0.81, 0.81), 0.8)
    assert not is_published(transcript_of(store, tmp_path, 0.8, 0.8), 0.8)


def test_speech_without_a_word_is_unsure_and_asked_about(store: Objects, tmp_path: Path) -> None:
    """A model that is lost writes nothing, and the confidence of nothing says nothing."""
    for confidences in ((0.0,), (0.9, 0.0)):
        transcript = transcript_of(store, tmp_path, *confidences)
        assert not is_published(transcript, 0.8)
        (segment,) = asked_about(transcript, 0.8)
        task = task_of(transcript, segment)
        assert (task.text, task.confidence) == ("", 0.0)
        assert task.end_s > task.start_s
        assert all(isinstance(written(transcript, form, "r"), str) for form in FORMS)
    assert is_published(transcript_of(store, tmp_path, *[0.9] * 19, 0.0), 0.8)  # a cough in a long call


def test_people_are_asked_about_what_is_unsure_alone(store: Objects, tmp_path: Path) -> None:
    transcript = transcript_of(store, tmp_path, 0.9, 0.2, 0.8)
    tasks = [task_of(transcript, segment) for segment in asked_about(transcript, 0.8)]
    assert [task.confidence for task in tasks] == [0.2, 0.8]
    assert tasks == [task_of(transcript, segment) for segment in asked_about(transcript, 0.8)]
    assert len({task.id for task in tasks}) == 2
    assert all(task.clip_start_s == max(0.0, task.start_s - 0.5) for task in tasks)


def test_an_unpublished_transcript_always_has_a_task(store: Objects, tmp_path: Path) -> None:
    """Its mean is rounded and may come down to the threshold though each of its segments is above it."""
    transcript = transcript_of(store, tmp_path, 0.80004, 0.80002)
    assert transcript.confidence == 0.8
    assert not is_published(transcript, 0.8)
    assert [segment.score for segment in asked_about(transcript, 0.8)] == [0.80002]


def test_a_task_of_another_bundle_is_another_task(store: Objects, tmp_path: Path) -> None:
    transcript = transcript_of(store, tmp_path, 0.2)
    other = replace(transcript, model_digests={"recognition": "c" * 64})
    assert task_of(transcript, transcript.segments[0]).id != task_of(other, other.segments[0]).id


def test_a_control_sample_is_heard_whole_however_sure_it_is(store: Objects, tmp_path: Path) -> None:
    """Who is asked about unsure segments alone never learns of a model that is sure of what is wrong."""
    sure = transcript_of(store, tmp_path, 0.95, 0.99)
    assert [task.why for task in tasks_of(sure, True, 0.8, 1.0)] == ["control"] * 2
    assert tasks_of(sure, True, 0.8, 0.0) == []
    mixed = transcript_of(store, tmp_path, 0.95, 0.2)
    assert [task.why for task in tasks_of(mixed, False, 0.8, 1.0)] == ["control", "low-confidence"]
    assert [task.why for task in tasks_of(mixed, False, 0.8, 0.0)] == ["low-confidence"]


def test_the_control_sample_is_the_share_that_was_asked_for_and_the_same_each_time(
    store: Objects, tmp_path: Path
) -> None:
    sure = transcript_of(store, tmp_path, 0.95)
    recordings = [
        replace(sure, source_digest=hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()) for n in range(4000)
    ]
    drawn = [bool(tasks_of(recording, True, 0.8, 0.05)) for recording in recordings]
    assert drawn == [bool(tasks_of(recording, True, 0.8, 0.05)) for recording in recordings]
    deviation = (4000 * 0.05 * 0.95) ** 0.5
    assert abs(sum(drawn) - 200) < 4 * deviation
    wider = [bool(tasks_of(recording, True, 0.8, 0.1)) for recording in recordings]
    assert all(later for before, later in zip(drawn, wider, strict=True) if before), "a larger share holds the smaller"


def test_segments_of_two_channels_are_two_tasks(store: Objects, tmp_path: Path) -> None:
    transcript = transcript_of(store, tmp_path, 0.2)
    (segment,) = transcript.segments
    other = replace(segment, channel=1)
    tasks = tasks_of(replace(transcript, segments=(segment, other)), False, 0.8, 0.0)
    assert [task.channel for task in tasks] == [None, 1]
    assert len({task.id for task in tasks}) == 2


def test_what_is_learnt_of_a_segment_holds_the_pause_and_no_neighbour(store: Objects, tmp_path: Path) -> None:
    transcript = transcript_of(store, tmp_path, 0.2, 0.2)
    first, second = (task_of(transcript, segment) for segment in transcript.segments)
    assert (first.learnt_start_s, first.learnt_end_s) == (0.0, 0.55)
    assert second.learnt_start_s == 1.75
    near = replace(transcript.segments[1], start_s=0.4, end_s=0.7)
    close = replace(transcript, segments=(transcript.segments[0], near))
    assert task_of(close, close.segments[0]).learnt_end_s == task_of(close, near).learnt_start_s == 0.35
