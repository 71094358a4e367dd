"""Releases on running servers: the canary and what sends it back, standby, draining, processes killed in between."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deployment.release import turns
from deployment.release.canary import Canary
from deployment.release.life import Replicas
from deployment.release.reports import BUNDLE_HEADER
from deployment.release.rollout import RolloutFailed, RolloutResult, roll_out
from deployment.release.turns import Turn
from speech.audio.decode import write_flac_chunks
from speech.bundle import ModelBundle
from tests.integration.conftest import ROOT, Tier
from tests.sounds import sound_bytes
from tests.toy_bundle import tones

CANARY = Canary(share=0.3, seconds=3.0, requests=30)
LONG = Canary(share=0.3, seconds=60.0, requests=100_000)


class Customers:
    """Steady requests of a few clients; keeps status, text and bundle of every answer."""

    def __init__(self, urls: list[str], audio: bytes, pause_s: float = 0.03) -> None:
        self.answers: list[tuple[int, str, str]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(urls[n % len(urls)], audio, pause_s)) for n in range(2)
        ]

    def _run(self, url: str, audio: bytes, pause_s: float) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.wait(pause_s):
                answer = client.post(f"{url}/v1/transcribe?language=en", content=audio)
                text = answer.json().get("text", answer.text)
                self.answers.append((answer.status_code, text, answer.headers.get(BUNDLE_HEADER, "")))

    def __enter__(self) -> "Customers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def statuses(self) -> set[int]:
        return {status for status, _, _ in self.answers}


def golden(tier: Tier) -> list[Path]:
    found = []
    for number, words in enumerate((["one", "two", "three"], ["four", "five"])):
        path = tier.home / f"golden-{number}.flac"
        if not path.exists():
            write_flac_chunks([tones(words)], path)
        found.append(path)
    return found


def put_out(tier: Tier, bundle: ModelBundle, version: str, canary: Canary | None = None) -> RolloutResult:
    return roll_out(
        tier.folder,
        "en",
        bundle.digest,
        golden(tier),
        model="soundstage-en",
        version=version,
        canary=canary,
        timeout_s=30,
    )


def states(tier: Tier) -> list[str]:
    return [step.state for step in tier.folder.history("en")]


def audio(*words: str, amplitude: float = 0.3) -> bytes:
    return sound_bytes(tones(words, amplitude=amplitude))


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tier, str, ModelBundle]]:
    """One replica that serves version 1; tests here leave it as it was."""
    tier = Tier(tmp_path_factory.mktemp("steady"))
    first = tier.bundle("en-1")
    tier.serve(first)
    url = tier.start("a", "--workers", "2")
    yield tier, url, first
    tier.processes["a"].kill()
    tier.processes["a"].wait()


@pytest.mark.parametrize(
    ("worse", "customer", "sentence"),
    [
        ({"fails_after_s": 3.0}, ["one"] * 8, "failed on"),
        ({"effort": 60}, ["one"], "its answers take"),
        ({"heard_from": 0.12}, ["one"], "heard nothing in"),
    ],
    ids=["errors", "latency", "empty"],
)
def test_a_worse_version_goes_back_and_no_customer_notices(steady, worse, customer, sentence):
    """All pass the probes, and fail on what customers really send: they get the old version's answer for it."""
    tier, url, first = steady
    bad = tier.bundle(f"bad-{next(iter(worse))}", **worse)
    with Customers([url], audio(*customer, amplitude=0.07)) as customers:
        with pytest.raises(RolloutFailed, match=sentence) as failed:
            put_out(tier, bad, "2", CANARY)
        time.sleep(1.0)
        since = len(customers.answers)
        time.sleep(1.0)
    assert customers.statuses == {200}
    assert all(text == " ".join(customer) or digest == bad.digest for _, text, digest in customers.answers)
    assert {digest for _, _, digest in customers.answers[since:]} == {first.digest}
    steps = failed.value.transitions
    assert [step.state for step in steps] == ["verify", "load", "warm", "probe", "canary", "returned"]
    returned = tier.folder.history("en")[-1]
    assert returned == steps[-1]
    assert sentence in returned.reason
    assert (returned.digest, returned.version, returned.share) == (bad.digest, "2", 0.0)
    assert returned.figures.requests > 0
    assert returned.against.requests > 0
    release_now = tier.folder.read().languages["en"]
    assert (release_now.state, [route.digest for route in release_now.routes]) == ("returned", [first.digest])
    report = tier.wait("a", lambda report: not report.languages["en"].draining)
    assert report.languages["en"].loaded == (first.digest,)


