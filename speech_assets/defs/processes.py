"""Runs a training command as a process of its own, and sees to its end.

Dagster's own subprocess client waits for a command for ever and tells every end of it the same way. Here a training is
stopped when its time is up, with SIGTERM first, so that it leaves a checkpoint; it does not outlive the run that
started it; and its end is told apart: a process that was killed (out of memory, a machine reclaimed) is started again
and goes on at its checkpoint, a training that refused its input is not.

The command is called with the path of a specification file (JSON, see `training/specification.py`) as its last
argument, and leaves three things in the folder that the specification names as `output`:

- `checkpoint.nemo`: what the next fine-tune can start from;
- `bundle/`: the exported model, a folder that `speech.bundle.ModelBundle.load` accepts;
- `training.json`, written last: at least `dev_wer`, `loss`, `steps`, `seconds` and `audio_hours_seen`.

Called again with the same file it goes on where it was, and returns at once where it had finished. What it left is
published and the folder removed. Exit codes: 0 done, 2 input that must be mended first, 143 stopped by SIGTERM; a last
line on stderr says why.
"""

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import dagster as dg

from deployment.settings import handed_on
from speech_assets.defs.retries import backoff

REFUSED = 2
CHECKPOINT_S = 120.0  # what a stopped training gets for its checkpoint before it is killed
ORPHAN_S = CHECKPOINT_S + 30.0  # how long a training whose run was lost may still hold its folder
KILLED_RETRIES = 3
RETRY_S = 2.0  # wait before the first retry; doubled with each
POLL_S = 0.2
LOCK = ".supervised"
ABANDONED_S = 86_400.0  # a run that is tried again, or that someone launches again, goes on at its checkpoint before
LAST_LINES = 5
SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
LIBC = ctypes.CDLL(None)


class SupervisedProcess(dg.PipesClient):
    """Runs commands with a time limit; they report to Dagster through Pipes if they can."""

    def run(  # type: ignore[override]
        self,
        *,
        context: dg.AssetExecutionContext,
        command: Sequence[str],
        cwd: Path,
        alone: IO[str],
        max_runtime_s: float,
        setting: str,
    ) -> None:
        """Run `command` for at most `max_runtime_s` seconds in the folder that `alone_in` keeps for this process.

        `setting` names where the limit is set, for the sentence that says it was reached.

        Raises:
            dg.Failure: the command refused, failed, or took too long; running it again would not help.
            dg.RetryRequested: the process was killed from outside.
        """
        with dg.open_pipes_session(
            context=context,
            context_injector=dg.PipesTempFileContextInjector(),
            message_reader=dg.PipesTempFileMessageReader(),
        ) as session:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**os.environ, **handed_on(), **session.get_bootstrap_env_vars()},
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    pass_fds=[alone.fileno()],  # the folder is free when the last process that holds it has ended
                    preexec_fn=_end_with_parent,
                )
            except OSError as error:
                raise dg.Failure(
                    f"the training command '{command[0]}' cannot be started ({error.strerror}): check training.command",
                    allow_retries=False,
                ) from error
            said, late = _supervise(process, max_runtime_s)
        if process.returncode == 0:
            return
        if late:
            raise dg.Failure(
                f"the training was stopped after {max_runtime_s:.0f} s, the limit of {setting}: raise it, or launch "
                "the partition again, which goes on at the last checkpoint",
                allow_retries=False,
            )
        why = said[-1].removeprefix("error: ") if said else "it said nothing on stderr"
        if process.returncode == -signal.SIGKILL:
            wait_s = backoff(context.retry_number, RETRY_S)
            context.log.warning(f"the training process was killed; it goes on at its checkpoint in {wait_s:.0f} s")
            raise dg.RetryRequested(max_retries=KILLED_RETRIES, seconds_to_wait=wait_s)
        ended = "refused" if process.returncode == REFUSED else f"ended with code {process.returncode}"
        raise dg.Failure(f"the training {ended}: {why}", allow_retries=False)


def _supervise(process: "subprocess.Popen[str]", max_runtime_s: float) -> tuple[list[str], bool]:
    """Wait for a process; returns its last lines on stderr, and whether it had to be stopped."""
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stderr is not None
    reader = threading.Thread(target=_forward, args=(process.stderr, last), daemon=True)
    reader.start()
    deadline, late = time.monotonic() + max_runtime_s, False
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                late = True
                _end(process)
            time.sleep(POLL_S)
    except BaseException:  # a cancelled run
        _end(process)
        raise
    reader.join(timeout=1.0)
    return list(last), late


def _forward(stream: IO[str], last: "deque[str]") -> None:
    for line in stream:
        sys.stderr.write(line)
        if line.strip():
            last.append(line.strip())


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(CHECKPOINT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """In the new process: ask the kernel for SIGTERM when the process that started it is gone."""
    LIBC.prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)


@contextmanager
def alone_in(folder: Path) -> Iterator[IO[str]]:
    """Make a folder and be its only user inside the block; who held it may end the block by removing it.

    A training whose run was lost may hold it for as long as it takes to write its checkpoint.

    Raises:
        dg.Failure: another run does not let go of it.
    """
    deadline = time.monotonic() + ORPHAN_S
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = (folder / LOCK).open("w")
        except FileNotFoundError:  # it was removed this very moment
            continue
        with lock:
            if _take(lock, folder):
                yield lock
                return
        if time.monotonic() > deadline:
            raise dg.Failure(
                f"another training writes into {folder}: wait for the run that started it, or end that process",
                allow_retries=False,
            )
        time.sleep(POLL_S)


def clear_abandoned(folder: Path) -> None:
    """Remove the folders in `folder` that nobody holds, and that nobody has written into for a day."""
    for left in folder.iterdir():
        with suppress(OSError), (left / LOCK).open() as held:
            touched = max(path.stat().st_mtime for path in (left, *left.iterdir()))
            if time.time() - touched > ABANDONED_S and _take(held, left):
                shutil.rmtree(left, ignore_errors=True)


def _take(lock: IO[str], folder: Path) -> bool:
    """Whether the lock could be had, and still is the folder's: one that was removed keeps nobody out."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK))
    except (BlockingIOError, FileNotFoundError):
        return False
