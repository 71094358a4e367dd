"""Receipts of uploads, in a folder and in S3: whole files only, once each, whatever is killed."""

import os
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployment.batch.arrivals import Arrival, arrivals_of, hour_of, hours_with_arrivals, original, receive
from deployment.batch.arrivals.bucket import found_in_bucket
from deployment.batch.arrivals.receipts import received
from speech.store.objects import Objects, StoreError

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
HOUR = "2026-11-26-09"


@pytest.fixture
def uploads(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


def upload(uploads: Path, name: str, data: bytes, at: datetime = NOW - timedelta(minutes=5)) -> Path:
    path = uploads / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (at.timestamp(), at.timestamp()))
    return path


def taken(uploads: Path, objects: Objects, now: datetime = NOW) -> list[Arrival]:
    return receive(uploads, objects, ("en", "de"), now=now)


def test_an_upload_is_received_once_and_its_bytes_outlive_it(objects: Objects, uploads: Path) -> None:
    path = upload(uploads, "en/call.wav", b"sound")
    (arrival,) = taken(uploads, objects)
    assert (arrival.name, arrival.size, arrival.language, arrival.same_as) == ("en/call.wav", 5, "en", None)
    assert hours_with_arrivals(objects) == (HOUR,)
    assert arrivals_of(objects, HOUR) == (arrival,)
    path.unlink()
    assert taken(uploads, objects) == []
    assert objects.read(original(arrival.digest)).data == b"sound"


def test_a_late_file_is_of_the_hour_in_which_it_was_received(objects: Objects, uploads: Path) -> None:
    upload(uploads, "a.wav", b"a")
    taken(uploads, objects)
    upload(uploads, "b.wav", b"b", at=NOW - timedelta(days=3))
    (late,) = taken(uploads, objects, NOW + timedelta(hours=2))
    assert arrivals_of(objects, "2026-11-26-11") == (late,)
    assert [arrival.name for arrival in arrivals_of(objects, HOUR)] == ["a.wav"]


def test_the_same_bytes_under_another_name_say_whose_they_are(objects: Objects, uploads: Path) -> None:
    upload(uploads, "a.wav", b"sound")
    (first,) = taken(uploads, objects)
    upload(uploads, "moved/b.wav", b"sound")
    (second,) = taken(uploads, objects, NOW + timedelta(hours=1))
    assert (second.same_as, second.digest) == (first.id, first.digest)


def test_a_file_that_was_replaced_is_another_upload(objects: Objects, uploads: Path) -> None:
    upload(uploads, "a.wav", b"first")
    taken(uploads, objects)
    upload(uploads, "a.wav", b"other", at=NOW - timedelta(minutes=1))
    (second,) = taken(uploads, objects)
    assert second.same_as is None
    assert len(arrivals_of(objects, HOUR)) == 2


@pytest.mark.parametrize("name", [".hidden.wav", ".folder/a.wav", "a.wav.part", "a.wav.TMP"])
def test_what_tools_still_write_is_left(objects: Objects, uploads: Path, name: str) -> None:
    upload(uploads, name, b"half")
    assert taken(uploads, objects) == []


