"""The assets of label models: trained together or alone, again for other data, and used only where they passed."""

import datetime as dt
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deployment.registry.label_champions import label_champion
from evaluation.labels import load_label_verdict
from speech.corpus.manifest import Utterance, write_manifest
from speech.corpus.normalize import MANIFEST
from tests.toy_labels import RATE, beeps, hiss

QUARTER = "2024-01"
SHARES = {"de": 0.25, "en": 0.75}  # how the toy tells them; its first label is German here


def voice(number: int, share: float, seed: int) -> np.ndarray:
    """Bursts in a band of the speaker's own, for a share of the time that is the language's."""
    spectrum = np.fft.rfft(beeps(share, 3.0, seed))
    hertz = np.fft.rfftfreq(3 * RATE, 1 / RATE)
    spectrum[(hertz > 600 * number) & (hertz < 600 * number + 1_500)] *= 0.01
    return (np.fft.irfft(spectrum, 3 * RATE) + hiss(3.0, seed) * 0.002).astype(np.float32)


@dataclass
class House:
    """A deployment whose label models a stub trains."""

    workspace: Any
    instance: Any
    log: Path

    def deliver(self, language: str, seed: int = 0) -> None:
        """Publish the validated utterances of the first quarter in a language."""
        from evaluation.corpus.validation import VALIDATION_NAME

        rows = []
        with self.workspace.store.replace("utterances", QUARTER, language) as staging:
            for number in range(10):
                for take in range(3):
                    name = f"{language}-{number}-{take}"
                    sound = voice(number, SHARES[language], seed + 10 * number + take)
                    soundfile.write(staging.path / f"{name}.flac", sound, RATE, subtype="PCM_16")
                    rows.append(
                        Utterance(
                            id=name,
                            audio=f"{name}.flac",
                            duration_s=3.0,
                            text="yes",
                            speaker=f"{language}-{number}",
                            language=language,
                            domain="assistant",
                            recorded_at=dt.date(2024, 1, 15),
                            digest=hashlib.sha256(sound.tobytes()).hexdigest(),
                            split="dev" if number < 5 else "test",
                        )
                    )
            write_manifest(staging.path / MANIFEST, rows)
            (staging.path / VALIDATION_NAME).write_text(json.dumps({"passed": True, "failed": []}))

    def materialize(self, *assets: str) -> Any:
        import dagster as dg

        from speech_assets.definitions import build

        graph = build(self.workspace.settings).resolve_implicit_global_asset_job_def()
        return graph.execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in assets], instance=self.instance, raise_on_error=False
        )

    @property
    def trained(self) -> list[list[str]]:
        """The kinds that each training was asked for."""
        return [json.loads(path.read_text())["kinds"] for path in sorted(self.log.iterdir())]

    def used(self, kind: Any) -> str | None:
        bundle = label_champion(self.workspace.store, kind)
        return None if bundle is None else bundle.digest


@pytest.fixture
def house(deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_registry) -> Any:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import Settings
    from evaluation.labels import LabelGateSettings
    from speech_assets.defs.resources import Workspace

    for folder in ("log", "home", "dagster"):
        (tmp_path / folder).mkdir()
    empty_registry(tmp_path / "home")
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("STUB_SHARPNESS", "20")
    monkeypatch.setattr("evaluation.labels.FOREIGN_CLIPS", 1)  # they take the most time, and are another file's matter
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    settings = Settings.load()
    stub = Path(__file__).parent / "stub_labels.py"
    changes = {
        "home": str(tmp_path / "home"),
        "label_models": settings.label_models.model_copy(update={"command": f"python {stub}"}),
        # the toy knows neither foreign speech nor music
        "label_gates": LabelGateSettings(unknown_languages=0.0, unknown_nonspeech=0.0, equal_error_rate=0.5),
    }
    workspace = Workspace(settings.model_copy(update=changes))
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        made = House(workspace, instance, tmp_path / "log")
        made.deliver("en")
        made.deliver("de")
        yield made


BOTH = ("speaker_model", "language_id_model")


def test_both_are_trained_by_one_process_judged_and_taken_into_use(house: House) -> None:
    """Importing NeMo takes as long as training either."""
    result = house.materialize(*BOTH)
    assert result.success
    assert house.trained == [["speaker", "language"]]
    assert {check.passed for check in result.get_asset_check_evaluations()} == {True}
    for kind in ("speaker", "language"):
        digest = house.used(kind)
        assert digest is not None
        verdict = load_label_verdict(house.workspace.objects, digest)
        assert verdict.passed
        assert len(verdict.dataset_digests) == 2
    assert list((house.workspace.settings.local / "training" / "label_models").iterdir()) == []


def test_a_model_is_made_again_for_other_data_and_not_for_the_same(house: House) -> None:
    assert house.materialize(*BOTH).success
    first = house.used("language")
    assert house.materialize(*BOTH).success
    assert len(house.trained) == 1
    house.deliver("de", seed=1_000)
    assert house.materialize("language_id_model").success
    assert house.trained[1:] == [["language"]]
    assert house.used("language") == first  # the stub makes the same of any data


def test_a_model_that_fails_its_gates_leaves_the_former_one_in_use(house: House, monkeypatch: Any) -> None:
    """A refused candidate must not take identification away from a deployment that had it."""
    assert house.materialize(*BOTH).success
    before = house.used("language")
    monkeypatch.setenv("STUB_SHARPNESS", "-20")  # it takes each for the other
    house.deliver("de", seed=1_000)
    result = house.materialize("language_id_model")
    (check,) = result.get_asset_check_evaluations()
    assert not check.passed
    assert "language_accuracy" in (check.description or "")
    assert house.used("language") == before


def test_without_validated_utterances_of_every_language_nothing_is_trained(house: House) -> None:
    for item in list(house.workspace.objects.list("utterances/2024-01/de")):
        Path(house.workspace.settings.home, item.key).unlink()
    result = house.materialize(*BOTH)
    assert not result.success
    assert house.trained == []