def test_a_tampered_bundle_is_refused_before_any_replica_loads_it(steady):
    tier = steady[0]
    bundle = tier.bundle("tampered", lineage={"number": 9})
    with (bundle.path / "network.onnx").open("ab") as file:
        file.write(b"x")
    before = tier.folder.read()
    with pytest.raises(RolloutFailed, match=r"network\.onnx differs from its sha256") as failed:
        put_out(tier, bundle, "9", CANARY)
    assert [step.state for step in failed.value.transitions] == ["verify", "refused"]
    assert tier.folder.read() == before
    assert bundle.digest not in tier.wait("a", lambda report: True).languages["en"].loaded


def test_versions_follow_each_other_and_the_former_one_is_a_second_away(tier):
    """Canary, full, drained; the former version stays warm, and going back to it needs neither canary nor loading."""
    versions = {
        "1": tier.bundle("en-1"),
        "2": tier.bundle("en-2", confuse=[("one", "two")]),
        "3": tier.bundle("en-3", confuse=[("one", "three")]),
    }
    texts = {versions["1"].digest: "one", versions["2"].digest: "two", versions["3"].digest: "three"}
    url = tier.start("a")
    assert [s.state for s in put_out(tier, versions["1"], "1", CANARY).transitions] == [
        *("verify", "load", "warm", "probe", "full", "drained")
    ]
    with Customers([url], audio("one")) as customers:
        second = put_out(tier, versions["2"], "2", CANARY)
        on_trial = Counter(digest for _, _, digest in customers.answers)
        back = put_out(tier, versions["1"], "1", CANARY)
        third = put_out(tier, versions["3"], "3", CANARY)
    assert customers.statuses == {200}
    assert all(text == texts[digest] for _, text, digest in customers.answers)
    assert on_trial[versions["2"].digest] > 0
    full = second.transitions[-2]
    assert [step.state for step in second.transitions] == [
        *("verify", "load", "warm", "probe", "canary", "full", "drained")
    ]
    assert (full.share, full.reason, full.version) == (1.0, "the canary passed", "2")
    assert full.figures.requests >= 30
    assert full.figures.errors == full.against.errors == 0
    assert 0 < full.figures.p50_s <= full.figures.p95_s < 1
    assert [step.state for step in back.transitions] == ["verify", "probe", "full", "drained"]
    assert "standby" in back.transitions[-2].reason
    assert back.seconds < 5
    assert third.changed
    report = tier.wait("a", lambda report: not report.languages["en"].draining).languages["en"]
    assert dict(report.active) == {versions["3"].digest: 1.0}
    assert set(report.loaded) == {versions["1"].digest, versions["3"].digest}, "active and standby, nothing else"
    assert Replicas(tier.folder).differences("en", versions["3"].digest, "3") == ()
    (sentence,) = Replicas(tier.folder).differences("en", versions["2"].digest, "2")
    assert "replica a " in sentence
    assert "runs version 3" in sentence
    assert "champion is version 2" in sentence
    metrics = httpx.get(f"{url}/metrics").text
    assert 'soundstage_version_requests_total{language="en",outcome="ok",version="3"}' in metrics
    assert 'soundstage_version_seconds_bucket{language="en",le="0.01",version="1"}' in metrics
    assert 'version="2"' not in metrics