def test_a_file_that_is_still_being_written_waits_for_the_next_look(
    objects: Objects, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = upload(uploads, "a.wav", b"half", at=NOW)
    assert taken(uploads, objects) == []
    later = NOW + timedelta(minutes=1)
    copy = shutil.copyfileobj

    def growing(source, target, length=0):  # type: ignore[no-untyped-def]
        copy(source, target, length)
        if path.read_bytes() == b"half":
            path.write_bytes(b"half and more")

    monkeypatch.setattr(shutil, "copyfileobj", growing)
    assert taken(uploads, objects, later) == []
    os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    (whole,) = taken(uploads, objects, later)
    assert objects.read(original(whole.digest)).data == b"half and more"


@pytest.mark.parametrize(
    ("step", "needs_it"),
    [("originals", True), ("arrivals/ids", True), ("arrivals/digests", False), ("arrivals/hours", False)],
)
def test_a_kill_at_any_step_costs_nothing(
    objects: Objects, uploads: Path, monkeypatch: pytest.MonkeyPatch, step: str, needs_it: bool
) -> None:
    """Once its note is written an upload may go: it is of the hour that the note says, whoever finishes it."""
    path = upload(uploads, "a.wav", b"sound")
    with monkeypatch.context() as patch:
        for writes in ("put_if_absent", "upload"):
            patch.setattr(objects, writes, killed_at(step, getattr(objects, writes)))
        with pytest.raises(KeyboardInterrupt):
            taken(uploads, objects)
    assert hours_with_arrivals(objects) == ()
    if not needs_it:
        path.unlink()
    later = NOW + timedelta(hours=3)
    (arrival,) = taken(uploads, objects, later)
    assert (arrival.same_as, arrival.received_at) == (None, later if needs_it else NOW)
    assert arrivals_of(objects, hour_of(arrival.received_at)) == (arrival,)
    assert taken(uploads, objects, later) == []


def killed_at(step: str, write):  # type: ignore[no-untyped-def]
    def write_or_die(first, second):  # type: ignore[no-untyped-def]
        if str(first).startswith(step) or str(second).startswith(step):
            raise KeyboardInterrupt
        return write(first, second)

    return write_or_die


def test_two_who_receive_the_same_upload_in_two_hours_file_it_under_one(
    objects: Objects, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schedule and a person may both look: in two hours, the recording would be transcribed twice."""
    upload(uploads, "a.wav", b"sound")
    listed = objects.list
    monkeypatch.setattr(
        objects, "list", lambda prefix="": iter(()) if prefix.startswith("arrivals") else listed(prefix)
    )
    taken(uploads, objects)
    taken(uploads, objects, NOW + timedelta(hours=1))
    monkeypatch.undo()
    assert hours_with_arrivals(objects) == (HOUR,)


def test_a_file_that_may_not_be_read_stops_no_other_and_is_told_of(
    objects: Objects, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(uploads, "a.wav", b"secret")
    upload(uploads, "b.wav", b"sound")
    opened, told = Path.open, []

    def refusing(path: Path, *how: str):  # type: ignore[no-untyped-def]
        if path.name == "a.wav":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *how)

    monkeypatch.setattr(Path, "open", refusing)
    (arrival,) = receive(uploads, objects, ("en",), NOW, told.append)
    assert arrival.name == "b.wav"
    assert "a.wav could not be received" in told[0]


def test_a_link_to_a_place_outside_is_told_of_and_not_followed(objects: Objects, uploads: Path, tmp_path: Path) -> None:
    upload(uploads, "a.wav", b"sound")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    os.utime(secret, (0, 0))
    (uploads / "en").mkdir(exist_ok=True)
    (uploads / "en" / "b.wav").symlink_to(secret)
    told: list[str] = []
    assert [arrival.name for arrival in receive(uploads, objects, ("en",), NOW, told.append)] == ["a.wav"]
    assert "b.wav could not be received" in told[0]
    assert "copy the file itself" in told[0]


def test_odd_names_and_an_absent_folder(objects: Objects, uploads: Path) -> None:
    assert taken(uploads, objects) == []
    for name in ("ä b.wav", "fr/call.wav", "en", os.fsdecode(b"\xff.wav"), "x" * 250):
        upload(uploads, name, name.encode(errors="surrogateescape"))
    found = {arrival.name: arrival.language for arrival in taken(uploads, objects)}
    assert found == {"ä b.wav": None, "fr/call.wav": None, "en": None, "\ufffd.wav": None, "x" * 250: None}


def test_an_hour_is_of_utc() -> None:
    assert hour_of(datetime.fromisoformat("2026-11-26T01:30:00+02:00")) == "2026-11-25-23"


# --- a bucket ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def bucket(aws: Any) -> Any:
    """Puts objects into a bucket, which keeps versions; below `in` uploads come in."""
    s3 = aws("s3")
    name = f"uploads-{random.getrandbits(48)}"
    s3.create_bucket(Bucket=name)
    s3.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})

    def put(key: str, data: bytes = b"sound") -> Any:
        return s3.put_object(Bucket=name, Key=key, Body=data)

    put.s3, put.name, put.uploads = s3, name, f"s3://{name}/in"  # type: ignore[attr-defined]
    return put


def from_bucket(bucket: Any, objects: Objects, now: datetime = NOW, **more: Any) -> dict[str, Arrival]:
    return {arrival.name: arrival for arrival in receive(bucket.uploads, objects, ("en", "de"), now, **more)}


def test_what_lies_below_a_prefix_is_received_once(bucket: Any, home: Objects) -> None:
    for key in (
        "in/en/a b+ü.wav",
        "in/b.wav",
        "in/",
        "in/folder/",
        "in/.hidden",
        "in/c.wav.part",
        "inner/x.wav",
        "x.wav",
    ):
        bucket(key, key.encode())
    found = from_bucket(bucket, home)
    assert {name: arrival.language for name, arrival in found.items()} == {"en/a b+ü.wav": "en", "b.wav": None}
    assert home.read(found["b.wav"].key).data == b"in/b.wav"
    assert from_bucket(bucket, home, NOW + timedelta(hours=1)) == {}
    bucket("in/b.wav", b"another")
    assert from_bucket(bucket, home)["b.wav"].digest != found["b.wav"].digest
    bucket("in/copied.wav", b"in/b.wav")
    assert from_bucket(bucket, home)["copied.wav"].same_as == found["b.wav"].id


def test_a_bucket_of_more_than_a_page(bucket: Any, home: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")  # a page of AWS has 1,000
    for number in range(4):
        bucket(f"in/{number}.wav.part", b"")
    bucket("in/last.wav")
    assert len(bucket.s3.list_objects_v2(Bucket=bucket.name)["Contents"]) == 2
    assert list(from_bucket(bucket, home)) == ["last.wav"]


def test_an_object_that_was_replaced_while_it_was_listed_waits_for_the_next_look(bucket: Any, home: Objects) -> None:
    bucket.s3.put_bucket_versioning(Bucket=bucket.name, VersioningConfiguration={"Status": "Suspended"})
    bucket("in/a.wav", b"first")
    found = list(found_in_bucket(bucket.uploads, ()))
    bucket("in/a.wav", b"second")
    assert received(found, home, NOW) == []
    assert home.read(from_bucket(bucket, home)["a.wav"].key).data == b"second"


def test_one_object_that_is_refused_stops_no_other(bucket: Any, home: Objects) -> None:
    """An archived object is listed like any other, and cannot be read before somebody restores it."""
    bucket.s3.put_object(Bucket=bucket.name, Key="in/a.wav", Body=b"cold", StorageClass="GLACIER")
    bucket("in/b.wav")
    told: list[str] = []
    assert list(from_bucket(bucket, home, refused=told.append)) == ["b.wav"]
    assert len(told) == 1
    assert "a.wav could not be received" in told[0]


def test_a_bucket_that_is_not_there_is_said_with_its_name(aws: Any, home: Objects) -> None:
    with pytest.raises(StoreError, match="s3://no-such-bucket-here/in"):
        receive("s3://no-such-bucket-here/in", home, ())
