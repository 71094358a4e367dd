"""Files of the release folder that somebody damaged or wrote by hand: they stop no release, and harm nothing else."""

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from deployment.release.canary import Figures
from deployment.release.document import ReleaseFolder, ReplicaReport, Transition

FIGURES = Figures().counting(0.1).counting(None).summary()
STEP = Transition(
    time="2024-07-01T00:00:00.000+00:00",
    release="5eed",
    language="en",
    state="full",
    digest="a" * 64,
    model="soundstage-en",
    version="3",
    share=1.0,
    seconds=2.5,
    replicas=("a", "b"),
    figures=FIGURES,
)


@pytest.fixture
def folder(tmp_path):
    return ReleaseFolder(tmp_path)


def line(**changes: Any) -> bytes:
    return json.dumps({**STEP.__dict__, **changes}).encode()


@pytest.mark.parametrize(
    "damage",
    [
        b"{}",
        b"[]",
        b"1",
        b"\xff\xfe",
        b'{"time": "2024',
        b"[" * 100_000,
        line(time="yesterday"),
        line(time="0001-01-01T00:00:00+14:00"),
        line(state="lost"),
        line(share="much"),
        line(seconds=10**400),
        line(replicas=None),
        line(figures={"requests": 1}),
        line(figures=[1]),
    ],
    ids=lambda damage: damage[:40].decode(errors="replace"),
)
def test_a_damaged_line_of_the_history_is_left_out(folder, damage):
    folder.record(STEP)
    path = folder.root / "history" / "en.jsonl"
    path.write_bytes(path.read_bytes() + damage + b"\n")
    folder.record(replace(STEP, state="drained"))
    assert folder.history("en") == (STEP, replace(STEP, state="drained"))


@pytest.mark.parametrize("separator", ["\u2028", "\x85", "\n", "\r"])
def test_a_reason_may_hold_whatever_separates_lines(folder, separator):
    step = replace(STEP, reason=f"one{separator}two")
    folder.record(step)
    assert folder.history("en") == (step,)


def test_a_reason_with_a_file_s_undecodable_name_is_recorded(folder):
    folder.record(replace(STEP, reason="cannot read a\udcff.flac"))
    assert folder.history("en")[0].reason == "cannot read a?.flac"


def test_a_history_that_cannot_be_opened_is_shown_as_none(folder):
    (folder.root / "history" / "en.jsonl").mkdir(parents=True)
    assert folder.history("en") == ()


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_under_another_s_name_removes_nothing(folder):
    """What is removed is the file that was read, whatever it says."""
    victim = folder.home / "verdicts" / "victim.json"
    victim.parent.mkdir()
    victim.write_text("{}")
    folder.report(ReplicaReport("b", "http://a", 1, heartbeat=0.0))
    path = folder.replicas / "b.json"
    path.write_text(path.read_text().replace('"b"', '"../../verdicts/victim"'))
    folder.forget_dead()
    assert folder.reports() == ()
    assert victim.exists()


def test_an_old_report_is_removed_and_a_fresh_one_is_not(folder):
    folder.report(ReplicaReport("old", "http://a", 1, heartbeat=time.time() - 2 * 24 * 3600))
    folder.report(ReplicaReport("new", "http://a", 1, heartbeat=time.time()))
    folder.forget_dead()
    assert [path.stem for path in folder.replicas.iterdir()] == ["new"]


@pytest.mark.parametrize("heartbeat", [60, 1e6, 1e9, float("inf"), float("nan")])
def test_a_heartbeat_from_the_future_is_no_sign_of_life(folder, heartbeat):
    """A replica that is not there must not hold up every release until its time has come."""
    folder.report(ReplicaReport("ghost", "http://a", 1, time.time() + heartbeat))
    folder.report(ReplicaReport("ahead", "http://a", 1, time.time() + 3))
    assert [report.replica for report in folder.live()] == ["ahead"]
    folder.forget_dead()
    assert ("ghost" in {report.replica for report in folder.reports()}) == (heartbeat == 60)


@pytest.mark.parametrize("changes", [{"revision": float("inf")}, {"languages": []}, {"heartbeat": "now"}])
def test_a_report_of_other_kinds_says_nothing(folder, changes):
    folder.report(ReplicaReport("a", "http://a", 1, time.time()))
    path = folder.replicas / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert folder.reports() == ()
