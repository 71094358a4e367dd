"""Receipts of uploads, in a folder and in S3: whole files only, once each, whatever is killed."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deployment.batch import arrivals
from deployment.batch.arrivals import Arrival, arrivals_of, hour_of, hours_with_arrivals, original, receive
from speech.store.objects import Objects

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
    copied = arrivals.hashlib.sha256

    def growing(*data: bytes):  # type: ignore[no-untyped-def]
        if not data and path.read_bytes() == b"half":  # the copy begins
            path.write_bytes(b"half and more")
        return copied(*data)

    monkeypatch.setattr(arrivals.hashlib, "sha256", growing)
    assert taken(uploads, objects, later) == []
    os.utime(path, (NOW.timestamp(), NOW.timestamp()))
    (whole,) = taken(uploads, objects, later)
    assert objects.read(original(whole.digest)).data == b"half and more"


def test_a_kill_between_copy_and_receipt_costs_nothing(
    objects: Objects, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(uploads, "a.wav", b"sound")
    with monkeypatch.context() as patch:
        patch.setattr(objects, "put_if_absent", killed_at("arrivals/hours", objects))
        with pytest.raises(KeyboardInterrupt):
            taken(uploads, objects)
    assert hours_with_arrivals(objects) == ()
    (arrival,) = taken(uploads, objects)
    assert arrival.same_as is None


def killed_at(prefix: str, objects: Objects):  # type: ignore[no-untyped-def]
    put = objects.put_if_absent

    def put_or_die(key: str, data: bytes) -> str:
        if key.startswith(prefix):
            raise KeyboardInterrupt
        return put(key, data)

    return put_or_die


def test_odd_names_and_an_absent_folder(objects: Objects, uploads: Path) -> None:
    assert taken(uploads, objects) == []
    for name in ("ä b.wav", "fr/call.wav", "en", os.fsdecode(b"\xff.wav"), "x" * 250):
        upload(uploads, name, name.encode(errors="surrogateescape"))
    found = {arrival.name: arrival.language for arrival in taken(uploads, objects)}
    assert found == {"ä b.wav": None, "fr/call.wav": None, "en": None, "\ufffd.wav": None, "x" * 250: None}


def test_an_hour_is_of_utc() -> None:
    assert hour_of(datetime.fromisoformat("2026-11-26T01:30:00+02:00")) == "2026-11-25-23"
