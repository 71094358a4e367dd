"""How far a recording has come, told by what its hour's assets hold."""

from dataclasses import dataclass

from deployment.batch.arrivals import Arrival, hour_of
from deployment.batch.hour import ARRIVALS, DEAD_LETTERS, LANGUAGES, RECORDINGS, SPEECH, TRANSCRIPTS, Hour
from deployment.batch.stages.items import DeadLetter
from speech.plain import from_lines
from speech.store.objects import Missing
from speech.store.outputs import DataStore

# What a recording goes through, each with the asset and file in which it stands afterwards. (What was recognised stands
# by stretch of speech, and a silent recording has none: it is known to be over by what is made of it.)
STAGES = (
    ("incoming_audio", "incoming_audio", ARRIVALS),
    ("normalized_recordings", "normalized_recordings", RECORDINGS),
    ("speech_segments", "speech_segments", SPEECH),
    ("spoken_language", "spoken_language", LANGUAGES),
    ("recognized_segments", "transcripts", TRANSCRIPTS),
    ("published_transcripts", "published_transcripts", ARRIVALS),
)


@dataclass(frozen=True)
class Progress:
    """How far a recording has come."""

    done: int  # of `STAGES`
    dead: DeadLetter | None = None  # why it comes no further
    published: bool | None = None  # its transcript is sure enough; None: there is none yet

    @property
    def stage(self) -> str | None:
        """What is being made of it; None: nothing yet, or nothing any more."""
        return STAGES[self.done][0] if 0 < self.done < len(STAGES) and self.dead is None else None

    @property
    def over(self) -> bool:
        """Whether it went through to the end."""
        return self.done == len(STAGES)


class Reader:
    """Tells of many recordings, and reads each file of their hours once."""

    def __init__(self, store: DataStore) -> None:
        self._store = store
        self._read: dict[tuple[str, str, str], bytes] = {}

    def progress(self, arrival: Arrival) -> Progress:
        """Of the recording of a receipt, which had its bytes first."""
        hour, done = hour_of(arrival.received_at), 0
        for _, asset, file in STAGES:
            name = arrival.id if file == ARRIVALS else arrival.recording
            if name.encode() not in self._file(hour, asset, file):
                break
            done += 1
        if done == len(STAGES):
            published = arrival.recording.encode() in self._file(hour, "published_transcripts", TRANSCRIPTS)
            return Progress(done, published=published)
        letters = from_lines(DeadLetter, self._file(hour, "normalized_recordings", DEAD_LETTERS)) if done else []
        return Progress(done, next((letter for letter in letters if letter.id == arrival.recording), None))

    def _file(self, hour: str, asset: str, name: str) -> bytes:
        """A file of an output in force; empty where there is none."""
        key = (hour, asset, name)
        if key not in self._read:
            try:
                self._read[key] = Hour(self._store, hour).output(asset).read(name)
            except Missing:
                self._read[key] = b""
        return self._read[key]
