"""The registry as a team runs it: an MLflow server that keeps the artifacts, and machines that share nothing else."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployment.promotion.decisions import Promotions
from deployment.registry.models import Registry
from speech.bundle import BundleError
from speech.store.objects import open_objects
from tests.deployment.conftest import MODEL, House, make_rules

START_S = 90.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server's address and the folder of its artifacts."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "kept")),
    ]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            try:
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url, folder / "kept"
    finally:
        process.terminate()
        process.wait(30)


def test_a_version_travels_from_the_machine_that_trained_to_the_one_that_serves(
    server: tuple[str, Path], tmp_path: Path
) -> None:
    url, kept = server
    registry = Registry(url, open_objects(tmp_path))
    house = House(tmp_path, registry, Promotions(registry, make_rules(open_objects(tmp_path))))
    version = house.register(1)
    assert house.register(1).version == version.version, "the same bundle is one version"
    decision = house.promotions.approve("en", MODEL, version.version, "Ada", "good on calls")

    elsewhere = Registry(url, open_objects(tmp_path))
    champion = elsewhere.champion(MODEL)
    assert champion is not None
    assert (champion.version, champion.digest) == (decision.version, house.bundle(1).digest)
    network = elsewhere.obtain(champion.digest, MODEL, champion.version) / "network.onnx"
    assert list(kept.rglob("report/*")), "it travelled through the server"

    network.write_bytes(network.read_bytes() + b" ")
    with pytest.raises(BundleError):
        elsewhere.verify(MODEL, champion.version)
