"""Everything on one machine: Dagster with its daemon, MLflow, the pages and the transcription server.

`soundstage up` (or `make up`) runs until Ctrl-C. The demo uses the same services. A service
that ends by itself (out of memory, killed) is started again, and the runs under way go on; a stop kills them, and the
next start finds them lost and starts them again. A stop that could not be orderly, since this process itself was
killed, is done by a guard: otherwise the next start would run a second daemon and a second server on the same data
store.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deployment.addresses import bound
from deployment.settings import Settings, handed_on
from speech.store.objects import StoreError
from speech.store.outputs import write_json
from speech_assets.dagster_client import DagsterClient, DagsterError

ROOT = Path(__file__).parents[2]  # holds dagster.yaml
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0
RESTART_AFTER_S = 1.0
CODE_LOCATION = "speech_assets.definitions"
COMMAND = (sys.executable, "-m", "speech_assets.cli")  # `soundstage`, of the environment that runs this
LOCK = "running.lock"  # in this machine's folder: held by the process that runs the services, and by its guard
# Each line names the process groups of the moment; when whoever writes the lines is gone, they are killed.
GUARD = "while read -r line; do groups=$line; done; kill -s KILL -- $groups"


class ServiceError(Exception):
    """A service cannot be started; the message says which, why and where its log is."""


@dataclass(frozen=True)
class Service:
    """A server of the local deployment."""

    name: str
    command: tuple[str, ...]
    listens: str = ""  # where it answers on this machine; empty: nobody asks it
    url: str = ""  # where people open it, perhaps through a proxy
    ready_path: str = ""
    shows: str = ""
    field: str = ""  # of the settings, that says where it listens


@dataclass
class Running:
    """A service's process of the moment, and the log that all its processes write to."""

    service: Service
    process: "subprocess.Popen[bytes]"
    log: Path


