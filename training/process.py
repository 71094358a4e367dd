"""The process that trains: how it is told to stop, what it says of its way, and how it ends.

Exit codes: 0 done, 2 a specification or data that must be mended (one sentence on stderr), 143 stopped by SIGTERM with
a checkpoint, 1 anything else.
"""

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from training.recipe import TrainingError

OK, FAILED, REFUSED, TERMINATED = 0, 1, 2, 128 + signal.SIGTERM
LOCK = ".lock"


def ended(work: "Callable[[Stop], object]") -> int:
    """Do a training's work; tell on stderr how it failed, if it did, and return the exit code."""
    stop = Stop()
    with stop.listening():
        try:
            work(stop)
            return OK
        except TrainingError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            return REFUSED
        except Terminated as error:
            print(f"stopped: {error}", file=sys.stderr, flush=True)
            return TERMINATED
        except KeyboardInterrupt:
            print("stopped: interrupted from the keyboard; the same command goes on.", file=sys.stderr, flush=True)
            return 128 + signal.SIGINT
        except Exception as error:
            sentence = _known_failure(error)
            if sentence is None:
                traceback.print_exc()
                sentence = f"{type(error).__name__}: {error}"
            print(f"error: {sentence}", file=sys.stderr, flush=True)
            return FAILED


@contextlib.contextmanager
def exclusive(output: Path) -> Iterator[None]:
    """Keep a second process out of the folder; the system frees the lock however this one ends."""
    import fcntl

    with open(output / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"Another run is writing to {output}: wait for it or choose another folder.") from error
        yield


def say(pipes: Any, line: str) -> None:
    """A line for people, on stdout and in Dagster's log of the run."""
    print(line, flush=True)
    if pipes is not None:
        pipes.log.info(line)


@contextlib.contextmanager
def open_pipes() -> Iterator[Any]:
    """Yield the channel to Dagster where Dagster started this process, else nothing."""
    if "DAGSTER_PIPES_CONTEXT" not in os.environ or rank() != 0:
        yield None
        return
    from dagster_pipes import open_dagster_pipes

    with open_dagster_pipes() as context:
        yield context


def report_to_dagster(pipes: Any, record: Mapping[str, Any]) -> None:
    """Hand a training's record to the run that started this process."""
    if pipes is not None:
        pipes.report_custom_message({"training": dict(record)})


class Terminated(Exception):
    """SIGTERM arrived; what could be saved is saved."""


class Stop:
    """SIGTERM: ends the process at once, except while training, which first saves a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._deferred = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle SIGTERM inside the block."""
        before = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only remember the wish inside the block; the training loop asks for it after each step."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._deferred:
            raise Terminated("asked to end; the same command goes on from the last checkpoint.")


def _known_failure(error: BaseException) -> str | None:
    """Return one sentence for failures that need no traceback."""
    text = str(error).lower()
    torn = isinstance(error, RuntimeError) and ("no space left" in text or "unexpected pos" in text)
    if torn or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        return (
            "The disk is full or its quota used up: free some space; the same command goes on from the last checkpoint."
        )
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        return "Memory ran out: lower batch.seconds (and raise batch.accumulate), then run the same command."
    return None


def rank() -> int:
    """Which of the processes of a training this is; 0 is the first."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) or 0)
