"""What is kept of an hour in the data store: the outputs of its assets, and the records in them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from deployment.batch.arrivals import Arrival, arrivals_of
from deployment.batch.branch import ReviewTask
from deployment.batch.stages.items import (
    Chosen,
    DeadLetter,
    Heard,
    Languages,
    NormalizedRecording,
    SpeakerTurns,
    Speech,
)
from deployment.batch.versions import Change, InForce
from speech.plain import from_lines
from speech.store.objects import Missing, StoreError
from speech.store.outputs import DataStore, Published, write_atomically
from speech.transcript import Transcript

ARRIVALS, RECORDINGS, DEAD_LETTERS = "arrivals.jsonl", "recordings.jsonl", "dead_letters.jsonl"
SPEECH, TURNS, LANGUAGES = "speech.jsonl", "turns.jsonl", "languages.jsonl"
CHOSEN, HEARD = "models.jsonl", "heard.jsonl"
TRANSCRIPTS, TASKS = "transcripts.jsonl", "tasks.jsonl"
CHANGES, IN_FORCE = "changes.jsonl", "in_force.jsonl"
MEASURES = "measures.json"
ANSWERED = "answered"
RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Hour:
    """One hour; reading what is not there yet raises StoreError, which says what to materialise."""

    store: DataStore
    key: str  # as `arrivals.hour_of` gives it

    def output(self, asset: str) -> Published:
        """The output in force of an asset."""
        return self.store.current(asset, self.key)

    def publish(self, asset: str, files: Mapping[str, bytes]) -> Published:
        """A new output of an asset that consists of these files."""
        with self.store.replace(asset, self.key) as staging:
            for name, data in files.items():
                write_atomically(staging.path / name, data)
        return staging.published

    @property
    def is_transcribed(self) -> bool:
        """Whether everything that has arrived by now went through to the end."""
        try:
            through = self.output("published_transcripts").read(ARRIVALS)
        except Missing:
            return False
        return from_lines(Arrival, through) == list(arrivals_of(self.store.objects, self.key))

    def arrivals(self) -> list[Arrival]:
        """What arrived."""
        return self._records("incoming_audio", ARRIVALS, Arrival)

    def recordings(self) -> list[NormalizedRecording]:
        """What could be used of it; audio is named by its key in the data store."""
        output = self.output("normalized_recordings")
        found = self._records("normalized_recordings", RECORDINGS, NormalizedRecording)
        return [
            replace(row, sounds=tuple(replace(sound, audio=output.reference(sound.audio)) for sound in row.sounds))
            for row in found
        ]

    def dead_letters(self) -> list[DeadLetter]:
        """What could not."""
        return self._records("normalized_recordings", DEAD_LETTERS, DeadLetter)

    def speech(self) -> list[Speech]:
        """Where somebody speaks."""
        return self._records("speech_segments", SPEECH, Speech)

    def turns(self) -> list[SpeakerTurns]:
        """Who speaks when."""
        return self._records("speaker_turns", TURNS, SpeakerTurns)

    def languages(self) -> list[Languages]:
        """What is spoken where."""
        return self._records("spoken_language", LANGUAGES, Languages)

    def chosen(self) -> list[Chosen]:
        """Whose champion heard each language."""
        return self._records("recognized_segments", CHOSEN, Chosen)

    def heard(self) -> list[Heard]:
        """What was said in each stretch."""
        return self._records("recognized_segments", HEARD, Heard)

    def transcripts(self) -> list[Transcript]:
        """Of each recording."""
        return self._records("transcripts", TRANSCRIPTS, Transcript)

    def changes(self) -> list[Change]:
        """What they say otherwise than the versions before them."""
        return self._records("transcripts", CHANGES, Change)

    def in_force(self) -> list[InForce]:
        """Which version of each transcript counts."""
        return self._records("published_transcripts", IN_FORCE, InForce)

    def published(self) -> list[Transcript]:
        """Those that were sure enough."""
        return self._records("published_transcripts", TRANSCRIPTS, Transcript)

    def tasks(self) -> list[ReviewTask]:
        """What people are asked about; clips are named by their key in the data store."""
        output = self.output("review_tasks")
        return [
            replace(task, clip=output.reference(task.clip)) for task in self._records("review_tasks", TASKS, ReviewTask)
        ]

    def reviewed(self) -> list[Transcript]:
        """Those that people corrected."""
        return self._records("reviewed_transcripts", TRANSCRIPTS, Transcript)

    @property
    def answers_taken(self) -> str:
        """The state of people's answers (`Answers.state`) that reviewed transcripts have; "" before there are any."""
        try:
            return self.output("reviewed_transcripts").read(ANSWERED).decode()
        except Missing:
            return ""

    def _records(self, asset: str, name: str, kind: type[RecordT]) -> list[RecordT]:
        output = self.output(asset)
        try:
            return from_lines(kind, output.read(name))
        except ValueError as error:
            raise StoreError(
                f"{self.store.objects.home}/{output.key}/{name} cannot be read ({error}): it was damaged, or made by "
                f"an earlier version: materialise `{asset}` of {self.key} again"
            ) from None
