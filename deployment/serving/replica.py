"""One replica of the serving tier, as a process: `soundstage serve`."""

import logging
import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from deployment.addresses import bound
from deployment.batch.jobs import Jobs
from deployment.release.folder import DOCUMENT
from deployment.serving.core import ServingOptions
from deployment.serving.http import create_app
from deployment.settings import Settings
from speech.store.objects import Missing, StoreError

DRAIN_S = 30.0


class ServeError(Exception):
    """This replica cannot serve; the message says why and what to do."""


def serve(
    settings: Settings,
    *,
    host: str | None = None,
    port: int | None = None,
    url: str | None = None,
    replica: str | None = None,
    threads: int | None = None,
    drain_s: float = DRAIN_S,
    **options: float | None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that have begun are finished.

    What is None is as the settings say; `options` are fields of `ServingOptions`.

    Raises:
        ServeError: the data store is not there, or nobody can listen at that address.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if replica and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", replica):
        raise ServeError(f"--replica must be letters, digits, '.', '_' and '-'; got '{replica}'")
    if "://" not in settings.home and not Path(settings.home).is_dir():
        raise ServeError(
            f"there is no data store at {settings.home}: start `make up`, which makes it, or name another with --home"
        )
    objects = settings.objects
    try:
        with suppress(Missing, OSError):  # one that is away for a moment is followed later
            objects.read(DOCUMENT)
    except StoreError as error:
        raise ServeError(str(error)) from error
    host = host or settings.serving.host
    try:
        listener = bound(host, settings.serving.port if port is None else port)
    except (OSError, UnicodeError) as error:
        raise ServeError(f"cannot listen on {host}: {error}; choose another --host or --port") from error
    port = listener.getsockname()[1]
    url = url or f"http://{_reachable(host)}:{port}"
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    chosen = ServingOptions(
        objects=objects,
        url=url.rstrip("/"),
        replica=replica or f"{os.uname().nodename}-{port}-{os.getpid()}",
        threads=threads or settings.serving.threads,
        ledger_key=settings.promotion.signing_key,
        **given,
    )

    import uvicorn

    logging.getLogger(__name__).info("replica %s at %s follows %s", chosen.replica, chosen.url, settings.home)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(chosen, Jobs(objects, settings.inference, settings.languages)),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=round(drain_s),
            timeout_keep_alive=30,
        )
    )
    server.run(sockets=[listener])


def _reachable(host: str) -> str:
    """The host as others write it; a replica that listens everywhere is reached by its host's name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
