"""Dead letters: kept with their reason, put back once, and counted."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from deployment.batch.arrivals import Arrival, arrivals_of, hour_of, receive
from deployment.batch.dead_letters import NoSuchLetter, keep, letters, requeue
from deployment.batch.stages.items import DeadLetter
from speech.store.objects import Objects, open_objects

FIRST = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
HOUR = hour_of(FIRST)


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "home")


def arrived(data: bytes, tries: int = 1) -> Arrival:
    digest = hashlib.sha256(data).hexdigest()
    return Arrival(
        id=digest[:32],
        name=f"en/{data.decode()}.wav",
        digest=digest,
        size=len(data),
        received_at=FIRST,
        language="en",
        same_as=None,
        tries=tries,
    )


def dead(arrival: Arrival, code: str = "truncated") -> DeadLetter:
    return DeadLetter(id=arrival.recording, name=arrival.name, code=code, reason="cut", tries=arrival.tries)


def failed(store: Objects, *data: bytes, code: str = "truncated", hour: str = HOUR, tries: int = 1) -> list[Arrival]:
    arrivals = [arrived(one, tries) for one in data]
    keep(store, hour, arrivals, [dead(arrival, code) for arrival in arrivals])
    return arrivals


def test_a_letter_says_what_failed_when_and_why(store: Objects) -> None:
    (arrival,) = failed(store, b"a")
    (letter,) = letters(store)
    assert (letter.id, letter.digest, letter.hour, letter.code) == (
        arrival.recording,
        arrival.digest,
        HOUR,
        "truncated",
    )
    assert letters(store, HOUR) == [letter]
    assert letters(store, "2026-11-26-08") == []


def test_an_hour_that_is_made_again_keeps_only_what_fails_now(store: Objects) -> None:
    first, second = failed(store, b"a", b"b")
    keep(store, HOUR, [first, second], [dead(second)])
    assert [letter.id for letter in letters(store)] == [second.recording]


def test_what_is_put_back_arrives_in_the_present_hour_once(store: Objects) -> None:
    (arrival,) = failed(store, b"a")
    now = FIRST + timedelta(hours=3)
    (back,) = requeue(store, now, code="truncated")
    assert (back.digest, back.name, back.language, back.tries) == (arrival.digest, arrival.name, "en", 2)
    assert arrivals_of(store, hour_of(now)) == (back,)
    assert requeue(store, now, code="truncated") == []
    assert requeue(store, now + timedelta(hours=1), ids=[arrival.recording]) == []
    assert arrivals_of(store, hour_of(now + timedelta(hours=1))) == ()


def test_what_fails_again_says_how_often_and_may_be_put_back_again(store: Objects) -> None:
    failed(store, b"a")
    (back,) = requeue(store, FIRST + timedelta(hours=1), hour=HOUR)
    second = FIRST + timedelta(hours=1)
    keep(store, hour_of(second), [back], [dead(back)])
    assert sorted(letter.tries for letter in letters(store)) == [1, 2]
    (again,) = requeue(store, FIRST + timedelta(hours=2), ids=[back.recording[:8]])
    assert (again.tries, again.same_as) == (3, None)


def test_letters_are_chosen_by_id_code_and_hour(store: Objects) -> None:
    cut, page = failed(store, b"a")[0], failed(store, b"b", code="not-audio", hour="2026-11-26-08")[0]
    now = FIRST + timedelta(days=1)
    for wrong in ({"code": "too-long"}, {"code": "not-audio", "hour": HOUR}, {"hour": "2026-13-45-99"}):
        with pytest.raises(NoSuchLetter, match="no dead letter is"):
            requeue(store, now, **wrong)  # type: ignore[arg-type]
    assert [back.name for back in requeue(store, now, hour="2026-11-26-08")] == [page.name]
    assert [back.name for back in requeue(store, now, ids=[cut.recording])] == [cut.name]


def test_a_recording_is_not_put_back_into_the_hour_that_it_failed_in(store: Objects) -> None:
    """There it would stand twice; the hour may simply be launched again."""
    failed(store, b"a")
    with pytest.raises(NoSuchLetter, match="transcribe_hour"):
        requeue(store, FIRST + timedelta(minutes=5), code="truncated")


@pytest.mark.parametrize("ids", [["f" * 32], [""]])
def test_an_id_that_names_none_or_several_is_refused_before_anything_is_put_back(
    store: Objects, ids: list[str]
) -> None:
    first, _ = failed(store, b"a", b"b")
    with pytest.raises(NoSuchLetter, match="normalized_recordings"):
        requeue(store, FIRST + timedelta(hours=1), ids=[first.recording, *ids])
    assert requeue(store, FIRST + timedelta(hours=1), ids=[first.recording]) != []


def test_nothing_is_put_back_unless_something_says_what(store: Objects) -> None:
    failed(store, b"a")
    with pytest.raises(NoSuchLetter, match="give ids, a code or an hour"):
        requeue(store, FIRST)


def test_the_same_bytes_uploaded_again_are_still_the_first_receipts(store: Objects, tmp_path: Path) -> None:
    """A requeue must not make every further copy of a broken file a recording of its own."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    (uploads / "a.wav").write_bytes(b"broken")
    (first,) = receive(uploads, store, ["en"], now=FIRST + timedelta(days=300))
    keep(store, hour_of(first.received_at), [first], [dead(first)])
    requeue(store, FIRST + timedelta(days=301), code="truncated")
    (uploads / "b.wav").write_bytes(b"broken")
    (copy,) = receive(uploads, store, ["en"], now=FIRST + timedelta(days=302))
    assert replace(copy, same_as=None) != first
    assert copy.same_as == first.id
