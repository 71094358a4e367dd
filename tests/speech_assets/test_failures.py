"""What happens when something fails: what is tried again, what is final, and who is told."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from speech.store.objects import StoreUnavailable


def materialize(asset: object, folder: Path) -> Any:
    import dagster as dg

    with dg.DagsterInstance.ephemeral() as instance:
        return dg.materialize([asset], instance=instance, raise_on_error=False)  # type: ignore[list-item]


def trained_by(code: str, folder: Path, *, max_runtime_s: float = 30.0) -> tuple[Any, str]:
    """Run a training command of a few lines inside an asset; returns the result and the failure's sentence."""
    import dagster as dg

    from speech_assets.defs.processes import SupervisedProcess, alone_in

    script = folder / "train.py"
    script.write_text(code)

    @dg.asset
    def model(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
        with alone_in(folder / "work") as alone:
            SupervisedProcess().run(
                context=context,
                command=[sys.executable, str(script), str(folder)],
                cwd=folder,
                alone=alone,
                max_runtime_s=max_runtime_s,
                setting="training.max_runtime_s",
            )
        return dg.MaterializeResult()

    result = materialize(model, folder)
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    said = failures[-1].user_failure_data.description if failures and failures[-1].user_failure_data else ""
    return result, said


def attempts(folder: Path) -> int:
    return len(list(folder.glob("attempt-*")))


COUNT = """
import os, pathlib, sys, time, signal
folder = pathlib.Path(sys.argv[1])
(folder / f"attempt-{os.getpid()}").touch()
"""


def test_a_training_that_was_killed_is_started_again(tmp_path: Path) -> None:
    code = COUNT + "if len(list(folder.glob('attempt-*'))) == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
    result, _ = trained_by(code, tmp_path)
    assert result.success
    assert attempts(tmp_path) == 2


def test_a_training_that_refused_is_not_tried_again(tmp_path: Path) -> None:
    code = COUNT + "print('error: the base is no checkpoint: name another', file=sys.stderr); sys.exit(2)\n"
    result, said = trained_by(code, tmp_path)
    assert not result.success
    assert said == "the training refused: the base is no checkpoint: name another"
    assert attempts(tmp_path) == 1


def test_a_training_that_takes_too_long_leaves_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    code = COUNT + (
        "def stop(*_): (folder / 'checkpoint').touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, stop)\ntime.sleep(60)\n"
    )
    result, said = trained_by(code, tmp_path, max_runtime_s=0.5)
    assert not result.success
    assert (tmp_path / "checkpoint").exists()
    assert "training.max_runtime_s" in said
    assert "last checkpoint" in said
    assert attempts(tmp_path) == 1


def test_a_command_that_is_not_there_names_the_setting(tmp_path: Path) -> None:
    import dagster as dg

    from speech_assets.defs.processes import SupervisedProcess, alone_in

    @dg.asset
    def model(context: dg.AssetExecutionContext) -> None:
        with alone_in(tmp_path) as alone:
            SupervisedProcess().run(
                context=context,
                command=["no-such-trainer"],
                cwd=tmp_path,
                alone=alone,
                max_runtime_s=1,
                setting="training.max_runtime_s",
            )

    result = materialize(model, tmp_path)
    event = next(event for event in result.all_events if event.is_step_failure)
    assert "training.command" in event.step_failure_data.user_failure_data.description


def test_a_training_does_not_outlive_a_run_that_was_killed(tmp_path: Path) -> None:
    lives = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pathlib import Path
from tests.speech_assets.test_failures import trained_by
trained_by({lives + "; time.sleep(60)"!r}, Path({str(tmp_path)!r}))
"""
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.kill()
    run.wait()
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return
        except FileNotFoundError:
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the training went on without its run")


def refused_connection() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    import httpx

    httpx.get(f"http://127.0.0.1:{port}", timeout=1)


def typed_error_over_a_refused_connection() -> None:
    try:
        refused_connection()
    except Exception as error:
        raise RuntimeError("the registry cannot be reached") from error


def data_store_that_is_away() -> None:
    raise StoreUnavailable("s3://bucket/home could not be reached: try again later")


@pytest.mark.parametrize(
    ("fail", "tries"),
    [
        (refused_connection, 3),
        (typed_error_over_a_refused_connection, 3),
        (data_store_that_is_away, 3),
        (lambda: Path("/nowhere").read_text(), 1),
        (lambda: int("no number"), 1),
    ],
)
def test_only_what_could_not_be_reached_is_tried_again(
    fail: Any, tries: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    from speech_assets.defs import retries

    monkeypatch.setattr(retries, "FIRST_WAIT_S", 0.01)
    seen: list[int] = []

    @dg.asset
    @retries.retried_when_unreachable
    def model(context: dg.AssetExecutionContext) -> None:
        seen.append(context.retry_number)
        if len(seen) < 3:
            fail()

    result = materialize(model, tmp_path)
    assert len(seen) == tries
    assert result.success == (tries == 3)


def test_waits_double() -> None:
    from speech_assets.defs.retries import backoff

    waits = [[backoff(attempt, 5.0) for _ in range(50)] for attempt in range(4)]
    for attempt, drawn in enumerate(waits):
        assert 3.75 * 2**attempt <= min(drawn) < max(drawn) <= 6.25 * 2**attempt


def alert() -> Any:
    from speech_assets.defs.alerts import Alert

    return Alert("abc", "materialisation", "en|2024-07", "recordings: gone", "http://d/runs/abc", "finetune@1", "f00")


def test_an_alert_goes_to_every_service_that_is_named(server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.alerts import send

    settings = AlertsSettings(
        webhook_url=f"{server.url}/hook", pagerduty_key="key", pagerduty_url=f"{server.url}/v2/enqueue"
    )
    assert send(alert(), settings) == []
    sent = dict(server.received)
    assert sent["/hook"]["partition"] == "en|2024-07"
    assert sent["/hook"]["url"] == "http://d/runs/abc"
    event = sent["/v2/enqueue"]
    assert (event["routing_key"], event["event_action"]) == ("key", "trigger")
    assert event["payload"]["severity"] == "error"
    assert "recordings: gone" in event["payload"]["summary"]
    assert event["links"][0]["href"] == "http://d/runs/abc"


def test_a_service_that_is_down_does_not_keep_the_others_from_hearing(server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.alerts import send

    settings = AlertsSettings(
        webhook_url=f"{server.url}/down", pagerduty_key="secret-key", pagerduty_url=f"{server.url}/v2/enqueue"
    )
    (problem,) = send(alert(), settings)
    assert problem.startswith("the webhook did not take the alert")
    assert "/v2/enqueue" in dict(server.received)
    assert "secret-key" not in repr(settings)


def test_nothing_is_sent_where_nothing_is_configured(server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.alerts import configured, send

    assert not configured(AlertsSettings())
    assert send(alert(), AlertsSettings()) == []
    assert server.received == []


def test_slack_gets_the_reason_and_the_link(server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.alerts import send

    assert send(alert(), AlertsSettings(slack_token="xoxb-1", slack_url=f"{server.url}/api/")) == []
    path, content = server.received[0]
    assert path == "/api/chat.postMessage"
    assert "recordings" in str(content)
