"""Where the services of `make up` listen, and where people open them."""

from pathlib import Path

import pytest

from deployment.settings import Settings
from speech_assets.local.services import Service, services


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    path = tmp_path / "soundstage.toml"
    path.write_text(
        """
dagster_url = "https://dagster.example.org"
[registry]
ui_url = "https://mlflow.example.org"
[pages]
url = "http://127.0.0.1:5101"
[serving]
host = "::1"
"""
    )
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(path))
    return {service.name: service for service in services(Settings.load())}


def test_a_service_behind_a_proxy_listens_on_this_machine(started: dict[str, Service]) -> None:
    dagster, mlflow = started["Dagster"], started["MLflow"]
    assert dagster.url == "https://dagster.example.org"
    assert dagster.listens == "http://127.0.0.1:3000"
    assert dagster.command[-4:] == ("-h", "127.0.0.1", "-p", "3000")
    assert mlflow.command[mlflow.command.index("--host") :][:4] == ("--host", "127.0.0.1", "--port", "5000")
    allowed = mlflow.command[mlflow.command.index("--allowed-hosts") + 1].split(",")
    assert {"mlflow.example.org", "127.0.0.1:*"} <= set(allowed), "MLflow refuses hosts that it was not told of"


def test_the_others_listen_where_people_open_them(started: dict[str, Service]) -> None:
    assert started["Pages"].url == started["Pages"].listens == "http://127.0.0.1:5101"
    assert started["Transcription"].listens == "http://[::1]:8080"
