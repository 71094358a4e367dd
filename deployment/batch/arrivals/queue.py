"""Events of a bucket, from a queue of SQS into the inbox.

A message goes only after what it tells stands in the inbox, so one that is delivered twice, late, out of order, or once
more because somebody was killed in between, costs nothing. What it says is read as S3 writes it, by way of SNS or
EventBridge, too. A message that cannot be read would come back for ever: it is put aside with the reason.

Not covered: events that S3 never sent. Listing the bucket, as the schedule `arrivals` does, finds what they should
have told of.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_plus

from deployment.aws import asking, client
from deployment.batch.arrivals.bucket import Place, name_below
from deployment.batch.arrivals.inbox import announce, put_aside
from speech.store.objects import Objects
from speech.store.outputs import parse_json

BATCH = 10  # messages that SQS gives at once, at most
WAIT_S = 1  # asks all of SQS's servers; without a wait some are asked, and a full queue may look empty
LONGEST_S = 20.0  # of a look; Dagster ends a sensor's after 60 s
NEW = ("ObjectCreated:", "ObjectRestore:Completed")  # after "s3:", which some services write


class NoEvent(ValueError):
    """A message that tells nothing we know; the message says what is wrong with it."""


@dataclass
class Taken:
    """What messages told."""

    messages: int = 0
    new: int = 0  # uploads that now stand in the inbox
    again: int = 0  # of which we knew
    others: Counter[str] = field(default_factory=Counter)  # that tell of no upload, by what they tell
    put_aside: list[str] = field(default_factory=list)  # reasons


def take_events(
    queue: str,
    uploads: str,
    objects: Objects,
    longest_s: float = LONGEST_S,
    now: Callable[[], float] = time.monotonic,
) -> Taken:
    """Take messages until there are none, or time is over.

    Args:
        queue: its address.
        uploads: s3://bucket/prefix; what lies elsewhere is no upload.
        objects: the data store.
        longest_s: no batch is begun after so many seconds.
        now: a clock, seconds.

    Raises:
        StoreError: the queue or the data store refuses.
        StoreUnavailable: one of them does not answer; what was not taken stays in the queue.
    """
    taken, sqs, end = Taken(), client("sqs"), now() + longest_s
    while now() < end:
        with asking(f"the queue {queue}"):
            answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=BATCH, WaitTimeSeconds=WAIT_S)
        messages = answer.get("Messages", [])
        if not messages:
            break
        places = [place for message in messages for place in _told(message["Body"], uploads, objects, taken)]
        new = announce(places, objects)
        taken.messages, taken.new, taken.again = (
            taken.messages + len(messages),
            taken.new + new,
            taken.again + len(places) - new,
        )
        receipts = [
            {"Id": str(number), "ReceiptHandle": message["ReceiptHandle"]} for number, message in enumerate(messages)
        ]
        with asking(f"the queue {queue}"):  # one that is not deleted comes again, and is known then
            sqs.delete_message_batch(QueueUrl=queue, Entries=receipts)
    return taken


def _told(body: str, uploads: str, objects: Objects, taken: Taken) -> list[Place]:
    """The uploads that a message tells of; what it tells else, or that it tells nothing, is noted in `taken`."""
    found = []
    try:
        for what, place in events(body):
            if place is None:
                taken.others[what] += 1
            elif name_below(uploads, place) is None:
                taken.others["elsewhere"] += 1
            else:
                found.append(place)
    except NoEvent as error:
        key = put_aside(str(error), body, objects)
        taken.put_aside.append(f"{error}: see {key}")
    return found


def events(body: str) -> Iterator[tuple[str, Place | None]]:
    """What a message of the queue tells: names of events, each with what was put into a bucket by it, if anything.

    Raises:
        NoEvent: it is no message of S3.
    """
    try:
        said = parse_json(body)
        if isinstance(said, Mapping) and "Message" in said and "TopicArn" in said:  # by way of SNS, not raw
            said = parse_json(said["Message"])
    except (ValueError, TypeError) as error:
        raise NoEvent(f"a message is no JSON ({error})") from None
    if not isinstance(said, Mapping):
        raise NoEvent("a message is no event of S3")
    if said.get("Event") == "s3:TestEvent":
        yield "s3:TestEvent", None
    elif isinstance(records := said.get("Records"), list):
        for record in records:
            yield _of_s3(record)
    elif said.get("source") == "aws.s3":
        yield _of_eventbridge(said)
    else:
        raise NoEvent(f"a message is no event of S3; it has {', '.join(map(str, sorted(said)[:8])) or 'no keys'}")


def _of_s3(record: Any) -> tuple[str, Place | None]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html: keys are encoded."""
    try:
        name = str(record["eventName"]).removeprefix("s3:")
        if not name.startswith(NEW):
            return name, None
        s3 = record["s3"]
        put = s3["object"]
        return name, _place(s3["bucket"]["name"], unquote_plus(put["key"]), put.get("eTag"), put.get("versionId"))
    except (KeyError, TypeError, AttributeError) as error:
        raise NoEvent(f"a record of a message is no event of S3 ({type(error).__name__}: {error})") from None


def _of_eventbridge(event: Mapping[str, Any]) -> tuple[str, Place | None]:
    """https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html: keys are as they are."""
    try:
        name = str(event["detail-type"])
        if name not in ("Object Created", "Object Restore Completed"):
            return name, None
        detail = event["detail"]
        put = detail["object"]
        return name, _place(detail["bucket"]["name"], put["key"], put.get("etag"), put.get("version-id"))
    except (KeyError, TypeError, AttributeError) as error:
        raise NoEvent(f"a message is no event of EventBridge ({type(error).__name__}: {error})") from None


def _place(bucket: Any, key: Any, etag: Any, version: Any) -> Place:
    if not (isinstance(bucket, str) and isinstance(key, str) and isinstance(etag, str) and bucket and key and etag):
        raise NoEvent("a message tells of an object without bucket, key or ETag")
    try:
        f"{bucket}{key}{etag}{version}".encode()
    except UnicodeEncodeError:
        raise NoEvent("a message tells of an object whose name is no valid text") from None
    known = isinstance(version, str) and version not in ("", "null")
    return Place(bucket=bucket, key=key, etag=etag.strip('"'), version=version if known else None)
