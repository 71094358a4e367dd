"""Records and documents: numbers without a gap, and every change decided on what was read."""

import threading
from pathlib import Path

import pytest

from speech.store.folder import FolderObjects
from speech.store.objects import LostRace, Objects, StoreError
from speech.store.records import TRIES, Document, Records


def test_records_are_read_in_the_order_in_which_they_were_added(objects: Objects) -> None:
    records, others = Records(objects, "ledger/en"), Records(objects, "ledger/en")
    for number in range(1, 13):
        records.append(number, b"%d" % number)
        assert others.all()[-1] == b"%d" % number
    assert Records(objects, "ledger/en").all() == tuple(b"%d" % n for n in range(1, 13))


def test_an_entry_whose_place_is_taken_or_which_leaves_a_gap_is_refused(objects: Objects) -> None:
    records = Records(objects, "ledger/en")
    records.append(1, b"one")
    with pytest.raises(LostRace):
        records.append(1, b"other")
    with pytest.raises(StoreError, match=r"00000002\.json is not in the data store"):
        records.append(3, b"three")
    assert records.all() == (b"one",)


def test_a_record_that_was_removed_is_named(objects: Objects) -> None:
    records = Records(objects, "ledger/en")
    for number in range(1, 4):
        records.append(number, b"x")
    objects.delete([records.key(2)])
    with pytest.raises(StoreError, match=r"00000002\.json .*though number 3 is"):
        records.all()


def test_a_list_that_lags_behind_hides_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = FolderObjects(tmp_path)
    for number in range(1, 4):
        Records(objects, "ledger").append(number, b"%d" % number)
    monkeypatch.setattr(FolderObjects, "list", lambda *_: iter(()))
    assert Records(objects, "ledger").all() == (b"1", b"2", b"3")


def test_what_several_add_and_change_at_once_is_all_there(objects: Objects) -> None:
    def write(name: str) -> None:
        records, count = Records(objects, "history"), Document(objects, "count")
        for number in range(10):
            records.add(f"{name}{number}".encode())
            count.change(lambda before: str(int(before or b"0") + 1).encode())

    writers = [threading.Thread(target=write, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    records = Records(objects, "history").all()
    assert sorted(records) == sorted(f"{name}{number}".encode() for name in "abc" for number in range(10))
    assert objects.read("count").data == b"30"


def test_a_document_that_changed_since_it_was_read_is_not_replaced(objects: Objects) -> None:
    document = Document(objects, "release.json")
    assert document.read() is None
    first = document.replace(b"1", None)
    with pytest.raises(LostRace):
        document.replace(b"other", None)
    second = document.replace(b"2", first)
    with pytest.raises(LostRace):
        document.replace(b"other", first)
    assert document.read() == second


def test_who_was_held_up_adds_its_record_after_all_that_came_meanwhile(
    objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of writers of a killed service one may come back a hundred records late; nobody else is in its way."""
    for number in range(2 * TRIES):
        Records(objects, "history").append(number + 1, b"%d" % number)
    with monkeypatch.context() as late:
        late.setattr(objects, "list", lambda prefix: iter(()))
        assert Records(objects, "history").add(b"late") == 2 * TRIES + 1
    assert Records(objects, "history").last(1) == (b"late",)
