"""The models of a replica, in this process: fair shares, bounded memory, and a canary that is only lent."""

import time
from collections import Counter

import pytest

from deployment.release import LanguageRelease, ReleaseFolder, Route
from deployment.serving.models import Models, NoModel
from tests.toy_bundle import write_toy_bundle


@pytest.fixture
def folder(tmp_path):
    return ReleaseFolder(tmp_path)


@pytest.fixture
def route(folder):
    def make(number: int, share: float = 0.0) -> Route:
        bundle = write_toy_bundle(folder.home / "models" / str(number), lineage={"number": number})
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
