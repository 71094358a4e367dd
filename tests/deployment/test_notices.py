"""Notices: signed, tried again with growing waits, given up with a reason, and never sent where nobody allowed it."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deployment.aws import client
from deployment.batch import webhooks
from deployment.batch.notices import DEAD, SENT, TRIES, WAITING, Delivered, Notice, Try, announce, deliver, due_at
from deployment.batch.settings import InferenceSettings
from deployment.batch.webhooks import WebhookRefused, checked, keys_of
from speech.store.objects import Objects

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
KEYS = [base64.b64encode(bytes(range(start, start + 24))).decode() for start in (0, 100)]
SECRETS = " ".join(f"whsec_{key}" for key in KEYS)
LOCAL = InferenceSettings.model_validate(
    {"jobs": {"webhook_secret": SECRETS, "webhook_http": True, "webhook_private": True}}
)
BODY = '{"type": "job.done", "data": "Grüße"}'


class Receiver:
    """A real server that answers as it is told to, once each, and then 200; and keeps what it got."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.slow_s = 0.0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                time.sleep(receiver.slow_s)
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.send_header("location", receiver.url)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?token=a%20b&x=ü"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.server.shutdown()
    made.server.server_close()


def noticed(home: Objects, to: str, name: str = "job-1") -> Notice:
    notice = Notice(id=name, to=to, body=BODY, created_at=NOW)
    announce(notice, home)
    return notice


def kept(home: Objects, where: str) -> list[str]:
    return [item.key.rpartition("/")[2].removesuffix(".json") for item in home.list(where)]


def until_settled(home: Objects, every_s: float = 30.0) -> list[Delivered]:
    """What looks do, one after the other, until nothing waits."""
    done, now = [], NOW
    while kept(home, WAITING):
        done.append(deliver(home, LOCAL, now))
        now += timedelta(seconds=every_s)
    return done


def test_a_receiver_that_fails_twice_gets_it_once_it_answers(home: Objects, receiver: Receiver) -> None:
    noticed(home, receiver.url)
    receiver.answers = [500, 503]
    done = until_settled(home)
    assert len(receiver.got) == 3
    assert [each.later for each in done if each.later] == [
        [f"job-1 to {receiver.url.partition('?')[0]}: the answer was {status}"] for status in (500, 503)
    ]
    assert done[-1].sent == 1
    assert (kept(home, WAITING), kept(home, SENT), kept(home, DEAD)) == ([], ["job-1"], [])
    assert {body for _, _, body in receiver.got} == {BODY.encode()}
    moments = [int(headers["webhook-timestamp"]) for _, headers, _ in receiver.got]
    assert moments[0] < moments[1] < moments[2]  # receivers refuse one that is minutes old


def test_a_notice_is_signed_as_the_standard_says_with_each_secret(home: Objects, receiver: Receiver) -> None:
    noticed(home, receiver.url)
    until_settled(home)
    ((path, headers, body),) = receiver.got
    assert path == "/hook?token=a%20b&x=%C3%BC"  # some senders drop what follows the question mark
    assert headers["webhook-id"] == "job-1"
    assert headers["webhook-timestamp"] == str(int(NOW.timestamp()))
    assert headers["content-type"] == "application/json"
    assert headers["host"] == receiver.url.split("/")[2]
    content = f"job-1.{headers['webhook-timestamp']}.".encode() + body
    expected = [hmac.new(base64.b64decode(key), content, hashlib.sha256).digest() for key in KEYS]
    assert headers["webhook-signature"] == " ".join(f"v1,{base64.b64encode(one).decode()}" for one in expected)


