"""The models of a replica, in this process: only what was approved, fair shares, bounded memory, lent canaries."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from deployment.promotion.ledger import Ledger
from deployment.release.document import LanguageRelease, ReleaseFolder, Route
from deployment.serving import models as serving_models
from deployment.serving.approval import NotApproved, require_approved
from deployment.serving.models import Models, NoModel
from evaluation.gates import load_verdict, save_verdict
from tests.toy_bundle import write_toy_bundle
from tests.toy_registry import approve, decide


@pytest.fixture
def folder(tmp_path):
    return ReleaseFolder(tmp_path)


@pytest.fixture
def route(folder):
    def make(number: int, share: float = 0.0) -> Route:
        bundle = write_toy_bundle(folder.home / "models" / str(number), lineage={"number": number})
        approve(folder.home, bundle)
        return Route(bundle.digest, folder.relative(bundle.path), share, str(number), "soundstage-en")

    return make


@pytest.fixture
def models(folder):
    return Models(folder, "a", "http://a", workers=1)


def report(models):
    return models.report().languages["en"]


def test_shares_are_kept_without_tying_anyone_to_a_version(folder, route, models):
    """Of every hundred requests a tenth, give or take one; and of every client's own, whatever its rhythm."""
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (old,)))
    models.refresh()
    answered = []
    for _ in range(2_000):
        with models.lease("en") as model:
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
    models.refresh()
    with models.lease("en", route(1).digest) as first:
        folder.set_language("en", LanguageRelease((route(3, 1.0), route(2))))
        models.refresh()
        now = report(models)
        assert dict(now.active) == {route(3).digest: 1.0}
        assert now.draining == (route(1).digest,)
        folder.set_language("en", LanguageRelease((route(3, 1.0), route(2), route(4)), "load", candidate="x"))
        models.refresh()
        waiting = models.report()
        assert "until the requests on" in waiting.error
        assert waiting.revision < folder.read().revision
        assert set(waiting.languages["en"].versions) == {route(n).digest for n in (1, 2, 3)}
        folder.set_language("en", LanguageRelease((route(2, 1.0), route(3))))
        models.refresh()
        assert dict(report(models).active) == {route(2).digest: 1.0}, "going back needs no memory and does not wait"
        folder.set_language("en", LanguageRelease((route(2, 1.0), route(3), route(4)), "load", candidate="x"))
        models.refresh()
        assert first.bundle.digest == route(1).digest
    time.sleep(0.3)
    models.refresh()
    assert set(report(models).loaded) == {route(n).digest for n in (2, 3, 4)}
    assert set(report(models).versions) == set(report(models).loaded)
    assert models.report().error == ""


def test_a_trial_that_nobody_ends_is_given_back(folder, route, models):
    """The process that watches a canary was killed: its share must not last for ever."""
    old, new = route(1, 0.9), route(2, 0.1)
    before = (route(1, 1.0),)
    trial = LanguageRelease((old, new), "canary", before, "5eed", new.digest, trial_s=0.4)
    folder.set_language("en", trial)
    models.refresh()
    assert dict(report(models).active) == {old.digest: 0.9, new.digest: 0.1}
    folder.set_language("de", None)  # another language's release does not prolong it
    models.refresh()
    time.sleep(0.5)
    models.refresh()
    assert dict(report(models).active) == {old.digest: 1.0}
    assert new.digest in report(models).loaded
    folder.set_language("en", LanguageRelease((route(2, 1.0), route(1))))
    models.refresh()
    assert dict(report(models).active) == {new.digest: 1.0}


def test_only_the_larger_share_answers_for_what_failed(folder, route, models):
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (old,)))
    models.refresh()
    with models.lease("en", new.digest) as canary, models.lease("en", instead_of=canary) as instead:
        assert instead.digest == old.digest
    with models.lease("en", old.digest) as stable, pytest.raises(NoModel), models.lease("en", instead_of=stable):
        pass


