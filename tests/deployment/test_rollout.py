"""The release document: whole at every moment, and left clean whatever happens to a roll-out."""

import hashlib
import json
import threading
import time
from dataclasses import replace

import pytest

from deployment.release.document import LanguageRelease, ReleaseDocument, ReleaseDocumentError, Route
from deployment.release.folder import DOCUMENT, ReleaseFolder
from deployment.release.rollout import RolloutFailed, roll_out
from deployment.release.turns import Turn
from deployment.serving.following import Follower
from speech.audio.decode import write_flac_chunks
from tests.toy_bundle import shelved, tones
from tests.toy_registry import approve

ROUTE = Route("a" * 64, 1.0, "3", "soundstage-en")
IN_A_FOLDER = pytest.mark.parametrize("objects", ["folder"], indirect=True)  # what it says is the same anywhere


@pytest.fixture
def folder(objects):
    return ReleaseFolder(objects)


@pytest.fixture
def golden(tmp_path):
    write_flac_chunks([tones(["one", "two"])], tmp_path / "golden.flac")
    return [tmp_path / "golden.flac"]


def test_document_has_its_published_shape(folder):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    content = json.loads(folder.look().data)
    assert content["schema"] == 3
    assert content["revision"] == 1
    assert content["languages"]["en"]["state"] == "full"
    assert content["languages"]["en"]["routes"] == [
        {"digest": "a" * 64, "share": 1.0, "version": "3", "model": "soundstage-en"}
    ]
    assert folder.read().languages["en"].routes == (ROUTE,)


def test_languages_are_released_independently(folder):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    assert folder.set_language("de", LanguageRelease((ROUTE,))).revision == 2
    assert set(folder.read().languages) == {"en", "de"}


def test_concurrent_changes_are_all_kept(folder):
    """Two languages' releases change one file."""
    threads = [
        threading.Thread(target=folder.set_language, args=(f"l{n}", LanguageRelease((ROUTE,)))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read().revision == len(folder.read().languages) == 8


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"schema": 4}',
        '{"schema": 3}',
        '{"schema":1,"revision":1,"languages":{"en":{}},"updated_at":""}',
    ],
)
@IN_A_FOLDER
def test_unreadable_document_is_named(folder, content):
    folder.objects.put_if_absent(DOCUMENT, content.encode())
    with pytest.raises(ReleaseDocumentError, match=r"release\.json.*or move it away .* and launch `serving_release`"):
        folder.read()


@pytest.mark.parametrize("share", [-0.1, 1.5, "x", None])
@IN_A_FOLDER
def test_shares_lie_between_none_and_all(folder, share):
    release = LanguageRelease((replace(ROUTE, share=share),))
    folder.objects.put_if_absent(DOCUMENT, ReleaseDocument(1, {"en": release}).write())
    with pytest.raises(ReleaseDocumentError, match="share"):
        folder.read()


def test_a_document_of_before_is_read_without_its_places_of_bundles(folder):
    """A route said where its bundle lies; its digest does."""
    folder.set_language("en", LanguageRelease((ROUTE,)))
    said = json.loads(folder.look().data)
    said["schema"] = 2
    said["languages"]["en"]["routes"][0]["bundle"] = "bundles/elsewhere"
    del said["sha256"]
    said["sha256"] = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    stored = folder.look()
    folder.objects.put_if_unchanged(DOCUMENT, json.dumps(said).encode(), stored.tag)
    assert folder.read().languages["en"].routes == (ROUTE,)


