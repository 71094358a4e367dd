"""What the assets work with: the data store and the settings of this deployment."""

import subprocess
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from deployment.settings import Settings
from speech.store import DataStore

if TYPE_CHECKING:
    from deployment.promotion import Promotions
    from deployment.registry import Registry


class Workspace(dg.ConfigurableResource):
    """The data store of this deployment and what is derived from it."""

    home: str

    @cached_property
    def settings(self) -> Settings:
        """The settings, with the data store of this resource."""
        return Settings.load().model_copy(update={"home": Path(self.home).absolute()})

    @property
    def store(self) -> DataStore:
        """Outputs of asset partitions."""
        return DataStore(self.home)

    @property
    def tracking_uri(self) -> str:
        """Where MLflow keeps runs and model versions."""
        return self.settings.tracking_uri

    def registry(self) -> "Registry":
        """The model registry."""
        from deployment.registry import Registry

        return Registry(self.tracking_uri, cache=self.store.path("bundles"))

    def model_name(self, language: str) -> str:
        """Name of a language's registered model."""
        return f"{self.settings.registry.model_prefix}-{language}"

    def language_of(self, model: str) -> str:
        """The language of a registered model's name.

        Raises:
            dg.Failure: no language of the settings has a model of that name.
        """
        names = {self.model_name(language): language for language in self.settings.languages}
        if model not in names:
            raise dg.Failure(
                f"there is no model '{model}'; this deployment has {', '.join(names)}", allow_retries=False
            )
        return names[model]

    def promotions(self) -> "Promotions":
        """Decisions about champions, with the approvers and thresholds of the settings."""
        from deployment.promotion import Promotions

        return Promotions(
            self.registry(),
            self.store.path("ledger"),
            self.verdicts,
            self.settings.promotion.approvers,
            gates=self.settings.gates,
        )

    def mlflow_run_url(self, record: Mapping[str, Any]) -> str:
        """Where the run of a training record is shown in MLflow."""
        experiment, run = record.get("mlflow_experiment_id", 0), record.get("mlflow_run_id")
        return f"{self.settings.registry.ui_url}/#/experiments/{experiment}/runs/{run}"

    @property
    def verdicts(self) -> Path:
        """Folder of persisted verdicts, one file a bundle digest."""
        return self.store.path("verdicts")


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


def resources() -> dict[str, object]:
    """The resources of this deployment."""
    return {"workspace": Workspace(home=str(Settings.load().home)), "pipes": dg.PipesSubprocessClient()}