def test_releases_in_s3_are_as_in_a_folder(s3_tier):
    """A replica follows there, a worse version goes back, a good one takes over, and going back is quick."""
    tier = s3_tier
    first, second = tier.bundle("en-1"), tier.bundle("en-2", confuse=[("one", "two")])
    bad = tier.bundle("bad", fails_after_s=3.0)
    url = tier.start("a", "--workers", "2")
    put_out(tier, first, "1", CANARY)
    with Customers([url], audio(*["one"] * 8)) as customers:
        with pytest.raises(RolloutFailed, match="failed on"):
            put_out(tier, bad, "2", CANARY)
        third = put_out(tier, second, "3", Canary(share=0.3, seconds=1.5, requests=20))
        back = put_out(tier, first, "1", CANARY)
    assert customers.statuses == {200}
    assert states(tier)[:6] == ["verify", "load", "warm", "probe", "full", "drained"]
    assert states(tier)[6:12] == ["verify", "load", "warm", "probe", "canary", "returned"]
    assert [step.state for step in third.transitions][3:6] == ["probe", "canary", "full"]
    assert back.seconds < 5
    assert dict(tier.wait("a", lambda report: True).languages["en"].active) == {first.digest: 1.0}


def test_a_release_goes_on_when_its_data_store_was_away_for_a_moment(s3_tier, s3):
    """The service of S3 is killed in the middle of a canary: replicas serve on, and nothing is lost."""
    first, second = s3_tier.bundle("en-1"), s3_tier.bundle("en-2", confuse=[("one", "two")])
    s3_tier.serve(first)
    url = s3_tier.start("a")
    with ThreadPoolExecutor(1) as pool, Customers([url], audio("one")) as customers:
        released = pool.submit(put_out, s3_tier, second, "2", Canary(share=0.3, seconds=1.0, requests=20))
        s3_tier.wait("a", lambda report: second.digest in report.languages["en"].active)
        s3.kill()
        before = len(customers.answers)
        time.sleep(1.5)
        assert len(customers.answers) > before
        s3.start()
        result = released.result(timeout=60)
    assert customers.statuses == {200}
    assert [step.state for step in result.transitions][-3:] == ["canary", "full", "drained"]


def test_a_canary_without_customers_is_asked_by_the_release_itself(tier):
    """A server that nobody calls at night must not hold a release up for ever."""
    tier.serve(tier.bundle("en-1"))
    tier.start("a")
    second = tier.bundle("en-2", confuse=[("six", "seven")])
    result = put_out(tier, second, "2", Canary(share=0.1, seconds=2.0, requests=20))
    full = next(step for step in result.transitions if step.state == "full")
    assert full.figures.requests >= 20
    assert result.seconds < 15


def test_requests_on_the_old_version_are_finished_before_it_has_drained(tier):
    slow = tier.bundle("en-slow", effort=150)
    tier.serve(slow)
    url = tier.start("a", "--workers", "2")
    recording = sound_bytes(tones(["one"] * 400))  # 200 s: eleven runs of the network
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/transcribe?language=en", content=recording, timeout=60)
        deadline = time.monotonic() + 10
        while "in_flight 2.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
        result = put_out(tier, tier.bundle("en-2"), "2")
        assert asked.done()
        assert asked.result().json()["text"].split() == ["one"] * 400
        assert asked.result().headers[BUNDLE_HEADER] == slow.digest
    full, drained = result.transitions[-2:]
    assert (full.state, drained.state) == ("full", "drained")
    assert drained.seconds - full.seconds > 0.2


RELEASE = """
import sys
from pathlib import Path
from deployment.release.canary import Canary
from deployment.release.rollout import roll_out
from speech.store.objects import open_objects
home, digest, golden = sys.argv[1:]
roll_out(open_objects(home), "en", digest, [Path(golden)],
         model="soundstage-en", version="2", canary=Canary(share=0.3, seconds=60, requests=100_000))
"""


