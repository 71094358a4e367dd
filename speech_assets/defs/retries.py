"""Which failures are worth another try, and when.

Dagster retries at three levels, and each is told apart here or in `dagster.yaml`:

- a step: only where `retried_when_unreachable` finds that something could not be reached (storage, MLflow, a database
  that is locked); the wait doubles and has a random part. A refusal, a typed error of ours or a programming error is
  final at once, because the same input would give the same answer;
- a run: only when its process was lost (`run_retries` in `dagster.yaml`), never because a step failed;
- a backfill: only the daemon's own trouble, such as a code server that restarts.
"""

import errno
import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import dagster as dg

from deployment.promotion.decisions import REFUSALS
from speech.store.objects import StoreUnavailable

MAX_RETRIES = 4
FIRST_WAIT_S = 5.0  # 5, 10, 20, 40 s: a restart of a server is over by then

# Looked up only where the library is loaded already: an error of it cannot be raised otherwise.
UNREACHABLE = (
    ("httpx", "TransportError"),
    ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
    ("urllib3.exceptions", "HTTPError"),
    ("sqlalchemy.exc", "OperationalError"),
    ("botocore.exceptions", "HTTPClientError"),
)
UNREACHABLE_NUMBERS = frozenset(
    getattr(errno, name)
    for name in "EAGAIN EBUSY EHOSTDOWN EHOSTUNREACH EIO ENETDOWN ENETUNREACH ENOLCK ESTALE".split()
)
MLFLOW_UNREACHABLE = frozenset(("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "ABORTED"))
CHAIN = 10  # causes looked through

Compute = TypeVar("Compute", bound=Callable[..., Any])


def backoff(attempt: int, first_s: float) -> float:
    """Seconds before retry number `attempt` (from 0): doubled each time, with a random part against herds."""
    return first_s * 2**attempt * random.uniform(0.75, 1.25)


def unreachable(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that something could not be reached just now."""
    return any(_says_unreachable(found) for found in _chain(error))


@contextmanager
def refusals_are_final() -> Iterator[None]:
    """Make a refusal a failed run with one sentence; what only could not be reached is left to be tried again."""
    try:
        yield
    except REFUSALS as refused:
        if unreachable(refused):
            raise
        raise dg.Failure(str(refused), allow_retries=False) from refused


def retried_when_unreachable(compute: Compute) -> Compute:
    """The function of an asset or op that is tried again, after a wait, when something it needs could not be reached.

    It has to be safe to repeat: the first try may have done its work without hearing so.
    """

    @functools.wraps(compute)
    def tried(context: dg.AssetExecutionContext | dg.OpExecutionContext, *args: Any, **kwargs: Any) -> Any:
        try:
            return compute(context, *args, **kwargs)
        except (dg.Failure, dg.RetryRequested):
            raise
        except Exception as error:
            if not unreachable(error):
                raise
            wait_s = backoff(context.retry_number, FIRST_WAIT_S)
            context.log.warning(f"{type(error).__name__}: {error}; tried again in {wait_s:.0f} s")
            raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=wait_s) from error

    return tried  # type: ignore[return-value]


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(CHAIN):
        if current is None:
            return
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


def _says_unreachable(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError, StoreUnavailable)):
        return True
    if isinstance(error, OSError) and error.errno in UNREACHABLE_NUMBERS:
        return True
    if getattr(error, "error_code", None) in MLFLOW_UNREACHABLE:
        return True
    known = (getattr(sys.modules.get(module), name, None) for module, name in UNREACHABLE)
    return isinstance(error, tuple(kind for kind in known if kind is not None))
