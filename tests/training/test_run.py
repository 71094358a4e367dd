"""The training command as people and the graph use it: a process that is killed, resumed, stopped, refused.

One story of four processes carries most of the promises, and those that train are forked from one that has imported
NeMo; what needs no NeMo, or starts processes itself, is the command as people type it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from speech.bundle import ModelBundle
from speech.corpus.manifest import read_manifest, write_manifest
from speech.store.outputs import digest_file
from tests.training.forked import Command
from tests.training.toy_corpus import write_toy_corpus

ROOT = Path(__file__).parents[2]
STEPS = 40
TINY_NETWORK = {
    "max_steps": STEPS,
    "evaluate_every": STEPS // 4,
    "checkpoint_every_steps": 2,
    "report_every_s": 0.2,
    "threads": 1,
    "model.width": 16,
    "model.layers": 1,
    "model.heads": 2,
    "model.subsampling_channels": 8,
    "batch.seconds": 4,
    "tokenizer.vocabulary_size": 48,
}


@dataclass(frozen=True)
class Story:
    """A run that was killed, told to stop, finished, and called again; and one that was left alone."""

    output: Path
    killed_at: int
    stopped: subprocess.CompletedProcess[str]
    finished: subprocess.CompletedProcess[str]
    again: subprocess.CompletedProcess[str]
    again_s: float
    undisturbed: Path


def _spec(folder: Path, manifest: Path, **changes: Any) -> Path:
    document = {
        "recipe": "tiny",
        "language": "en",
        "name": "en-2024-Q1",
        "train": [str(manifest)],
        "dev": [str(manifest)],
        "output": str(folder / "out"),
        "seed": 3,
        "overrides": TINY_NETWORK,
        **changes,
    }
    path = folder / f"{Path(document['output']).name}.json"
    path.write_text(json.dumps(document))
    return path


def _run(spec: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speech_assets.cli", "train", str(spec), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def _wait_for_step(command: Command, checkpoints: Path, step: int) -> int:
    """Return the newest checkpoint's step once it has reached `step`."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        steps = [int(path.stem.removeprefix("step-")) for path in checkpoints.glob("step-*.pt")]
        if steps and max(steps) >= step:
            return max(steps)
        if command.poll() is not None:
            pytest.fail(f"ended early with {command.poll()}: {command.end().stderr}")
        time.sleep(0.01)
    command.send_signal(signal.SIGKILL)
    pytest.fail(f"no checkpoint of step {step} after 240 s")


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("run")
    manifest = write_toy_corpus(folder / "corpus")
    output = folder / "out"
    spec = _spec(folder, manifest)

    victim = Command("train", str(spec))
    _wait_for_step(victim, output / "checkpoints", 2)
    victim.send_signal(signal.SIGKILL)
    assert victim.end().returncode == -signal.SIGKILL
    killed_at = max(int(path.stem.removeprefix("step-")) for path in (output / "checkpoints").glob("step-*.pt"))

    process = Command("train", str(spec))
    _wait_for_step(process, output / "checkpoints", STEPS // 4 + 2)  # the network was listened to in between
    process.send_signal(signal.SIGTERM)
    stopped = process.end()
    finished = Command("train", str(spec)).end()
    began = time.monotonic()
    again = _run(spec)
    again_s = time.monotonic() - began
    alone = Command("train", str(_spec(folder, manifest, output=str(folder / "alone")))).end()
    assert alone.returncode == 0, alone.stderr
    return Story(output, killed_at, stopped, finished, again, again_s, folder / "alone")


def _record(output: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((output / "training.json").read_text())
    return record


def test_a_killed_run_goes_on_where_its_checkpoint_was(story: Story) -> None:
    """Spot machines and nodes go away; hours of training must not go with them."""
    record = _record(story.output)
    assert 0 < story.killed_at < record["resumed_from"] <= STEPS
    assert f"resuming: going on at step {record['resumed_from']}." in story.finished.stdout
    assert record["steps"] == STEPS
    assert [entry["step"] for entry in record["history"]] == [STEPS // 4, STEPS // 2, STEPS * 3 // 4, STEPS]


def test_sigterm_saves_a_checkpoint_and_says_so(story: Story) -> None:
    """Kubernetes sends SIGTERM before it takes a node away."""
    assert story.stopped.returncode == 143, story.stopped.stderr
    assert "the same command goes on" in story.stopped.stderr
    assert "Traceback" not in story.stopped.stderr


def test_an_interrupted_run_ends_in_the_model_of_an_undisturbed_one(story: Story) -> None:
    """What a bundle holds depends on its specification, not on the fate of the machines: equal digests prove it."""
    assert story.finished.returncode == 0, story.finished.stderr
    assert "epoch" in story.finished.stdout
    undisturbed = ModelBundle.load(story.undisturbed / "bundle")
    assert ModelBundle.load(story.output / "bundle").digest == undisturbed.digest
    checkpoints = [digest_file(output / "checkpoint.nemo") for output in (story.output, story.undisturbed)]
    assert checkpoints[0] == checkpoints[1], "what fine-tunes start from is named by its digest"
    assert _record(story.undisturbed)["resumed_from"] is None


def test_a_finished_run_leaves_what_the_graph_reads(story: Story) -> None:
    """The graph registers, evaluates and serves from these files."""
    record = _record(story.output)
    bundle = ModelBundle.load(story.output / "bundle", expected_digest=record["bundle_digest"])
    assert bundle.language == "en"
    assert bundle.name == "en-2024-Q1"
    assert bundle.calibration is None
    assert record["parity"]["equal"] >= 0.9
    assert (story.output / "checkpoint.nemo").stat().st_size > 10_000
    assert not (story.output / "checkpoints").exists()
    assert not (story.output / ".staging").exists()
    assert set(record) >= {
        "steps", "epochs", "loss", "dev_wer", "seconds", "audio_hours_seen", "manifest_digests", "recipe", "seed",
        "hardware", "mlflow_run_id", "resumed_from", "bundle_digest", "train", "dev",
    }  # fmt: skip
    assert record["train"]["utterances"] == 24
    assert record["train"]["speakers"] == 4
    progress = json.loads((story.output / "progress.json").read_text())
    assert (progress["phase"], progress["step"], progress["max_steps"]) == ("finished", STEPS, STEPS)
    assert set(progress) >= {"epoch", "loss", "wer", "audio_s_per_s", "eta_s", "updated_at"}


def test_a_finished_run_called_again_returns_at_once(story: Story) -> None:
    """A re-materialised partition with nothing new costs seconds, not a training."""
    assert story.again.returncode == 0, story.again.stderr
    assert "already trained" in story.again.stdout
    assert story.again_s < 15


def test_another_specification_does_not_overwrite_a_finished_result(story: Story, tmp_path: Path) -> None:
    """A typing error in --output must not cost a model."""
    before = (story.output / "training.json").read_bytes()
    manifest = story.output.parent / "corpus" / "manifest.jsonl"
    refused = _run(_spec(tmp_path, manifest, output=str(story.output), seed=4))
    assert refused.returncode == 2
    assert "another specification" in refused.stderr
    assert (story.output / "training.json").read_bytes() == before


def test_a_fine_tune_keeps_the_tokenizer_and_geometry_of_its_base(story: Story, tmp_path: Path) -> None:
    """A quarter's model replaces its base in serving without anything else changing; MLflow shows how it was made."""
    manifest = story.output.parent / "corpus" / "manifest.jsonl"
    tracking = f"sqlite:///{tmp_path / 'mlflow.db'}"
    spec = _spec(
        tmp_path,
        manifest,
        recipe="finetune",
        base=str(story.output / "checkpoint.nemo"),
        overrides={
            **{key: value for key, value in TINY_NETWORK.items() if not key.startswith(("model", "tokenizer"))},
            "variants": ["int8"],
        },
        mlflow={"tracking_uri": tracking, "experiment": "toy", "tags": {"quarter": "2024-01"}},
    )
    ended = Command("train", str(spec), "--set", "max_steps=4").end()
    assert ended.returncode == 0, ended.stderr
    rows = list(read_manifest(manifest))
    assert f"readings of written forms chosen for 0 of {len(rows)} utterances" in ended.stdout
    assert "0/4" not in ended.stdout.partition("evaluated")[0], "steps are counted once they are taken"
    base, tuned = ModelBundle.load(story.output / "bundle"), ModelBundle.load(tmp_path / "out" / "bundle")
    assert tuned.vocabulary == base.vocabulary
    assert tuned.geometry == base.geometry
    assert tuned.digest != base.digest
    assert "int8" in tuned.variants
    record = _record(tmp_path / "out")
    assert record["steps"] == 4
    assert record["history"][0]["step"] == 0, "the base itself is the first candidate"
    assert record["dev_wer"] <= record["history"][0]["wer"]
    assert logged_experiment(tracking, record["mlflow_experiment_id"]) == "toy"

    from mlflow.tracking import MlflowClient

    logged = MlflowClient(tracking_uri=tracking).get_run(record["mlflow_run_id"])
    assert logged.info.status == "FINISHED"
    assert logged.data.tags["quarter"] == "2024-01"
    assert logged.data.params["optimizer.learning_rate"] == str(record["recipe"]["optimizer"]["learning_rate"])
    assert logged.data.metrics["final_dev_wer"] == pytest.approx(record["dev_wer"])


def test_two_processes_train_one_model(story: Story, tmp_path: Path) -> None:
    """Several GPUs are processes that share the data and average their gradients; two on the CPU do the same."""
    manifest = story.output.parent / "corpus" / "manifest.jsonl"
    overrides = {**TINY_NETWORK, "devices": 2, "accelerator": "cpu", "max_steps": 4, "evaluate_every": 2}
    ended = _run(_spec(tmp_path, manifest, overrides=overrides))
    assert ended.returncode == 0, ended.stderr
    record = _record(tmp_path / "out")
    assert record["steps"] == 4
    assert record["hardware"]["devices"] == 2
    assert [entry["step"] for entry in record["history"]] == [2, 4]
    assert ended.stdout.count("GLOBAL_RANK") == 0, "one process speaks for both"
    ModelBundle.load(tmp_path / "out" / "bundle", expected_digest=record["bundle_digest"])


def logged_experiment(tracking: str, experiment_id: str) -> str:
    from mlflow.tracking import MlflowClient

    return str(MlflowClient(tracking_uri=tracking).get_experiment(experiment_id).name)


def _refusal(spec: Path, *flags: str) -> str:
    ended = _run(spec, *flags)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].endswith(".")
    return lines[0]


def test_an_empty_partition_is_refused_in_one_sentence(tmp_path: Path) -> None:
    """The first quarter of a new language often is empty; a person must see that and no traceback."""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("")
    assert "the partition is empty" in _refusal(_spec(tmp_path, manifest))


def test_a_single_speaker_is_refused_for_want_of_a_dev_set(tmp_path: Path) -> None:
    """Measured on the voice it learnt, any model looks good."""
    manifest = write_toy_corpus(tmp_path, train_speakers=1, dev_speakers=0)
    assert "single speaker ('speaker-0')" in _refusal(_spec(tmp_path, manifest))
    rows = list(read_manifest(manifest))
    write_manifest(manifest, [replace(row, split="dev" if place == 0 else "train") for place, row in enumerate(rows)])
    assert "both train and dev (speaker-0)" in _refusal(_spec(tmp_path, manifest))


def test_a_missing_manifest_an_unknown_recipe_and_unreadable_audio_are_refused(tmp_path: Path) -> None:
    """Each is found within seconds, before anything slow is loaded."""
    manifest = write_toy_corpus(tmp_path)
    assert "does not exist" in _refusal(_spec(tmp_path, tmp_path / "none.jsonl"))
    assert "choose one of finetune, small, tiny" in _refusal(_spec(tmp_path, manifest, recipe="huge"))
    assert "'optimizer.rate'" in _refusal(_spec(tmp_path, manifest), "--set", "optimizer.rate=1")
    for value in ("[1", "2024-13-01", "{a: b: c}"):
        refused = _refusal(_spec(tmp_path, manifest), "--set", f"batch.seconds={value}")
        assert f"--set batch.seconds={value}: '{value}' is not a value as YAML writes it" in refused
    assert "'seed'" in _refusal(_spec(tmp_path, manifest, seed="soon"))
    (tmp_path / "s1-2.flac").write_bytes(b"no sound")
    assert "'s1-2' cannot be read" in _refusal(_spec(tmp_path, manifest))
