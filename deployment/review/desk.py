"""The desk at which people work: what waits, who has what before them, and the next task for each.

A claim is a document that is replaced as it was read, so of two people who reach for a task one gets it. It holds for
so long by the store's own clock; after that, or once its holder has answered, others may have the task. Claims only
spare people double work: that no answer is lost, answers see to themselves.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from deployment.batch.branch import ReviewTask
from deployment.batch.hour import Hour
from deployment.batch.settings import InferenceSettings
from deployment.review.answers import Answers, Kind, Outcome, is_doubled, outcome_of
from speech.store.objects import REFERENCE, LostRace, Missing, Objects, StoreError
from speech.store.outputs import DataStore, parse_json, to_json
from speech.store.records import Document

CLAIMS = "review/claims"
TASKS_OF = "review_tasks"
FRESH_S = 3.0  # what others answered shows after so long
READERS = 8


class NotAllowed(Exception):
    """Somebody who may not answer; the message says who may."""


class NotAsked(Exception):
    """A task that nobody is asked any more; the message says what to do."""


@dataclass(frozen=True)
class Asked:
    """A task, the hour of its recording, and what its answers come to."""

    hour: str
    task: ReviewTask
    outcome: Outcome


class Desk:
    """The tasks of a data store, for any number of people, processes and machines at once."""

    def __init__(self, objects: Objects, settings: InferenceSettings) -> None:
        self.objects, self.settings = objects, settings
        self.answers = Answers(objects, settings.review.doubled)
        self.unreadable: tuple[str, ...] = ()  # sentences about hours that cannot be shown
        self._store = DataStore(objects)
        self._tasks: dict[str, tuple[str, list[ReviewTask]]] = {}  # by hour: the output's key, and what is in it
        self._asked: dict[str, Asked] = {}
        self._looked: float | None = None
        self._lock = threading.Lock()

    def person(self, name: str) -> str:
        """The name, trimmed, of somebody who may answer.

        Raises:
            NotAllowed: nobody of that name may.
        """
        name, allowed = name.strip(), self.settings.review.reviewers
        if name not in allowed:
            names = ", ".join(sorted(allowed)) or "nobody yet: name people in `inference.review.reviewers`"
            raise NotAllowed(
                f"'{name[:80]}' may not answer (allowed: {names})" if name else f"say who you are: {names}"
            )
        return name

    def every(self) -> list[Asked]:
        """All tasks as they were within `FRESH_S`, the oldest hour and the least sure first."""
        every = self._by_id().values()
        return sorted(every, key=lambda asked: (asked.hour, asked.task.confidence, asked.task.id))

    def find(self, task: str) -> Asked:
        """A task by its id.

        Raises:
            NotAsked: there is none.
        """
        found = self._by_id().get(task)
        if found is None:
            raise NotAsked("this is asked no more: its hour was transcribed again. Go on with the next")
        return found

    def next(
        self, who: str, fits: Callable[[Asked], bool] = lambda _: True, beside: Collection[str] = ()
    ) -> Asked | None:
        """A task for somebody, claimed for them; None where none waits. `beside` are tasks that they have already."""
        now = self.objects.now()
        for asked in self.every():
            if asked.task.id in beside or not asked.outcome.awaits(who) or not fits(asked):
                continue
            if not self._claimed(asked, who, now):
                continue
            fresh = self._known(asked, self.answers.outcome(asked.hour, asked.task))
            if fresh.outcome.awaits(who):
                return fresh
            self._free(asked, who)  # somebody answered just now
        return None

    def answer(
        self,
        who: str,
        task: str,
        kind: Kind,
        text: str = "",
        reason: str = "",
        seconds: float = 0.0,
        at: datetime | None = None,
    ) -> Outcome:
        """Somebody's answer to a task; raises what `Answers.add` and `find` do."""
        asked = self.find(task)
        outcome = self.answers.add(asked.hour, asked.task, who, kind, text, reason, seconds, at)
        self._known(asked, outcome)
        self._free(asked, who)
        return outcome

    def clip(self, task: str) -> bytes:
        """The audio of a task, FLAC."""
        return self.objects.read(self.find(task).task.clip.removeprefix(REFERENCE)).data

    def _by_id(self) -> dict[str, Asked]:
        with self._lock:
            if self._looked is None or time.monotonic() - self._looked > FRESH_S:
                self._look()
            return dict(self._asked)

    def _known(self, asked: Asked, outcome: Outcome) -> Asked:
        fresh = Asked(asked.hour, asked.task, outcome)
        with self._lock:
            self._asked[asked.task.id] = fresh
        return fresh

    def _look(self) -> None:
        problems: list[str] = []

        def hour_of(key: str) -> list[Asked]:
            try:
                return list(self._of_hour(key))
            except (StoreError, ValueError) as broken:
                problems.append(f"{key}: {broken}")
                return []

        with ThreadPoolExecutor(READERS) as readers:
            found = readers.map(hour_of, self.objects.folders(TASKS_OF))
            self._asked = {asked.task.id: asked for hour in found for asked in hour}
        self.unreadable = tuple(sorted(problems))
        self._looked = time.monotonic()

    def _of_hour(self, key: str) -> Iterator[Asked]:
        try:
            output = self._store.current(TASKS_OF, key)
        except Missing:
            return
        if self._tasks.get(key, ("",))[0] != output.key:
            self._tasks[key] = output.key, Hour(self._store, key).tasks()
        tasks = self._tasks[key][1]
        answered = self.answers.outcomes(key) if tasks else {}
        for task in tasks:
            yield Asked(
                key,
                task,
                answered.get(task.id) or outcome_of((), is_doubled(task.id, self.settings.review.doubled)),
            )

    def _claim(self, asked: Asked) -> Document:
        return Document(self.objects, f"{CLAIMS}/{asked.hour}/{asked.task.id}.json")

    def _claimed(self, asked: Asked, who: str, now: float) -> bool:
        """Whether this person has the task now; nobody else does then, for a while."""
        document = self._claim(asked)
        before = document.read()
        if before is not None:
            holder, since = _held(before.data)
            if holder not in ("", who) and now - since < self.settings.review.claim_s:
                return False
        try:
            document.replace(to_json({"who": who, "at": now}), before)
        except LostRace:
            return False
        return True

    def _free(self, asked: Asked, who: str) -> None:
        document = self._claim(asked)
        with suppress(LostRace):
            before = document.read()
            if before is not None and _held(before.data)[0] == who:
                document.replace(to_json({"who": "", "at": 0.0}), before)


def _held(data: bytes) -> tuple[str, float]:
    """Who claims a task, "" for nobody, and since when by the store's clock."""
    try:
        held = parse_json(data)
        return str(held["who"]), float(held["at"])
    except (ValueError, KeyError, TypeError):
        return "", 0.0  # a claim that nobody can read is nobody's
