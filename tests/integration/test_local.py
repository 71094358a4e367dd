"""`make up` as processes: one at a time on a data store, nothing left when it is killed, and no graph no success."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.integration.test_demo import ROOT, free_port

CODE = """
import sys
from rich.console import Console
from deployment.settings import Settings
from speech_assets.local import services
try:
    with services.running(Settings.load(), Console(), only=sys.argv[1:]):
        print("running", flush=True)
        sys.stdin.read()
except services.ServiceError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Starts some services; each call may name other ports, as two people on one machine would."""

    def start(*only: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SOUNDSTAGE_", "DAGSTER_"))}
        return subprocess.Popen(
            [sys.executable, "-c", CODE, *only],
            cwd=ROOT,
            env={**environment, "SOUNDSTAGE_HOME": str(tmp_path / "store"), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def pages_of(parent: int) -> int:
    """The process that serves the pages for `parent`."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(pid) for pid in children if b"\0pages\0" in Path(f"/proc/{pid}/cmdline").read_bytes())


def until(true: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.05)


def test_a_second_one_is_refused_and_a_killed_one_leaves_nothing(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """Two daemons on one data store would start each run twice."""
    url, other = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    first = start("Pages", SOUNDSTAGE_PAGES__URL=url)
    assert first.stdout is not None
    assert any(line == "running\n" for line in first.stdout), first.communicate()[1]
    os.kill(pages_of(first.pid), signal.SIGKILL)
    until(lambda: not answers(url), "it was not killed")
    until(lambda: answers(url), "it was not started again")
    _, said = start("Pages", SOUNDSTAGE_PAGES__URL=other).communicate(timeout=60)
    assert "Soundstage already runs on " in said
    assert f"process {first.pid} on " in said
    assert "stop it first" in said
    first.send_signal(signal.SIGKILL)
    first.communicate()
    until(lambda: not answers(url), "it was left behind")
    again = start("Pages", SOUNDSTAGE_PAGES__URL=other)
    said = "".join(again.communicate("", timeout=60))
    assert again.returncode == 0, said
    assert "running" in said
    assert not answers(other), "an orderly stop leaves nothing, either"


def test_a_graph_that_does_not_load_is_no_start(start: Callable[..., "subprocess.Popen[str]"]) -> None:
    """The webserver answers all the same, and its pages are empty."""
    broken = start(
        "Code",
        "Dagster",
        SOUNDSTAGE_DAGSTER_URL=f"http://127.0.0.1:{free_port()}",
        SOUNDSTAGE_SOURCE_CODE='{"url": "nonsense"}',
    )
    shown, said = broken.communicate("", timeout=200)
    assert broken.returncode == 1
    assert "running" not in shown.splitlines()
    assert "Dagster cannot load speech_assets.definitions (ValueError: Invalid `git_url`" in said
    assert "code.log" in said
