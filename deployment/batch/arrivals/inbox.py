"""Uploads that were told of and are not fetched yet, and what was told and could not be used.

Whoever hears of an upload writes it down here before it lets go of the message, and a run fetches it later: hearing is
quick, and a copy may take minutes. An entry goes when its upload has a receipt. What is gone by then, and messages that
say nothing, are put aside with the reason, below `arrivals/put_aside`.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from deployment.aws import client
from deployment.batch.arrivals.bucket import Place, name_below, upload_from
from deployment.batch.arrivals.receipts import Arrival, Unreadable, is_noted, keep, language_of
from speech.plain import from_plain, to_plain
from speech.store.objects import LostRace, Objects
from speech.store.outputs import parse_json, to_json

INBOX, PUT_ASIDE = "arrivals/inbox", "arrivals/put_aside"


def announce(places: Iterable[Place], objects: Objects) -> int:
    """Write down what is to be fetched, once each; returns how many were not received or written down before."""
    new = []

    def write(place: Place) -> None:
        if not is_noted(place.id, objects):
            with suppress(LostRace):
                objects.put_if_absent(_entry(place.id), to_json(to_plain(place)))
                new.append(place.id)

    objects.each(write, {place.id: place for place in places}.values())
    return len(new)


def waiting(objects: Objects) -> tuple[str, ...]:
    """The ids of what is to be fetched."""
    return tuple(PurePosixPath(item.key).stem for item in objects.list(INBOX))


def receive_announced(
    uploads: str, objects: Objects, languages: Collection[str], now: datetime, refused: Callable[[str], None]
) -> list[Arrival]:
    """Fetch what waits and file its receipts; returns them.

    Args:
        uploads: s3://bucket/prefix, below which names begin.
        objects: the data store.
        languages: that the first folder of a name may say.
        now: the moment, whose hour they are filed under.
        refused: told of each upload whose bytes could not be had, now or for ever; it stops no other.

    Raises:
        StoreError, StoreUnavailable: the data store refuses, or something does not answer.
    """
    received, s3 = [], None
    for name in waiting(objects):
        place = from_plain(Place, parse_json(objects.read(_entry(name)).data))
        if not is_noted(name, objects):
            s3 = s3 or client("s3")
            called = name_below(uploads, place) or place.key
            try:
                arrival = keep(upload_from(place, name, called, language_of(called, languages), s3), objects, now)
            except Unreadable as error:
                refused(f"{place.uri} could not be received, and is tried again: {error}")
                continue
            if arrival is None:
                reason = f"{place.uri} was removed or replaced before it was fetched: upload it again if it is missed"
                put_aside(reason, to_plain(place), objects)
                refused(reason)
            else:
                received.append(arrival)
        objects.delete([_entry(name)])
    return received


def put_aside(reason: str, what: Any, objects: Objects) -> str:
    """Keep what cannot be used, with the reason; returns its key, the same for the same thing."""
    key = f"{PUT_ASIDE}/{hashlib.sha256(to_json(what)).hexdigest()[:32]}.json"
    with suppress(LostRace):
        objects.put_if_absent(key, to_json({"reason": reason, "what": what}))
    return key


def _entry(name: str) -> str:
    return f"{INBOX}/{name}.json"
