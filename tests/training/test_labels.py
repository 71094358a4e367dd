"""Training of label models: killed and resumed, exported to what says the same, and refused for data that cannot teach.

The processes are forked from one that has imported NeMo.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech.corpus.manifest import read_manifest, write_manifest
from speech.labels import UNKNOWN, LabelBundle, LabelNetwork
from speech.store.outputs import digest_file
from tests.training.forked import Command
from tests.training.toy_corpus import write_toy_corpus
from training.labels.data import Batches, examples_of, rows_of_manifests
from training.labels.run import LabelSpec, fingerprint_of
from training.labels.settings import LabelTrainingSettings

ROOT = Path(__file__).parents[2]
TINY: dict[str, Any] = {
    "width": 16,
    "dimensions": 8,
    "batch": 6,
    "speaker_steps": 12,
    "language_steps": 12,
    "foreign_clips": 1,
    "checkpoint_every_s": 1e-9,
    "threads": 1,
}


@dataclass(frozen=True)
class Story:
    """A training that was killed and finished, and one that was left alone."""

    output: Path
    finished: subprocess.CompletedProcess[str]
    undisturbed: Path

    def bundle(self, kind: str) -> LabelBundle:
        return LabelBundle.load(self.output / kind / "bundle")


def specification(folder: Path, output: str, manifest: Path) -> Path:
    path = folder / f"{output}.json"
    document = {"kinds": ["language", "speaker"], "manifests": [str(manifest)], "output": str(folder / output)}
    path.write_text(json.dumps({**document, "settings": TINY}))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_corpus(tmp_path_factory.mktemp("corpus"), train_speakers=8, dev_speakers=2, each=3)


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Story:
    folder = tmp_path_factory.mktemp("labels")
    spec = specification(folder, "out", corpus)
    victim = Command("train-labels", str(spec))
    deadline = time.monotonic() + 240
    while not list((folder / "out" / "language" / "checkpoints").glob("step-*.pt")):
        assert time.monotonic() < deadline
        assert victim.poll() is None, victim.end().stderr
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    assert victim.end().returncode == -signal.SIGKILL
    finished = Command("train-labels", str(spec)).end()
    assert finished.returncode == 0, finished.stderr
    alone = Command("train-labels", str(specification(folder, "alone", corpus))).end()
    assert alone.returncode == 0, alone.stderr
    return Story(folder / "out", finished, folder / "alone")


def test_a_training_that_was_killed_ends_in_the_models_of_one_that_was_not(story: Story) -> None:
    """A model is named by its digest, whatever became of the machines that made it."""
    assert "going on at step" in story.finished.stdout
    for kind in ("language", "speaker"):
        assert story.bundle(kind).digest == LabelBundle.load(story.undisturbed / kind / "bundle").digest
        kept = [digest_file(output / kind / "checkpoint.nemo") for output in (story.output, story.undisturbed)]
        assert kept[0] == kept[1]
        assert not (story.output / kind / "checkpoints").exists()


def test_a_bundle_says_what_its_checkpoint_does(story: Story) -> None:
    for kind in ("language", "speaker"):
        parity = story.bundle(kind).parity
        assert (parity["clips"], parity["equal"]) == (6, 1.0)
        assert parity["cosine_difference"] <= 1e-4


def test_a_speaker_model_keeps_no_voice_and_a_language_model_knows_unknown(story: Story) -> None:
    """The classes of a speaker model are people; its bundle goes to every machine that transcribes."""
    assert story.bundle("speaker").labels == ()
    assert story.bundle("language").labels == ("en", UNKNOWN)
    record = json.loads((story.output / "speaker" / "training.json").read_text())
    assert (record["classes"], record["labels"]) == (8, [])
    assert b"speaker-1" not in (story.output / "speaker" / "bundle" / "network.onnx").read_bytes()


def test_a_clip_of_a_trained_network_has_the_same_bits_in_any_company(story: Story) -> None:
    """Equal lengths share a run of the network, others do not."""
    draw = np.random.default_rng(0)
    clips = [draw.standard_normal(16_000 + 1_600 * (place % 3)).astype(np.float32) * 0.1 for place in range(50)]
    for kind in ("language", "speaker"):
        network = LabelNetwork(story.bundle(kind))
        together = network.embeddings(clips)
        for place in (0, 1, 17, 49):
            assert network.embeddings([clips[place]]).tobytes() == together[place].tobytes()
    longest = draw.standard_normal(16_000 * 50).astype(np.float32)
    assert np.isfinite(network.embeddings([longest])).all()


def test_the_same_command_again_returns_at_once(story: Story) -> None:
    """A re-materialised asset with nothing new costs seconds."""
    spec = story.output.parent / "out.json"
    said = _typed("train-labels", str(spec))
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("already trained") == 2
    assert "loading NeMo" not in said.stdout


def test_too_few_voices_are_refused_in_a_sentence(corpus: Path, tmp_path: Path) -> None:
    rows = [row for row in read_manifest(corpus) if row.speaker in ("speaker-0", "speaker-1", "speaker-9")]
    write_manifest(tmp_path / "few.jsonl", rows)
    manifest = str(tmp_path / "few.jsonl")
    said = _typed("train-labels", "--kind", "speaker", "--manifest", manifest, "--output", str(tmp_path / "out"))
    assert said.returncode == 2
    assert "a speaker model needs 8" in said.stderr
    assert "Traceback" not in said.stderr
    said = _typed("train-labels", "--kind", "voices", "--manifest", manifest, "--output", str(tmp_path / "out"))
    assert (said.returncode, "'kinds.0' is wrong" in said.stderr) == (2, True)


def test_a_model_is_named_by_what_decides_it_and_by_nothing_else(corpus: Path, tmp_path: Path) -> None:
    """Longer training of voices, more threads or another folder must not train languages anew."""

    def named(folder: Path, **changes: Any) -> str:
        settings = LabelTrainingSettings.model_validate({**TINY, **changes})
        spec = LabelSpec(kinds=["language"], manifests=[corpus], output=folder, settings=settings)
        return fingerprint_of(spec, "language")

    name = named(tmp_path / "a")
    assert named(tmp_path / "b", threads=7, speaker_steps=99, command="other", checkpoint_every_s=5.0) == name
    assert len({name, named(tmp_path, language_steps=13), named(tmp_path, seed=1), named(tmp_path, width=32)}) == 4


def test_an_example_depends_on_the_seed_and_its_step_alone(corpus: Path) -> None:
    settings = LabelTrainingSettings.model_validate(TINY)
    rows = [row for row in rows_of_manifests([corpus])[0] if row.split == "train"]
    examples = examples_of("language", rows, settings)
    one, other = Batches(examples, settings), Batches(examples_of("language", rows[::-1], settings), settings)
    for step in (5, 2):
        (clips, classes), (again, same) = one[step], other[step]
        assert clips.tobytes() == again.tobytes()
        assert classes.tolist() == same.tolist()
        assert clips.dtype == np.float32
        assert np.abs(clips).max() <= 1.0
    lengths = {one[step][0].shape[1] for step in range(12)}
    assert min(lengths) >= 24_000
    assert max(lengths) <= 48_000
    assert len(lengths) > 6


def _typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speech_assets.cli", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