def test_route_that_a_killed_rollout_left_is_taken_out(folder, golden, tmp_path):
    """A roll-out that died while probing left its bundle with share 0; the next one starts from what was served."""
    dead = Route("b" * 64, 0.0)
    folder.set_language("en", LanguageRelease((ROUTE, dead), "probe", (ROUTE,), "5eed", dead.digest))
    bundle = shelved(folder.objects)
    result = roll_out(folder, "en", bundle.digest, golden, version="4", allow_no_replica=True)
    now = folder.read().languages["en"]
    assert [(r.digest, r.share, r.version) for r in now.routes] == [(bundle.digest, 1.0, "4"), (ROUTE.digest, 0.0, "3")]
    assert (now.state, now.previous, result.previous) == ("full", (ROUTE,), ("a" * 64,))
    dead_one, *steps = folder.history("en")
    assert (dead_one.state, dead_one.digest, dead_one.rollout) == ("returned", dead.digest, "5eed")
    assert "ended in the middle of 'probe'" in dead_one.reason
    assert [step.state for step in steps] == ["verify", "full"]


def test_document_is_put_back_when_a_replica_does_not_answer(folder, golden, tmp_path):
    """The replica loads and reports, so it lives; but nobody listens at its address."""
    bundle = shelved(folder.objects)
    approve(folder.objects, bundle)
    folder.set_language("en", LanguageRelease((ROUTE,)))
    follower = Follower(folder, "a", "http://127.0.0.1:9")
    follower.start()
    try:
        while not folder.reports():
            time.sleep(0.01)
        with pytest.raises(RolloutFailed, match="could not be probed"):
            roll_out(folder, "en", bundle.digest, golden)
    finally:
        follower.stop()
    now = folder.read().languages["en"]
    assert (now.routes, now.state) == ((ROUTE,), "returned")
    assert [step.state for step in folder.history("en")] == ["verify", "load", "warm", "probe", "returned"]


def test_an_edited_document_is_not_built_upon(folder, golden, tmp_path):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    stored = folder.look()
    folder.objects.put_if_unchanged(DOCUMENT, stored.data.replace(b"a" * 64, b"b" * 64), stored.tag)
    bundle = shelved(folder.objects)
    with pytest.raises(RolloutFailed, match=r"release\.json cannot be followed: it was edited since it was written"):
        roll_out(folder, "en", bundle.digest, golden, allow_no_replica=True)


# --- a decision that fell meanwhile -----------------------------------------------------------------------------------


def test_a_release_that_waited_does_not_undo_a_later_decision(folder, golden, tmp_path):
    """Version 2 was approved and its release waits; version 1 is gone back to and released; then it is 2's turn."""
    first = shelved(folder.objects)
    second = shelved(folder.objects, confuse=[("six", "seven")])
    champion = [second]
    refused = []

    def late():
        def superseded():
            return None if champion == [second] else "version 2 is no longer the champion: version 1 is"

        try:
            roll_out(
                folder,
                *("en", second.digest, golden),
                version="2",
                allow_no_replica=True,
                superseded=superseded,
            )
        except RolloutFailed as error:
            refused.append(error)

    with Turn(folder.objects, "en").taken(0) as turn:
        thread = threading.Thread(target=late)
        thread.start()
        while turn.waiting() != second.digest:
            time.sleep(0.01)
        champion[:] = [first]
        folder.set_language("en", LanguageRelease((Route(first.digest, 1.0, "1"),)))
        before = folder.read()
    thread.join(timeout=30)
    (error,) = refused
    assert "is no longer the champion: version 1 is" in str(error)
    assert [step.state for step in error.transitions] == ["refused"]
    assert folder.read() == before


def test_a_decision_during_the_release_stops_it_before_the_switch(folder, golden, tmp_path):
    bundle = shelved(folder.objects)
    folder.set_language("en", LanguageRelease((ROUTE,)))
    answers = iter([None, "version 4 is no longer the champion: version 3 is"])
    with pytest.raises(RolloutFailed, match="version 3 is"):
        roll_out(
            folder,
            *("en", bundle.digest, golden),
            allow_no_replica=True,
            superseded=lambda: next(answers),
        )
    assert folder.read().languages["en"].routes == (ROUTE,)
    assert [step.state for step in folder.history("en")] == ["verify", "refused"]
