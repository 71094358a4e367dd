"""Backfills and retraining with the real code server, webserver, daemon and queue; the training alone is a stub.

One deployment of four closed quarters serves all tests of this file: three are backfilled, one of them broken, while
processes are killed; the fourth is asked for by two schedules and a sensor at once.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.backfill import (
    CODE_SERVER,
    DAEMON,
    most_at_once,
    read_trainings,
    service_process,
    training_process,
    write_settings,
)

MODELS = ("finetuned_model", "model_bundle", "evaluation", "verdict", "registered_model")
CORPUS = ("recordings", "normalized_audio", "utterances")
RETRAINED = {"dagster/sensor_name": "retraining"}


def quarters_before_now(count: int) -> list[str]:
    """Keys of the last closed quarters, oldest first."""
    today = datetime.now(UTC)
    index = today.year * 4 + (today.month - 1) // 3
    return [f"{i // 4}-{i % 4 * 3 + 1:02d}" for i in range(index - count, index)]


class Webhook:
    """A real HTTP server that keeps what it is sent."""

    def __init__(self) -> None:
        received: list[dict[str, Any]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(202)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                return

        self.received = received
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def until(true: Any, timeout_s: float, why: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(why)


@pytest.fixture(scope="module")
def deployment(in_memory: Path) -> Iterator[SimpleNamespace]:
    folder = in_memory
    log = folder / "trainings"
    log.mkdir()
    quarters = quarters_before_now(4)
    webhook = Webhook()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("SOUNDSTAGE_", "DAGSTER_"))]:
            patch.delenv(name)
        from speech_assets.local import services

        every_minute = '"* * * * *"'
        settings_file = write_settings(
            folder,
            ["en"],
            services.free_port(),
            first_quarter=quarters[0],
            more=f"[retraining]\nquarter_closed_cron = {every_minute}\nlate_recordings_cron = {every_minute}\n",
        )
        patch.setenv("SOUNDSTAGE_CONFIG", str(settings_file))
        patch.setenv("SOUNDSTAGE_ALERTS__WEBHOOK_URL", webhook.url)
        patch.setenv("STUB_LOG", str(log))
        patch.setenv("STUB_STEP_S", "0.3")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        from rich.console import Console

        from deployment.settings import Settings
        from speech_assets.dagster_client import DagsterClient

        settings = Settings.load()
        with services.running(settings, Console(stderr=True), only=("Code", "Dagster", "Daemon")):
            yield SimpleNamespace(
                settings=settings,
                dagster=DagsterClient(settings.dagster_url),
                quarters=quarters,
                log=log,
                webhook=webhook,
                store=Path(settings.home),
            )
    webhook.server.shutdown()


@pytest.fixture(scope="module")
def base(deployment: SimpleNamespace) -> None:
    """The first quarter and what every fine-tune starts from, launched as single runs."""
    first = f"en|{deployment.quarters[0]}"
    for assets, partition in ((CORPUS, first), (("base_corpus",), first), (("benchmark_set", "base_model"), "en")):
        run = deployment.dagster.materialize(assets, partition)
        assert deployment.dagster.wait(run, 120) == "SUCCESS", deployment.dagster.why_failed(run)


@pytest.fixture(scope="module")
def asked(deployment: SimpleNamespace, base: None) -> str:
    """The latest closed quarter, asked for by both schedules and a reading; then retraining is switched on."""
    folder = deployment.store / "production_quality"
    folder.mkdir()
    measured = datetime.now(UTC).isoformat()
    (folder / "en.json").write_text(json.dumps({"wer": 0.21, "limit": 0.15, "measured_at": measured}))
    requests = deployment.store / "retraining" / deployment.quarters[3] / "en"
    until(lambda: len(list(requests.glob("*.json"))) == 3, 120, f"not all three asked: {list(requests.glob('*'))}")
    reasons = {path.name.split("-")[0] for path in requests.glob("*.json")}
    assert reasons == {"quarter", "late", "quality"}
    assert not deployment.dagster.runs(RETRAINED), "it is off until someone switches it on"
    from speech_assets.dagster_client import LOCATION, REPOSITORY

    switch_on = "mutation Start($s: SensorSelector!) { startSensor(sensorSelector: $s) { __typename } }"
    sensor = {"repositoryLocationName": LOCATION, "repositoryName": REPOSITORY, "sensorName": "retraining"}
    assert deployment.dagster.query(switch_on, s=sensor)["startSensor"]["__typename"] == "Sensor"
    return f"en|{deployment.quarters[3]}"


def run_process(dagster: Any, tags: dict[str, str]) -> int | None:
    """The process of a run with these tags that is under way."""
    messages = """query Messages($id: ID!) {
      logsForRun(runId: $id) { ... on EventConnection { events { ... on MessageEvent { message } } } }
    }"""
    for run in dagster.runs(tags, ["STARTED"]):
        for event in dagster.query(messages, id=run["runId"])["logsForRun"]["events"]:
            if found := re.search(r"Started process for run \(pid: (\d+)\)", event.get("message", "")):
                return int(found.group(1))
    return None


@pytest.fixture(scope="module")
def backfill(deployment: SimpleNamespace, base: None, asked: str) -> SimpleNamespace:
    """Three quarters, the second unreadable; a training, the daemon, the code server and a run's process are killed."""
    broken = deployment.store / "sources" / "synthetic" / "en" / deployment.quarters[1]
    broken.mkdir(parents=True)
    (broken / "somebody-elses.txt").write_text("not a corpus")
    partitions = [f"en|{quarter}" for quarter in deployment.quarters[:3]]
    began = len(read_trainings(deployment.log))
    backfill_id = deployment.dagster.backfill(dict.fromkeys((*CORPUS, *MODELS), partitions), "three quarters")
    pid = until(lambda: training_process(deployment.log), 120, "no training began")
    os.kill(pid, signal.SIGKILL)
    for service in (DAEMON, CODE_SERVER):
        os.kill(until(lambda service=service: service_process(service), 10, f"no {service!r}"), signal.SIGKILL)
    last = {"dagster/backfill": backfill_id, "dagster/partition": partitions[2]}
    os.kill(until(lambda: run_process(deployment.dagster, last), 120, "the last quarter was not begun"), signal.SIGKILL)
    return SimpleNamespace(
        id=backfill_id,
        killed=pid,
        status=deployment.dagster.wait_for_backfill(backfill_id, 240),
        trainings=read_trainings(deployment.log)[began:],
        partitions=partitions,
    )


