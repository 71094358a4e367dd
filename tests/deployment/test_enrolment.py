"""People who enrolled: who may, what likeness counts, and that erasing leaves nothing behind."""

import datetime as dt
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deployment.batch.enrolment import (
    Calibration,
    Enrolment,
    EnrolmentError,
    Enrolments,
    KnownVoices,
    calibrated,
    carriers,
    checked_name,
    enrolled,
    strangers_of,
    voice_of,
)
from deployment.batch.settings import InferenceSettings
from speech.audio.decode import write_flac_chunks
from speech.corpus.manifest import Utterance, write_manifest
from speech.labels import LabelNetwork
from speech.store.objects import open_objects
from speech.store.outputs import DataStore
from speech.vad import SpeechDetector
from tests.toy_labels import RATE, beeps, write_toy_labels

NOW = dt.datetime(2026, 11, 26, 9, 30, tzinfo=dt.UTC)
CALIBRATION = Calibration(threshold=0.6, false_accepts=0.01, strangers=40, trials=4_000)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LabelNetwork:
    return LabelNetwork(write_toy_labels(tmp_path_factory.mktemp("labels") / "bundle", "speaker"))


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(open_objects(tmp_path / "home"))


def person(name: str, *voice: float, model: str = "a" * 64) -> Enrolment:
    return Enrolment(name=name, model=model, voice=voice, speech_s=9.0, recordings=("b" * 64,), enrolled_at=NOW)


def test_the_likest_pairs_have_a_name_each_and_a_stranger_has_none() -> None:
    known = KnownVoices(names=("Ada", "Bob"), voices=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), threshold=0.6)
    speakers = np.array([[0.8, 0.6, 0.0], [1.0, 0.0, 0.0], [0.0, 0.5, math.sqrt(0.75)]])
    assert known.names_of(speakers) == {1: "Ada", 0: "Bob"}
    assert known.names_of(speakers[[2]]) == {}
    assert known.names_of(np.zeros((0, 3))) == {}


def test_a_name_is_enrolled_once_a_model_and_erased_from_all(store: DataStore) -> None:
    enrolments = Enrolments(store.objects)
    for kept in (person("Ada", 1.0, 0.0), person("Ada", 0.0, 1.0), person("Ada", 1.0, 0.0, model="c" * 64)):
        enrolments.add(kept)
    enrolments.add(person("Bob", 1.0, 0.0))
    assert [(one.name, one.model[0], one.voice) for one in enrolments.all()] == [
        ("Ada", "a", (0.0, 1.0)),
        ("Ada", "c", (1.0, 0.0)),
        ("Bob", "a", (1.0, 0.0)),
    ]
    assert enrolments.forget("Ada") == 2
    assert [one.name for one in enrolments.all()] == ["Bob"]
    enrolments.add(person("Ada", 0.0, 1.0))  # who was forgotten may come back
    assert [one.name for one in enrolments.all()] == ["Ada", "Bob"]
    assert enrolments.forget("Eve") == 0


def test_enrolments_of_a_former_model_are_stale_and_not_looked_for(store: DataStore) -> None:
    enrolments = Enrolments(store.objects)
    enrolments.add(person("Ada", 1.0, 0.0))
    assert enrolments.known("a" * 64) is None  # from which likeness on is not known
    assert enrolments.stale("a" * 64) == ("Ada",)
    enrolments.keep_calibration("a" * 64, CALIBRATION)
    known = enrolments.known("a" * 64)
    assert known == KnownVoices(names=("Ada",), voices=((1.0, 0.0),), threshold=0.6)
    assert enrolments.known("c" * 64) is None
    assert (enrolments.stale("a" * 64), enrolments.stale("c" * 64)) == ((), ("Ada",))


