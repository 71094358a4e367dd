"""What people answer: records that are only added, and what a task's answers come to.

An answer is an object under its task and the next number, written once: of two people who answer at the same time one
is told that the other was first, and nobody's words are written over. Who answers again is taken at the latest word;
who takes an answer back is as if there had been none. An answer holds what was asked, and its audio is copied, so that
it outlives the hour's outputs, and another model that hears the hour again.

A share of the tasks is answered by two people, neither knowing of the other, and by a third where the first two differ.
Differences are counted as word errors are: in the scoring form, so that capitals and commas are none.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from deployment.batch.branch import ReviewTask, chance
from evaluation.scoring import align
from speech.plain import from_plain, to_plain
from speech.store.objects import REFERENCE, LostRace, Objects, StoreError
from speech.store.outputs import parse_json, to_json
from speech.store.records import TRIES, Records, pause
from speech.text import words_of

ANSWERS, AUDIO = "review/answers", "review/audio"
LONGEST_TEXT = 5_000  # characters; a segment is of seconds
LONGEST_S = 86_400.0
# Why a segment cannot be written down; a segment in which nobody speaks can be: it has no text.
UNUSABLE = {
    "noise": "too noisy to understand",
    "overlap": "several speak at once",
    "language": "another language",
    "cut": "a word is cut off",
    "private": "should not be kept",
}
_UNFIT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")

Kind = Literal["text", "unusable", "withdrawn"]


class NotAnAnswer(ValueError):
    """Words that cannot be kept as an answer; the message says why."""


class AlreadyAnswered(Exception):
    """Others were first, and nobody else is asked."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What somebody said of a task, once."""

    task: ReviewTask  # as it was asked; its clip by a key that lasts
    audio_digest: str  # SHA-256 of that clip; "" where it is not kept, since there is no text to it
    who: str
    at: datetime  # UTC, by the clock of whoever took it; nothing is decided by it
    kind: Kind
    text: str  # "" where nothing is said, or the kind is another
    reason: str  # of `UNUSABLE`; "" for the other kinds
    seconds: float  # that the person spent
    doubled: bool  # two people are asked

    def said(self) -> tuple[str, str, str]:
        """What an answer comes to, whoever gave it."""
        return self.kind, self.text, self.reason


@dataclass(frozen=True)
class Outcome:
    """What a task's answers come to at a moment."""

    voices: tuple[Answer, ...]  # the last answer of each person, by who answered first
    wanted: int  # people in all, as far as is known by now
    settled: Answer | None  # the answer that counts; None: more people are asked

    @property
    def state(self) -> str:
        """In a word: open, second (another person is asked), differ (a third is) or settled."""
        if self.settled:
            return "settled"
        return {3: "differ"}.get(self.wanted, "second" if self.voices else "open")

    def awaits(self, who: str) -> bool:
        """Whether this person is asked."""
        return self.settled is None and all(voice.who != who for voice in self.voices)


def is_doubled(task: str, share: float) -> bool:
    """Whether two people are asked: drawn by the task's id, the same each time."""
    return chance(task, "double") < share


def outcome_of(answers: Sequence[Answer], doubled: bool) -> Outcome:
    """What answers, in order, come to; `doubled` counts where there is none yet, else what was so at the first."""
    last: dict[str, Answer] = {}
    for answer in answers:
        if answer.kind == "withdrawn":
            last.pop(answer.who, None)
        else:
            last[answer.who] = answer
    voices = tuple(last.values())
    wanted = 1 + (answers[0].doubled if answers else doubled)
    if wanted == 2 and len(voices) > 1 and difference(*voices[:2])[0]:
        wanted = 3
    settled = _nearest_to_all(voices) if len(voices) >= wanted else None
    return Outcome(voices, wanted, settled)


def _nearest_to_all(voices: Sequence[Answer]) -> Answer:
    """The answer with the fewest differences from the others: what most say, if most say the same; else the later."""
    return min(reversed(voices), key=lambda voice: sum(difference(voice, other)[0] for other in voices))


def difference(one: Answer, other: Answer) -> tuple[int, int]:
    """Word errors between two answers, and the words of the first; of text and no text all words are errors."""
    language = one.task.language
    if one.kind == other.kind == "text":
        edits = align(one.text, other.text, language)
        return sum(edit.kind != "equal" for edit in edits), sum(edit.kind != "insert" for edit in edits)
    words = max(1, len(words_of(one.text or other.text, language)))
    return (0 if one.kind == other.kind else words), words


def disagreement(outcomes: Sequence[Outcome]) -> float | None:
    """The word error rate between the first two people of each task that two have answered; None where none is."""
    pairs = [difference(*found.voices[:2]) for found in outcomes if len(found.voices) > 1]
    words = sum(count for _, count in pairs)
    return sum(errors for errors, _ in pairs) / words if words else None


def error_rate(outcomes: Iterable[Outcome]) -> float | None:
    """The word error rate of what the model heard, people's words being right; None where they wrote none."""
    settled = [found.settled for found in outcomes if found.settled and found.settled.kind == "text"]
    edits = [edit for answer in settled for edit in align(answer.text, answer.task.text, answer.task.language)]
    words = sum(edit.kind != "insert" for edit in edits)
    return sum(edit.kind != "equal" for edit in edits) / words if words else None


def clean(text: str) -> str:
    """Somebody's words as they are kept: NFC, one line.

    Raises:
        NotAnAnswer: they are too long, or hold a character that does not print as it reads.
    """
    if unfit := _UNFIT.search(text):
        raise NotAnAnswer(f"the character U+{ord(unfit[0]):04X} does not print as it reads: leave it out")
    line = unicodedata.normalize("NFC", " ".join(text.split()))
    if len(line) > LONGEST_TEXT:
        raise NotAnAnswer(f"the text has {len(line):,} characters; a segment's has at most {LONGEST_TEXT:,}")
    return line


