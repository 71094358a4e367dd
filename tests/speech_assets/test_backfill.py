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
from speech_assets.dagster_client import HOME_METADATA, SETTINGS_METADATA, Deployment
from speech_assets.defs.resources import settings_versions

pytestmark = pytest.mark.usefixtures("no_settings")

ROOT = Path(__file__).parents[2]
MADE = {"numPartitionsTargeted": 1, "numPartitionsMaterialized": 1, "numPartitionsInProgress": 0}
ASSET = {"assetKey": {"path": ["recordings"]}, **MADE, "numPartitionsFailed": 0}
NODE: dict[str, Any] = {
    "partitionKeysByDimension": [
        {"name": "language", "partitionKeys": ["en", "de"]},
        {"name": "quarter", "partitionKeys": ["2024-01", "2024-04"]},
    ],
    "metadataEntries": [],
}
ANSWERS: dict[str, Any] = {
    "assetNodes": [NODE],
    "launchPartitionBackfill": {"__typename": "LaunchBackfillSuccess", "backfillId": "abc"},
    "partitionBackfillOrError": {
        "__typename": "PartitionBackfill",
        "status": "COMPLETED_SUCCESS",
        "error": None,
        "assetBackfillData": {"assetBackfillStatuses": [ASSET]},
    },
    "runsOrError": {"__typename": "Runs", "results": []},
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
    said = {
        HOME_METADATA: str(ROOT / ".soundstage"),
        SETTINGS_METADATA: json.dumps(settings_versions(Settings.load())),
    }
    monkeypatch.setitem(NODE, "metadataEntries", [{"label": label, "text": text} for label, text in said.items()])

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


def test_what_was_made_and_refused_by_its_checks_is_named(
    backfill: Backfill, dagster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dagster counts an output as made before it is checked: `1 of 1 made` alone would hide an empty corpus."""
    tags = [{"key": "dagster/partition", "value": "en|2024-01"}]
    run = {"__typename": "Run", "runId": "r", "status": "FAILURE", "stepStats": [], "tags": tags}
    of_utterances = {"assetKey": {"path": ["utterances"]}}
    checks = [
        {"checkName": name, "success": good, "description": said, "severity": "ERROR", **of_utterances}
        for name, good, said in (("rows", False, "0 rows"), ("hours", False, "0 h"), ("no_utterance_lost", True, ""))
    ]
    events = [{"__typename": "AssetCheckEvaluationEvent", "evaluation": check} for check in checks]
    monkeypatch.setitem(ANSWERS, "runsOrError", {"__typename": "Runs", "results": [run]})
    monkeypatch.setitem(ANSWERS, "runOrError", run)
    monkeypatch.setitem(ANSWERS, "logsForRun", {"events": events})
    code, output = backfill("--quarters", "2024-01", "--languages", "en", "--assets", "corpus", "--dagster", dagster)
    assert code == 1
    assert "1 of 1 made; 1 did not end well" in output.splitlines()
    said = "error: en|2024-01: utterances: check rows failed: 0 rows; utterances: check hours failed: 0 h"
    assert said in output.splitlines()


def test_a_dagster_of_other_settings_is_named_before_anything_is_launched() -> None:
    """It would fill another data store, or know nothing of the language that was asked for."""
    ours = Settings(home=Path("/here"), languages=("en", "fr"), first_quarter="2025-01")
    theirs = Deployment("/there", ("en", "de"), ("2024-01", "2024-04"), settings_versions(ours))
    with pytest.raises(SettingsError) as refused:
        refuse_other_settings(theirs, ours, "http://dagster")
    for said in (
        "http://dagster runs other settings",
        "`home` is /there there and /here here",
        "['de', 'en'] there and ['en', 'fr'] here",
        "`first_quarter` is 2024-01 there and 2025-01 here",
    ):
        assert said in str(refused.value)
    same = Deployment("/here", ("fr", "en"), ("2025-01",), settings_versions(ours))
    refuse_other_settings(same, ours, "http://dagster")


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        ("sources", {"sources": [{"kind": "table", "path": "/audio"}]}),
        ("gates", {"gates": {"wer": 0.9}}),
        ("promotion", {"promotion": {"approvers": ["mallory"]}}),
        ("training", {"training": {"overrides": {"max_steps": 7}}}),
    ],
)
def test_a_dagster_whose_rules_are_others_is_named_with_the_table(table: str, changed: dict[str, Any]) -> None:
    """The same home and languages do not make the same work: other sources, gates and approvers would apply."""
    ours = Settings(home="/here")
    theirs = Settings.model_validate({"home": "/here", **changed})
    running = Deployment("/here", ours.languages, (ours.first_quarter,), settings_versions(theirs))
    with pytest.raises(SettingsError, match=f"other settings than this command: `{table}`: not the same") as refused:
        refuse_other_settings(running, ours, "http://dagster")
    assert "mallory" not in str(refused.value)


def test_a_recipe_is_compared_by_what_it_says(tmp_path: Path) -> None:
    recipe = tmp_path / "finetune.yaml"
    recipe.write_text((ROOT / "training" / "recipes" / "finetune.yaml").read_text())
    named = Settings.model_validate({"training": {"finetune_recipe": str(recipe)}})
    assert settings_versions(named) == settings_versions(Settings())
    recipe.write_text(recipe.read_text() + "\nkeep: last\n")
    assert settings_versions(named) != settings_versions(Settings())


def test_what_is_secret_or_a_machines_own_is_not_compared(tmp_path: Path) -> None:
    """The ledger key is given to Dagster alone, and its machine has other cores."""
    there = Settings.model_validate(
        {
            "promotion": {"ledger_key": "k" * 16},
            "training": {"threads": 97},
            "inference": {"workers": 97},
            "cache": tmp_path,
            "registry": {"tracking_uri": "http://user:password@mlflow"},
        }
    )
    assert settings_versions(there) == settings_versions(Settings())


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
