"""Objects of the release folder that somebody damaged or wrote by hand: they stop no release, and harm nothing else."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from deployment.release.canary import Figures
from deployment.release.folder import ReleaseFolder
from deployment.release.history import Transition
from deployment.release.reports import ReplicaReport
from speech.store.folder import FolderObjects
from speech.store.objects import open_objects

FIGURES = Figures().counting(0.1).counting(None).summary()
STEP = Transition(
    time="2024-07-01T00:00:00.000+00:00",
    rollout="5eed",
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
    return ReleaseFolder(open_objects(tmp_path))


def line(**changes: Any) -> bytes:
    return json.dumps({**asdict(STEP), **changes}).encode()


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
def test_a_damaged_step_of_the_history_is_left_out(folder, damage):
    folder.record(STEP)
    folder.objects.put_if_absent("release/history/en/00000002.json", damage)
    folder.record(replace(STEP, state="drained"))
    assert folder.history("en") == (STEP, replace(STEP, state="drained"))


def test_only_what_is_shown_of_a_long_history_is_read(folder, monkeypatch):
    steps = [replace(STEP, reason=str(number)) for number in range(12)]
    for step in steps:
        folder.record(step)
    read, asked = FolderObjects.read, []
    monkeypatch.setattr(FolderObjects, "read", lambda objects, key: asked.append(key) or read(objects, key))
    assert folder.history("en", 3) == tuple(steps[-3:])
    folder.record(STEP)
    assert len(asked) == 3


def test_a_reason_with_a_file_s_undecodable_name_is_recorded(folder):
    folder.record(replace(STEP, reason="cannot read a\udcff.flac"))
    assert folder.history("en")[0].reason == "cannot read a?.flac"


# --- reports ----------------------------------------------------------------------------------------------------------


def test_a_report_under_another_s_name_says_nothing(folder, tmp_path):
    folder.report(ReplicaReport("b", "http://a", 1))
    path = tmp_path / "release" / "replicas" / "b.json"
    path.write_text(path.read_text().replace('"b"', '"../../verdicts/victim"'))
    assert folder.reports() == ()


@pytest.mark.parametrize("changes", [{"revision": float("inf")}, {"languages": []}, {"beat": "now"}])
def test_a_report_of_other_kinds_says_nothing(folder, tmp_path, changes):
    folder.report(ReplicaReport("a", "http://a", 1))
    path = tmp_path / "release" / "replicas" / "a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert folder.reports() == ()
