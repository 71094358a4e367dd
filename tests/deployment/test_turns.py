"""Whose turn it is to release: one at a time, given up by who dies, and never by who is alive."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from deployment.release.document import LanguageRelease, Route
from deployment.release.folder import LostTurn, ReleaseFolder
from deployment.release.rollout import RolloutFailed, roll_out
from deployment.release.turns import ReleaseBusy, Turn
from speech.audio.decode import write_flac_chunks
from tests.toy_bundle import shelved, tones

BEAT_S, DEAD_S = 0.1, 0.8
ROUTE = Route("a" * 64, 1.0, "3", "soundstage-en")


def turn_of(objects, digest=""):
    return Turn(objects, "en", digest, BEAT_S, DEAD_S)


HOLD = """
import sys, time
from deployment.release.turns import Turn
from speech.store.objects import open_objects
home, beat_s, dead_s = sys.argv[1:]
with Turn(open_objects(home), "en", "", float(beat_s), float(dead_s)).taken(0):
    print("taken", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(objects):
    """Another process that has the turn."""
    command = [sys.executable, "-c", HOLD, objects.home, str(BEAT_S), str(DEAD_S)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "taken\n"
        yield process
        process.kill()


def test_one_has_the_turn_and_who_gives_it_back_leaves_nothing_behind(objects):
    with turn_of(objects).taken(0), pytest.raises(ReleaseBusy, match="another release of 'en' is under way"):
        turn_of(objects).taken(0.5).__enter__()
    with turn_of(objects).taken(0):
        pass
    assert [item.key for item in objects.list("release/turns")] == ["release/turns/en.json"]


def test_of_many_that_want_it_one_has_it_at_a_time(objects):
    inside, most = [], []

    def want():
        with turn_of(objects).taken(30):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.02)
            inside.pop()

    threads = [threading.Thread(target=want) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 5


def test_languages_do_not_wait_for_each_other(objects):
    with turn_of(objects).taken(0), Turn(objects, "de").taken(0):
        pass


def test_the_turn_of_a_process_that_was_killed_is_taken_over(objects, holder):
    holder.kill()
    began = time.monotonic()
    with turn_of(objects).taken(30):
        assert DEAD_S < time.monotonic() - began < DEAD_S + 5


def test_the_turn_of_a_process_that_lives_is_not(objects, holder):
    with pytest.raises(ReleaseBusy):
        turn_of(objects).taken(3 * DEAD_S).__enter__()


def test_a_release_that_slept_learns_that_its_turn_is_over(objects, monkeypatch):
    asleep = turn_of(objects)
    with asleep.taken(0):
        monkeypatch.setattr(asleep, "_write_beat", lambda number: None)
        with turn_of(objects).taken(30):
            deadline = time.monotonic() + 5
            while not asleep.lost:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    with turn_of(objects).taken(0):
        pass


def test_what_another_release_wrote_since_is_not_written_over(objects):
    folder = ReleaseFolder(objects)
    before = folder.set_language("en", LanguageRelease((ROUTE,)))
    mine = LanguageRelease((Route("b" * 64, 1.0),), rollout="mine")
    folder.set_language("en", mine, before)
    folder.set_language("en", LanguageRelease((ROUTE,), rollout="mine"), before)
    folder.set_language("de", LanguageRelease((ROUTE,), rollout="theirs"))
    folder.set_language("en", mine, before)
    theirs = folder.set_language("en", LanguageRelease((ROUTE,), rollout="theirs"))
    with pytest.raises(LostTurn, match="another release of 'en' took over"):
        folder.set_language("en", mine, before)
    assert folder.read() == theirs


def test_a_roll_out_that_slept_while_another_took_over_ends_with_the_reason(objects, tmp_path):
    folder = ReleaseFolder(objects)
    folder.set_language("en", LanguageRelease((ROUTE,)))
    bundle = shelved(objects)
    write_flac_chunks([tones(["one", "two"])], tmp_path / "golden.flac")
    golden = [tmp_path / "golden.flac"]
    theirs = LanguageRelease((Route("c" * 64, 1.0, "5"),), rollout="theirs")

    def meanwhile():
        folder.set_language("en", theirs)

    with pytest.raises(RolloutFailed, match="another release of 'en' took over") as failed:
        roll_out(folder, "en", bundle.digest, golden, allow_no_replica=True, superseded=meanwhile)
    assert folder.read().languages["en"] == theirs
    assert failed.value.transitions[-1].state == "returned"
