"""Where the services of `make up` listen, and where people open them."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from deployment.settings import Settings
from speech_assets.local.services import ROOT, Service, environment, services

pytestmark = pytest.mark.usefixtures("no_settings")


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


@pytest.mark.parametrize("named", [None, "team.toml", "deep/team.toml"])
def test_a_service_reads_the_settings_of_the_command_that_started_it(
    named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services run in the folder of this code: its own soundstage.toml must not apply to another team's data store."""
    ours = tmp_path / (named or "soundstage.toml")
    ours.parent.mkdir(exist_ok=True)
    ours.write_text('sources = [{kind = "table", path = "audio"}]\n[promotion]\napprovers = ["ann"]\n')
    monkeypatch.chdir(tmp_path)
    if named:
        monkeypatch.setenv("SOUNDSTAGE_CONFIG", named)
    read = _read_by_a_service()
    assert read == _of_this_command()
    assert read.promotion.approvers == ("ann",)
    assert read.sources[0].path == str(ours.parent / "audio")


def test_a_service_has_the_defaults_where_its_command_had_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDSTAGE_CACHE", "copies")
    read = _read_by_a_service()
    assert read == _of_this_command()
    assert read.home == str(tmp_path / ".soundstage")
    assert read.cache == tmp_path / "copies"
    assert read.promotion.approvers == ()


@pytest.mark.parametrize("bytes_left", [10, 50_000])  # not for the lock, and not for Dagster's database
def test_a_full_data_store_is_one_sentence(bytes_left: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, bytes_left))

    ended = subprocess.run(
        [sys.executable, "-m", "speech_assets.cli", "up"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    (said,) = ended.stderr.splitlines()
    assert said.startswith(f"error: the data store {tmp_path}/.soundstage cannot be used (")
    assert said.endswith("): make room there, or name another `home`")


def _of_this_command() -> Settings:
    settings = Settings.load()
    return settings.model_copy(update={"work": settings.local})  # which services are told in any case


def _read_by_a_service() -> Settings:
    """The settings as a process reads them that is started as services are."""
    code = (
        "import pickle, sys; from deployment.settings import Settings;"
        "sys.stdout.buffer.write(pickle.dumps(Settings.load()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(Settings.load()), capture_output=True, check=True
    )
    found = pickle.loads(done.stdout)
    assert isinstance(found, Settings)
    return found
