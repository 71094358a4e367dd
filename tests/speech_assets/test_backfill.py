"""The command line of backfills: what it refuses, and what it says at the end, against a stand-in for Dagster."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from deployment.settings import Settings, SettingsError
from speech_assets.backfill import refuse_other_settings
from speech_assets.cli import app
from speech_assets.dagster_client import Deployment

ROOT = Path(__file__).parents[2]
MADE = {"numPartitionsTargeted": 1, "numPartitionsMaterialized": 1, "numPartitionsInProgress": 0}
ASSET = {"assetKey": {"path": ["recordings"]}, **MADE, "numPartitionsFailed": 0}
NODE = {
    "partitionKeysByDimension": [
        {"name": "language", "partitionKeys": ["en", "de"]},
        {"name": "quarter", "partitionKeys": ["2024-01", "2024-04"]},
    ],
    "metadataEntries": [{"label": "soundstage/home", "text": str(ROOT / ".soundstage")}],
}
ANSWERS = {
    "assetNodes": [NODE],
    "launchPartitionBackfill": {"__typename": "LaunchBackfillSuccess", "backfillId": "abc"},
    "partitionBackfillOrError": {
        "__typename": "PartitionBackfill",
        "status": "COMPLETED_SUCCESS",
        "error": None,
        "assetBackfillData": {"assetBackfillStatuses": [ASSET]},
    },
}


@pytest.fixture(scope="module")
def dagster() -> Iterator[str]:
    """Answers as Dagster does for a backfill that has ended."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"data": ANSWERS}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


Backfill = Callable[..., tuple[int, str]]


@pytest.fixture
def backfill(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Backfill:
    """Calls the command; returns its exit code and what it said."""
    for name in [name for name in os.environ if name.startswith(("SOUNDSTAGE_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "600")
    monkeypatch.chdir(ROOT)

    def call(*arguments: str, **variables: str) -> tuple[int, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as ended:
            app(["backfill", *arguments])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out + said.err

    return call


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--quarters", "[/x]"), "'[/x]' is no quarter of this deployment"),
        (("--quarters", "2025-01:2024-01"), "'2025-01:2024-01' runs backwards: write 2024-01:2025-01"),
        (("--assets", "[/foo]"), "[/foo]: choose from corpus, models, evaluation"),
    ],
)
def test_what_is_not_there_is_named_as_it_was_written(
    backfill: Backfill, arguments: tuple[str, ...], said: str
) -> None:
    code, output = backfill(*arguments)
    assert code == 1
    assert said in output
    assert "Traceback" not in output


def test_the_last_line_says_that_all_was_made(backfill: Backfill, dagster: str) -> None:
    code, output = backfill("--quarters", "2024-01", "--languages", "en", "--assets", "corpus", "--dagster", dagster)
    assert code == 0, output
    assert output.splitlines()[-1] == "1 of 1 made"


def test_a_dagster_of_other_settings_is_named_before_anything_is_launched() -> None:
    """It would fill another data store, or know nothing of the language that was asked for."""
    ours = Settings(home=Path("/here"), languages=("en", "fr"), first_quarter="2025-01")
    theirs = Deployment("/there", ("en", "de"), ("2024-01", "2024-04"))
    with pytest.raises(SettingsError) as refused:
        refuse_other_settings(theirs, ours, "http://dagster")
    for said in (
        "http://dagster runs other settings",
        "`home` is /there there and /here here",
        "['de', 'en'] there and ['en', 'fr'] here",
        "`first_quarter` is 2024-01 there and 2025-01 here",
    ):
        assert said in str(refused.value)
    refuse_other_settings(Deployment("/here", ("fr", "en"), ("2025-01",)), ours, "http://dagster")


def test_a_command_with_another_settings_file_launches_nothing(
    backfill: Backfill, dagster: str, tmp_path: Path
) -> None:
    (tmp_path / "soundstage.toml").write_text('languages = ["en", "de"]\n[[sources]]\nkind = "synthetic"\n')
    code, output = backfill(
        "--quarters", "2024-01", "--dagster", dagster, SOUNDSTAGE_CONFIG=str(tmp_path / "soundstage.toml")
    )
    assert code == 1
    assert f"`home` is {ROOT}/.soundstage there and {tmp_path}/.soundstage here" in output
    assert "backfill abc" not in output


def test_a_path_is_no_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", "/tmp/[/etc]/x")
    with pytest.raises(SystemExit) as ended:
        app(["backfill"])
    assert ended.value.code == 1
    assert "/tmp/[/etc]/x, which is not a file" in capsys.readouterr().err