class Answers:
    """The answers in a data store."""

    def __init__(self, objects: Objects, double_share: float) -> None:
        self.objects, self.double_share = objects, double_share
        self._read: dict[str, Answer] = {}  # by key: what never changes need not be read twice

    def hours(self) -> tuple[str, ...]:
        """The hours that have answers."""
        return self.objects.folders(ANSWERS)

    def state(self, hour: str) -> str:
        """A digest of which answers an hour has, without reading them."""
        keys = sorted(item.key for item in self.objects.list(f"{ANSWERS}/{hour}"))
        return hashlib.sha256("\n".join(keys).encode()).hexdigest()

    def of_hour(self, hour: str) -> dict[str, tuple[Answer, ...]]:
        """The answers to an hour's tasks by the task's id, each task's in order.

        Raises:
            StoreError: one cannot be read.
        """
        found: dict[str, list[Answer]] = defaultdict(list)
        keys = sorted(item.key for item in self.objects.list(f"{ANSWERS}/{hour}"))
        self.objects.each(self._answer, keys)
        for key in keys:
            answer = self._answer(key)
            found[answer.task.id].append(answer)
        return {task: tuple(answers) for task, answers in found.items()}

    def outcomes(self, hour: str) -> dict[str, Outcome]:
        """What the answers to an hour's tasks come to; tasks without an answer are not among them."""
        return {task: outcome_of(answers, False) for task, answers in self.of_hour(hour).items()}

    def outcome(self, hour: str, task: ReviewTask) -> Outcome:
        """What a task's answers come to at this moment."""
        return outcome_of(self.history(hour, task), is_doubled(task.id, self.double_share))

    def history(self, hour: str, task: ReviewTask) -> tuple[Answer, ...]:
        """Every answer to a task, in order, those that are taken back or superseded too."""
        return self._all(self._records(hour, task))

    def add(
        self,
        hour: str,
        task: ReviewTask,
        who: str,
        kind: Kind,
        text: str = "",
        reason: str = "",
        seconds: float = 0.0,
        at: datetime | None = None,
    ) -> Outcome:
        """Add somebody's answer; returns what the task's answers come to with it.

        The same answer once more, as after a lost connection, is one answer.

        Raises:
            NotAnAnswer: what is said cannot be kept.
            AlreadyAnswered: others have answered, and no more people are asked.
        """
        text = clean(text) if kind == "text" else ""
        if kind == "unusable" and reason not in UNUSABLE:
            raise NotAnAnswer(f"'{reason[:40]}' is no reason; there are {', '.join(UNUSABLE)}")
        if not 0 <= seconds <= LONGEST_S:
            raise NotAnAnswer(f"{seconds} s is no time that somebody spent")
        records = self._records(hour, task)
        for attempt in range(TRIES):
            before = self._all(records)
            now = outcome_of(before, is_doubled(task.id, self.double_share))
            own = next((voice for voice in now.voices if voice.who == who), None)
            answer = Answer(
                task=replace(task, clip=f"{REFERENCE}{AUDIO}/{task.id}.flac"),
                audio_digest="",
                who=who,
                at=at or datetime.now(UTC),
                kind=kind,
                text=text,
                reason=reason if kind == "unusable" else "",
                seconds=round(seconds, 3),
                doubled=before[0].doubled if before else is_doubled(task.id, self.double_share),
            )
            said_already = kind == "withdrawn" if own is None else own.said() == answer.said()
            if said_already:
                return now
            if own is None and now.settled is not None:
                raise AlreadyAnswered(f"{now.settled.who} has answered this already, and nobody else is asked")
            if kind == "text":
                answer = replace(answer, audio_digest=self._kept_audio(task))
            try:
                records.append(len(before) + 1, to_json(to_plain(answer)))
            except LostRace:
                pause(attempt)
            else:
                return outcome_of((*before, answer), answer.doubled)
        raise LostRace(f"others answer {task.id} without end: try again later")

    def _kept_audio(self, task: ReviewTask) -> str:
        """Copy the clip to where no later run of the hour removes it; returns its SHA-256."""
        key = f"{AUDIO}/{task.id}.flac"
        clip = self.objects.read(task.clip.removeprefix(REFERENCE)).data
        try:
            self.objects.put_if_absent(key, clip)
        except LostRace:
            clip = self.objects.read(key).data
        return hashlib.sha256(clip).hexdigest()

    def _records(self, hour: str, task: ReviewTask) -> Records:
        return Records(self.objects, f"{ANSWERS}/{hour}/{task.source_digest[:32]}/{task.id}")

    def _all(self, records: Records) -> tuple[Answer, ...]:
        return tuple(self._parsed(records.key(number), data) for number, data in enumerate(records.all(), 1))

    def _answer(self, key: str) -> Answer:
        if key not in self._read:
            self._read[key] = self._parsed(key, self.objects.read(key).data)
        return self._read[key]

    def _parsed(self, key: str, data: bytes) -> Answer:
        try:
            return from_plain(Answer, parse_json(data))
        except ValueError as error:
            raise StoreError(f"{key} in {self.objects.home} is no answer ({error}): restore it or remove it") from error


def by_recording(outcomes: Mapping[str, Outcome]) -> dict[str, list[Answer]]:
    """The answers that count, by the digest of their recording, in order of time."""
    found: dict[str, list[Answer]] = defaultdict(list)
    for outcome in outcomes.values():
        if outcome.settled:
            found[outcome.settled.task.source_digest].append(outcome.settled)
    return {
        digest: sorted(answers, key=lambda answer: (answer.task.start_s, answer.task.channel or 0, answer.task.id))
        for digest, answers in found.items()
    }
