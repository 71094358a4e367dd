"""What is written by several at once: records that are only added, and documents that are replaced.

Both go without locks: a record takes its number, or learns that somebody else has it; a document is replaced as it
was read, or not at all. What a writer decided on has then not changed since it looked.
"""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import PurePosixPath

from speech.store.objects import LostRace, Missing, Objects, Stored, StoreError

THREADS = 8
TRIES = 50  # of a change that nobody decides about; more often nobody loses to others who each win once


class Records:
    """Records below a prefix, one object each: `<prefix>/00000001.json` and so on, without a gap, never changed."""

    def __init__(self, objects: Objects, prefix: str) -> None:
        self.objects, self.prefix = objects, prefix
        self._known: list[bytes] = []  # what never changes need not be read twice

    def key(self, number: int) -> str:
        """The key of a record; the first has number 1."""
        return f"{self.prefix}/{number:08d}.json"

    def all(self) -> tuple[bytes, ...]:
        """All records, in order; record n is at n - 1.

        Raises:
            StoreError: one before the last is missing.
        """
        last = self._listed()

        def read(number: int) -> bytes:
            try:
                return self.objects.read(self.key(number)).data
            except Missing as error:
                raise StoreError(f"{error}, though number {last} is: restore it from its backup") from None

        with ThreadPoolExecutor(THREADS) as threads:
            known = [*self._known, *threads.map(read, range(len(self._known) + 1, last + 1))]
        with suppress(Missing):  # a list may be older than an answer to a question
            while True:
                known.append(self.objects.read(self.key(len(known) + 1)).data)
        self._known = known
        return tuple(known)

    def append(self, number: int, data: bytes) -> None:
        """Add the record that follows the ones that were read, `number` is one more than they are.

        Raises:
            LostRace: another writer added it.
            StoreError: the one before it is not there.
        """
        if number > 1:
            self.objects.read(self.key(number - 1))
        self.objects.put_if_absent(self.key(number), data)

    def add(self, data: bytes) -> int:
        """Add a record after whatever is there; returns its number."""
        number = self._listed() + 1
        for _ in range(TRIES):
            try:
                self.objects.put_if_absent(self.key(number), data)
            except LostRace:
                number = self._free_after(number)
            else:
                return number
        raise LostRace(f"others write to {self.prefix} in {self.objects.home} without end: try again later")

    def last(self, count: int) -> tuple[bytes, ...]:
        """The last records, in order and without reading those before; for what is only shown, so gaps are no error."""

        def read(number: int) -> bytes | None:
            with suppress(Missing):
                return self.objects.read(self.key(number)).data
            return None

        last = self._listed()
        with ThreadPoolExecutor(THREADS) as threads:
            found = threads.map(read, range(max(1, last - count + 1), last + 1))
            return tuple(data for data in found if data is not None)

    def _free_after(self, number: int) -> int:
        """The first number after this one that nobody has; who was held up may be far behind the others."""
        with suppress(Missing):
            while True:
                number += 1
                self.objects.read(self.key(number))
        return number

    def _listed(self) -> int:
        """The highest number in a list of them, which may be older than an answer to a question."""
        names = (PurePosixPath(item.key).stem for item in self.objects.list(self.prefix))
        return max((int(name) for name in names if name.isdecimal()), default=0)


class Document:
    """One object that several writers replace."""

    def __init__(self, objects: Objects, key: str) -> None:
        self.objects, self.key = objects, key

    def read(self) -> Stored | None:
        """What it is now; None before it was first written."""
        try:
            return self.objects.read(self.key)
        except Missing:
            return None

    def replace(self, data: bytes, before: Stored | None) -> Stored:
        """Write it, if it still is what was read before; what a caller must decide about anew raises `LostRace`."""
        if before is None:
            return Stored(data, self.objects.put_if_absent(self.key, data))
        return Stored(data, self.objects.put_if_unchanged(self.key, data, before.tag))

    def change(self, to: Callable[[bytes | None], bytes]) -> Stored:
        """Replace it by what `to` makes of it, as often as others are faster; for changes that need no decision."""
        for attempt in range(TRIES):
            before = self.read()
            try:
                return self.replace(to(before.data if before else None), before)
            except LostRace:
                pause(attempt)
        raise LostRace(f"others write {self.key} in {self.objects.home} without end: try again later")


def pause(attempt: int) -> None:
    """Let the others get on, longer each time, and not all equally long."""
    time.sleep(random.uniform(0, min(1.0, 0.002 * 2**attempt)))
