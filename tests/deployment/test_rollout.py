"""The release document: whole at every moment, and left clean whatever happens to a roll-out."""

import json
import os
import threading
import time

import pytest

from deployment.release.rollout import (
    GoldenUtterance,
    LanguageRelease,
    LanguageReport,
    ReleaseDocumentError,
    ReleaseFailed,
    ReleaseFolder,
    ReplicaReport,
    Route,
    release,
)
from deployment.serving.models import Models
from speech.audio.decode import Waveform, encode_flac
from tests.toy_bundle import tones, write_toy_bundle
from tests.toy_registry import approve

ROUTE = Route("a" * 64, "models/a", 1.0, "3", "soundstage-en")


@pytest.fixture
def folder(tmp_path):
    return ReleaseFolder(tmp_path)


@pytest.fixture
def golden(tmp_path):
    encode_flac(Waveform(tones(["one", "two"])), tmp_path / "golden.flac")
    return [GoldenUtterance(tmp_path / "golden.flac", "one two")]


def test_document_has_its_published_shape(folder):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    content = json.loads(folder.document.read_text())
    assert content["schema"] == 1
    assert content["revision"] == 1
    assert content["languages"]["en"]["state"] == "full"
    assert content["languages"]["en"]["routes"] == [
        {"digest": "a" * 64, "bundle": "models/a", "share": 1.0, "version": "3", "model": "soundstage-en"}
    ]
    assert folder.read().languages["en"].routes == (ROUTE,)


def test_languages_are_released_independently(folder):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    assert folder.set_language("de", LanguageRelease((ROUTE,))).revision == 2
    assert set(folder.set_language("en", None).languages) == {"de"}


def test_concurrent_changes_are_all_kept(folder):
    """Two languages' releases change one file."""
    threads = [
        threading.Thread(target=folder.set_language, args=(f"l{n}", LanguageRelease((ROUTE,)))) for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read().revision == len(folder.read().languages) == 16


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": 2}', '{"schema":1,"revision":1,"languages":{"en":{}},"updated_at":""}']
)
def test_unreadable_document_is_named(folder, content):
    folder.root.mkdir()
    folder.document.write_text(content)
    with pytest.raises(ReleaseDocumentError, match=r"release\.json.*or move it away and launch `serving_release`"):
        folder.read()


@pytest.mark.parametrize("share", [-0.1, 1.5, "x", None])
def test_shares_lie_between_none_and_all(folder, share):
    folder.set_language("en", LanguageRelease((ROUTE,)))
    content = json.loads(folder.document.read_text())
    content["languages"]["en"]["routes"][0]["share"] = share
    folder.document.write_text(json.dumps(content))
    with pytest.raises(ReleaseDocumentError):
        folder.read()


def test_bundles_inside_the_home_are_written_relative_to_it(folder, tmp_path):
    assert folder.relative(tmp_path / "models" / "a") == "models/a"
    assert folder.resolve(ROUTE) == tmp_path / "models" / "a"
    assert folder.relative(tmp_path.parent / "elsewhere") == str(tmp_path.parent / "elsewhere")


def test_old_reports_are_not_alive(folder):
    folder.report(ReplicaReport("a", "http://a", 1, heartbeat=0.0))
    (folder.replicas / "b.json").write_text("{")
    assert [report.replica for report in folder.reports()] == ["a"]
    assert folder.live() == ()
    folder.forget_dead()
    assert folder.reports() == ()


def test_route_that_a_killed_rollout_left_is_taken_out(folder, golden, tmp_path):
    """A roll-out that died while probing left its bundle with share 0; the next one starts from what was served."""
    dead = Route("b" * 64, "models/b", 0.0)
    folder.set_language("en", LanguageRelease((ROUTE, dead), "probe", (ROUTE,), "5eed", dead.digest))
    bundle = write_toy_bundle(tmp_path / "models" / "new")
    result = release(folder, "en", bundle.path, bundle.digest, golden, version="4", allow_no_replica=True)
    now = folder.read().languages["en"]
    assert [(r.digest, r.share, r.version) for r in now.routes] == [(bundle.digest, 1.0, "4"), (ROUTE.digest, 0.0, "3")]
    assert (now.state, now.previous, result.previous) == ("full", (ROUTE,), ("a" * 64,))
    dead_one, *steps = folder.history("en")
    assert (dead_one.state, dead_one.digest, dead_one.release) == ("returned", dead.digest, "5eed")
    assert "ended in the middle of 'probe'" in dead_one.reason
    assert [step.state for step in steps] == ["verify", "full"]


def test_rollout_lock_dies_with_its_process(folder, golden, tmp_path):
    pid = os.fork()
    if pid == 0:
        with folder.exclusive("en"):
            os._exit(9)
    os.waitpid(pid, 0)
    bundle = write_toy_bundle(tmp_path / "models" / "new")
    assert release(folder, "en", bundle.path, bundle.digest, golden, allow_no_replica=True).changed


def test_document_is_put_back_when_a_replica_does_not_answer(folder, golden, tmp_path):
    """The replica's report is fresh, but nobody listens at its address."""
    bundle = write_toy_bundle(tmp_path / "models" / "new")
    approve(folder.home, bundle)
    folder.set_language("en", LanguageRelease((ROUTE,)))
    folder.report(ReplicaReport("a", "http://127.0.0.1:9", 1, time.time()))
    with pytest.raises(ReleaseFailed, match="a did not load it within 0.5 s"):
        release(folder, "en", bundle.path, bundle.digest, golden, timeout_s=0.5)
    models = Models(folder, "a", "http://127.0.0.1:9", workers=1)
    models.start()
    try:
        with pytest.raises(ReleaseFailed, match="could not be probed"):
            release(folder, "en", bundle.path, bundle.digest, golden)
    finally:
        models.stop()
    now = folder.read().languages["en"]
    assert (now.routes, now.state) == ((ROUTE,), "returned")
    states = [step.state for step in folder.history("en")]
    assert states == ["verify", "load", "returned", "verify", "load", "warm", "probe", "returned"]


