"""What a training is asked for, and the one name of what comes of it.

A training is named by its fingerprint: the graph calls its folder by it, a process that finds the same fingerprint in a
finished folder has nothing to do, and one that finds it beside a checkpoint goes on there. So it is made in one place,
of all that decides the result and of nothing else: how fast, where and under whose eyes a training runs may change on
the way.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from speech.store.objects import Objects, open_objects
from speech.store.outputs import digest_file
from training.network import is_file_base
from training.recipe import load_recipe


class TrackingSpec(BaseModel):
    """Where a run's parameters and metrics are logged."""

    model_config = ConfigDict(extra="forbid")

    tracking_uri: str
    experiment: str = "soundstage"
    tags: dict[str, str] = {}


class StoreSpec(BaseModel):
    """The data store whose keys manifests may name audio by, as `store://` and a key."""

    model_config = ConfigDict(extra="forbid")

    home: str = Field(description="A folder, or s3://bucket/prefix.")
    cache: Path | None = Field(None, description="Folder for local copies of what is in S3.")
    cache_bytes: int | None = Field(None, description="How much of that is kept.")

    def open(self) -> Objects:
        """The objects of the store."""
        return open_objects(self.home, self.cache, self.cache_bytes)


class TrainingSpec(BaseModel):
    """Everything that a run is asked for."""

    model_config = ConfigDict(extra="forbid")

    recipe: str = Field(description="Name of a shipped recipe, or the path of a YAML file.")
    language: str = Field(min_length=2, description="BCP-47 primary tag.")
    name: str = Field(min_length=1, description="The model's name, as people read it.")
    train: list[Path] = Field(min_length=1, description="Manifests whose train rows are learnt from.")
    dev: list[Path] = Field(min_length=1, description="Manifests whose dev rows are measured on.")
    base: str | None = Field(None, description="A trusted .nemo file or a published checkpoint's name.")
    store: StoreSpec | None = Field(None, description="Where manifests' `store://` audio is.")
    output: Path
    seed: int = 0
    overrides: dict[str, Any] = Field({}, description="Recipe fields by dotted name.")
    mlflow: TrackingSpec | None = None
    shared_speakers: bool = Field(
        False, description="Train and dev may share speakers: for a corpus whose official split is by take, say."
    )
    replace: bool = Field(False, description="Train again where another specification's result is finished.")


def fingerprint_of(spec: TrainingSpec) -> str:
    """SHA-256, as hex, of what decides a training's result: recipe, language, name, seed, base, and the data's bytes.

    Raises TrainingError where the recipe cannot be used.
    """
    base = spec.base
    if base is not None and is_file_base(base) and Path(base).is_file():
        base = digest_file(Path(base))
    identity = {
        "recipe": load_recipe(spec.recipe, spec.overrides).deciding(),
        "language": spec.language,
        "name": spec.name,
        "seed": spec.seed,
        "base": base,
        "train": [digest_file(manifest) for manifest in spec.train],
        "dev": [digest_file(manifest) for manifest in spec.dev],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