def environment(settings: Settings) -> dict[str, str]:
    """The environment that every process of this deployment runs in."""
    return {
        **os.environ,
        **handed_on(),  # they run in the folder of this code, which may have a soundstage.toml of its own
        "DAGSTER_HOME": str(ROOT),
        "SOUNDSTAGE_DAGSTER_STORAGE": str(settings.local / "dagster"),
        "SOUNDSTAGE_HOME": settings.home,
        "SOUNDSTAGE_WORK": str(settings.local),
        # A backfill waits for a code server that is being started again, and is not given up.
        "DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR": "1",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue workers serve features not used here
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def services(settings: Settings, code_port: int = 0) -> list[Service]:
    """The servers, in the order they are started; `code_port` is where Dagster's code server listens."""
    dagster, mlflow, pages = settings.dagster_listens, settings.registry.ui_listens, settings.pages.listens
    python = sys.executable
    workspace = ("-w", str(_workspace_file(settings)))
    code = ("code-server", "start", "-m", CODE_LOCATION, "--location-name", CODE_LOCATION)
    found = [
        Service("Code", (python, "-m", "dagster", *code, "-h", "127.0.0.1", "-p", str(code_port))),
        Service(
            "Dagster",
            (python, "-m", "dagster_webserver", *workspace, *_listen(dagster, "-h", "-p")),
            dagster,
            settings.dagster_url,
            "/server_info",
            "assets, runs, backfills, approvals",
            "dagster_url",
        ),
        Service("Daemon", (python, "-m", "dagster._daemon", "run", *workspace)),
        Service(
            "Pages",
            (*COMMAND, "pages", "--home", settings.home, "--url", pages),
            pages,
            settings.pages.url,
            "/healthz",
            "all quarters, evaluation reports, Data Docs",
            "pages.url",
        ),
        Service(
            "Transcription",
            (*COMMAND, "serve", "--home", settings.home, "--port", str(settings.serving.port)),
            settings.serving.url,
            settings.serving.url,
            "/healthz",
            "POST /v1/transcribe; API at /docs",
            "serving.port",
        ),
    ]
    if settings.registry.tracking_uri is None:
        command = (python, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri, "--workers", "1")
        found.append(
            Service(
                "MLflow",
                (*command, *_listen(mlflow, "--host", "--port"), *_proxied(settings.registry.ui_url, mlflow)),
                mlflow,
                settings.registry.ui_url,
                "/health",
                "runs and versions",
                "registry.ui_url",
            )
        )
    return found


def _workspace_file(settings: Settings) -> Path:
    return settings.local / "dagster" / "workspace.yaml"


def _listen(url: str, host_flag: str, port_flag: str) -> tuple[str, ...]:
    parts = urlsplit(url)
    return (host_flag, str(parts.hostname), port_flag, str(parts.port))


def _proxied(opened: str, listens: str) -> tuple[str, ...]:
    """What MLflow must be told of a proxy: it refuses requests for a host that it does not know."""
    if opened == listens:
        return ()
    parts = urlsplit(opened)
    hosts = (parts.netloc, *(host for local in ("localhost", "127.0.0.1") for host in (local, f"{local}:*")))
    return ("--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", f"{parts.scheme}://{parts.netloc}")


@contextmanager
def running(settings: Settings, console: Console, only: Sequence[str] = ()) -> Iterator[Sequence[Service]]:
    """Start the services (all, or those named in `only`), wait until each answers, and stop them at the end.

    Raises:
        ServiceError: they run already, a port is taken, a service ended or did not answer in time, or Dagster could
            not load its code location.
    """
    with _writing_into(settings):
        for folder in ("dagster", "mlflow", "logs"):
            (settings.local / folder).mkdir(parents=True, exist_ok=True)
        settings.objects.folders()
    with ExitStack() as held:
        with _writing_into(settings):
            lock = held.enter_context(_only_one(settings.local))
        guard = held.enter_context(_guarded(lock))
        yield from _run(settings, console, only, guard)


@contextmanager
def _only_one(home: Path) -> Iterator[int]:
    """Hold the data store's lock."""
    with (home / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            lock.seek(0)
            raise ServiceError(f"Soundstage already runs on {home} ({lock.read().strip()}): stop it first") from held
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield lock.fileno()


@contextmanager
def _writing_into(settings: Settings) -> Iterator[None]:
    """Make one sentence of a folder that cannot be written: read-only, full, no folder at all."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (OSError, StoreError, SQLAlchemyError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise ServiceError(
            f"the data store {settings.home} cannot be used ({reason}): make room there, or name another `home`"
        ) from error


@contextmanager
def _guarded(lock: int) -> Iterator[IO[bytes]]:
    """A process that kills the groups of the services when this one is gone; until then it holds the lock, too."""
    guard = subprocess.Popen(
        ("/bin/sh", "-c", GUARD),
        bufsize=0,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=(lock,),
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield guard.stdin
    finally:
        guard.stdin.close()
        guard.wait()


def _watch_over(started: Sequence[Running], guard: IO[bytes]) -> None:
    with suppress(BrokenPipeError):  # the guard was killed; nothing else depends on it
        guard.write((" ".join(f"-{one.process.pid}" for one in started) + "\n").encode())


def _run(settings: Settings, console: Console, only: Sequence[str], guard: IO[bytes]) -> Iterator[Sequence[Service]]:
    code_port = free_port()
    server = {"host": "127.0.0.1", "port": code_port, "location_name": CODE_LOCATION}
    with _writing_into(settings):
        write_json(_workspace_file(settings), {"load_from": [{"grpc_server": server}]})  # JSON is YAML, too
        set_pool_limits(settings)
    wanted = [service for service in services(settings, code_port) if not only or service.name in only]
    for service in wanted:
        if service.listens:
            _require_free_port(service)
    started: list[Running] = []
    stopping = threading.Event()
    try:
        for service in wanted:
            log = settings.local / "logs" / f"{service.name.lower()}.log"
            with _writing_into(settings):
                started.append(Running(service, _start(service, settings, log), log))
            _watch_over(started, guard)
            if service.name == "Code":
                # the webserver and the daemon would report it as missing
                _wait_until_ready(started[-1], partial(_listens, code_port))
        with console.status("starting Dagster, MLflow, the pages and the transcription server"):
            for one in started:
                if one.service.listens:
                    _wait_until_ready(one, partial(_answers, one.service))
            if any(service.name == "Dagster" for service in wanted):
                _require_code_location(settings)
        watch = threading.Thread(target=_start_again, args=(started, settings, stopping, guard), daemon=True)
        watch.start()
        yield [service for service in wanted if service.url]
    finally:
        stopping.set()
        _stop([one.process for one in started])


def set_pool_limits(settings: Settings) -> None:
    """Write the limits of the settings into Dagster, where the queue reads them and its UI shows them."""
    import dagster as dg

    os.environ["SOUNDSTAGE_DAGSTER_STORAGE"] = environment(settings)["SOUNDSTAGE_DAGSTER_STORAGE"]
    with dg.DagsterInstance.from_config(str(ROOT)) as instance:
        for pool, limit in settings.pools.model_dump().items():
            instance.event_log_storage.set_concurrency_slots(pool, limit)


def _start(service: Service, settings: Settings, log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(
            service.command,
            cwd=ROOT,
            env=environment(settings),
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )


def _start_again(started: Sequence[Running], settings: Settings, stopping: threading.Event, guard: IO[bytes]) -> None:
    """Start what ended by itself again, until told to stop."""
    while not stopping.wait(RESTART_AFTER_S):
        for one in started:
            if one.process.poll() is not None and not stopping.is_set():
                with one.log.open("a") as log:
                    log.write(f"{one.service.name} ended with code {one.process.returncode}: started again\n")
                one.process = _start(one.service, settings, one.log)
                _watch_over(started, guard)


def free_port() -> int:
    """A port of this machine that nobody listens on at this moment."""
    with bound("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])


def _require_free_port(service: Service) -> None:
    parts = urlsplit(service.listens)
    try:
        bound(str(parts.hostname), parts.port or 80).close()
    except (OSError, UnicodeError) as error:
        raise ServiceError(
            f"{service.name} cannot listen on {service.listens} ({error}): stop what runs there, or name another port "
            f"in `{service.field}` of soundstage.toml"
        ) from error


def _wait_until_ready(one: Running, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if one.process.poll() is not None:
            raise ServiceError(
                f"{one.service.name} ended with code {one.process.returncode} while starting: read {one.log}"
            )
        if answers():
            return
        time.sleep(0.2)
    raise ServiceError(f"{one.service.name} did not answer within {START_TIMEOUT_S:.0f} s: read {one.log}")


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _answers(service: Service) -> bool:
    import httpx

    with suppress(httpx.TransportError):
        return httpx.get(service.listens + service.ready_path, timeout=2).status_code < 500
    return False


def _require_code_location(settings: Settings) -> None:
    """Ask Dagster whether it loaded the graph: the webserver answers without it, too."""
    logs = settings.local / "logs"
    try:
        wrong = DagsterClient(settings.dagster_listens).wait_until_loaded(START_TIMEOUT_S)
    except DagsterError as error:
        raise ServiceError(f"{error}; its log is {logs / 'dagster.log'}") from error
    if wrong is not None:
        raise ServiceError(f"Dagster {wrong}: read {logs / 'code.log'}")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    # The server alone is asked to end: runs under way, in the daemon's group, are killed and not cancelled, so that the
    # next start finds them lost and goes on with them.
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever a server left behind in its group
        process.wait()


def stop_on_sigterm() -> None:
    """Treat SIGTERM as Ctrl-C, so that the services are stopped on the way out."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def show(wanted: Sequence[Service], console: Console) -> None:
    """Print where everything is."""
    table = Table(title="Running on this machine")
    for column in ("what", "where", "shows"):
        table.add_column(column)
    for service in wanted:
        behind = "" if service.url == service.listens else f" (a proxy before {service.listens})"
        table.add_row(service.name, escape(service.url + behind), service.shows)
    console.print(table)


def up(settings: Settings, console: Console) -> None:
    """Run the services until Ctrl-C, which is a KeyboardInterrupt.

    Raises:
        ServiceError: one does not start; the message says where to read why.
    """
    with running(settings, console) as wanted:
        show(wanted, console)
        console.print("Ctrl-C stops them.")
        signal.pause()
