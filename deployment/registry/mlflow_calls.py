"""MLflow's client behind one proxy: made in one place, and patient with what passes by itself.

SQLite allows one writer, and two first users must not both make its tables; a server restarts, or asks for patience.
MLflow's own client waits for connections; what it raises all the same, though another try may do, is waited for here,
longer each time and with a random part, so that a herd of backfilled quarters spreads out.

A call whose answer was lost is made again, so whoever creates something looks first whether it is there.
"""

import fcntl
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

PATIENCE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
LOCK_TIMEOUT_S = 600.0  # of a registration, whose report may travel over a slow line
SQLITE_BUSY = ("database is locked", "database table is locked", "database schema is locked")
PASSING = frozenset(("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"))


class RegistryError(Exception):
    """The registry has no such model or version, or cannot be used."""


class MlflowCalls:
    """`MlflowClient`'s methods, each made again while what stands in its way may pass."""

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self.database = sqlite_path(tracking_uri)
        self._client: MlflowClient | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self._patiently, name)

    @property
    def client(self) -> "MlflowClient":
        """The client itself; with SQLite its tables are there."""
        if self._client is None:
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            from mlflow import MlflowClient

            client = MlflowClient(self.tracking_uri, self.tracking_uri)
            if self.database:
                self.database.parent.mkdir(parents=True, exist_ok=True)
                with locked(self.database.with_suffix(".schema.lock")):
                    client.search_registered_models(max_results=1)
            self._client = client
        return self._client

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """The only one inside on this database; users of a server have no common lock."""
        if self.database is None:
            yield
            return
        self.database.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.database.with_suffix(".lock")):
            yield

    def _patiently(self, name: str, *arguments: Any, **options: Any) -> Any:
        call = getattr(self.client, name)
        deadline, pause_s = time.monotonic() + PATIENCE_S, FIRST_PAUSE_S
        while True:
            try:
                return call(*arguments, **options)
            except Exception as error:  # MLflow wraps a driver's error in its own, or not, by code path
                if not _passing(error) or time.monotonic() > deadline:
                    raise
            time.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _passing(error: Exception) -> bool:
    return getattr(error, "error_code", None) in PASSING or any(sign in str(error) for sign in SQLITE_BUSY)


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a `sqlite:///` address, or None for any other address."""
    if not tracking_uri.startswith("sqlite:///"):
        return None
    return Path(tracking_uri.removeprefix("sqlite:///").split("?")[0]).absolute()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an advisory lock; it is freed by the kernel when the process dies."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RegistryError(
                        f"{path} has been locked by another process for {LOCK_TIMEOUT_S:.0f} s: end it and try again"
                    ) from None
                time.sleep(0.05)
        yield
