"""What judges label models: rates of known scores, calibration, and gates that refuse."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.labels import (
    Clips,
    LabelGateSettings,
    Pairs,
    calibrated,
    foreign_clips,
    judge_labels,
    nonspeech_clips,
    windowed,
)
from speech.corpus.background import FOREIGN, foreign
from speech.labels import LabelBundle
from tests.toy_labels import beeps, hiss, write_toy_labels


def pairs(same: list[float], different: list[float], speakers: int = 6) -> Pairs:
    cosines = np.array([*same, *different])
    order = np.argsort(cosines, kind="stable")
    draw = np.random.default_rng(0)
    first = draw.integers(speakers, size=len(cosines))
    second = np.where(np.arange(len(cosines)) < len(same), first, (first + 1) % speakers)
    return Pairs(cosines[order], (first == second)[order], first[order], second[order], speakers)


def test_the_equal_error_rate_is_where_misses_and_false_alarms_are_as_many() -> None:
    assert pairs([0.8, 0.9], [0.1, 0.2]).equal_error()[0] == 0.0
    rate, threshold = pairs([0.5, 0.7, 0.8, 0.9], [0.1, 0.2, 0.3, 0.6]).equal_error()
    assert rate == 0.25
    assert threshold == 0.5
    assert pairs([0.1, 0.2], [0.8, 0.9]).equal_error()[0] >= 0.75
    assert math.isnan(pairs([0.5], []).equal_error()[0])


def test_the_rate_does_not_depend_on_how_many_pairs_there_are() -> None:
    """Impostors outnumber the others by far, and the more so the more speakers there are."""
    draw = np.random.default_rng(1)
    same, different = draw.normal(0.7, 0.2, 2_000).tolist(), draw.normal(0.3, 0.2, 20_000).tolist()
    rate = pairs(same, different).equal_error()[0]
    assert rate == pytest.approx(0.1587, abs=0.01)  # of two normal distributions, two deviations apart
    interval = pairs(same, different, speakers=30).interval()
    assert interval.low < rate < interval.high


def language_clips(split: int) -> Clips:
    """Clips of the toy's two languages by four speakers each."""
    sounds = [beeps(share, 4.0, 100 * split + number) for share in (0.25, 0.75) for number in range(8)]
    languages = ["en"] * 8 + ["de"] * 8
    return Clips(tuple(sounds), tuple(f"{one} {n % 4}" for n, one in enumerate(languages)), tuple(languages))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> LabelBundle:
    """A language model that passes, told to be exported well."""
    from speech.labels import LabelDescription, write_label_bundle

    bundle = write_toy_labels(tmp_path_factory.mktemp("toy") / "bundle")
    described = {name: getattr(bundle, name) for name in LabelDescription.__dataclass_fields__}
    said = LabelDescription(**{**described, "parity": {"clips": 40, "equal": 1.0}})
    return write_label_bundle(bundle.path, said)


def test_calibration_gives_probabilities_and_the_bundle_another_digest(toy: LabelBundle, tmp_path: Path) -> None:
    tuned = calibrated(toy, language_clips(1), tmp_path / "tuned")
    assert tuned.digest != toy.digest
    assert tuned.temperature != 1.0
    assert 0.3 <= tuned.threshold <= 0.95
    again = calibrated(toy, language_clips(1), tmp_path / "again")
    assert again.digest == tuned.digest


def test_each_gate_refuses_alone_and_nothing_measured_is_a_refusal(toy: LabelBundle, tmp_path: Path) -> None:
    clips, few = language_clips(2), LabelGateSettings(unknown_languages=0.0, unknown_nonspeech=0.0)
    assert judge_labels(toy, clips, few).passed
    sure_of_all = write_toy_labels(tmp_path / "sure", sharpness=400.0)
    careless = replace(sure_of_all, parity=toy.parity)
    strict = judge_labels(careless, clips, replace_settings(few, unknown_languages=0.5))
    assert [gate.name for gate in strict.gates if not gate.passed] == ["unknown_languages"]
    assert not judge_labels(toy, clips, replace_settings(few, speakers=5)).passed
    english = Clips(clips.sounds[:8], clips.speakers[:8], clips.languages[:8])
    missing = judge_labels(toy, english, few)
    assert [gate.label for gate in missing.gates if not gate.passed] == ["language_accuracy (language=de)"]
    swapped = Clips(clips.sounds, clips.speakers, clips.languages[::-1])
    assert {gate.name for gate in judge_labels(toy, swapped, few).gates if not gate.passed} == {"language_accuracy"}
    unproven = replace(toy, parity={})
    assert {gate.name for gate in judge_labels(unproven, clips, few).gates if not gate.passed} == {"export_parity"}


def replace_settings(settings: LabelGateSettings, **changes: float) -> LabelGateSettings:
    return LabelGateSettings(**{**settings.model_dump(), **changes})


def test_a_speaker_model_that_hears_no_difference_is_refused(tmp_path: Path) -> None:
    bundle = write_toy_labels(tmp_path / "voices", "speaker")
    draw = [hiss(3.0, number) for number in range(24)]
    speakers = tuple(f"en {number % 6}" for number in range(24))
    verdict = judge_labels(bundle, Clips(tuple(draw), speakers, ("en",) * 24))
    (gate,) = [gate for gate in verdict.gates if gate.name == "equal_error_rate"]
    assert not gate.passed
    assert gate.value > 0.3
    voices = [voice(number % 6, number) for number in range(24)]
    (gate,) = [
        gate
        for gate in judge_labels(bundle, Clips(tuple(voices), speakers, ("en",) * 24)).gates
        if gate.name == "equal_error_rate"
    ]
    assert gate.passed, gate.explanation


def voice(number: int, seed: int) -> np.ndarray:
    """Bursts in a band of their own over a faint hiss."""
    spectrum = np.fft.rfft(beeps(0.3, 3.0, seed))
    hertz = np.fft.rfftfreq(48_000, 1 / 16_000)
    spectrum[(hertz < 300 * (number + 1)) | (hertz > 300 * (number + 2))] = 0
    return (np.fft.irfft(spectrum, 48_000) + hiss(3.0, seed) * 0.02).astype(np.float32)


def test_languages_that_a_model_is_judged_on_are_none_that_it_heard() -> None:
    sets = [set(of) for of in FOREIGN.values()]
    assert sum(map(len, sets)) == len(set().union(*sets))
    assert "no" not in foreign("dev", ["no"])
    assert "nb" not in foreign("dev", ["no"])
    assert not set(foreign("train", ["en", "de"])) & {"en", "de"}
    heard = foreign_clips("test", ["pt"])
    assert "pt" not in heard
    assert len(heard) == len(FOREIGN["test"]) - 1
    assert all(1_000 < len(clip) <= 96_000 for clips in heard.values() for clip in clips)
    assert not np.array_equal(nonspeech_clips("dev")[-1], nonspeech_clips("test")[-1])


def test_a_speaker_threshold_is_chosen_on_clips_as_long_as_the_windows_that_it_judges() -> None:
    """A threshold of longer clips splits every speaker in two: shorter clips of one voice are less alike."""
    clips = Clips((np.zeros(60_000, np.float32), np.zeros(9_000, np.float32)), ("a", "b"), ("en", "de"))
    cut = windowed(clips)
    assert [len(sound) for sound in cut.sounds] == [24_000, 24_000, 9_000]
    assert (cut.speakers, cut.languages) == (("a", "a", "b"), ("en", "en", "de"))
    assert windowed(Clips((), (), ())) == Clips((), (), ())