def test_figures_count_per_version(folder, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    with models.lease("en") as model:
        models.count(model, 0.1)
        models.count(model, 0.1, empty=True)
        models.count(model, None)
    counted = report(models).figures[route(1).digest]
    assert (counted.requests, counted.errors, counted.empty) == (3, 1, 1)


# --- only what was approved -------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(folder):
    return write_toy_bundle(folder.home / "models" / "a")


def verdict_of(folder, bundle):
    return folder.home / "verdicts" / f"{bundle.digest}.json"


def test_an_approved_bundle_may_be_served(folder, bundle):
    approve(folder.home, bundle)
    require_approved(folder.home, "en", bundle.digest)
    decide(folder.home, bundle, "rollback")
    require_approved(folder.home, "en", bundle.digest)


@pytest.mark.parametrize("action", ["voice", "request_changes", "expire", "override"])
def test_only_a_decision_that_puts_into_production_opens_the_way(folder, bundle, action):
    approve(folder.home, write_toy_bundle(folder.home / "models" / "b", confuse=[("one", "two")]))
    decide(folder.home, bundle, action)
    with pytest.raises(NotApproved, match="nobody approved it"):
        require_approved(folder.home, "en", bundle.digest)


def unapproved(folder, bundle):
    """No ledger at all."""


def approved_for_another_language(folder, bundle):
    german = write_toy_bundle(folder.home / "models" / "de", "de")
    approve(folder.home, german)


def without_a_verdict(folder, bundle):
    approve(folder.home, bundle)
    verdict_of(folder, bundle).unlink()


def with_a_failed_verdict(folder, bundle):
    approve(folder.home, bundle, wer=0.5)


def with_an_edited_verdict(folder, bundle):
    approve(folder.home, bundle, wer=0.5)
    path = verdict_of(folder, bundle)
    path.write_text(json.dumps({**json.loads(path.read_text()), "passed": True}))


def rejected_since(folder, bundle):
    approve(folder.home, bundle)
    decide(folder.home, bundle, "reject")


def on_an_edited_ledger(folder, bundle):
    approve(folder.home, bundle)
    path = Ledger(folder.home / "ledger", "en").path
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
def test_what_nobody_may_serve_is_refused_with_its_reason(folder, bundle, models, prepare, sentence):
    """Whatever the document says: it can be written by hand."""
    prepare(folder, bundle)
    folder.set_language("en", LanguageRelease((Route(bundle.digest, folder.relative(bundle.path), 1.0),)))
    models.refresh()
    assert sentence in report(models).errors[bundle.digest]
    assert not report(models).active
    with pytest.raises(NoModel, match=sentence):
        models.require("en")


def test_gates_that_people_accepted_are_accepted_with_that_verdict_only(folder, bundle):
    entry = approve(folder.home, bundle, wer=0.5)
    verdict = load_verdict(folder.home / "verdicts", bundle.digest)
    failed = tuple(gate.label for gate in verdict.failures)
    decide(folder.home, bundle, "approve", entry.verdict_sha256, overridden=failed)
    require_approved(folder.home, "en", bundle.digest)
    save_verdict(replace(verdict, evaluation_digest="c" * 64), folder.home / "verdicts")
    with pytest.raises(NotApproved, match="did not pass gate wer"):
        require_approved(folder.home, "en", bundle.digest)


def test_a_replica_that_has_the_ledger_key_takes_no_decision_without_it(folder, bundle):
    approve(folder.home, bundle)
    with pytest.raises(NotApproved, match="entry 1 is not signed with the ledger key"):
        require_approved(folder.home, "en", bundle.digest, b"a key that is not on this disk")


def test_a_replica_imports_nothing_that_judges_trains_or_registers():
    """It starts in a second or two, on hosts that have no accelerator and no registry."""
    heavy = ("mlflow", "torch", "nemo", "dagster", "great_expectations", "matplotlib", "jiwer", "scipy")
    code = f"import sys, deployment.serving.__main__; print([name for name in {heavy!r} if name in sys.modules])"
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- a document that is gone ------------------------------------------------------------------------------------------


def test_a_removed_document_takes_nothing_down(folder, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    content = folder.document.read_bytes()
    folder.document.unlink()
    models.refresh()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    assert "release.json is missing: restore it, or launch `serving_release`" in models.report().error
    assert models.report().revision == 1
    folder.document.write_bytes(content)
    models.refresh()
    assert models.report().error == ""


def edited(document, **changes):
    document.write_text(json.dumps({**json.loads(document.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"languages": {}},
        {"languages": {"en": {"routes": [], "state": "full", "previous": []}}},
        {"languages": {}, "revision": 1},
    ],
)
def test_an_emptied_document_takes_nothing_down_and_the_next_release_writes_it_again(folder, route, models, changes):
    """Whoever empties it by hand does not raise its revision, as every release does."""
    folder.set_language("de", None)
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    followed = models.report().revision
    edited(folder.document, **changes)
    models.refresh()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    assert "it was edited or put back; launch `serving_release`" in models.report().error
    folder.report(models.report())
    folder.restore_lost()
    models.refresh()
    assert models.report().error == ""
    assert models.report().revision == followed + 1
    assert dict(report(models).active) == {route(1).digest: 1.0}


def test_a_share_that_was_edited_away_is_given_all_the_same(folder, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    folder.document.write_text(folder.document.read_text().replace('"share": 1.0', '"share": 0.0'))
    models.refresh()
    assert dict(report(models).active) == {route(1).digest: 1.0}
    folder.report(models.report())
    folder.set_language("de", None)
    models.refresh()
    assert (dict(report(models).active), models.report().error) == ({route(1).digest: 1.0}, "")


@pytest.mark.parametrize("nothing", [None, LanguageRelease(())])
def test_a_language_that_is_taken_out_on_purpose_is_let_go(folder, route, models, nothing):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    folder.report(models.report())
    folder.set_language("en", nothing)
    models.refresh()
    assert (models.languages(), models.report().error) == ((), "")
    folder.report(models.report())
    folder.restore_lost()
    assert folder.read().revision == 2


def test_a_document_that_is_only_written_anew_is_followed(folder, route, models):
    folder.set_language("en", LanguageRelease((route(1, 1.0),)))
    models.refresh()
    edited(folder.document, updated_at="later")
    assert models.refresh()
    assert models.report().error == ""


def test_a_trial_ends_although_its_document_is_gone(folder, route, models, monkeypatch):
    monkeypatch.setattr(serving_models, "RETRY_S", 0.1)
    old, new = route(1, 0.9), route(2, 0.1)
    folder.set_language("en", LanguageRelease((old, new), "canary", (route(1, 1.0),), "5eed", new.digest, trial_s=0.3))
    models.refresh()
    folder.document.unlink()
    models.refresh()
    assert dict(report(models).active) == {old.digest: 0.9, new.digest: 0.1}
    time.sleep(0.4)
    models.refresh()
    assert dict(report(models).active) == {old.digest: 1.0}
    assert "is missing" in models.report().error