def test_a_release_that_is_killed_in_its_canary_is_returned_from_and_done_again(tier, monkeypatch):
    monkeypatch.setattr(turns, "DEAD_S", 3.0)
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a")
    second = tier.bundle("en-2", confuse=[("one", "two")])
    recording = golden(tier)[0]
    releasing = subprocess.Popen(
        [sys.executable, "-c", RELEASE, str(tier.home), second.digest, str(recording)], cwd=ROOT
    )
    try:
        deadline = time.monotonic() + 30
        while not any(second.digest in r.languages["en"].active for r in tier.folder.reports()):
            assert releasing.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        releasing.send_signal(signal.SIGKILL)
        releasing.wait()
    left = tier.folder.read().languages["en"]
    assert (left.state, left.candidate) == ("canary", second.digest)
    assert left.trial_s is not None, "the share is only lent"
    with Customers([url], audio("one")) as customers:
        result = put_out(tier, second, "2", CANARY)
    assert customers.statuses == {200}
    assert result.changed
    assert states(tier) == [
        *("verify", "load", "warm", "probe", "canary", "returned"),
        *("verify", "probe", "canary", "full", "drained"),
    ]
    returned = tier.folder.history("en")[5]
    assert returned.rollout == left.rollout != result.transitions[0].rollout
    assert "ended in the middle of 'canary'" in returned.reason


def test_a_replica_that_restarts_during_the_canary_takes_part_again(tier):
    tier.serve(tier.bundle("en-1"))
    urls = [tier.start("a"), tier.start("b")]
    second = tier.bundle("en-2", confuse=[("one", "two")])
    with ThreadPoolExecutor(1) as pool, Customers(urls[:1], audio("one")) as customers:
        released = pool.submit(put_out, tier, second, "2", Canary(share=0.2, seconds=8, requests=100_000))
        tier.wait("b", lambda report: second.digest in report.languages["en"].active)
        assert tier.stop("b", signal.SIGKILL) == -signal.SIGKILL
        tier.start("b")
        result = released.result(timeout=60)
    assert customers.statuses == {200}
    assert result.replicas == ("a", "b")
    assert result.transitions[-1].state == "drained"
    for name in "ab":
        report = tier.wait(name, lambda report: True).languages["en"]
        assert dict(report.active) == {second.digest: 1.0}


def test_a_replica_that_started_on_a_damaged_bundle_serves_when_its_release_has_ended(tier):
    """The bundle is whole again before the release; the replica must not be found in what is left of its pause."""
    first = tier.bundle("en-1")
    network = first.path / "network.onnx"
    content = network.read_bytes()
    tier.start("b")
    put_out(tier, first, "1")
    network.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    url = tier.start("a")
    tier.wait("a", lambda report: first.digest in report.languages["en"].errors)
    network.write_bytes(content)
    result = put_out(tier, first, "1")
    assert not result.changed
    assert [step.state for step in result.transitions] == ["verify", "load", "warm", "probe", "full"]
    assert Replicas(tier.folder).differences("en", first.digest, "1") == ()
    assert httpx.post(f"{url}/v1/transcribe?language=en", content=audio("one")).json()["text"] == "one"


def test_a_canary_gives_way_to_going_back(tier):
    """Who rolls back while the next version is on trial does not wait for the trial."""
    first, second = tier.bundle("en-1"), tier.bundle("en-2", confuse=[("one", "two")])
    tier.serve(first)
    tier.start("a")
    with ThreadPoolExecutor(1) as pool:
        on_trial = pool.submit(put_out, tier, second, "2", LONG)
        tier.wait("a", lambda report: second.digest in report.languages["en"].active)
        began = time.monotonic()
        result = put_out(tier, first, "1", LONG)
        assert time.monotonic() - began < 10
        with pytest.raises(RolloutFailed, match="gave way"):
            on_trial.result(timeout=10)
    assert not result.changed
    assert dict(tier.wait("a", lambda report: True).languages["en"].active) == {first.digest: 1.0}
    assert [step.state for step in tier.folder.history("en")][-4:] == ["returned", "verify", "probe", "full"]


def test_languages_are_released_side_by_side(tier):
    tier.serve(tier.bundle("en-1"), tier.bundle("de-1", "de"))
    tier.start("a")
    with Turn(tier.objects, "de").taken(0):
        assert put_out(tier, tier.bundle("en-2", confuse=[("one", "two")]), "2").changed
