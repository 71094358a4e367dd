"""Everything on one machine: Dagster with its daemon, MLflow, the pages and the transcription server.

`python -m speech_assets.local` (or `make up`) runs until Ctrl-C. The demo uses the same services.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from deployment.settings import Settings, SettingsError

ROOT = Path(__file__).parents[1]  # holds dagster.yaml
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 15.0


class ServiceError(Exception):
    """A service cannot be started; the message says which, why and where its log is."""


@dataclass(frozen=True)
class Service:
    """A server of the local deployment."""

    name: str
    command: tuple[str, ...]
    url: str
    ready_path: str
    shows: str


def environment(settings: Settings) -> dict[str, str]:
    """The environment that every process of this deployment runs in."""
    return {
        **os.environ,
        "DAGSTER_HOME": str(ROOT),
        "SOUNDSTAGE_DAGSTER_STORAGE": str(settings.home / "dagster"),
        "SOUNDSTAGE_HOME": str(settings.home),
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue workers serve features not used here
        "GX_ANALYTICS_ENABLED": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def services(settings: Settings) -> list[Service]:
    """The servers, in the order they are started."""
    dagster, mlflow, pages = settings.dagster_url, settings.registry.ui_url, settings.pages.url
    serving = f"http://{settings.serving.host}:{settings.serving.port}"
    python = sys.executable
    found = [
        Service(
            "Dagster",
            (python, "-m", "dagster", "dev", "-m", "speech_assets.definitions", *_listen(dagster, "-h", "-p")),
            dagster,
            "/server_info",
            "assets, runs, backfills, approvals",
        ),
        Service(
            "Pages",
            (python, "-m", "http.server", str(urlsplit(pages).port), "--bind", str(urlsplit(pages).hostname)),
            pages,
            "/",
            "evaluation reports and Data Docs",
        ),
        Service(
            "Transcription",
            (python, "-m", "deployment.serving", "--home", str(settings.home), "--port", str(settings.serving.port)),
            serving,
            "/healthz",
            "POST /v1/transcribe; API at /docs",
        ),
    ]
    if settings.registry.tracking_uri is None:
        command = (python, "-m", "mlflow", "server", "--backend-store-uri", settings.tracking_uri, "--workers", "1")
        found.insert(
            1,
            Service("MLflow", (*command, *_listen(mlflow, "--host", "--port")), mlflow, "/health", "runs and versions"),
        )
    return found


def _listen(url: str, host_flag: str, port_flag: str) -> tuple[str, ...]:
    parts = urlsplit(url)
    return (host_flag, str(parts.hostname), port_flag, str(parts.port))


@contextmanager
def running(settings: Settings, console: Console) -> Iterator[Sequence[Service]]:
    """Start the services, wait until each answers, and stop them at the end.

    Raises:
        ServiceError: a port is taken, or a service ended or did not answer in time.
    """
    (settings.home / "dagster").mkdir(parents=True, exist_ok=True)
    (settings.home / "mlflow").mkdir(parents=True, exist_ok=True)
    (settings.home / "pages").mkdir(parents=True, exist_ok=True)
    logs = settings.home / "logs"
    logs.mkdir(exist_ok=True)
    wanted = services(settings)
    for service in wanted:
        _require_free_port(service)
    processes: list[tuple[Service, subprocess.Popen[bytes], Path]] = []
    try:
        for service in wanted:
            log = logs / f"{service.name.lower()}.log"
            with log.open("ab") as out:
                process = subprocess.Popen(
                    service.command,
                    cwd=settings.home / "pages" if service.name == "Pages" else ROOT,
                    env=environment(settings),
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
            processes.append((service, process, log))
        with console.status("starting Dagster, MLflow, the pages and the transcription server"):
            for service, process, log in processes:
                _wait_until_ready(service, process, log)
        yield wanted
    finally:
        _stop([process for _, process, _ in processes])


def _require_free_port(service: Service) -> None:
    parts = urlsplit(service.url)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((parts.hostname, parts.port))
        except OSError as error:
            raise ServiceError(
                f"{service.name} cannot listen on {service.url} ({error.strerror}): stop what runs there, or name "
                "another port in soundstage.toml"
            ) from error


def _wait_until_ready(service: Service, process: "subprocess.Popen[bytes]", log: Path) -> None:
    import httpx

    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServiceError(f"{service.name} ended with code {process.returncode} while starting: read {log}")
        try:
            if httpx.get(service.url + service.ready_path, timeout=2).status_code < 500:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise ServiceError(f"{service.name} did not answer within {START_TIMEOUT_S:.0f} s: read {log}")


def _stop(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    for process in processes:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, deadline - time.monotonic()))
        _signal_group(process, signal.SIGKILL)  # whatever a server left behind in its group
        process.wait()


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


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
        table.add_row(service.name, service.url, service.shows)
    console.print(table)


def main() -> int:
    """Run the services until Ctrl-C."""
    console = Console()
    stop_on_sigterm()
    try:
        settings = Settings.load()
        with running(settings, console) as wanted:
            show(wanted, console)
            console.print("Ctrl-C stops them.")
            signal.pause()
    except (SettingsError, ServiceError) as error:
        console.print(f"[red]{error}[/red]", highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
