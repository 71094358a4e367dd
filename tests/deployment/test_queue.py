"""Events of a bucket by way of a queue: each upload once, whatever is duplicated, late, broken or killed."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote_plus

import pytest

from deployment.aws import client
from deployment.batch.arrivals import arrivals_of, queue, receive
from deployment.batch.arrivals.inbox import INBOX, PUT_ASIDE, receive_announced, waiting
from deployment.batch.arrivals.queue import Taken, take_events
from deployment.batch.arrivals.receipts import Arrival
from speech.store.objects import Objects, StoreUnavailable
from tests.deployment.conftest import forked

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
HOUR = "2026-11-26-09"


class Line:
    """A bucket, a queue that hears of it, and who takes from it."""

    def __init__(self, aws: Callable[[str], Any], home: Objects) -> None:
        self.s3, self.sqs, self.home = aws("s3"), aws("sqs"), home
        self.bucket = f"uploads-{random.getrandbits(48)}"
        self.uploads = f"s3://{self.bucket}/in"
        self.s3.create_bucket(Bucket=self.bucket)
        self.s3.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})
        # what is taken and not deleted comes again after a second
        made = self.sqs.create_queue(QueueName=self.bucket, Attributes={"VisibilityTimeout": "1"})
        self.queue = made["QueueUrl"]

    def put(self, key: str, data: bytes = b"sound") -> dict[str, Any]:
        """Put an object; returns the record that S3 tells of it."""
        told = self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        what = {"key": quote_plus(key, safe="/"), "eTag": told["ETag"].strip('"'), "size": len(data)}
        what |= {"versionId": told["VersionId"], "sequencer": f"{random.getrandbits(60):016X}"}
        return {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": self.bucket}, "object": what},
        }

    def send(self, *bodies: Any) -> None:
        for body in bodies:
            text = body if isinstance(body, str) else json.dumps(body)
            self.sqs.send_message(QueueUrl=self.queue, MessageBody=text)

    def take(self, **how: Any) -> Taken:
        return take_events(self.queue, self.uploads, self.home, **how)

    def receive(self) -> list[Arrival]:
        return receive_announced(self.uploads, self.home, ("en", "de"), NOW, self.told.append)

    @property
    def told(self) -> list[str]:
        return self.__dict__.setdefault("_told", [])

    @property
    def left(self) -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        said = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(said[name]) for name in names)

    @property
    def aside(self) -> list[dict[str, Any]]:
        return [json.loads(self.home.read(item.key).data) for item in self.home.list(PUT_ASIDE)]


@pytest.fixture
def line(aws: Callable[[str], Any], home: Objects, monkeypatch: pytest.MonkeyPatch) -> Line:
    monkeypatch.setattr(queue, "WAIT_S", 0)  # one server answers here
    return Line(aws, home)


def test_events_become_receipts_and_the_queue_is_empty(line: Line) -> None:
    records = [line.put(f"in/en/{number}.wav", b"%d" % number) for number in range(23)]
    line.send(*({"Records": [record]} for record in records[:20]), {"Records": records[20:]})
    taken = line.take()
    assert (taken.messages, taken.new, taken.again, taken.put_aside) == (21, 23, 0, [])
    assert line.left == 0
    assert len(line.receive()) == 23
    assert {(arrival.name[:3], arrival.language) for arrival in arrivals_of(line.home, HOUR)} == {("en/", "en")}
    assert waiting(line.home) == ()


def test_events_that_are_doubled_or_out_of_order_make_one_receipt_each(line: Line) -> None:
    first, second = line.put("in/a.wav", b"first"), line.put("in/a.wav", b"second")
    line.send(*({"Records": [record]} for record in (second, first, second, first, first)))
    taken = line.take()
    assert (taken.new, taken.again) == (2, 3)
    assert len(line.receive()) == 2
    line.send({"Records": [first, second]})
    taken = line.take()
    assert (taken.new, taken.again) == (0, 2)
    assert waiting(line.home) == ()
    assert {line.home.read(arrival.key).data for arrival in arrivals_of(line.home, HOUR)} == {b"first", b"second"}


def test_a_list_and_an_event_of_the_same_object_make_one_receipt(line: Line) -> None:
    line.send({"Records": [line.put("in/a.wav")]})
    receive(line.uploads, line.home, (), NOW)
    assert line.take().again == 1
    assert len(arrivals_of(line.home, HOUR)) == 1


@pytest.mark.parametrize("dies_at", ["delete", "inbox"])
def test_a_kill_between_inbox_and_queue_costs_nothing(line: Line, dies_at: str) -> None:
    """Who is killed there has deleted nothing: the message comes again."""
    line.send({"Records": [line.put("in/a.wav")]})

    def work() -> None:
        def killed(*_: Any, **__: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        if dies_at == "delete":
            client("sqs").delete_message_batch = killed
        else:
            line.home.put_if_absent = killed  # type: ignore[method-assign]
        line.take()

    assert os.waitpid(forked(work), 0)[1] == signal.SIGKILL
    assert len(waiting(line.home)) == (dies_at == "delete")
    received = line.receive()
    again = until_it_comes_again(line)
    assert (again.new, again.again) == ((0, 1) if dies_at == "delete" else (1, 0))
    received += line.receive()
    assert [arrival.name for arrival in received] == ["a.wav"]
    assert line.left == 0


def until_it_comes_again(line: Line) -> Taken:
    for _ in range(100):
        if (taken := line.take()).messages:
            return taken
        time.sleep(0.05)
    raise AssertionError("the message did not come again")


@pytest.mark.parametrize(
    "key",
    [
        "in/a b.wav",
        "in/a+b.wav",
        "in/Grüße 100%.wav",
        "in/a%20b.wav",
        "in/year=2025/10:47;.wav",
        "in/電話/「一」.wav",
        "in/at 9.41\u202fAM.wav",
    ],
)
def test_keys_are_as_people_wrote_them(line: Line, key: str) -> None:
    line.send({"Records": [line.put(key)]})
    line.take()
    assert [arrival.name for arrival in line.receive()] == [key.removeprefix("in/")]


def test_a_bucket_that_tells_the_queue_itself(line: Line) -> None:
    """The server writes the events here, its test event first."""
    arn = f"arn:aws:sqs:us-east-1:123456789012:{line.bucket}"
    told = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    line.s3.put_bucket_notification_configuration(Bucket=line.bucket, NotificationConfiguration=told)
    line.put("in/en/Grüße a+b.wav")
    taken = line.take()
    assert (taken.new, taken.others, taken.put_aside) == (1, {"s3:TestEvent": 1}, [])
    assert [arrival.name for arrival in line.receive()] == ["en/Grüße a+b.wav"]


def test_events_may_come_by_way_of_sns_and_eventbridge(line: Line) -> None:
    wrapped = {"Records": [line.put("in/sns file.wav", b"1")]}
    line.send({"Type": "Notification", "TopicArn": "arn:aws:sns:x:1:t", "Message": json.dumps(wrapped)})
    put = line.put("in/bridge file+.wav", b"2")["s3"]["object"]
    what = {"key": "in/bridge file+.wav", "etag": put["eTag"], "version-id": put["versionId"]}
    detail = {"bucket": {"name": line.bucket}, "object": what}
    line.send({"source": "aws.s3", "detail-type": "Object Created", "detail": detail})
    assert line.take().new == 2
    assert {arrival.name for arrival in line.receive()} == {"sns file.wav", "bridge file+.wav"}


def test_what_tells_of_no_upload_is_counted(line: Line) -> None:
    record = line.put("in/a.wav")
    removed = {**record, "eventName": "ObjectRemoved:Delete"}
    line.send({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": line.bucket}, {"Records": [removed]})
    line.send(
        {"Records": [line.put("out/a.wav"), line.put("inner/a.wav"), line.put("in/folder/"), line.put("in/a.part")]}
    )
    taken = line.take()
    assert (taken.new, taken.put_aside) == (0, [])
    assert taken.others == {"s3:TestEvent": 1, "ObjectRemoved:Delete": 1, "elsewhere": 4}
    assert line.left == 0


@pytest.mark.parametrize(
    "body",
    [
        "no json",
        "[]",
        "{}",
        '{"Records": [{}]}',
        '{"Records": [null]}',
        '{"Message": "no json", "TopicArn": "t"}',
        '{"Message": 1, "TopicArn": "t"}',
        '{"source": "aws.s3"}',
        "[" * 5_000,
        '{"a": "\\ud800"}',
        '{"Records": [{"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": 1}, "object": {"key": "in/a"}}}]}',
        '{"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": {"name": "b"}, "object": '
        '{"key": "in/\\ud800", "etag": "e"}}}',
    ],
)
def test_a_message_that_says_nothing_is_put_aside_once_and_comes_no_more(line: Line, body: str) -> None:
    line.send(body, body, {"Records": [line.put("in/a.wav")]})
    taken = line.take()
    assert (taken.messages, taken.new, len(taken.put_aside)) == (3, 1, 2)
    assert line.left == 0
    (kept,) = line.aside
    assert kept["reason"]
    assert kept["what"] == body


def test_an_object_that_is_gone_is_put_aside_and_stops_no_other(line: Line) -> None:
    gone, kept = line.put("in/gone.wav", b"gone"), line.put("in/kept.wav")
    line.s3.delete_object(Bucket=line.bucket, Key="in/gone.wav", VersionId=gone["s3"]["object"]["versionId"])
    line.send({"Records": [gone]}, {"Records": [kept]})
    line.take()
    assert [arrival.name for arrival in line.receive()] == ["kept.wav"]
    assert "in/gone.wav was removed or replaced" in line.aside[0]["reason"]
    assert waiting(line.home) == ()
    assert line.told == [line.aside[0]["reason"]]


def test_a_version_that_was_overwritten_is_still_fetched(line: Line) -> None:
    line.send({"Records": [line.put("in/a.wav", b"first")]})
    line.put("in/a.wav", b"second")
    line.take()
    (arrival,) = line.receive()
    assert line.home.read(arrival.key).data == b"first"


def test_an_archived_object_waits_in_the_inbox(line: Line) -> None:
    record = line.put("in/a.wav")
    line.s3.put_object(Bucket=line.bucket, Key="in/a.wav", Body=b"sound", StorageClass="GLACIER")
    del record["s3"]["object"]["versionId"]
    line.send({"Records": [record]})
    line.take()
    assert line.receive() == []
    assert len(waiting(line.home)) == 1
    assert "tried again" in line.told[0]


def test_what_was_not_taken_in_time_stays_in_the_queue(line: Line) -> None:
    line.send(*({"Records": [line.put(f"in/{number}.wav")]} for number in range(25)))
    seconds = iter(range(100))
    assert line.take(longest_s=3.0, now=lambda: float(next(seconds))).messages == 20
    assert line.left == 5


def test_a_store_that_does_not_answer_leaves_the_messages(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.send({"Records": [line.put("in/a.wav")]})

    def away(*_: Any) -> Any:
        raise StoreUnavailable("the data store could not be reached")

    with monkeypatch.context() as patch:
        patch.setattr(line.home, "put_if_absent", away)
        with pytest.raises(StoreUnavailable):
            line.take()
    assert line.left == 1
    assert not list(line.home.list(INBOX))
