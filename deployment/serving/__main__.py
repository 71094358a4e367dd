"""Run one replica: `python -m deployment.serving --home ... --port 8080`."""

import argparse
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from deployment.serving.core import ServingOptions
from deployment.serving.http import create_app
from deployment.settings import Settings, SettingsError

DRAIN_S = 30.0


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; requests that have begun are finished."""
    parser = argparse.ArgumentParser("python -m deployment.serving", description=__doc__)
    parser.add_argument("--home", type=Path, help="data store (default: from the settings)")
    parser.add_argument("--host", help="address to listen on (default: from the settings)")
    parser.add_argument(
        "--port",
        type=_number(int, 0, 65_535),
        help="port to listen on; 0 takes a free one (default: from the settings)",
    )
    parser.add_argument("--url", help="where other processes reach this replica (default: from host and port)")
    parser.add_argument("--replica", help="name of this replica (default: host and process number)")
    parser.add_argument("--workers", type=_number(int, 1), help="recordings transcribed at the same time")
    parser.add_argument(
        "--threads", type=_number(int, 1), help="threads of one recognition (default: from the settings)"
    )
    parser.add_argument("--queue-limit", type=_number(int, 0), help="received recordings that may wait for a worker")
    parser.add_argument("--max-bytes", type=_number(int, 1), help="largest recording in bytes")
    parser.add_argument("--max-duration-s", type=_number(float, 0), help="longest recording in seconds")
    parser.add_argument(
        "--upload-idle-s", type=_number(float, 0), help="a client that sends nothing for so long is sent away"
    )
    parser.add_argument(
        "--drain-s", type=_number(float, 0), default=DRAIN_S, help="longest wait for requests at the end"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = Settings.load(trains=False)
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if chosen.replica and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", chosen.replica):
        parser.error("--replica must be letters, digits, '.', '_' and '-'")
    home = (chosen.home or settings.home).absolute()
    if not home.is_dir():
        sys.stderr.write(
            f"there is no data store at {home}: start `make up`, which makes it, or name another with --home\n"
        )
        return 2
    host = chosen.host or settings.serving.host
    try:
        listener = _listen(host, settings.serving.port if chosen.port is None else chosen.port)
    except (OSError, UnicodeError) as error:
        sys.stderr.write(f"cannot listen on {host}: {error}; choose another --host or --port\n")
        return 1
    port = listener.getsockname()[1]
    url = chosen.url or f"http://{_reachable(host)}:{port}"
    options = ServingOptions(
        home=home,
        url=url.rstrip("/"),
        replica=chosen.replica or f"{os.uname().nodename}-{port}-{os.getpid()}",
        threads=chosen.threads or settings.serving.threads,
    )
    given = {
        name: getattr(chosen, name)
        for name in ("workers", "queue_limit", "max_bytes", "max_duration_s", "upload_idle_s")
    }
    options = replace(options, **{name: value for name, value in given.items() if value is not None})

    import uvicorn

    logging.getLogger(__name__).info("replica %s at %s follows %s", options.replica, options.url, options.home)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(options),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(chosen.drain_s),
            timeout_keep_alive=30,
        )
    )
    server.run(sockets=[listener])
    return 0


def _number(kind: type[int] | type[float], lowest: int, highest: float = math.inf) -> Callable[[str], float]:
    """A parser of numbers that argparse names the option to when they are out of range."""

    def parse(text: str) -> float:
        number = kind(text)
        if not lowest <= number <= highest or math.isinf(number):
            bounds = f"from {lowest} to {highest}" if math.isfinite(highest) else f"at least {lowest}"
            raise argparse.ArgumentTypeError(f"must be {bounds}; got {text}")
        return number

    parse.__name__ = "number" if kind is float else "whole number"
    return parse


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    return listener


def _reachable(host: str) -> str:
    """The host as others write it; a replica that listens everywhere is reached by its host's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
