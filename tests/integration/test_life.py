"""Replicas that live and look dead, and the other way round: a release tries them or refuses, and skips nothing."""

import json
import signal
import threading

import pytest

from deployment.release.canary import Canary
from deployment.release.life import Replicas
from deployment.release.rollout import RolloutFailed, RolloutResult, roll_out
from speech.audio.decode import write_flac_chunks
from speech.store.outputs import write_json
from tests.integration.conftest import Tier
from tests.toy_bundle import tones

ALL_STEPS = ["verify", "load", "warm", "probe", "canary", "full", "drained"]


@pytest.fixture
def served(tier: Tier) -> Tier:
    tier.serve(tier.bundle("en-1"))
    tier.start("a")
    return tier


def put_out(tier: Tier) -> RolloutResult:
    bundle = tier.bundle("en-2", confuse=[("six", "seven")])
    path = tier.home / "golden.flac"
    write_flac_chunks([tones(["one", "two"])], path)
    golden = [path]
    canary = Canary(share=0.3, seconds=1.0, requests=20)
    return roll_out(tier.folder, "en", bundle.digest, golden, 30, canary=canary, version="2", allow_no_replica=True)


def test_a_replica_whose_report_can_no_longer_be_written_is_probed_and_tried(served):
    """Whoever looks finds what it said long ago, again and again; it answers, so it lives."""
    report = served.home / "release" / "replicas" / "a.json"
    said = {**json.loads(report.read_text()), "started_at": "2001-01-01T00:00:00.000+00:00"}
    stop = threading.Event()
    writer = threading.Thread(target=lambda: [write_json(report, said) for _ in iter(lambda: stop.wait(0.002), True)])
    writer.start()
    try:
        result = put_out(served)
    finally:
        stop.set()
        writer.join()
    assert [step.state for step in result.transitions] == ALL_STEPS


def test_a_replica_that_neither_answers_nor_ends_is_a_refusal(served):
    """It may serve again in a moment: whether the new version works there cannot be known."""
    process = served.processes["a"]
    before = served.folder.read()
    process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RolloutFailed, match="replica a at http.* neither answers nor has ended") as failed:
            put_out(served)
    finally:
        process.send_signal(signal.SIGCONT)
    assert [step.state for step in failed.value.transitions] == ["verify", "refused"]
    assert served.folder.read() == before
    assert [step.state for step in put_out(served).transitions] == ALL_STEPS


def test_a_killed_replica_is_gone_and_its_report_with_it(served):
    assert served.stop("a", signal.SIGKILL) == -signal.SIGKILL
    replicas = Replicas(served.folder)
    assert [report.replica for report in replicas.settled().gone] == ["a"]
    assert served.folder.reports() == ()
