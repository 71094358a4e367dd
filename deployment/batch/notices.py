"""Notices of jobs that have ended, to whoever asked: kept until they were taken, or given up after many tries.

A notice is written once. Each try that failed leaves a record with the reason, and the next one waits longer, by a part
that differs from notice to notice, so that a receiver who was away is not met by all of them at once. What was given up
is kept below `notices/dead`, with the reason. A process that is killed between sending and noting so sends again:
receivers take an id once.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from deployment.aws import asking, client
from deployment.batch.settings import InferenceSettings
from deployment.batch.webhooks import NotDelivered, keys_of, post, signed
from speech.plain import from_plain, to_plain
from speech.store.objects import LostRace, Missing, Objects, StoreError, StoreUnavailable
from speech.store.outputs import parse_json, to_json

WAITING, FAILED, SENT, DEAD = "notices/waiting", "notices/failed", "notices/sent", "notices/dead"
TRIES = 12  # over about 14 hours
FIRST_WAIT_S, LONGEST_WAIT_S = 30.0, 6 * 3600.0
JITTER = 0.25  # of a wait, more or less
AT_ONCE = 16
MOST = 32  # notices sent in a look: 2 rounds of those at once, each of `webhooks.ANSWER_S` at most


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What somebody is to be told."""

    id: str
    to: str  # an address, or a topic of SNS by its ARN
    body: str  # JSON
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class Try:
    """A try that failed."""

    at: datetime
    why: str


@dataclass
class Delivered:
    """What became of notices."""

    sent: int = 0
    later: list[str] = field(default_factory=list)  # why they are tried again
    dead: list[str] = field(default_factory=list)  # why they were given up


def announce(notice: Notice, objects: Objects) -> None:
    """Have a notice sent, unless it was already."""
    if not any(_is_there(objects, f"{where}/{notice.id}.json") for where in (SENT, DEAD)):
        with suppress(LostRace):
            objects.put_if_absent(f"{WAITING}/{notice.id}.json", to_json(to_plain(notice)))


def deliver(objects: Objects, settings: InferenceSettings, now: datetime) -> Delivered:
    """Send the notices whose time has come.

    Raises:
        StoreError, StoreUnavailable: the data store refuses, or does not answer.
    """
    return asyncio.run(_delivered(objects, lambda notice: _send(notice, settings, now), now))


def due_at(notice: Notice, tries: Iterable[Try]) -> datetime:
    """When a notice is to be sent, after these tries."""
    failed = tuple(tries)
    if not failed:
        return notice.created_at
    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (len(failed) - 1))
    drawn = int.from_bytes(hashlib.sha256(f"{notice.id}/{len(failed)}".encode()).digest()[:4]) / 2**32
    return failed[-1].at + timedelta(seconds=wait_s * (1 + JITTER * (2 * drawn - 1)))


async def _delivered(objects: Objects, send: Callable[[Notice], Awaitable[None]], now: datetime) -> Delivered:
    due = []
    for item in objects.list(WAITING):
        notice = from_plain(Notice, parse_json(objects.read(item.key).data))
        tries = _tries(notice, objects)
        if due_at(notice, tries) <= now:
            due.append((due_at(notice, tries), notice, tries))
    delivered, places = Delivered(), asyncio.Semaphore(AT_ONCE)

    async def tried(notice: Notice, tries: list[Try]) -> None:
        async with places:
            try:
                await send(notice)
            except NotDelivered as error:
                failed = Try(at=now, why=str(error))
                given_up = error.for_good or len(tries) + 1 >= TRIES
                objects.put(_try(notice, len(tries) + 1), to_json(to_plain(failed)))
                said = f"{notice.id} to {_shown(notice.to)}: {failed.why}"
                if given_up:
                    why = {"reason": failed.why, "tries": len(tries) + 1, "notice": to_plain(notice)}
                    objects.put(f"{DEAD}/{notice.id}.json", to_json(why))
                    objects.delete([f"{WAITING}/{notice.id}.json"])
                    delivered.dead.append(said)
                else:
                    delivered.later.append(said)
            else:
                objects.put(f"{SENT}/{notice.id}.json", to_json({"sent_at": now.isoformat()}))
                objects.delete([f"{WAITING}/{notice.id}.json"])
                delivered.sent += 1

    due.sort(key=lambda each: (each[0], each[1].id))  # who waits longest goes first
    await asyncio.gather(*(tried(notice, tries) for _, notice, tries in due[:MOST]))
    return delivered


async def _send(notice: Notice, settings: InferenceSettings, now: datetime) -> None:
    if notice.to.startswith("arn:"):
        await asyncio.to_thread(_publish, notice)
        return
    if settings.jobs.webhook_secret is None:
        raise NotDelivered("`webhook_secret` of [inference.jobs] is not set, and nothing is sent without a signature")
    body = notice.body.encode()
    headers = signed(keys_of(settings.jobs.webhook_secret.get_secret_value()), notice.id, body, now)
    await post(notice.to, body, headers, http=settings.jobs.webhook_http, private=settings.jobs.webhook_private)


def _publish(notice: Notice) -> None:
    """To a topic; `type` and `id` can be filtered by."""
    said = {"id": notice.id, "type": str(parse_json(notice.body).get("type"))}
    attributes = {name: {"DataType": "String", "StringValue": value} for name, value in said.items()}
    try:
        with asking(notice.to):
            client("sns").publish(TopicArn=notice.to, Message=notice.body, MessageAttributes=attributes)
    except (StoreError, StoreUnavailable) as error:
        raise NotDelivered(str(error)) from error


def _tries(notice: Notice, objects: Objects) -> list[Try]:
    keys = sorted(item.key for item in objects.list(f"{FAILED}/{notice.id}"))
    return [from_plain(Try, parse_json(objects.read(key).data)) for key in keys]


def _try(notice: Notice, number: int) -> str:
    return f"{FAILED}/{notice.id}/{number:02d}.json"


def _is_there(objects: Objects, key: str) -> bool:
    try:
        objects.read(key)
    except Missing:
        return False
    return True


def _shown(to: str) -> str:
    """Without what follows the question mark, which may be a secret."""
    return to.partition("?")[0]


def body_of(kind: str, moment: datetime, data: Any) -> str:
    """The body of a notice, as the Standard Webhooks have it."""
    return to_json({"type": kind, "timestamp": moment.isoformat(), "data": data}).decode()
