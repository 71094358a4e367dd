"""Starts and ends real replicas of the serving tier."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deployment.release.document import LanguageRelease, Route
from deployment.release.folder import ReleaseFolder
from deployment.release.reports import ReplicaReport
from speech.bundle import ModelBundle
from speech.store.objects import open_objects
from tests.s3_server import BUCKET, S3Server
from tests.sounds import sound_bytes
from tests.toy_bundle import shelved, tones
from tests.toy_registry import approve

ROOT = Path(__file__).parents[2]
ENOUGH_BYTES = 4 * 2**30


class Tier:
    """A data store and the replicas that serve from it.

    Args:
        home: a folder, for logs and recordings at any rate.
        store: the data store where that is another.
    """

    def __init__(self, home: Path, store: str = "") -> None:
        self.home = home
        self.objects = open_objects(store or home, home / "cache" / "soundstage")
        self.folder = ReleaseFolder(self.objects)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._former: set[str] = set()  # processes whose reports may have been left behind

    def start(self, name: str, *options: str) -> str:
        """Start a replica and return its address."""
        self.launch(name, *options)
        return self.wait(name, lambda report: True).url

    def launch(self, name: str, *options: str) -> None:
        self._former |= {report.process for report in self.folder.reports() if report.replica == name}
        command = [sys.executable, "-m", "speech_assets.cli", "serve", "--home", self.objects.home, "--port", "0"]
        with (self.home / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*command, "--replica", name, *options],
                cwd=self.home,
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "OMP_NUM_THREADS": "1",
                    "XDG_CACHE_HOME": str(self.home / "cache"),
                },
                stderr=log,
            )

    def wait(self, name: str, done: Callable[[ReplicaReport], bool], timeout_s: float = 60.0) -> ReplicaReport:
        """Wait until a replica loads nothing any more and its report says so."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.processes[name].poll() is None, self.log(name)
            found = [r for r in self.folder.reports() if r.replica == name and r.process not in self._former]
            here = bool(found) and found[0].revision >= self.folder.read().revision
            if here and not any(said.loading for said in found[0].languages.values()) and done(found[0]):
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"{name} did not get there: {self.folder.reports()}\n{self.log(name)}")

    def stop(self, name: str, how: int = signal.SIGTERM) -> int:
        process = self.processes.pop(name)
        process.send_signal(how)
        return process.wait(timeout=60)

    def log(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text()

    def bundle(self, name: str, language: str = "en", *, approved: bool = True, **options: object) -> ModelBundle:
        """A bundle that may be served, unless nobody approved it."""
        bundle = shelved(self.objects, language, name=name, **options)
        if approved:
            approve(self.objects, bundle)
        return bundle

    def serve(self, *bundles: ModelBundle) -> None:
        """Write the document as it is after releases of these bundles, one a language."""
        for bundle in bundles:
            route = Route(bundle.digest, 1.0, "1", f"soundstage-{bundle.language}")
            self.folder.set_language(bundle.language, LanguageRelease((route,)))


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for a whole deployment, whose servers commit thousands of times: in memory, where the machine has it."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < ENOUGH_BYTES:
        yield tmp_path_factory.mktemp("deployment")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="soundstage-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def tier(tmp_path: Path) -> Iterator[Tier]:
    yield from ended(Tier(tmp_path))


@pytest.fixture
def s3_tier(s3: S3Server, tmp_path: Path) -> Iterator[Tier]:
    """A tier whose data store is in S3; who kills the service starts it again."""
    yield from ended(Tier(tmp_path, f"s3://{BUCKET}/{random.getrandbits(64)}"))


def ended(tier: Tier) -> Iterator[Tier]:
    yield tier
    for process in tier.processes.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def shared_tier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tier, str]]:
    """One replica that serves an English and a German bundle, for tests that change nothing."""
    tier = Tier(tmp_path_factory.mktemp("tier"))
    tier.serve(tier.bundle("en-1"), tier.bundle("de-1", "de"))
    tier.launch("shared", "--max-bytes", "4000000", "--max-duration-s", "40", "--workers", "2")
    url = tier.wait("shared", lambda report: set(report.languages) == {"en", "de"}).url
    yield tier, url
    tier.processes["shared"].kill()
    tier.processes["shared"].wait()


def wav(*words: str, language: str = "en", gap_s: float = 0.24) -> bytes:
    return sound_bytes(tones(words, language, gap_s=gap_s))


@pytest.fixture
def speech_of() -> Callable[..., bytes]:
    """WAV bytes in which a toy bundle hears the given words."""
    return wav
