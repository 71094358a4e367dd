"""Promote, serve, roll back, under steady requests: what customers notice, and how long going back takes.

    python benchmarks/rollback.py [--rate 10] [--replicas 2] [--home FOLDER]

Everything is real and on this machine: Dagster's webserver and daemon, MLflow, replicas of the transcription server,
clients that send recordings at a fixed rate whatever comes back. Only the models are toys, so that nothing has to be
trained: two ONNX networks that hear tones, of which version 2 says "two" where version 1 says "one". So every answer
shows which version made it, and can be compared with the version that it names.

Version 1 is approved and released; then, under requests, version 2 with its canary; then `rollback` is launched.
A release is complete when every replica's own report says that it gives all requests to that version. Times are taken
from the launch in Dagster and from the decision in the ledger; between the two, Dagster starts the run's process.

Bars: no failed request, each answer names the version that made it, none is made by version 2 once the rollback is
complete, and that is within 10 s of the decision.
"""

import argparse
import datetime as dt
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bars import Bar, end

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the toy bundles of the tests

ROLLBACK_BAR_S = 10.0
MODEL, LANGUAGE, APPROVER = "soundstage-en", "en", "benchmark"
HEARS = {"1": "one three", "2": "two three"}  # what each version says to the same recording
STEADY_S = 6.0  # requests before the first and after the last change
SETTINGS = """
home = "store"
languages = ["{language}"]
first_quarter = "2024-01"
dagster_url = "http://127.0.0.1:{dagster}"

[registry]
ui_url = "http://127.0.0.1:{mlflow}"
[pages]
url = "http://127.0.0.1:{pages}"
[serving]
port = {serving}
[promotion]
approvers = ["{approver}"]
require_better = false  # toys are equal on the words that they were judged by
"""


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent (monotonic), how it ended, and who answered what."""

    at: float
    status: int
    version: str
    digest: str
    text: str
    seconds: float


@dataclass
class Clients:
    """Sends a recording to the replicas in turn, `rate` times a second, from a pool of threads."""

    urls: list[str]
    audio: bytes
    rate: float
    threads: int = 4
    answers: list[Answer] = field(default_factory=list)

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Call until the block ends."""
        stop = threading.Event()
        pool = [threading.Thread(target=self._call, args=(n, stop)) for n in range(self.threads)]
        for thread in pool:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in pool:
                thread.join()

    def _call(self, number: int, stop: threading.Event) -> None:
        import httpx

        pause_s = self.threads / self.rate
        due = time.monotonic() + number / self.rate
        turn = number
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not stop.wait(max(0.0, due - time.monotonic())):
                due += pause_s
                self.answers.append(self._answer(client, self.urls[turn % len(self.urls)]))
                turn += 1

    def _answer(self, client: Any, url: str) -> Answer:
        import httpx

        at = time.monotonic()
        try:
            got = client.post(f"{url}/v1/transcribe", params={"language": LANGUAGE}, content=self.audio)
            body = got.json()
            model = body.get("model", {})
            version, digest, text = model.get("version", ""), model.get("digest", ""), body.get("text", "")
            return Answer(at, got.status_code, version, digest, text, time.monotonic() - at)
        except (httpx.HTTPError, ValueError) as error:
            return Answer(at, 0, "", "", repr(error), time.monotonic() - at)


def write_settings(folder: Path) -> Path:
    """Settings of a deployment with free ports."""
    sockets = [socket.socket() for _ in range(4)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = dict(zip(("dagster", "mlflow", "pages", "serving"), (s.getsockname()[1] for s in sockets), strict=True))
    for each in sockets:
        each.close()
    path = folder / "soundstage.toml"
    path.write_text(SETTINGS.format(language=LANGUAGE, approver=APPROVER, **ports))
    return path


@contextmanager
def more_replicas(settings: Any, count: int) -> Iterator[list[str]]:
    """Further replicas beside the deployment's own; yields the addresses of all."""
    from deployment.release.folder import ReleaseFolder
    from deployment.release.life import Replicas
    from speech_assets.local import services

    replicas = Replicas(ReleaseFolder(settings.objects))
    command = [sys.executable, "-m", "speech_assets.cli", "serve", "--home", settings.home, "--port", "0"]
    with (settings.local / "logs" / "replicas.log").open("ab") as log:
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=services.environment(settings), stderr=log)
            for _ in range(count - 1)
        ]
    try:
        deadline = time.monotonic() + 60
        while len(replicas.live()) < count:
            if time.monotonic() > deadline:
                raise SystemExit(f"replicas did not start: read {settings.local / 'logs'}")
            time.sleep(0.2)
        yield [report.url for report in replicas.live()]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