# --- a document that somebody removed ---------------------------------------------------------------------------------


def heard_of(folder, revision, **active):
    """A live replica's report: language -> the share of each version."""
    routes = {
        language: tuple(Route(version * 64, f"models/{version}", share, version) for version, share in shares.items())
        for language, shares in active.items()
    }
    languages = {
        language: LanguageReport({r.digest: r.share for r in found if r.share}, routes=found)
        for language, found in routes.items()
    }
    folder.report(ReplicaReport("a", "http://127.0.0.1:9", revision, time.time(), languages))


def test_one_language_s_release_does_not_forget_the_others_of_a_lost_document(folder):
    """Replicas still say what runs; a document with one language would take the others down."""
    heard_of(folder, 7, de={"2": 1.0, "1": 0.0}, en={"3": 1.0})
    document = folder.set_language("en", LanguageRelease((ROUTE,)))
    assert document.revision == 8, "revisions go on: reports about the lost document are old"
    assert document.languages["en"].routes == (ROUTE,)
    german = document.languages["de"]
    assert [(r.version, r.share, r.bundle) for r in german.routes] == [("2", 1.0, "models/2"), ("1", 0.0, "models/1")]
    assert german.state == "full"
    assert folder.read() == document


def test_a_trial_is_not_restored(folder):
    heard_of(folder, 7, en={"1": 0.9, "2": 0.1})
    folder.restore_lost()
    assert [(r.version, r.share) for r in folder.read().languages["en"].routes] == [("1", 1.0), ("2", 0.0)]


def test_restoring_writes_nothing_where_nothing_was_lost(folder):
    folder.restore_lost()
    assert not folder.document.exists()
    folder.set_language("en", LanguageRelease((ROUTE,)))
    heard_of(folder, 1, de={"2": 1.0})
    folder.restore_lost()
    assert set(folder.read().languages) == {"en"}


def test_a_document_older_than_what_replicas_follow_is_written_again_above_it(folder):
    """Somebody put a former one back: replicas refuse it, and would refuse what is released on top of it."""
    folder.set_language("fr", LanguageRelease((ROUTE,)))
    folder.set_language("en", LanguageRelease((ROUTE,)))
    heard_of(folder, 7, de={"2": 1.0}, en={"3": 1.0})
    folder.restore_lost()
    document = folder.read()
    assert document.revision == 8
    assert {name: found.serving[0].digest[0] for name, found in document.languages.items()} == {
        "fr": "a",
        "de": "2",
        "en": "3",
    }


def test_a_release_begins_from_what_the_lost_document_said(folder, golden, tmp_path):
    """Otherwise the version before would be neither compared with nor kept on standby."""
    heard_of(folder, 7, en={"3": 1.0}, de={"2": 1.0})
    bundle = write_toy_bundle(tmp_path / "models" / "new")
    with pytest.raises(ReleaseFailed, match="a did not load it"):
        release(folder, "en", bundle.path, bundle.digest, golden, timeout_s=0.5)
    now = folder.read().languages
    assert [route.version for route in now["en"].serving] == ["3"]
    assert [route.version for route in now["de"].serving] == ["2"]


# --- a decision that fell meanwhile -----------------------------------------------------------------------------------


def test_a_release_that_waited_does_not_undo_a_later_decision(folder, golden, tmp_path):
    """Version 2 was approved and its release waits; version 1 is gone back to and released; then it is 2's turn."""
    first = write_toy_bundle(tmp_path / "models" / "1")
    second = write_toy_bundle(tmp_path / "models" / "2", confuse=[("six", "seven")])
    champion = [second]
    refused = []

    def late():
        def superseded():
            return None if champion == [second] else "version 2 is no longer the champion: version 1 is"

        try:
            release(
                folder,
                *("en", second.path, second.digest, golden),
                version="2",
                allow_no_replica=True,
                superseded=superseded,
            )
        except ReleaseFailed as error:
            refused.append(error)

    with folder.exclusive("en"):
        thread = threading.Thread(target=late)
        thread.start()
        while folder.waiting("en") != second.digest:
            time.sleep(0.01)
        champion[:] = [first]
        folder.set_language("en", LanguageRelease((Route(first.digest, "models/1", 1.0, "1"),)))
        before = folder.read()
    thread.join(timeout=30)
    (error,) = refused
    assert "is no longer the champion: version 1 is" in str(error)
    assert [step.state for step in error.transitions] == ["refused"]
    assert folder.read() == before


def test_a_decision_during_the_release_stops_it_before_the_switch(folder, golden, tmp_path):
    bundle = write_toy_bundle(tmp_path / "models" / "new")
    folder.set_language("en", LanguageRelease((ROUTE,)))
    answers = iter([None, "version 4 is no longer the champion: version 3 is"])
    with pytest.raises(ReleaseFailed, match="version 3 is"):
        release(
            folder,
            *("en", bundle.path, bundle.digest, golden),
            allow_no_replica=True,
            superseded=lambda: next(answers),
        )
    assert folder.read().languages["en"].routes == (ROUTE,)
    assert [step.state for step in folder.history("en")] == ["verify", "refused"]
