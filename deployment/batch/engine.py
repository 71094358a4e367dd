"""An hour's items over a pool of processes: models stay open in each, and a process that dies costs its own item.

Decoders are C code that meets hostile files, and networks take memory: whatever kills a worker must not end the hour,
and neither may a recording that somebody works on without end. Each worker therefore has a pipe of its own and no lock
or queue in common with others, so that its death is noticed at once, leaves nothing locked, and says which item it had.
That item is tried again, and `Lost` if it goes on like that. (Of the libraries tried, the standard one's pool breaks as
a whole and was seen to hang after a kill, and pebble's breaks when a worker dies that has nothing to do.)

Results come in the order of the items, whoever is done first, so an hour is the same with one worker or many.
"""

import multiprocessing
import signal
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from deployment.batch.stages.models import Models

TRIES = 3  # of an item
STARTS = 8  # of workers that end before they begin, in a row
LONGEST_S = 1_800.0  # of an item: hours of audio take minutes

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Lost(Generic[ItemT]):
    """An item that has no result: whoever worked on it died each time, or did not come to an end."""

    def __init__(self, item: ItemT) -> None:
        self.item = item


class Pool:
    """So many processes with these models; use it as a context."""

    def __init__(self, models: Models, workers: int, longest_s: float = LONGEST_S) -> None:
        self._models, self._count, self._longest_s = models, workers, longest_s
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._failed_starts = 0
        self.times: list[tuple[Any, float]] = []  # items that have a result, and the seconds of work for each
        self.elapsed_s = 0.0  # from the first item of a stage to the last result, all stages together

    def __enter__(self) -> Self:
        """Start nothing yet: an hour without recordings needs no process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, whatever they are at."""
        for worker in (*self._idle, *self._busy):
            worker.end()
        self._idle, self._busy = [], []

    def each(
        self, stage: Callable[[ItemT, Models], ResultT], items: Iterable[ItemT]
    ) -> "Iterator[ResultT | Lost[ItemT]]":
        """A stage over items: a result or `Lost` for each, in their order.

        What a stage raises is raised here, and the rest is not worked on.
        """
        every, began = list(items), time.monotonic()
        waiting = deque(range(len(every)))
        results: dict[int, ResultT | Lost[ItemT]] = {}
        deaths: Counter[int] = Counter()
        for following in range(len(every)):
            while following not in results:
                self._hand_out(stage, every, waiting)
                for worker in self._heard_from():
                    number = worker.number
                    try:
                        result = worker.answer()
                    except _Died as died:
                        self._busy.remove(worker)
                        deaths[number] += died.began
                        self._failed_starts += not died.began
                        if deaths[number] < TRIES:
                            waiting.appendleft(number)
                        else:
                            results[number] = Lost(every[number])
                    else:
                        self._failed_starts = 0
                        if not isinstance(result, _Begun):
                            self._busy.remove(worker)
                            self._idle.append(worker)
                            results[number] = result
                            self.times.append((every[number], worker.took_s))
            if following == len(every) - 1:
                self.elapsed_s += time.monotonic() - began
            yield results.pop(following)

    def _hand_out(self, stage: Callable[[ItemT, Models], ResultT], items: Sequence[ItemT], waiting: deque[int]) -> None:
        """Give what waits to those who have nothing to do, as long as there are any."""
        while waiting and (self._idle or len(self._busy) < self._count):
            if self._failed_starts >= STARTS:
                raise RuntimeError("the processes that work on recordings end before they begin: see what they printed")
            worker = self._idle.pop() if self._idle else _Worker(self._models)
            try:
                worker.take(waiting[0], stage, items[waiting[0]])
            except _Died as died:
                self._failed_starts += not died.began
            else:
                waiting.popleft()
                self._busy.append(worker)

    def _heard_from(self) -> "list[_Worker]":
        """The workers that have something to say, or have ended; who takes too long is ended first."""
        now = time.monotonic()
        left_s = min(worker.since + self._longest_s for worker in self._busy) - now
        ready = connection.wait([worker.channel for worker in self._busy], max(0.0, left_s))
        if not ready:
            for worker in self._busy:
                if now + left_s >= worker.since + self._longest_s:
                    worker.process.kill()
        return [worker for worker in self._busy if worker.channel in ready]


class _Died(Exception):
    """A worker has ended; `began`: it was working by then, and not just starting."""

    def __init__(self, began: bool) -> None:
        self.began = began


class _Begun:
    """A worker's first word: what it dies of from then on is its item."""


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, models: Models) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__, "onnxruntime"])
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, models), daemon=True)
        self.number, self.since, self.took_s, self._begun = -1, 0.0, 0.0, False
        with suppress(OSError):  # it died at once: whoever gives it an item finds nobody there
            self.process.start()
        theirs.close()

    def take(self, number: int, stage: Callable[..., Any], item: Any) -> None:
        """Hand an item to the worker. Raises _Died."""
        try:
            self.channel.send((stage, item))
        except OSError:
            self.end()
            raise _Died(self._begun) from None
        self.number, self.since = number, time.monotonic()

    def answer(self) -> Any:
        """What it has to say: `_Begun`, or a result. Raises _Died, and whatever the stage raised."""
        try:
            result, error, self.took_s = self.channel.recv()
        except (EOFError, OSError):
            self.end()
            raise _Died(self._begun) from None
        if error is not None:
            raise error
        self._begun = self._begun or isinstance(result, _Begun)
        return result

    def end(self) -> None:
        self.channel.close()
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()


def _serve(channel: "connection.Connection[Any, Any]", models: Models) -> None:
    """Work on what comes through the pipe, until its other end is closed, by whatever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    with suppress(EOFError, OSError):
        channel.send((_Begun(), None, 0.0))
        while True:
            stage, item = channel.recv()
            result = failed = None
            began = time.monotonic()
            try:
                result = stage(item, models)
            except Exception as error:
                error.add_note(f"in a worker:\n{traceback.format_exc()}")
                failed = error
            channel.send((result, failed, time.monotonic() - began))
