"""A small deployment of its own for the tests of the graph: real assets, real training, few steps."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from speech.store.objects import open_objects
from tests.short_recipes import SHORT_LIMITS, write_short_recipes

BASE_STEPS = 24  # nothing that it trains is released
SETTINGS = """
home = "store"
languages = ["en", "de"]
first_quarter = "2024-01"

[synthetic]
minutes = 8
speakers = 40
corrupt = ["en|2024-07"]

[training]
threads = 1
RECIPES

[promotion]
approvers = ["speech-lead"]

LIMITS
"""


@dataclass
class Deployment:
    """The graph over a data store of its own, run in process against a real Dagster instance."""

    home: Path
    materialize: Callable[..., object]
    instance: Any


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the environment is a setting, not even where `deployment` was made in this process."""
    for name in [name for name in os.environ if name.startswith("SOUNDSTAGE_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def empty_registry(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Gives a data store MLflow's database with its tables: making them takes a second or two."""
    from deployment.registry.models import Registry

    made = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    Registry(f"sqlite:///{made}", open_objects(made.parent)).versions("soundstage-en")

    def give(home: Path) -> None:
        (home / "mlflow").mkdir()
        shutil.copy(made, home / "mlflow" / "mlflow.db")

    return give


@pytest.fixture(scope="session")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    settings_file = folder / "soundstage.toml"
    recipes = write_short_recipes(folder, BASE_STEPS)
    settings_file.write_text(SETTINGS.replace("RECIPES", recipes).replace("LIMITS", SHORT_LIMITS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDSTAGE_CONFIG", str(settings_file))
        for name in [name for name in os.environ if name.startswith("SOUNDSTAGE_") and name != "SOUNDSTAGE_CONFIG"]:
            if name != "SOUNDSTAGE_REAL_DATA":
                patch.delenv(name)
        import dagster as dg

        from deployment.settings import Settings
        from speech_assets.definitions import build

        graph = build(Settings.load()).resolve_implicit_global_asset_job_def()
        (folder / "dagster").mkdir()
        with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:

            def materialize(*assets: str, partition: str) -> dg.ExecuteInProcessResult:
                return graph.execute_in_process(
                    asset_selection=[dg.AssetKey(asset) for asset in assets],
                    partition_key=partition,
                    instance=instance,
                    raise_on_error=False,
                )

            yield Deployment(folder / "store", materialize, instance)


@pytest.fixture
def server() -> Iterator[Any]:
    """An HTTP server that keeps what it is sent, and refuses under /down."""
    received: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.append((self.path, json.loads(body) if body.startswith("{") else {"text": body}))
            self.send_response(500 if self.path == "/down" else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(b'{"ok": true}')

        def log_message(self, *arguments: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.received = received  # type: ignore[attr-defined]
    http.url = f"http://127.0.0.1:{http.server_port}"  # type: ignore[attr-defined]
    threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
    yield http
    http.shutdown()
