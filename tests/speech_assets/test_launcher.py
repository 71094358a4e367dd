"""Runs and their processes: which one is a run's, whether it lives, how it is asked to end, what a run is tagged."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._core.launcher import WorkerStatus

from speech_assets.local.run_launcher import (
    AROUND_TRAINING_S,
    MAX_RUNTIME_TAG,
    SAME_START_S,
    STARTED,
    LocalRunLauncher,
    process_start,
    run_tags,
    wait_before,
)

# Says when it is ready, and with which signal it was asked to end.
SLEEPER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(40 + number))
print("ready", flush=True)
time.sleep(120)
"""


@dataclass
class Machine:
    """A Dagster instance with this launcher, and processes that stand for those of its runs."""

    instance: Any
    sleepers: list["subprocess.Popen[str]"] = field(default_factory=list)

    @property
    def launcher(self) -> LocalRunLauncher:
        launcher = self.instance.run_launcher
        assert isinstance(launcher, LocalRunLauncher)
        return launcher

    def sleeper(self) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, text=True)
        self.sleepers.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def run(self, *pids: int, ago_s: float = 0.0) -> dg.DagsterRun:
        """A run under way that said in its log, so long ago, that these processes were started for it, one by one."""
        run = dg.DagsterRun(job_name="any", status=dg.DagsterRunStatus.STARTED)
        self.instance.add_run(run)
        for pid in pids:
            event = dg.DagsterEvent(
                event_type_value=dg.DagsterEventType.ENGINE_EVENT.value,
                job_name=run.job_name,
                message=f"{STARTED} (pid: {pid}).",
                event_specific_data=EngineEventData({}),
            )
            self.instance.report_dagster_event(event, run.run_id, timestamp=time.time() - ago_s)
        return run

    def health(self, run: dg.DagsterRun) -> WorkerStatus:
        return self.launcher.check_run_worker_health(run).status


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    launcher = {"run_launcher": {"module": "speech_assets.local.run_launcher", "class": "LocalRunLauncher"}}
    with dg.DagsterInstance.local_temp(str(tmp_path), overrides=launcher) as instance:
        machine = Machine(instance)
        yield machine
        for process in machine.sleepers:
            process.kill()
            process.wait()


def test_a_run_lives_as_long_as_its_process(machine: Machine) -> None:
    process = machine.sleeper()
    run = machine.run(process.pid)
    assert machine.launcher.supports_check_run_worker_health
    assert machine.health(run) is WorkerStatus.RUNNING
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert machine.health(run) is WorkerStatus.FAILED
    assert machine.launcher.check_run_worker_health(run).msg == "its process is gone"


def test_a_dead_process_that_nobody_has_waited_for_is_gone(machine: Machine) -> None:
    """A zombie keeps its number until its parent asks for it, and does no work."""
    process = machine.sleeper()
    run = machine.run(process.pid)
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process_start(process.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert machine.health(run) is WorkerStatus.FAILED
    assert process.returncode is None, "nobody has asked for it yet"


def test_a_process_that_took_over_a_dead_one_s_number_is_not_the_run_s(machine: Machine) -> None:
    """After a restart of the machine numbers are given out again, and a stranger must not be asked to end."""
    stranger = machine.sleeper()
    run = machine.run(stranger.pid, ago_s=SAME_START_S + 60)
    assert machine.health(run) is WorkerStatus.FAILED
    assert not machine.launcher.terminate(run.run_id)
    assert stranger.poll() is None


def test_a_run_without_a_process_yet_has_none(machine: Machine) -> None:
    run = machine.run()
    assert machine.health(run) is WorkerStatus.FAILED


def test_the_last_process_of_a_run_is_its_process(machine: Machine) -> None:
    """A run that is resumed gets another one."""
    first, second = machine.sleeper(), machine.sleeper()
    run = machine.run(first.pid, second.pid)
    first.kill()
    first.wait()
    assert machine.health(run) is WorkerStatus.RUNNING
    second.kill()
    second.wait()
    assert machine.health(run) is WorkerStatus.FAILED


def test_a_stopped_run_is_asked_to_end_and_not_started_again(machine: Machine) -> None:
    process = machine.sleeper()
    run = machine.run(process.pid)
    assert machine.launcher.terminate(run.run_id)
    assert process.wait(timeout=10) == 40 + signal.SIGTERM, "it can leave a checkpoint"
    now = machine.instance.get_run_by_id(run.run_id)
    assert now.status is dg.DagsterRunStatus.CANCELING
    assert now.tags["dagster/max_retries"] == "0"


def test_a_run_that_has_ended_is_not_stopped(machine: Machine) -> None:
    process = machine.sleeper()
    run = machine.run(process.pid)
    machine.instance.report_run_canceled(run)
    assert not machine.launcher.terminate(run.run_id)
    assert not machine.launcher.terminate("no such run")
    assert process.poll() is None
    assert machine.instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.CANCELED


def test_the_start_of_this_process_is_known() -> None:
    began = process_start(os.getpid())
    assert began is not None
    assert time.time() - 24 * 3600 < began <= time.time() + 1
    assert process_start(2**22 + 1) is None, "numbers end before this one"


def run_of(*assets: str, **more: Any) -> dg.DagsterRun:
    selection = frozenset(dg.AssetKey(asset) for asset in assets)
    return dg.DagsterRun(asset_selection=selection, **{"job_name": "__ASSET_JOB", **more})


@pytest.mark.parametrize("asset", ["base_model", "finetuned_model"])
def test_runs_that_train_say_with_what_and_may_take_as_long_as_the_training(deployment: object, asset: str) -> None:
    from deployment.settings import Settings

    training = Settings.load().training
    recipe = training.base_recipe if asset == "base_model" else training.finetune_recipe
    tags = run_tags(run_of(asset, "evaluation"))
    assert tags[MAX_RUNTIME_TAG] == str(training.max_runtime_s + AROUND_TRAINING_S)
    name, version = tags["soundstage/recipe"].split("@")
    assert name == Path(recipe).stem
    assert version
    assert tags["soundstage/git_revision"]


def test_the_retraining_job_may_take_as_long_whatever_it_selects(deployment: object) -> None:
    assert MAX_RUNTIME_TAG in run_tags(run_of(job_name="retrain"))


def test_other_runs_have_the_instance_s_limit(deployment: object) -> None:
    assert set(run_tags(run_of("normalized_audio"))) == {"soundstage/git_revision"}


def test_what_a_person_set_is_kept(deployment: object) -> None:
    assert MAX_RUNTIME_TAG not in run_tags(run_of("base_model", tags={MAX_RUNTIME_TAG: "60"}))


def test_a_lost_run_waits_longer_with_each_try() -> None:
    """A machine that is out of memory stays so for a moment: starting at once would only fill it again."""
    tags = [{}, *({"dagster/retry_number": str(tried)} for tried in (1, 2, 3))]
    waits = [wait_before(dg.DagsterRun(job_name="any", tags=each)) for each in tags]
    assert waits[0] == 0
    assert 3.7 < waits[1] < 6.3 < 7.4 < waits[2] < 12.6 < 14.9 < waits[3] < 25.1
