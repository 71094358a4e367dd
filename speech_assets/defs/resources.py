"""What the assets work with: the data store and the settings of this deployment."""

import subprocess
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from deployment.settings import Settings
from speech.store import DataStore

if TYPE_CHECKING:
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

        return Registry(self.tracking_uri)

    def model_name(self, language: str) -> str:
        """Name of a language's registered model."""
        return f"{self.settings.registry.model_prefix}-{language}"

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
    return {"workspace": Workspace(home=str(Settings.load().home))}