@dataclass(frozen=True)
class Change:
    """A decision that took effect: seconds from launch and from the ledger's entry until every replica reported it."""

    name: str
    began: float
    ended: float
    since_launch_s: float
    since_decision_s: float


class Operator:
    """Launches jobs as a person does from Dagster's launchpad, and asks the servers what they run."""

    def __init__(self, settings: Any, urls: Sequence[str], digests: dict[str, str]) -> None:
        from speech_assets.dagster_client import DagsterClient
        from speech_assets.defs.resources import Workspace

        self._dagster = DagsterClient(settings.dagster_url)
        self._promotions = Workspace(settings).promotions()
        self._urls = urls
        self._digests = digests

    def promote(self, version: str) -> Change:
        """Approve a version."""
        config = {"model": MODEL, "version": version, "decision": "approve", "approver": APPROVER, "reason": "better"}
        return self._change(f"promote {version}", "promote", "decide_promotion", config, version)

    def rollback(self, version: str) -> Change:
        """Go back; `version` is what that must come to."""
        config = {"model": MODEL, "approver": APPROVER, "reason": "customers hear two where one was said"}
        return self._change(f"roll back to {version}", "rollback", "decide_rollback", config, version)

    def _change(self, name: str, job: str, op: str, config: dict[str, str], version: str) -> Change:
        from speech_assets.dagster_client import ENDED, DagsterError

        launched, began = time.time(), time.monotonic()
        run = self._dagster.launch_job(job, {"ops": {op: {"config": config}}})
        while not self._all_run(version):
            if self._dagster.run(run)["status"] in ENDED - {"SUCCESS"}:
                raise SystemExit(f"{name}: {'; '.join(self._dagster.why_failed(run))}")
            time.sleep(0.1)
        ended, now = time.monotonic(), time.time()
        try:
            status = self._dagster.wait(run, 120)
        except DagsterError as error:
            raise SystemExit(f"{name}: {error}") from error
        if status != "SUCCESS":
            raise SystemExit(f"{name}: {'; '.join(self._dagster.why_failed(run))}")
        decision = self._promotions.current(LANGUAGE)
        decided = dt.datetime.fromisoformat(decision.time).timestamp()
        assert launched < decided
        return Change(name, began, ended, now - launched, now - decided)

    def _all_run(self, version: str) -> bool:
        import httpx

        for url in self._urls:
            running = httpx.get(f"{url}/v1/release", timeout=10, trust_env=False).json()["running"]
            if running["languages"].get(LANGUAGE, {}).get("active", {}) != {self._digests[version]: 1.0}:
                return False
        return True


