"""Dead letters: recordings that could not be used, kept with the reason, until somebody puts them back.

Every hour keeps its own, one object a recording, beside the bytes that were received. After a mend (a decoder, a limit,
a setting) they are put back as arrivals of the present hour, where they are counted, transcribed, or dead letters again
that say how often they were tried. The hour in which they first failed stays as it was.

Each failure is put back once, whoever asks how often: the receipt is named by the bytes and the number of the try.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from deployment.batch.arrivals.receipts import Arrival, file, hour_of, is_noted, named
from deployment.batch.stages.items import DeadLetter
from speech.plain import from_plain, to_plain
from speech.store.objects import Objects
from speech.store.outputs import parse_json, to_json

LETTERS = "dead_letters"


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A recording that could not be used in an hour."""

    id: str  # of the recording
    hour: str
    name: str  # of its upload
    digest: str  # SHA-256 of its bytes, under which the data store keeps them
    size: int  # bytes
    language: str | None  # as its upload says
    code: str  # of the reason, such as "truncated"
    reason: str
    tries: int  # so far

    @property
    def next_receipt(self) -> str:
        """The id of the receipt by which it is put back."""
        return named("requeued", self.digest, self.tries)


class NoSuchLetter(Exception):
    """What was asked for names no dead letter."""


def keep(objects: Objects, hour: str, arrivals: Iterable[Arrival], dead: Iterable[DeadLetter]) -> None:
    """Keep the dead letters of an hour, and none that it has no more: it may have been transcribed again."""
    by_recording = {arrival.recording: arrival for arrival in arrivals}
    kept = set()
    for one in dead:
        arrival = by_recording[one.id]
        letter = Letter(
            id=one.id,
            hour=hour,
            name=one.name,
            digest=arrival.digest,
            size=arrival.size,
            language=arrival.language,
            code=one.code,
            reason=one.reason,
            tries=arrival.tries,
        )
        kept.add(key := f"{LETTERS}/{hour}/{one.id}.json")
        objects.put(key, to_json(to_plain(letter)))
    objects.delete([item.key for item in objects.list(f"{LETTERS}/{hour}") if item.key not in kept])


def letters(objects: Objects, hour: str | None = None) -> list[Letter]:
    """The dead letters of an hour, or of all, by hour and recording."""
    place = f"{LETTERS}/{hour}" if hour else LETTERS
    return [from_plain(Letter, parse_json(objects.read(item.key).data)) for item in objects.list(place)]


def requeue(
    objects: Objects,
    now: datetime,
    ids: Sequence[str] = (),
    code: str | None = None,
    hour: str | None = None,
) -> list[Arrival]:
    """Put dead letters back as arrivals of the hour of `now`; those that were put back before are passed over.

    Args:
        objects: the data store.
        now: the present.
        ids: of recordings, or their beginnings, of which each has to name one; none: all that `code` and `hour` leave.
        code: of their reason.
        hour: in which they failed.

    Raises:
        NoSuchLetter: an id names none or several, nothing says which ones, or all are of the present hour.
        StoreError: the data store refuses.
    """
    if not (ids or code or hour):
        raise NoSuchLetter("nothing says which dead letters: give ids, a code or an hour")
    latest: dict[str, Letter] = {}
    for letter in letters(objects):
        if letter.id not in latest or latest[letter.id].tries < letter.tries:
            latest[letter.id] = letter
    named_ones = sorted({_named(beginning, latest) for beginning in ids} if ids else latest)
    chosen = [
        letter
        for letter in map(latest.__getitem__, named_ones)
        if (code is None or letter.code == code) and (hour is None or letter.hour == hour)
    ]
    if not chosen:
        raise NoSuchLetter(f"no dead letter is {' and '.join(filter(None, (code, hour and f'of {hour}')))}")
    put_back = list[Arrival]()
    for letter in chosen:
        if letter.hour == hour_of(now) or is_noted(letter.next_receipt, objects):
            continue
        arrival = Arrival(
            id=letter.next_receipt,
            name=letter.name,
            digest=letter.digest,
            size=letter.size,
            received_at=now,
            language=letter.language,
            same_as=None,
            tries=letter.tries + 1,
        )
        put_back.append(file(arrival, objects))
    if not put_back and any(letter.hour == hour_of(now) for letter in chosen):
        raise NoSuchLetter(f"what failed within this hour, {hour_of(now)}, is tried again by its own `transcribe_hour`")
    return put_back


def _named(beginning: str, latest: dict[str, Letter]) -> str:
    found = [name for name in latest if name.startswith(beginning)]
    if len(found) != 1:
        count = f"{len(found)} dead letters begin" if found else "no dead letter begins"
        raise NoSuchLetter(f"{count} with '{beginning}': the metadata of normalized_recordings list their ids")
    return found[0]
