"""What the graph makes of a training: named once, repeated never, and kept apart from another of the same partition."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from speech.corpus.normalize import MANIFEST
from speech.store.outputs import DataStore

PLACE = ("finetuned_model", "2024-01", "en")
CORPUS = ("utterances", "2024-01", "en")


@dataclass(frozen=True)
class Trainings:
    """A data store in which a partition is trained by a stub of the training command."""

    settings: Any
    log: Path

    def with_threads(self, threads: int) -> "Trainings":
        training = self.settings.training.model_copy(update={"threads": threads})
        return replace(self, settings=self.settings.model_copy(update={"training": training}))

    def train(self, recipe: str = "tiny", served: str | None = None) -> Any:
        """Materialise the partition in process; returns Dagster's result."""
        import dagster as dg

        from speech_assets.defs.models import train
        from speech_assets.defs.processes import SupervisedProcess
        from speech_assets.defs.resources import Workspace

        @dg.asset
        def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
            return train(
                context,
                Workspace(self.settings),
                SupervisedProcess(),
                place=PLACE,
                recipe=recipe,
                name="en-2024-Q1",
                language="en",
                corpora={"2024-01": self.store.current(*CORPUS)},
                base=None,
                served=served,
            )

        with dg.DagsterInstance.ephemeral() as instance:
            return dg.materialize([model], instance=instance)

    @property
    def store(self) -> DataStore:
        """The data store that it works on."""
        return DataStore(self.settings.objects)

    def deliver(self, rows: str) -> None:
        """Publish a corpus to learn from."""
        with self.store.replace(*CORPUS) as staging:
            (staging.path / MANIFEST).write_text(rows)

    @property
    def processes(self) -> int:
        """Training processes started so far."""
        return len(list(self.log.glob("*.json")))

    @property
    def work(self) -> list[Path]:
        """Work folders that are there."""
        return [path for path in self.settings.local.joinpath("training", *PLACE).iterdir() if path.is_dir()]


@pytest.fixture
def trainings(deployment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    from deployment.settings import Settings

    log = tmp_path / "log"
    log.mkdir()
    for name, value in (("STUB_LOG", str(log)), ("STUB_STEP_S", "0"), ("OMP_NUM_THREADS", "1")):
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    stub = Path(__file__).parents[2] / "benchmarks" / "stub_trainer.py"
    training = settings.training.model_copy(update={"command": f"python {stub}"})
    trainings = Trainings(settings.model_copy(update={"home": str(tmp_path / "store"), "training": training}), log)
    trainings.deliver("")
    return trainings


def test_a_training_is_repeated_for_other_inputs_and_not_for_other_threads(trainings: Trainings) -> None:
    """A machine of more cores must not refuse, or make again, what is finished."""
    assert trainings.train().success
    assert trainings.with_threads(7).train().success
    assert trainings.processes == 1
    trainings.deliver("another row\n")
    assert trainings.train().success
    assert trainings.processes == 2


@pytest.mark.parametrize(("served", "networks"), [(None, 0), ("2024-01", 1)])
def test_what_was_trained_is_kept_once(trainings: Trainings, served: str | None, networks: int) -> None:
    """Checkpoint and network lie on the shelf, and nowhere else; nobody serves a base, so its network is not kept."""
    assert trainings.train(served=served).success
    assert trainings.work == []
    assert len(list(trainings.settings.local.rglob("checkpoint.nemo"))) == 1
    assert len(list(trainings.settings.local.rglob("network.onnx"))) == networks


@pytest.mark.parametrize("damaged", ["checkpoint.nemo", "network.onnx"])
def test_a_model_that_was_damaged_is_trained_and_kept_anew(trainings: Trainings, damaged: str) -> None:
    """A disk that lost a part of it must not leave a quarter without a model, nor a damaged one in its place."""
    assert trainings.train(served="2024-01").success
    (file,) = trainings.settings.local.rglob(damaged)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert trainings.train(served="2024-01").success
    assert trainings.processes == 2
    assert file.read_bytes() == whole


def test_a_training_that_ends_leaves_a_sibling_that_is_under_way(trainings: Trainings) -> None:
    """Two runs of one partition, by people who know nothing of each other: neither takes the other's work."""
    from speech_assets.defs.processes import alone_in

    sibling = trainings.settings.local.joinpath("training", *PLACE) / "0123456789abcdef"
    with alone_in(sibling):
        (sibling / "step-7.pt").write_text("weights")
        os.utime(sibling, (0, 0))
        os.utime(sibling / "step-7.pt", (0, 0))
        os.utime(sibling / ".supervised", (0, 0))
        assert trainings.train().success
        assert trainings.work == [sibling]
    trainings.deliver("another row\n")
    assert trainings.train().success
    assert trainings.work == [], "nobody holds it, nor has written into it for long"


def test_a_training_that_was_interrupted_lately_is_left_for_who_goes_on(trainings: Trainings) -> None:
    from speech_assets.defs.processes import alone_in

    sibling = trainings.settings.local.joinpath("training", *PLACE) / "0123456789abcdef"
    with alone_in(sibling):
        (sibling / "step-7.pt").write_text("weights")
    assert trainings.train().success
    assert (sibling / "step-7.pt").exists()


def test_one_training_asked_for_twice_at_once_is_made_once(
    trainings: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second waits for the first, whose folder is gone when its turn comes."""
    monkeypatch.setenv("STUB_STEP_S", "0.05")
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(trainings.train())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [result.success for result in results] == [True, True]
    assert trainings.processes == 1
    assert trainings.work == []


def test_a_recipe_described_better_makes_no_model_stale(tmp_path: Path) -> None:
    """Dagster compares code versions; where `on_change` is set, another one starts a training."""
    import yaml

    from speech_assets.defs.models import recipe_version
    from training.recipe import RECIPES
    from training.settings import TrainingSettings

    recipe = tmp_path / "own.yaml"
    written = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    versions = []
    for change in ({}, {"description": "Said better."}, {"threads": 3}, {"max_steps": 7}):
        recipe.write_text(yaml.safe_dump({**written, **change}))
        versions.append(recipe_version(str(recipe), TrainingSettings()))
    assert versions[0] == versions[1] == versions[2] != versions[3]