def table(clients: Clients, changes: Sequence[Change]) -> Any:
    """One row a stretch of time."""
    from rich.table import Table

    _, second, back = changes
    first_at, last_at = clients.answers[0].at, max(answer.at for answer in clients.answers)
    stretches = [
        ("before", first_at, second.began, None),
        (second.name, second.began, second.ended, second),
        ("between", second.ended, back.began, None),
        (back.name, back.began, back.ended, back),
        ("after", back.ended, last_at + 1, None),
        ("all", first_at, last_at + 1, None),
    ]
    shown = Table(title=f"{clients.rate:g} requests/s at {len(clients.urls)} replicas")
    columns = ("", "requests", "failed", "by version 1", "by version 2", "p50 ms", "p95 ms")
    columns += ("s from launch", "s from decision")
    for column in columns:
        shown.add_column(column, justify="left" if not column else "right")
    for name, since, until, change in stretches:
        answers = [a for a in clients.answers if since <= a.at < until]
        by = Counter(answer.version for answer in answers)
        times = sorted(answer.seconds * 1000 for answer in answers)
        p95 = statistics.quantiles(times, n=20)[-1] if len(times) > 1 else float("nan")
        shown.add_row(
            name,
            str(len(answers)),
            str(sum(answer.status != 200 for answer in answers)),
            str(by["1"]),
            str(by["2"]),
            f"{statistics.median(times):.0f}" if times else "-",
            f"{p95:.0f}",
            f"{change.since_launch_s:.1f}" if change else "",
            f"{change.since_decision_s:.1f}" if change else "",
        )
    return shown


def judged(clients: Clients, back: Change, digests: dict[str, str]) -> tuple[list[Bar], list[str]]:
    """The figures with their bars, and the first of each kind of answer that must not be."""
    failed = [answer for answer in clients.answers if answer.status != 200]
    wrong = [
        answer
        for answer in clients.answers
        if answer.status == 200
        and (HEARS.get(answer.version), digests.get(answer.version)) != (answer.text, answer.digest)
    ]
    late = [answer for answer in clients.answers if answer.at > back.ended and answer.version != "1"]
    missed = []
    if failed:
        missed.append(f"a request failed with {failed[0].status}: {failed[0].text[:200]}")
    if wrong:
        missed.append(f"an answer names another version than the one that made it: {wrong[0]}")
    return [
        Bar("requests that failed", len(failed), 0),
        Bar("answers that name another version than made them", len(wrong), 0),
        Bar("requests after the rollback not answered by version 1", len(late), 0),
        Bar("rollback, s from the decision", back.since_decision_s, ROLLBACK_BAR_S),
    ], missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10.0, help="requests a second (default 10)")
    parser.add_argument("--replicas", type=int, default=2, help="replicas of the transcription server (default 2)")
    parser.add_argument("--home", type=Path, help="where everything is kept (default: a temporary folder)")
    options = parser.parse_args(arguments)
    folder = options.home or Path(tempfile.mkdtemp(prefix="rollback-"))
    folder.mkdir(parents=True, exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("SOUNDSTAGE_", "DAGSTER_"))]:
        del os.environ[name]
    os.environ["SOUNDSTAGE_CONFIG"] = str(write_settings(folder))

    from rich.console import Console

    from deployment.release.folder import ReleaseFolder
    from deployment.settings import Settings
    from speech_assets.defs.resources import Workspace
    from speech_assets.local import services
    from tests.sounds import sound_bytes
    from tests.toy_bundle import tones
    from tests.toy_registry import register_versions, write_golden

    console = Console(width=130)
    settings = Settings.load()
    write_golden(Workspace(settings))
    digests = register_versions(Workspace(settings), {}, {"confuse": [("one", "two")]})
    services.stop_on_sigterm()
    with services.running(settings, console), more_replicas(settings, options.replicas) as urls:
        operator = Operator(settings, urls, digests)
        changes = [operator.promote("1")]
        clients = Clients(list(urls), sound_bytes(tones(["one", "three"])), options.rate)
        with clients.calling():
            time.sleep(STEADY_S)
            changes.append(operator.promote("2"))
            time.sleep(STEADY_S)
            changes.append(operator.rollback("1"))
            time.sleep(STEADY_S)
    steps = ReleaseFolder(settings.objects).history(LANGUAGE)
    for change in dict.fromkeys(step.rollout for step in steps):
        line = [f"{s.state} {s.seconds:.1f} s" for s in steps if s.rollout == change]
        console.print(f"version {next(s.version for s in steps if s.rollout == change)}: {', '.join(line)}")
    console.print(table(clients, changes))
    bars, missed = judged(clients, changes[-1], digests)
    if code := end(bars, missed):
        print(f"everything is kept in {folder}")
    return code


if __name__ == "__main__":
    sys.exit(main())