@pytest.mark.parametrize("name", ["", "  ", "speaker_3", "a" * 81, "Ada\x07"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(EnrolmentError):
        checked_name(name)


def test_a_name_keeps_its_letters() -> None:
    assert checked_name(" Zoë  Müller-李 ") == "Zoë Müller-李"


def test_too_little_speech_or_several_people_are_refused() -> None:
    ada, bob = np.eye(4, dtype=np.float32)[:2]
    assert voice_of(np.stack([ada] * 5), 6.0, 0.5) == (1.0, 0.0, 0.0, 0.0)
    with pytest.raises(EnrolmentError, match=r"2\.0 s of speech, 5 s are needed"):
        voice_of(np.stack([ada] * 5), 2.0, 0.5)
    with pytest.raises(EnrolmentError, match="in which nobody else speaks"):
        voice_of(np.stack([ada, bob, *np.eye(4, dtype=np.float32)[2:]]), 6.0, 0.6)


def test_the_share_of_strangers_that_is_stated_holds_for_strangers_not_seen() -> None:
    """Told from 60 people, and tried on 200 others: unlike each other more or less, as people are."""
    draw = np.random.default_rng(0)

    def people(count: int) -> dict[str, list[np.ndarray]]:
        voices = draw.standard_normal((count, 32)) + 0.8
        found = {}
        for number, voice in enumerate(voices):
            clips = voice + 0.3 * draw.standard_normal((5, 32))
            found[f"{number}"] = list(clips / np.linalg.norm(clips, axis=1, keepdims=True))
        return found

    told = calibrated(people(60), 0.01)
    assert (told.strangers, told.trials) == (60, 60 * 5 * 59)
    others = people(200)
    enrolled_voices = np.stack(
        [np.mean(clips, axis=0) / np.linalg.norm(np.mean(clips, axis=0)) for clips in others.values()]
    )
    scores = np.concatenate(
        [
            (np.stack(clips) @ np.delete(enrolled_voices, place, axis=0).T).ravel()
            for place, clips in enumerate(others.values())
        ]
    )
    assert 0.002 < float((scores >= told.threshold).mean()) < 0.03


def test_too_few_strangers_cannot_tell_of_a_share() -> None:
    few = {f"{n}": [np.eye(32)[n]] for n in range(19)}
    with pytest.raises(EnrolmentError, match="19 strangers"):
        calibrated(few, 0.01)
    enough = {f"{n}": [np.eye(32)[n]] for n in range(20)}
    assert calibrated(enough, 0.01).threshold == pytest.approx(0.0001)  # above every pair
    with pytest.raises(EnrolmentError, match="380 pairs of strangers cannot tell of a share of 0.001"):
        calibrated(enough, 0.001)


def test_strangers_are_people_whom_no_model_learnt_from(store: DataStore, network: LabelNetwork) -> None:
    with store.replace("utterances", "2024-01", "en") as staging:
        rows = []
        for speaker, split in (("ada", "test"), ("bob", "train"), ("eve", "test")):
            for number in range(3):
                path = staging.path / f"{speaker}-{number}.flac"
                write_flac_chunks([beeps(0.3, 3.0, seed=number)], path)
                rows.append(
                    Utterance(path.stem, path.name, 3.0, "x", speaker, "en", "d", NOW.date(), digest="d", split=split)
                )
        write_manifest(staging.path / "manifest.jsonl", rows)
    found = strangers_of(store, network)
    assert {speaker: len(clips) for speaker, clips in found.items()} == {"en ada": 1, "en eve": 1}  # 6 s of 9
    assert strangers_of(DataStore(open_objects(Path(store.objects.home) / "empty")), network) == {}


def test_recordings_without_speech_enrol_nobody(tmp_path: Path, network: LabelNetwork) -> None:
    silence = tmp_path / "silence.flac"
    write_flac_chunks([np.zeros(5 * RATE, np.float32)], silence)
    with pytest.raises(EnrolmentError, match="nobody speaks"):
        enrolled("Ada", [silence], network, SpeechDetector(), InferenceSettings(), NOW)


def test_files_that_still_carry_a_name_are_found_and_no_others(store: DataStore) -> None:
    line = b'{"segments":[{"text":"Bob said speaker","speaker":"Ada","words":[{"speaker":null}]}]}\n'
    with store.replace("transcripts", "2026-11-26-09") as staging:
        (staging.path / "transcripts.jsonl").write_bytes(line)
        (staging.path / "changes.jsonl").write_bytes(b"")
    store.objects.put("versions/abc/00000001.json", line)
    store.objects.put("versions/abd/00000001.json", line.replace(b"Ada", b"speaker_0"))
    assert [key.split("/")[0] for key in carriers(store.objects, "Ada")] == ["transcripts", "versions"]
    assert carriers(store.objects, "Bob") == []  # somebody speaks of Bob


def test_another_enrolment_is_another_object(store: DataStore) -> None:
    """What was deleted must not be confused with what is written next under the same name."""
    enrolments = Enrolments(store.objects)
    first = person("Ada", 1.0, 0.0)
    enrolments.add(first)
    (before,) = [item.key for item in store.objects.list("enrolments")]
    enrolments.add(replace(first, speech_s=10.0))
    (after,) = [item.key for item in store.objects.list("enrolments")]
    assert before != after
