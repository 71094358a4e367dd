"""An hour's items over a pool of processes: models stay open in each, and a process that dies costs its own item.

Decoders are C code that meets hostile files, and networks take memory: whatever kills a worker must not end the hour.
The standard library's pool breaks as a whole then and does not say whose work it was. So few items are handed out at a
time; those that were out when the pool broke are tried again, one after the other, and one that kills its worker twice
more is `Lost`. What has come back is kept.

Results come in the order of the items, whoever is done first, so an hour is the same with one worker or many. Workers
end with the process that started them, however that ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from types import TracebackType
from typing import Generic, Self, TypeVar

from deployment.batch.stages import Models

TRIES = 2  # of an item alone, after it was out when a pool broke
AHEAD = 2  # items handed out for each worker

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class Lost(Generic[ItemT]):
    """An item that has no result: whoever worked on it died each time."""

    def __init__(self, item: ItemT) -> None:
        self.item = item


class Pool:
    """So many processes with these models; use it as a context."""

    def __init__(self, models: Models, workers: int) -> None:
        self._models, self._workers = models, workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start nothing yet: an hour without recordings needs no process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes, once they are done with what they work on."""
        self._close()

    def each(
        self, stage: Callable[[ItemT, Models], ResultT], items: Iterable[ItemT]
    ) -> "Iterator[ResultT | Lost[ItemT]]":
        """A stage over items: a result or `Lost` for each, in their order.

        What a stage raises is raised here, and the rest is not worked on.
        """
        waiting = deque(enumerate(items))
        out: dict[Future[ResultT], tuple[int, ItemT]] = {}
        results: dict[int, ResultT | Lost[ItemT]] = {}
        following = 0
        while waiting or out:
            while waiting and len(out) < AHEAD * self._workers:
                number, item = waiting.popleft()
                out[self._submit(stage, item)] = number, item
            for future in wait(out, return_when=FIRST_COMPLETED).done:
                if future not in out:  # it was out when the pool broke, and was seen to
                    continue
                try:
                    results[out[future][0]] = future.result()
                    del out[future]
                except BrokenProcessPool:
                    suspects = sorted(out.values(), key=lambda suspect: suspect[0])
                    out.clear()
                    self._close()
                    results.update((number, self._alone(stage, item)) for number, item in suspects)
            while following in results:
                yield results.pop(following)
                following += 1

    def _alone(self, stage: Callable[[ItemT, Models], ResultT], item: ItemT) -> "ResultT | Lost[ItemT]":
        for _ in range(TRIES):
            try:
                return self._submit(stage, item).result()
            except BrokenProcessPool:
                self._close()
        return Lost(item)

    def _submit(self, stage: Callable[[ItemT, Models], ResultT], item: ItemT) -> "Future[ResultT]":
        if self._executor is None:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__, "onnxruntime"])
            self._executor = ProcessPoolExecutor(self._workers, context, _begin, (self._models,))
        try:
            return self._executor.submit(_work, stage, item)
        except BrokenProcessPool as broken:  # a worker died while it had nothing to do
            failed: Future[ResultT] = Future()
            failed.set_exception(broken)
            return failed

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


_opened: Models | None = None  # of this worker


def _begin(models: Models) -> None:
    global _opened
    _opened = models
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _work(stage: Callable[[ItemT, Models], ResultT], item: ItemT) -> ResultT:
    assert _opened is not None
    return stage(item, _opened)