def test_the_graph_says_what_it_was_loaded_with(deployment: SimpleNamespace) -> None:
    """A command with other settings is told from this one by it."""
    running = deployment.dagster.deployment(CORPUS[0])
    assert (running.home, running.languages) == (str(deployment.store), ("en",))
    assert running.quarters[0] == deployment.quarters[0]


def test_a_broken_quarter_does_not_hold_back_the_others(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    """The third quarter learns from the second where it can; where it cannot, it is trained without."""
    assert backfill.status.status == "COMPLETED_FAILED"
    for asset in (*CORPUS, *MODELS):
        progress = backfill.status.assets[asset]
        assert (progress.targeted, progress.materialized, progress.failed) == (3, 2, 1), asset
    runs = deployment.dagster.runs({"dagster/backfill": backfill.id})
    replaced = {run["tags"].get("dagster/parent_run_id") for run in runs}
    failed = {
        run["tags"]["dagster/partition"] for run in runs if run["status"] == "FAILURE" and run["runId"] not in replaced
    }
    assert failed == {backfill.partitions[1]}


def test_a_run_whose_process_is_gone_is_started_again(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    """A machine that restarts, or runs out of memory, takes runs with it: none is lost, and none made twice."""
    tags = {"dagster/backfill": backfill.id, "dagster/partition": backfill.partitions[2]}
    again = [run for run in deployment.dagster.runs(tags) if run["tags"].get("dagster/retry_number")]
    assert [run["status"] for run in again] == ["SUCCESS"]


def test_a_killed_training_goes_on_where_it_was(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    trainings = read_trainings(deployment.log)
    killed = next(training for training in trainings if training.pid == backfill.killed)
    again = [t for t in trainings if t.model == killed.model and t.pid != killed.pid]
    assert killed.ended is None
    assert len(again) == 1
    assert again[0].ended is not None
    assert again[0].from_step > 0, "it began anew"
    assert most_at_once(trainings) <= 2


def test_killed_processes_leave_no_duplicate_version(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    from speech_assets.defs.resources import Workspace

    workspace = Workspace(deployment.settings)
    versions = workspace.registry().versions(workspace.registered_name("en"))
    partitions = sorted(version.tags["partition"] for version in versions)
    assert len(partitions) == len(set(partitions))
    assert {backfill.partitions[0], backfill.partitions[2]} <= set(partitions)


def test_every_run_says_what_it_was_made_with(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    for run in deployment.dagster.runs({"dagster/backfill": backfill.id}):
        assert run["tags"]["dagster/partition"] in backfill.partitions
        assert run["tags"]["soundstage/git_revision"]
        trained = any(key["path"] == ["finetuned_model"] for key in run["assetSelection"])
        assert ("soundstage/recipe" in run["tags"]) == trained


def test_checks_of_a_backfilled_partition_are_its_own(deployment: SimpleNamespace, backfill: SimpleNamespace) -> None:
    """The UI shows a check as failed for every partition whose outcome was recorded without its name."""
    executions = """query Executions($key: AssetKeyInput!) {
      assetCheckExecutions(assetKey: $key, checkName: "gates_passed", limit: 100) { runId status partition }
    }"""
    runs = {run["runId"] for run in deployment.dagster.runs({"dagster/backfill": backfill.id})}
    found = deployment.dagster.query(executions, key={"path": ["verdict"]})["assetCheckExecutions"]
    judged = {(one["partition"], one["status"]) for one in found if one["runId"] in runs}
    passed = {partition for partition, status in judged if status == "SUCCEEDED"}
    assert passed == {backfill.partitions[0], backfill.partitions[2]}
    assert None not in {partition for partition, _ in judged}


def test_a_failed_run_is_told_with_its_partition_reason_and_link(
    deployment: SimpleNamespace, backfill: SimpleNamespace
) -> None:
    def told() -> list[dict[str, Any]]:
        return [alert for alert in deployment.webhook.received if alert["partition"] == backfill.partitions[1]]

    alert = until(told, 90, "nobody was told")[0]
    assert "recordings" in alert["reason"]
    assert alert["url"] == f"{deployment.settings.dagster_url}/runs/{alert['run_id']}"
    assert len({alert["run_id"] for alert in told()}) == len(told()), "told twice"


def test_two_schedules_and_a_sensor_asking_for_one_partition_are_one_run(
    deployment: SimpleNamespace, backfill: SimpleNamespace, asked: str
) -> None:
    """The daemon was killed meanwhile, and the sensor has looked many times since."""
    (run,) = until(lambda: deployment.dagster.runs(RETRAINED), 60, "no run was started")
    assert deployment.dagster.wait(run["runId"], 120) == "SUCCESS", deployment.dagster.why_failed(run["runId"])
    assert run["tags"]["dagster/partition"] == asked
    assert "production WER" in run["tags"]["soundstage/retraining"]
    assert "the quarter has closed" in run["tags"]["soundstage/retraining"]
    assert len(deployment.dagster.runs(RETRAINED)) == 1


def test_late_recordings_make_again_only_what_follows_from_them(
    deployment: SimpleNamespace, backfill: SimpleNamespace, asked: str
) -> None:
    """One launch brings two quarters up to date; the one whose source changed is trained again, the other is not."""
    table = deployment.store / "sources" / "synthetic" / "en" / deployment.quarters[2] / "transcripts.tsv"
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(rows[:-1]))
    trained = len(read_trainings(deployment.log))
    quarters = [deployment.quarters[0], deployment.quarters[2]]
    command = [sys.executable, "-m", "speech_assets.cli", "backfill", "--quarters", ",".join(quarters), "--up-to-date"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    said = ended.stdout
    assert ended.returncode == 0, said + ended.stderr
    assert f"corpus: en|{quarters[1]}\n" in said
    assert "base models: up to date" in said
    assert f"models: en|{quarters[1]}\n" in said
    again = read_trainings(deployment.log)
    assert len(again) == trained + 1
    assert max(again, key=lambda training: training.began).model.endswith(_title(deployment.quarters[2]))


def _title(quarter: str) -> str:
    year, month = quarter.split("-")
    return f"{year}-Q{(int(month) + 2) // 3}"
