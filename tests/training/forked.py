"""Commands that train, as processes of their own that share one import of NeMo, which takes 10 to 30 s of CPU.

Each is forked from a server that has imported NeMo and nothing of this repository but the import itself, as runs are
forked on one machine; what such a process does, how it is stopped and how it ends is that of the command.
"""

import multiprocessing
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload([f"{__package__}.nemo_imported"])


class Command:
    """`soundstage` with some arguments, under way."""

    def __init__(self, *arguments: str) -> None:
        self._said = Path(tempfile.mkdtemp())
        self._process = FORK.Process(target=_run, args=(arguments, self._said))
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, once it has ended; that of a signal is negative."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end; returns its exit code and what it said."""
        self._process.join(300)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(self._said)
        output, errors = ((self._said / name).read_text() for name in ("out", "err"))
        shutil.rmtree(self._said)
        return subprocess.CompletedProcess((), code, output, errors)


def _run(arguments: tuple[str, ...], said: Path) -> None:
    """In the new process."""
    from speech_assets.cli import app

    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), descriptor)
    app(arguments)
