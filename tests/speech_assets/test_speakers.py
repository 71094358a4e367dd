"""Speakers through the real graph: told apart by a model that passed, named where they enrolled, else one a channel."""

from pathlib import Path

import numpy as np

from deployment.batch.enrolment import Calibration, Enrolments, carriers, enrolled
from deployment.batch.verify import verify
from deployment.registry.label_champions import name_label_champion
from deployment.registry.shelf import Shelf
from evaluation.gates import GateResult
from evaluation.labels import REQUIRED, LabelVerdict, save_label_verdict
from speech.labels import LabelBundle, LabelNetwork
from speech.vad import SpeechDetector, VadSettings
from tests.sounds import sound_bytes
from tests.speech_assets.test_inference import NOW, House, house, said  # noqa: F401
from tests.toy_bundle import tones
from tests.toy_labels import RATE, beeps, write_toy_labels

TONES_ARE_SPEECH = VadSettings(threshold=0.002, release=0.001)  # a network of voices doubts them
ADA, BOB = 0.2, 0.8  # a toy speaker is told by how much of the time there is a noise behind the words


def conversation(*turns: tuple[float, tuple[str, ...]]) -> bytes:
    pause = np.zeros(16_000, np.float32)
    parts = [part for voice, words in turns for part in (pause, speech_of(voice, words))]
    return sound_bytes(np.concatenate([*parts, pause]))


def speech_of(voice: float, words: tuple[str, ...]) -> np.ndarray:
    clean = tones(words)
    return clean + 0.05 * beeps(voice, len(clean) / RATE)


def with_speaker_model(house: House, folder: Path, name: str = "toy") -> LabelBundle:  # noqa: F811
    store = house.workspace.store
    bundle = Shelf(store.objects).put_labels(write_toy_labels(folder / name, "speaker", name=name))
    gates = tuple(GateResult(gate, 0.0, 0.0, True, "Measured.") for gate in REQUIRED["speaker"])
    save_label_verdict(LabelVerdict("speaker", bundle.digest, bundle.name, True, gates), store.objects)
    name_label_champion(store, bundle)
    return bundle


FIRST, SECOND = ("one", "two", "three", "four", "five"), ("six", "seven", "eight", "nine", "six")


def test_speakers_are_told_apart_and_their_words_are_theirs(house: House, tmp_path: Path) -> None:  # noqa: F811
    bundle = with_speaker_model(house, tmp_path)
    house.upload(en__call_wav=conversation((ADA, FIRST), (BOB, SECOND), (ADA, FIRST)))
    house.receive()
    assert house.changed(vad=TONES_ARE_SPEECH, workers=1).transcribe().success
    one = house.digests()
    assert house.changed(vad=TONES_ARE_SPEECH, workers=3).transcribe().success
    assert house.digests() == one
    (transcript,) = house.hour.transcripts()
    by_speaker: dict[str, set[str]] = {}
    for word in transcript.words:
        by_speaker.setdefault(str(word.speaker), set()).add(word.text)
    assert set(by_speaker) == {"speaker_0", "speaker_1"}
    assert by_speaker["speaker_0"] <= set(FIRST)
    assert by_speaker["speaker_1"] <= set(SECOND)
    assert transcript.model_digests["speakers"] == bundle.digest
    assert "speakers" not in transcript.degraded
    assert {line.split()[7] for line in transcript.to_rttm("r").splitlines()} == {"speaker_0", "speaker_1"}
    assert "<v speaker_1>" in transcript.to_vtt()


def test_without_a_speaker_model_everybody_is_one_and_the_transcript_says_so(house: House) -> None:  # noqa: F811
    house.upload(en__call_wav=said("one", "two"), silence_wav=sound_bytes(np.zeros(32_000, np.float32)))
    house.receive()
    assert house.transcribe().success
    spoken = {bool(found.words): found for found in house.hour.transcripts()}
    assert {word.speaker for word in spoken[True].words} == {"speaker_0"}
    assert spoken[True].degraded == ("speakers",)
    assert spoken[False].degraded == ()  # nobody to tell apart


def test_who_enrolled_is_named_until_forgotten_or_the_model_is_another(house: House, tmp_path: Path) -> None:  # noqa: F811
    bundle = with_speaker_model(house, tmp_path)
    objects = house.workspace.objects
    settled = house.changed(vad=TONES_ARE_SPEECH)
    alone = tmp_path / "ada.wav"
    alone.write_bytes(conversation((ADA, FIRST), (ADA, FIRST)))
    person = enrolled("Ada", [alone], LabelNetwork(bundle), SpeechDetector(), settled.workspace.settings.inference, NOW)
    enrolments = Enrolments(objects)
    enrolments.add(person)
    enrolments.keep_calibration(
        bundle.digest, Calibration(threshold=0.5, false_accepts=0.01, strangers=40, trials=4000)
    )
    house.upload(en__call_wav=conversation((ADA, FIRST), (BOB, SECOND)))
    house.receive()
    assert settled.transcribe().success
    (named,) = house.hour.transcripts()
    assert {segment.speaker for segment in named.segments} == {"Ada", "speaker_1"}
    assert verify(named, objects).outcome == "equal"

    with_speaker_model(house, tmp_path, "another")
    result = settled.transcribe()
    (told,) = [e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == "speaker_turns"]
    assert told.materialization.metadata["enrolled_with_a_former_model"].value == 1
    (unnamed,) = house.hour.transcripts()
    assert {segment.speaker for segment in unnamed.segments} == {"speaker_0", "speaker_1"}

    assert enrolments.forget("Ada") == 1
    assert not list(objects.list("enrolments"))
    assert {key.split("/")[0] for key in carriers(objects, "Ada")} >= {"transcripts", "versions"}
