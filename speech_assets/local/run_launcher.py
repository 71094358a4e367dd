"""Gives runs their processes on this machine, quickly, and notices when one of them is gone.

A run of one quarter is short work that needs slow imports: Dagster, Great Expectations and MLflow take three times as
long to load as a small quarter to validate. So runs are forked from one server (the standard library's forkserver) that
has these libraries loaded already, and nothing of this repository, so that a change of the code is in the next run.

A run depends on no other process: the daemon, the code server and the fork server may be killed and it goes on. After a
restart of the machine, runs that were under way would be shown as under way for ever and keep their places in the
queue; here run monitoring can ask whether a run's process is still there, so that such a run ends, and run retries
start it again, each after twice the wait of the one before: Dagster itself would start it at once.

Every run is tagged with its partition and what it was made with, whichever way it was launched. On Kubernetes,
`K8sRunLauncher` takes this one's place in `dagster.yaml`.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import dagster as dg
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, RunLauncher, WorkerStatus
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, deserialize_value, serialize_value

# What runs import, slowest first; a name that is not there is passed over.
PRELOADED = [
    "great_expectations",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "scipy.signal",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "dagster._cli.api",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.op_concurrency_limits_counter",
    "dagster._daemon.asset_daemon",
    "dagster._daemon.controller",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "fsspec.implementations.local",
    "jiwer",
    "damga",
    "pydantic_settings",
    "rich.console",
    "soundfile",
    "structlog",
    "upath",
]
STARTED = "Started process for run"
SAME_START_S = 5.0  # a process that started later than its run said so has taken over the number of a dead one
TRAINED = frozenset(("base_model", "finetuned_model"))
RETRAIN = "retrain"  # the job
MAX_RUNTIME_TAG = "dagster/max_runtime"
RETRY_NUMBER_TAG = "dagster/retry_number"  # of a run that the daemon starts for one that was lost
FIRST_WAIT_S = 5.0
AROUND_TRAINING_S = 7_200  # of a run that trains: waiting for a corpus that is being built, evaluation, registration


class LocalRunLauncher(RunLauncher[dg.DagsterInstance], ConfigurableClass):
    """Runs on this machine, forked from a server with the slow libraries loaded."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self._fork = multiprocessing.get_context("forkserver")
        self._fork.set_forkserver_preload(PRELOADED)
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        """Where the configuration came from; Dagster asks."""
        return self._inst_data

    @classmethod
    def config_type(cls) -> Mapping[str, Any]:
        """Nothing to configure."""
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]) -> Self:
        """Made by Dagster from `dagster.yaml`."""
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Tag a run and give it a process."""
        run = context.dagster_run
        self._instance.add_run_tags(run.run_id, run_tags(run))
        origin = context.job_code_origin
        assert origin is not None  # every run of a code location has one
        arguments = serialize_value(ExecuteRunArgs(origin, run.run_id, self._instance.get_ref()))
        starter = self._fork.Process(target=_start, args=(arguments, wait_before(run)))
        starter.start()
        starter.join()

    def terminate(self, run_id: str) -> bool:
        """Ask a run to end; its training leaves a checkpoint."""
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.add_run_tags(run_id, {"dagster/max_retries": "0"})  # it was stopped on purpose, or for its time
        self._instance.report_run_canceling(run)
        pid = self._process(run)
        if pid is None:
            return False
        os.kill(pid, signal.SIGTERM)
        return True

    @property
    def supports_check_run_worker_health(self) -> bool:
        """Yes: run monitoring asks."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Whether the process of a run is there."""
        if self._process(run) is not None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        return CheckRunHealthResult(WorkerStatus.FAILED, "its process is gone")

    def _process(self, run: dg.DagsterRun) -> int | None:
        """The number of a run's process, if it lives."""
        events = self._instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        started = [event for event in events if event.message.startswith(STARTED)]
        if not started:
            return None
        pid = int(started[-1].message.rsplit(" ", 1)[1].rstrip(")."))
        began = process_start(pid)
        return pid if began is not None and began <= started[-1].timestamp + SAME_START_S else None


def wait_before(run: dg.DagsterRun) -> float:
    """Seconds before a run is started: none, or for one that replaces a lost one, more with each try."""
    from speech_assets.defs.retries import backoff

    tried = int(run.tags.get(RETRY_NUMBER_TAG, "0"))
    return backoff(tried - 1, FIRST_WAIT_S) if tried else 0.0


def _start(arguments: str, wait_s: float) -> None:
    """In a process of the fork server: leave the run to a process that is nobody's child, and end."""
    if os.fork():
        return
    code = 1
    try:
        from dagster._cli.api import execute_run_command

        if wait_s == 0 or _still_wanted(deserialize_value(arguments, ExecuteRunArgs), wait_s):
            execute_run_command.main([arguments], standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


def _still_wanted(run: ExecuteRunArgs, wait_s: float) -> bool:
    """Wait, and tell whether nobody has cancelled the run meanwhile."""
    time.sleep(wait_s)
    assert run.instance_ref is not None
    with dg.DagsterInstance.from_ref(run.instance_ref) as instance:
        found = instance.get_run_by_id(run.run_id)
        if found is not None and found.status is dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(found)
        return found is not None and found.status is dg.DagsterRunStatus.STARTING


def run_tags(run: dg.DagsterRun) -> dict[str, str]:
    """What a run was made with: the code, and the recipe where it trains; Dagster tags its partition."""
    from speech_assets.defs.resources import git_revision

    tags = {"soundstage/git_revision": git_revision()}
    selected = {key.path[-1] for key in run.asset_selection or ()}
    if selected & TRAINED or run.job_name == RETRAIN:
        from deployment.settings import Settings
        from speech_assets.defs.models import recipe_version

        training = Settings.load().training
        recipe = training.base_recipe if "base_model" in selected else training.finetune_recipe
        tags["soundstage/recipe"] = f"{Path(recipe).stem}@{recipe_version(recipe, training)}"
        # The training's own limit comes first: it leaves a checkpoint.
        tags[MAX_RUNTIME_TAG] = str(training.max_runtime_s + AROUND_TRAINING_S)
    return {tag: value for tag, value in tags.items() if tag not in run.tags}


def process_start(pid: int) -> float | None:
    """When a living process started (seconds since the epoch); None when there is none of that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()  # the name, in parentheses, may hold spaces
    if fields[0] in {"Z", "X"}:
        return None
    return float(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