def test_the_signature_is_the_one_of_the_standards_own_example() -> None:
    """https://github.com/standard-webhooks/standard-webhooks: libraries of other makers check with this."""
    keys = keys_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = webhooks.signed(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", body, datetime.fromtimestamp(1614265330, UTC))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_never_taken_is_given_up_with_the_reason(home: Objects) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    noticed(home, f"http://127.0.0.1:{port}/")
    looks = until_settled(home, every_s=900.0)
    assert sum(len(each.later) for each in looks) == TRIES - 1
    assert len(looks[-1].dead) == 1
    dead = json.loads(home.read(f"{DEAD}/job-1.json").data)
    assert "ConnectError" in dead["reason"]
    assert dead["tries"] == TRIES
    assert dead["notice"]["body"] == BODY
    announce(Notice(id="job-1", to="http://127.0.0.1/", body=BODY, created_at=NOW), home)
    assert kept(home, WAITING) == []  # what was given up does not begin again by itself


def test_waits_grow_and_differ() -> None:
    notices = [Notice(id=f"job-{number}", to="", body="", created_at=NOW) for number in range(50)]
    for tried, usual_s in ((1, 30), (4, 240), (11, 21_600)):
        tries = [Try(at=NOW, why="")] * tried
        waits = [(due_at(notice, tries) - NOW).total_seconds() for notice in notices]
        assert 0.75 * usual_s <= min(waits) < max(waits) <= 1.25 * usual_s
        assert len(set(waits)) == len(waits)
    assert due_at(notices[0], []) == NOW


def test_who_says_gone_is_not_asked_again(home: Objects, receiver: Receiver) -> None:
    noticed(home, receiver.url)
    receiver.answers = [410]
    assert len(until_settled(home)) == len(receiver.got) == 1
    assert kept(home, DEAD) == ["job-1"]


def test_a_redirection_is_not_followed(home: Objects, receiver: Receiver) -> None:
    """It would lead past what was looked at."""
    noticed(home, receiver.url)
    receiver.answers = [307]
    assert "the answer was 307" in deliver(home, LOCAL, NOW).later[0]
    assert len(receiver.got) == 1


def test_a_slow_receiver_holds_up_no_other(home: Objects, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Receiver()
    slow.slow_s = 3.0
    for number in range(8):
        noticed(home, slow.url, f"slow-{number}")
    noticed(home, receiver.url, "quick")
    post = webhooks.post
    monkeypatch.setattr("deployment.batch.notices.post", lambda *args, **how: post(*args, **how, answer_s=1.0))
    began = time.monotonic()
    delivered = deliver(home, LOCAL, NOW)
    assert time.monotonic() - began < 3.0
    assert kept(home, SENT) == ["quick"]
    assert len(delivered.later) == 8
    assert "no answer came within 1 s" in delivered.later[0]
    slow.server.server_close()


def test_a_kill_between_sending_and_noting_sends_the_same_id_again(
    home: Objects, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed(home, receiver.url)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(home, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            deliver(home, LOCAL, NOW)
    until_settled(home)
    assert [headers["webhook-id"] for _, headers, _ in receiver.got] == ["job-1", "job-1"]
    noticed(home, receiver.url)
    assert kept(home, WAITING) == []


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.1.2.3/",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        "https://[fd00::1]/",
        "https://0.0.0.0/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://100.64.0.1/",
        "https://224.0.0.1/",
    ],
)
def test_nothing_is_sent_into_a_private_network_unless_it_is_allowed(url: str) -> None:
    with pytest.raises(WebhookRefused, match="private network"):
        checked(url, http=False, private=False)
    assert checked(url, http=False, private=True) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://",
        "https:///a",
        "https://user:pass@example.org/",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://a b/",
        "https://example.org/\n",
        "https://[::1",
        "https://example.org/" + "a" * 2_048,
        "example.org",
        "",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(WebhookRefused):
        checked(url, http=False, private=True)


def test_a_name_that_moves_into_a_private_network_gets_nothing(
    home: Objects, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns a name may let it mean a public address while it is looked at, and another when it is sent to."""
    settings = InferenceSettings(jobs=LOCAL.jobs.model_copy(update={"webhook_private": False}))
    port = receiver.server.server_port
    answers = iter([["93.184.215.14"], ["127.0.0.1"]])

    def resolved(host: str, at: Any, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at)) for address in next(answers)]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    url = f"http://rebinding.example.org:{port}/"
    assert checked(url, http=True, private=False) == url
    noticed(home, url)
    assert "private network (127.0.0.1)" in deliver(home, settings, NOW).later[0]
    assert receiver.got == []


def test_the_next_address_of_a_host_is_tried(
    home: Objects, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = receiver.server.server_port

    def resolved(host: str, at: Any, *_: Any, **__: Any) -> list[Any]:
        found = ("127.0.0.2", "127.0.0.1")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, at)) for address in found]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    noticed(home, f"http://two.example.org:{port}/")
    assert deliver(home, LOCAL, NOW).sent == 1
    assert receiver.got[0][1]["host"] == f"two.example.org:{port}"


@pytest.mark.parametrize("secret", ["hush", "whsec_", "whsec_YWJj", "whsec_!!!!", f"{SECRETS} other"])
def test_a_secret_that_is_none_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_ and the base64") as refused:
        keys_of(secret)
    assert secret not in str(refused.value).replace("whsec_ and", "")


def test_a_topic_is_told(home: Objects, aws: Any) -> None:
    sns, sqs = aws("sns"), aws("sqs")
    topic = sns.create_topic(Name="jobs")["TopicArn"]
    queue = sqs.create_queue(QueueName="jobs")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    noticed(home, topic, "job-1-topic")
    noticed(home, f"{topic}-other", "job-2-topic")
    delivered = deliver(home, InferenceSettings(), NOW)
    assert delivered.sent == 1
    assert "NotFound" in delivered.later[0]
    (message,) = client("sqs").receive_message(QueueUrl=queue)["Messages"]
    told = json.loads(message["Body"])
    assert told["Message"] == BODY
    assert told["MessageAttributes"]["type"]["Value"] == "job.done"


def test_a_webhook_without_a_secret_is_not_sent(home: Objects, receiver: Receiver) -> None:
    noticed(home, receiver.url)
    settings = InferenceSettings(jobs=LOCAL.jobs.model_copy(update={"webhook_secret": None}))
    assert "webhook_secret" in deliver(home, settings, NOW).later[0]
    assert receiver.got == []
