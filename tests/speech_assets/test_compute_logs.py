"""What steps print is kept where the data store is."""

import random
from pathlib import Path

import pytest

from speech.store.objects import open_objects
from speech_assets.compute_logs import ComputeLogs
from tests.s3_server import BUCKET, S3Server

STEP = ["a_run", "compute_logs", "a_step"]


def printed(home: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What Dagster shows of a step that printed a line, in a deployment with this home."""
    monkeypatch.setenv("SOUNDSTAGE_HOME", home)
    logs = ComputeLogs.from_config_value(None, {"base_dir": str(folder)})
    with logs.capture_logs(STEP):
        print("heard 7 words", flush=True)  # noqa: T201
    return (logs.get_log_data(STEP).stdout or b"").decode()


def test_logs_of_a_home_in_a_folder_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "heard 7 words" in printed(str(tmp_path / "store"), tmp_path / "logs", monkeypatch)
    assert list((tmp_path / "logs").rglob("a_step.out"))


def test_logs_of_a_home_in_s3_lie_there(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = f"s3://{BUCKET}/{random.getrandbits(64)}"
    assert "heard 7 words" in printed(home, tmp_path / "logs", monkeypatch)
    keys = [item.key for item in open_objects(home, tmp_path / "cache").list("dagster")]
    assert [key.rpartition("/")[2] for key in keys] == ["a_step.out"]
