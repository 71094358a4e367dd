"""Objects: the same promises over a folder and over S3, to whoever writes at the same time, and whatever is killed."""

import hashlib
import multiprocessing
import os
import pickle
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from speech.store import s3 as s3_module
from speech.store.cache import LocalCache
from speech.store.folder import FolderObjects
from speech.store.objects import LostRace, Missing, Objects, StoreError, StoreUnavailable, open_objects
from speech.store.s3 import S3Objects
from tests.s3_server import BUCKET, S3Server

RACES = 25  # benchmarks/store_races.py runs 200
ODD = ("a b", "é", "%41+&=#?", "~!$'()*,;:@[]{}|^`\"", "日本語", ".hidden", "x.staging-", "current@2", "-rf")


@pytest.fixture
def s3_objects(s3: S3Server, tmp_path: Path) -> S3Objects:
    made = open_objects(f"s3://{BUCKET}/{random.getrandbits(64)}", tmp_path / "cache")
    assert isinstance(made, S3Objects)
    return made


def test_what_was_put_is_read_and_is_never_put_twice(objects: Objects) -> None:
    tag = objects.put_if_absent("ledger/en/1.json", b"one")
    assert objects.read("ledger/en/1.json").data == b"one"
    assert objects.read("ledger/en/1.json").tag == tag
    with pytest.raises(LostRace):
        objects.put_if_absent("ledger/en/1.json", b"two")
    assert objects.read("ledger/en/1.json").data == b"one"


def test_a_document_is_replaced_only_by_who_read_the_last_version(objects: Objects) -> None:
    tags = [objects.put_if_absent("release.json", b"1")]
    for version in (b"2", b"3", b"2"):
        tags.append(objects.put_if_unchanged("release.json", version, tags[-1]))
    assert objects.read("release.json").data == b"2"
    assert objects.read("release.json").tag == tags[-1]
    for old in tags[0], tags[2]:
        with pytest.raises(LostRace, match="read it again"):
            objects.put_if_unchanged("release.json", b"4", old)
    with pytest.raises(LostRace):
        objects.put_if_absent("release.json", b"4")
    with pytest.raises(LostRace):
        objects.put_if_unchanged("never-there.json", b"4", tags[0])
    assert objects.read("release.json").data == b"2"
    assert [item.key for item in objects.list()] == ["release.json"]


def test_a_report_is_replaced_without_looking(objects: Objects) -> None:
    for text in b"1", b"2":
        objects.put("reports/one.json", text)
    assert objects.read("reports/one.json").data == b"2"


def test_what_is_not_there_is_missing(objects: Objects) -> None:
    for ask in (objects.read, objects.local, objects.local_folder):
        with pytest.raises(Missing, match=r"nothing/here|nothing below"):
            ask("nothing/here")
    with pytest.raises(Missing), objects.open("nothing/here"):
        pass
    assert [*objects.list("nothing")] == []
    assert objects.folders("nothing") == ()
    objects.delete(["nothing/here"])


def test_a_list_ends_where_a_name_ends_and_is_sorted(objects: Objects) -> None:
    keys = ["runs/1/a", "runs/1/b/c", "runs/10/a", "runs/1.json", "runs/1-x/a", "runs2/a"]
    for key in keys:
        objects.put_if_absent(key, key.encode())
    assert [(item.key, item.size) for item in objects.list("runs/1")] == [("runs/1/a", 8), ("runs/1/b/c", 10)]
    assert [item.key for item in objects.list()] == sorted(keys)
    assert objects.folders("runs") == ("1", "1-x", "10")
    assert objects.folders() == ("runs", "runs2")


@pytest.mark.parametrize("name", ODD)
def test_any_printable_name_is_a_key(objects: Objects, name: str) -> None:
    objects.put_if_absent(f"{name}/{name}", b"x")
    assert objects.read(f"{name}/{name}").data == b"x"
    assert [item.key for item in objects.list(name)] == [f"{name}/{name}"]
    assert objects.local(f"{name}/{name}").read_bytes() == b"x"
    objects.delete([f"{name}/{name}"])
    assert [*objects.list()] == []


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "a/../b", ".", "a\\b", "a\nb", "a\0", "\ud800", "x" * 201, "a/" * 500 + "a", "a@00000002"],
)
def test_a_key_that_one_of_the_two_could_not_hold_is_refused_by_both(objects: Objects, key: str) -> None:
    for act in (objects.read, objects.local, lambda k: objects.put(k, b""), lambda k: objects.put_if_absent(k, b"")):
        with pytest.raises(StoreError):
            act(key)


