"""`make demo` as a user runs it, with few training steps: real Dagster, MLflow and server, twice."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.short_recipes import SHORT_LIMITS, write_short_recipes

ROOT = Path(__file__).parents[2]
# A release is refused where the model hears nothing in the shortest utterances of the benchmark. In one word alone a
# model of so few steps often hears nothing: this deployment takes longer utterances, and rejects the third that is not.
LIMITS = SHORT_LIMITS.replace("[corpus]\n", "[corpus]\nmin_duration_s = 1.5\nmax_rejected_share = 0.5\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def settings_file(in_memory: Path) -> Path:
    path = in_memory / "soundstage.toml"
    path.write_text(
        f"""
home = "store"
dagster_url = "http://127.0.0.1:{free_port()}"

[synthetic]
minutes = 14

[training]
threads = 1
{write_short_recipes(in_memory)}

[label_models]
speaker_steps = 4
language_steps = 4

[registry]
ui_url = "http://127.0.0.1:{free_port()}"
[pages]
url = "http://127.0.0.1:{free_port()}"
[serving]
port = {free_port()}

[promotion]
approvers = ["speech-lead"]

{LIMITS}
"""
    )
    return path


def demo(settings_file: Path) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SOUNDSTAGE_", "DAGSTER_"))}
    return subprocess.run(
        [sys.executable, "-m", "speech_assets.cli", "demo"],
        cwd=ROOT,
        env={**environment, "SOUNDSTAGE_CONFIG": str(settings_file), "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=1_700,
        check=False,
    )


def test_the_demo_ends_with_a_served_model_and_the_corrupt_quarter_refused(settings_file: Path) -> None:
    ended = demo(settings_file)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    table = ended.stdout.split("Quarters")[-1]
    assert "2024 Q3, en" in table
    refused = next(line for line in table.splitlines() if "2024 Q3, en" in line)
    assert "refused" in refused
    assert "challenger" not in refused
    assert table.count("passed") == 3
    assert "champion" in table
    store = settings_file.parent / "store"
    ledger = [json.loads(path.read_bytes()) for path in sorted((store / "ledger" / "en").iterdir())]
    assert [entry["action"] for entry in ledger] == ["approve"]
    document = json.loads((store / "release" / "release.json").read_text())
    assert document["languages"]["en"]["routes"][0]["digest"] == ledger[0]["digest"]
    (hour,) = {path.parent.name for path in (store / "arrivals" / "hours").glob("*/*.json")}
    assert (store / "review_tasks" / hour / "current").exists()
    uploads = ended.stdout.split("Recordings of")[-1].split("Quarters")[0]
    assert "dead letter" in uploads
    assert uploads.count("en/") >= 4
    call = next(line for line in uploads.splitlines() if "en/call.wav" in line)
    assert [cell.strip() for cell in call.split("│")][3] == "2", "a speaker a channel"


def test_a_second_run_recomputes_nothing(settings_file: Path) -> None:
    """Nothing changed, so no training runs again and the whole takes as long as starting the servers."""
    records = {path: path.stat().st_mtime_ns for path in settings_file.parent.glob("store/*_model/**/training.json")}
    assert len(records) == 7
    started = time.monotonic()
    ended = demo(settings_file)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert time.monotonic() - started < 120
    assert {path: path.stat().st_mtime_ns for path in records} == records
    assert "champion already" in ended.stdout
