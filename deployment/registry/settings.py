"""The model registry, as `[registry]` in soundstage.toml."""

from pydantic import Field

from deployment.addresses import WebAddress, listens_at
from speech.settings import Section


class RegistrySettings(Section):
    """Where model versions live."""

    tracking_uri: str | None = Field(None, description="MLflow server; None: SQLite and a folder under `home`.")
    ui_url: WebAddress = Field(
        "http://127.0.0.1:5000",
        description="Where people open MLflow; links point there. Behind a proxy `make up` starts it on "
        "127.0.0.1:5000.",
    )
    model_prefix: str = Field("soundstage", description="Registered models are named `<prefix>-<language>`.")

    @property
    def ui_listens(self) -> str:
        """Where MLflow listens on this machine."""
        return listens_at(self.ui_url, 5000)