def test_a_deleted_object_is_gone_and_its_empty_folders_with_it(objects: Objects) -> None:
    objects.put_if_absent("a/b/c", b"1")
    objects.put_if_absent("a/d", b"1")
    objects.delete(["a/b/c", "a/never"])
    assert [item.key for item in objects.list()] == ["a/d"]
    assert not isinstance(objects, FolderObjects) or objects.folders("a") == ()
    objects.put_if_absent("a/b/c", b"2")
    assert objects.read("a/b/c").data == b"2"


def test_a_large_file_goes_up_in_parts_and_comes_back_the_same(objects: Objects, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(11 * 2**20 + 7)
    (tmp_path / "large").write_bytes(data)
    with patch.multiple(s3_module, MULTIPART_BYTES=2**20, PART_BYTES=5 * 2**20):
        objects.upload(tmp_path / "large", "models/large")
        with pytest.raises(LostRace):
            objects.upload(tmp_path / "large", "models/large")
    with objects.open("models/large") as file:
        assert file.read(10) == data[:10]
        assert hashlib.sha256(file.read()).digest() == hashlib.sha256(data[10:]).digest()
    assert objects.local("models/large").read_bytes() == data


def test_a_folder_of_objects_is_a_folder_of_files(objects: Objects) -> None:
    for name in ("bundle.json", "networks/encoder.onnx"):
        objects.put_if_absent(f"bundles/1/{name}", name.encode())
    folder = objects.local_folder("bundles/1")
    assert sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()) == [
        "bundle.json",
        "networks/encoder.onnx",
    ]


def test_the_stores_clock_goes_on(objects: Objects) -> None:
    before = objects.now()
    assert 0 <= objects.now() - before < 60


def test_objects_travel_to_another_process(objects: Objects) -> None:
    objects.put_if_absent("a", b"1")
    assert pickle.loads(pickle.dumps(objects)).read("a").data == b"1"


def race_all(mine: Objects, number: int, barrier: Any, wins: Any, races: int) -> None:
    """One of two processes that write each key of a series at the same moment; says which it won."""
    mine.now()
    tags = [mine.put_if_absent(f"documents/{n}", b"before") if number == 0 else None for n in range(races)]
    barrier.wait()
    tags = [mine.read(f"documents/{n}").tag for n in range(races)] if tags else tags
    won = []
    for race in range(races):
        for write in (
            lambda: mine.put_if_absent(f"ledger/{race:08d}", b"%d" % number),  # noqa: B023
            lambda: mine.put_if_unchanged(f"documents/{race}", b"%d" % number, tags[race]),  # noqa: B023
        ):
            barrier.wait()
            try:
                write()
            except LostRace:
                won.append(False)
            else:
                won.append(True)
    wins.put((number, won))


def test_of_two_processes_one_wins_and_the_other_is_told(objects: Objects) -> None:
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(2), context.Queue()
    both = [context.Process(target=race_all, args=(objects, n, barrier, wins, RACES)) for n in range(2)]
    for process in both:
        process.start()
    told = dict(wins.get(timeout=100) for _ in both)
    for process in both:
        process.join()
    assert [first + second for first, second in zip(told[0], told[1], strict=True)] == [1] * 2 * RACES
    for race in range(RACES):
        for place, key in enumerate((f"ledger/{race:08d}", f"documents/{race}")):
            assert objects.read(key).data == (b"0" if told[0][2 * race + place] else b"1")


# what only a folder has to see to


