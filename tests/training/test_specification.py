"""A training's name: one for all that decides its result, another as soon as any of it changes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from training.recipe import RECIPES
from training.specification import TrackingSpec, TrainingSpec, fingerprint_of


def spec(folder: Path, **changes: Any) -> TrainingSpec:
    manifest = folder / "manifest.jsonl"
    if not manifest.exists():
        manifest.write_text("a row\n")
    asked = {"recipe": "tiny", "language": "en", "name": "en-2024-Q1", "train": [manifest], "dev": [manifest]}
    return TrainingSpec.model_validate({**asked, "output": folder / "out", "overrides": {"threads": 1}, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": {"threads": 8}},
        {"overrides": {"threads": 1, "batch.workers": 2, "batch.cache_mb": 64}},
        {"overrides": {"threads": 1, "report_every_s": 60, "checkpoint_every_s": 5, "checkpoint_every_steps": 9}},
        {"output": Path("elsewhere")},
        {"mlflow": TrackingSpec(tracking_uri="http://another", tags={"dagster_run_id": "7"})},
        {"replace": True},
    ],
)
def test_how_and_where_a_training_runs_does_not_name_it(tmp_path: Path, change: dict[str, Any]) -> None:
    """Half of a backfill was made on another machine: its finished partitions stay finished."""
    assert fingerprint_of(spec(tmp_path, **change)) == fingerprint_of(spec(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"overrides": {"threads": 1, "max_steps": 9}},
        {"recipe": "finetune"},
        {"language": "de"},
        {"name": "en-2024-Q2"},
        {"seed": 7},
        {"base": "a-published-checkpoint"},
    ],
)
def test_what_decides_the_model_names_it(tmp_path: Path, change: dict[str, Any]) -> None:
    assert fingerprint_of(spec(tmp_path, **change)) != fingerprint_of(spec(tmp_path))


def test_data_is_named_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    before, moved = fingerprint_of(spec(tmp_path)), tmp_path / "moved.jsonl"
    moved.write_text("a row\n")
    assert fingerprint_of(spec(tmp_path, train=[moved], dev=[moved])) == before
    moved.write_text("another row\n")
    assert fingerprint_of(spec(tmp_path, train=[moved], dev=[moved])) != before


def test_a_recipes_description_does_not_name_its_models(tmp_path: Path) -> None:
    """A sentence for readers that is corrected trains nothing again."""
    recipe = tmp_path / "own.yaml"
    written = yaml.safe_load((RECIPES / "tiny.yaml").read_text())
    recipe.write_text(yaml.safe_dump(written))
    before = fingerprint_of(spec(tmp_path, recipe=str(recipe)))
    recipe.write_text(yaml.safe_dump({**written, "description": "Said better."}))
    assert fingerprint_of(spec(tmp_path, recipe=str(recipe))) == before
