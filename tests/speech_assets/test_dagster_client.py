"""Waiting for a run outlasts a Dagster that restarts; what is wrong for good ends it at once."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from speech_assets import dagster_client
from speech_assets.dagster_client import DagsterClient, DagsterError, DagsterUnreachable

Answer = tuple[int, str]
Serve = Callable[..., DagsterClient]


def run(status: str, **tags: str) -> Answer:
    said = [{"key": f"dagster/{key}", "value": value} for key, value in tags.items()]
    found = {"__typename": "Run", "status": status, "startTime": 1.0, "endTime": None, "stepStats": [], "tags": said}
    return 200, json.dumps({"data": {"runOrError": found}})


GONE: Answer = (0, "")  # the connection is closed without an answer, as by a process that ends
RESTARTS: Answer = (503, "no server is available")  # what a proxy says meanwhile


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts a server that gives these answers one after the other, the last one again and again."""
    monkeypatch.setattr(dagster_client, "POLL_S", 0.01)
    servers: list[ThreadingHTTPServer] = []

    def start(*answers: Answer) -> DagsterClient:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                code, body = left.pop(0) if len(left) > 1 else left[0]
                if not code:
                    return
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *arguments: Any) -> None:
                return

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return DagsterClient(f"http://127.0.0.1:{servers[-1].server_port}")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_wait_outlasts_a_dagster_that_does_not_answer_for_a_while(serve: Serve) -> None:
    """A run goes on without the webserver, so whoever waits for it has to."""
    dagster = serve(run("STARTED"), GONE, RESTARTS, GONE, run("STARTED"), run("SUCCESS"))
    assert dagster.wait("run", 20) == "SUCCESS"


def test_a_wait_for_a_dagster_that_stays_away_ends_at_its_deadline_and_says_so(serve: Serve) -> None:
    began = time.monotonic()
    with pytest.raises(DagsterUnreachable, match="does not answer"):
        serve(RESTARTS).wait("run", 0.3)
    assert 0.3 <= time.monotonic() - began < 5


def test_a_run_that_takes_too_long_is_named(serve: Serve) -> None:
    with pytest.raises(DagsterError, match="run abc did not end within 0 s"):
        serve(run("STARTED")).wait("abc", 0.05)


def test_a_run_that_is_not_there_is_not_waited_for(serve: Serve) -> None:
    """Asking again would give the same answer until the deadline."""
    missing = 200, json.dumps({"data": {"runOrError": {"__typename": "RunNotFoundError"}}})
    with pytest.raises(DagsterError, match="RunNotFoundError"):
        serve(missing).wait("abc", 20)


def test_a_page_of_another_server_is_not_waited_for(serve: Serve) -> None:
    with pytest.raises(DagsterError, match="not Dagster"):
        serve((200, "<html>sign in</html>")).wait("abc", 20)


def test_a_run_that_is_started_again_has_not_ended(serve: Serve) -> None:
    """A machine that is lost, or a run that made room in the queue, is no failure of what was asked for."""
    lost = run("FAILURE", will_retry="true")
    replaced = run("FAILURE", will_retry="true", auto_retry_run_id="again")
    assert serve(lost, lost, replaced, run("STARTED"), run("SUCCESS")).wait("run", 20) == "SUCCESS"