def test_a_document_in_a_folder_is_a_file_that_people_can_read(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    tag = objects.put_if_absent("release.json", b"1")
    objects.put_if_unchanged("release.json", b"2", tag)
    assert (tmp_path / "release.json").read_bytes() == b"2"
    (tmp_path / "release.json").unlink()
    assert objects.read("release.json").data == b"2", "the link is for people"
    with pytest.raises(LostRace):
        objects.put_if_absent("release.json", b"3")
    with pytest.raises(StoreError, match="cannot be removed"):
        objects.put_if_unchanged("release.json", b"3", objects.read("release.json").tag)
        objects.delete(["release.json"])


def test_a_writer_that_slept_for_many_versions_loses(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    slept = tag = objects.put_if_absent("d", b"0")
    for number in range(50):
        tag = objects.put_if_unchanged("d", b"%d" % number, tag)
    with pytest.raises(LostRace):
        objects.put_if_unchanged("d", b"late", slept)
    os.replace(tmp_path / "d@00000003", tmp_path / "aside")
    os.symlink("d@00000002", tmp_path / "aside.link")
    os.replace(tmp_path / "aside.link", tmp_path / "d")
    os.replace(tmp_path / "aside", tmp_path / "d@00000003")
    assert objects.read("d").data == b"49", "a link that was left behind is only a place to start from"


def test_an_edit_of_a_document_by_hand_counts_and_makes_writers_lose(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    tag = objects.put_if_unchanged("d", b"2", objects.put_if_absent("d", b"1"))
    (tmp_path / "d").write_bytes(b"by hand")
    assert objects.read("d").data == b"by hand"
    with pytest.raises(LostRace):
        objects.put_if_unchanged("d", b"3", tag)


def test_an_answer_that_a_file_server_sent_twice_does_not_make_a_winner_lose(tmp_path: Path) -> None:
    """The link was made, the answer got lost, and the second request is told that the name exists."""
    objects, link = FolderObjects(tmp_path), os.link

    def twice(*args: Any) -> None:
        link(*args)
        link(*args)

    with patch("os.link", twice):
        objects.put_if_absent("a", b"1")
    assert objects.read("a").data == b"1"
    with patch("os.link", lambda *args: None), pytest.raises(LostRace):  # a client that takes "exists" for "done"
        objects.put_if_absent("a", b"2")


def test_a_file_system_without_hard_links_is_named(tmp_path: Path) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    with patch("os.link", refuse), pytest.raises(StoreError, match="without hard links"):
        FolderObjects(tmp_path).put_if_absent("a", b"1")


def test_an_object_is_no_folder(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    objects.put_if_absent("a/b", b"1")
    for key in ("a", "a/b/c", "a/b/c/d"):
        for write in (objects.put_if_absent, objects.put):
            with pytest.raises(StoreError, match=r"folder|object"):
                write(key, b"2")


def test_nothing_of_the_makers_own_is_listed_and_what_was_abandoned_goes(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path)
    objects.put_if_absent("a/b", b"1")
    left = tmp_path / ".incoming" / "left"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    with objects.staging("a") as staging:
        (staging / "x").write_bytes(b"")
        (tmp_path / "a" / ".nfs0001").write_bytes(b"")
        assert [item.key for item in objects.list()] == ["a/b"]
        assert objects.folders("a") == ()
    assert not left.exists()
    assert not staging.exists()
    with pytest.raises(StoreError, match="temporary"):
        objects.put_if_absent(".incoming/x", b"")


# what only S3 has to see to


class Flaky:
    """Hooks into the requests of a client: loses answers, or gives others."""

    def __init__(self, objects: S3Objects, operation: str, answers: list[Callable[[Any], Any]]) -> None:
        self.sent = 0
        real = objects._client._endpoint.http_session.send

        def send(request: Any) -> Any:
            answer = real(request)
            if operation(request) if callable(operation) else request.method == operation:
                self.sent += 1
                if answers:
                    return answers.pop(0)(answer)
            return answer

        objects._client._endpoint.http_session.send = send


def lost(answer: Any) -> Any:
    from botocore.exceptions import ReadTimeoutError

    raise ReadTimeoutError(endpoint_url="http://lost")


def as_error(status: int, code: str) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        answer.status_code = status
        answer._content = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
        return answer

    return change


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts of a request are not what these tests are about."""
    monkeypatch.setattr("random.random", lambda: 0.01)


def test_a_winner_whose_answer_was_lost_is_told_that_it_won(s3_objects: S3Objects, quick: None) -> None:
    s3_objects.put_if_absent("other", b"")  # conditions tried
    flaky = Flaky(s3_objects, "PUT", [lost])
    tag = s3_objects.put_if_absent("ledger/1", b"mine")
    assert flaky.sent == 2
    assert s3_objects.read("ledger/1").tag == tag
    Flaky(s3_objects, "PUT", [lost])
    tag = s3_objects.put_if_unchanged("ledger/1", b"mine, too", tag)
    assert s3_objects.read("ledger/1").data == b"mine, too"
    assert s3_objects.put_if_unchanged("ledger/1", b"again", tag)


def test_a_winner_is_told_so_even_when_others_have_gone_on_from_its_write(s3_objects: S3Objects, quick: None) -> None:
    other = pickle.loads(pickle.dumps(s3_objects))
    tag = s3_objects.put_if_absent("d", b"0")

    def others_go_on(answer: Any) -> Any:
        stored = other.read("d")
        assert stored.data == b"mine"
        other.put_if_unchanged("d", b"theirs", stored.tag)
        lost(answer)

    Flaky(s3_objects, "PUT", [others_go_on])
    mine = s3_objects.put_if_unchanged("d", b"mine", tag)
    with pytest.raises(LostRace):
        s3_objects.put_if_unchanged("d", b"next", mine)
    assert s3_objects.read("d").data == b"theirs"


def test_a_loser_with_the_same_content_is_told_that_it_lost(s3_objects: S3Objects) -> None:
    s3_objects.put_if_absent("a", b"same")
    with pytest.raises(LostRace):
        pickle.loads(pickle.dumps(s3_objects)).put_if_absent("a", b"same")


def test_an_undecided_write_and_a_service_that_asks_to_slow_down_are_asked_again(
    s3_objects: S3Objects, quick: None
) -> None:
    s3_objects.put_if_absent("other", b"")
    s3_objects.put("b", b"")

    def undone(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def answer(given: Any) -> Any:
            pickle.loads(pickle.dumps(s3_objects)).delete(["a"])
            return change(given)

        return answer

    flaky = Flaky(
        s3_objects,
        "PUT",
        [undone(as_error(409, "ConditionalRequestConflict")), undone(as_error(503, "SlowDown"))],
    )
    s3_objects.put_if_absent("a", b"1")
    assert flaky.sent == 3
    assert s3_objects.read("a").data == b"1"


@pytest.mark.parametrize(
    ("status", "code", "kind", "says"),
    [
        (403, "RequestTimeTooSkewed", StoreError, "clock"),
        (403, "AccessDenied", StoreError, "s3:PutObject"),
        (404, "NoSuchBucket", StoreError, "no bucket"),
        (500, "InternalError", StoreUnavailable, "try again later"),
        (400, "EntityTooLarge", StoreError, "EntityTooLarge"),
    ],
)
def test_a_refusal_says_what_to_do(
    s3_objects: S3Objects, quick: None, status: int, code: str, kind: type[Exception], says: str
) -> None:
    s3_objects.patience_s = 0.1
    Flaky(s3_objects, "PUT", [as_error(status, code)] * 100)
    with pytest.raises(kind, match=says):
        s3_objects.put_if_absent("a", b"1")


def test_a_service_that_ignores_conditions_is_refused(s3_objects: S3Objects) -> None:
    def without(params: dict[str, Any], **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)

    s3_objects._client.meta.events.register("before-call.s3.PutObject", without)
    with pytest.raises(StoreError, match="ignores conditional writes"):
        s3_objects.put_if_absent("a", b"1")


def test_a_download_that_breaks_goes_on_where_it_was_and_never_with_another_version(
    s3_objects: S3Objects, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import IncompleteReadError

    data = random.Random(2).randbytes(3 * 2**20)
    s3_objects.put("large", data)
    with s3_objects.open("large") as file:
        begun = file.read(2**20)
        body = file.raw._answer["Body"]  # type: ignore[attr-defined]

        def broken(*args: Any) -> bytes:
            raise IncompleteReadError(actual_bytes=1, expected_bytes=2)

        monkeypatch.setattr(body, "read", broken)
        assert begun + file.read() == data
    with s3_objects.open("large") as file:
        file.read(10)
        monkeypatch.setattr(file.raw._answer["Body"], "read", broken)  # type: ignore[attr-defined]
        s3_objects.put("large", data[::-1])
        with pytest.raises(StoreError):
            file.read()


def test_more_objects_than_one_answer_lists_are_all_listed(s3_objects: S3Objects) -> None:
    for number in range(7):
        s3_objects.put(f"many/{number}/x", b"")

    def two(params: dict[str, Any], **_: Any) -> None:
        params["MaxKeys"] = 2

    s3_objects._client.meta.events.register("before-parameter-build.s3.ListObjectsV2", two)
    assert [item.key for item in s3_objects.list("many")] == [f"many/{n}/x" for n in range(7)]
    assert s3_objects.folders("many") == tuple("0123456")


def test_folders_that_a_console_made_are_no_objects(s3_objects: S3Objects) -> None:
    s3_objects._client.put_object(Bucket=BUCKET, Key=f"{s3_objects.prefix}/runs/", Body=b"")
    s3_objects.put("runs/1", b"")
    assert [item.key for item in s3_objects.list()] == ["runs/1"]


@pytest.mark.parametrize(
    "home", ["gs://bucket/x", "s3://", "s3:///x", "s3://bucket/x?versionId=1", "https://host/bucket"]
)
def test_a_home_that_is_no_place_is_refused(home: str) -> None:
    with pytest.raises(StoreError, match="neither a folder nor s3"):
        open_objects(home)


def test_slashes_around_a_prefix_make_no_other_place(s3: S3Server, tmp_path: Path) -> None:
    name = str(random.getrandbits(64))
    open_objects(f"s3://{BUCKET}/{name}/x/", tmp_path).put("a", b"1")
    assert open_objects(f"s3://{BUCKET}//{name}//x", tmp_path).read("a").data == b"1"


def test_nothing_is_lost_when_the_service_is_killed_and_started_again(s3: S3Server, tmp_path: Path) -> None:
    """Writers go on through it by their retries; each record that was confirmed is there once, without a gap."""
    from speech.store.records import Document, Records

    home = f"s3://{BUCKET}/{random.getrandbits(64)}"
    confirmed: list[bytes] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def write(writer: int) -> None:
        objects = open_objects(home, tmp_path / "cache")
        records, document = Records(objects, "ledger"), Document(objects, "count")
        try:
            for number in range(10_000):
                records.add(f"{writer}-{number}".encode())
                document.change(lambda before: str(int(before or b"0") + 1).encode())
                confirmed.append(f"{writer}-{number}".encode())
                if stop.is_set():
                    return
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    s3.kill()
    time.sleep(0.5)
    s3.start()
    time.sleep(1.0)
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []
    objects = open_objects(home, tmp_path / "cache")
    assert sorted(Records(objects, "ledger").all()) == sorted(confirmed)
    assert objects.read("count").data == str(len(confirmed)).encode()


# the cache


def filled(cache: LocalCache, key: str, size: int = 100) -> Path:
    return cache.file(key, lambda file: file.write(b"x" * size) and None)


def test_the_cache_keeps_what_was_asked_for_last(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, 350, kept_s=50.0)
    paths = [filled(cache, f"audio/{n}") for n in range(3)]
    for age, path in zip((300, 200, 100), paths, strict=True):
        os.utime(path, (time.time() - age,) * 2)
    assert filled(cache, "audio/0") == paths[0]
    new = filled(cache, "audio/new")
    assert [path.exists() for path in (*paths, new)] == [True, False, True, True]


def test_what_was_asked_for_just_now_stays_even_above_the_limit(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, 150)
    assert all(path.exists() for path in [filled(cache, str(n)) for n in range(5)])


def test_a_download_that_fails_leaves_nothing_and_a_killed_one_is_cleared(tmp_path: Path) -> None:
    cache = LocalCache(tmp_path, 10_000)

    def fail(file: Any) -> None:
        file.write(b"half")
        raise StoreUnavailable

    with pytest.raises(StoreUnavailable):
        cache.file("a/b", fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    killed = tmp_path / "a" / ".partial-x"
    killed.write_bytes(b"half")
    os.utime(killed, (0, 0))
    cache.shrink()
    assert not killed.exists()


def test_an_object_is_fetched_once(s3_objects: S3Objects) -> None:
    s3_objects.put_if_absent("a", b"1")
    first = s3_objects.local("a")
    s3_objects.delete(["a"])
    assert s3_objects.local("a") == first
