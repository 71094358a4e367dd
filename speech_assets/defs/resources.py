"""What the assets work with: the data store and the settings of this deployment."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import BaseModel

from deployment.batch.hour import Hour
from deployment.batch.jobs import Jobs
from deployment.promotion.decisions import Promotions
from deployment.registry.models import Registry
from deployment.settings import Settings
from speech.bundle import ModelBundle
from speech.store.objects import Objects, StoreError
from speech.store.outputs import DataStore, parse_json
from speech_assets.defs.partitions import Grid
from speech_assets.defs.processes import SupervisedProcess
from speech_assets.partition_keys import partition_of
from training.recipe import load_recipe

NO_VERSION: dict[str, Any] = {  # settings that are a machine's own, or secret, or of no consequence for results
    **dict.fromkeys(("languages", "first_quarter"), True),  # a graph shows these as its partitions
    **dict.fromkeys(("home", "work", "cache", "cache_bytes", "dagster_url", "owners", "source_code"), True),
    **dict.fromkeys(("pages", "pools", "retraining", "alerts", "serving"), True),
    "registry": {"tracking_uri": True, "ui_url": True},
    "promotion": {"ledger_key": True},
    "inference": dict.fromkeys(("workers", "uploads", "queue", "jobs"), True)
    | {"review": dict.fromkeys(("double_share", "reviewers", "claim_s"), True)},
    "label_models": dict.fromkeys(("threads", "max_runtime_s", "checkpoint_every_s", "command"), True),
    "training": dict.fromkeys(("threads", "max_runtime_s", "pool", "price_per_device_hour"), True),
}
RECIPES = ("base_recipe", "finetune_recipe")
BUNDLE_NAME = "bundle_digest.json"  # names the bundle that a partition of `model_bundle` came to


@dataclass(frozen=True)
class Workspace:
    """The data store of a deployment and what is derived from it.

    A plain object, not a configurable resource: which store a run works on is not a choice of the launchpad.
    """

    settings: Settings

    @cached_property
    def grid(self) -> Grid:
        """Its quarters and languages."""
        return Grid(self.settings)

    @cached_property
    def store(self) -> DataStore:
        """Outputs of asset partitions."""
        return DataStore(self.settings.objects)

    def hour(self, key: str) -> Hour:
        """What is kept of an hour of recordings."""
        return Hour(self.store, key)

    @property
    def jobs(self) -> Jobs:
        """The jobs that people gave over HTTP."""
        return Jobs(self.objects, self.settings.inference, self.settings.languages)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and model versions."""
        return self.settings.tracking_uri

    def registry(self) -> Registry:
        """The model registry."""
        return Registry(self.settings.tracking_uri, self.objects)

    def registered_name(self, language: str) -> str:
        """Name of a language's registered model."""
        return f"{self.settings.registry.model_prefix}-{language}"

    def language_of(self, model: str) -> str:
        """The language of a registered model's name.

        Raises:
            dg.Failure: no language of the settings has a model of that name.
        """
        names = {self.registered_name(language): language for language in self.settings.languages}
        if model not in names:
            raise dg.Failure(
                f"there is no model '{model}'; this deployment has {', '.join(names)}", allow_retries=False
            )
        return names[model]

    def promotions(self) -> Promotions:
        """Decisions about champions, with the approvers, rules and thresholds of the settings."""
        return Promotions.of(self.settings, self.objects)

    def mlflow_run_url(self, record: Mapping[str, Any]) -> str:
        """Where the run of a training record is shown in MLflow."""
        experiment, run = record.get("mlflow_experiment_id"), record.get("mlflow_run_id")
        return f"{self.settings.registry.ui_url}/#/experiments/{experiment}/runs/{run}"

    def bundle(self, quarter: str, language: str) -> ModelBundle:
        """The bundle that the partition's output names, every byte compared with its digest.

        Raises:
            StoreError, BundleError: there is none, or its bytes are others.
        """
        output = self.store.current("model_bundle", quarter, language)
        try:
            digest = str(parse_json(output.read(BUNDLE_NAME))["digest"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{output.key}/{BUNDLE_NAME} cannot be read ({error}): materialise `model_bundle` again"
            ) from error
        return self.registry().shelf.load(digest, f"`finetuned_model` of {partition_of(quarter, language)}")

    @property
    def objects(self) -> Objects:
        """The objects of the data store."""
        return self.store.objects


@cache
def git_revision() -> str:
    """The checked-out revision of this code, '+changes' when the tree differs from it, 'unknown' outside git."""
    root = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version_of(*parts: BaseModel | str) -> str:
    """A code version that changes with the settings behind an asset, so that Dagster shows older output as stale."""
    identity = [part if isinstance(part, str) else part.model_dump(mode="json") for part in parts]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def settings_versions(settings: Settings) -> dict[str, str]:
    """By table, a version of the settings that decide what is made and released; recipes by what they say.

    Two deployments with equal versions, languages, quarters and home do the same work.
    """
    deciding = settings.model_dump(mode="json", exclude=NO_VERSION)
    training = settings.training
    for name in RECIPES:
        deciding["training"][name] = load_recipe(getattr(training, name), training.overrides).deciding()
    return {table: version_of(json.dumps(said, sort_keys=True)) for table, said in deciding.items()}


def resources(settings: Settings) -> dict[str, object]:
    """The resources of a deployment."""
    return {"workspace": Workspace(settings), "pipes": SupervisedProcess()}
