"""What a client is told while no model answers: the reason that the replica knows, and what helps against that one."""

import time
from pathlib import Path

import pytest

from deployment.release.document import LanguageRelease, Route
from deployment.release.folder import DOCUMENT
from deployment.serving.core import Serving, ServingOptions
from deployment.serving.problems import Problem
from speech.store.objects import open_objects


@pytest.fixture
def serving(tmp_path: Path) -> Serving:
    return Serving(ServingOptions(open_objects(tmp_path), url="http://127.0.0.1:1", replica="a"))


def _told(serving: Serving, language: str | None) -> str:
    with pytest.raises(Problem) as told:
        serving.language(language)
    assert (told.value.status, told.value.code, told.value.title) == (503, "no-model", "No model is served")
    assert told.value.retry_after_s
    return told.value.detail


@pytest.mark.parametrize("language", [None, "en"])
def test_a_document_that_cannot_be_followed_is_the_reason(
    serving: Serving, tmp_path: Path, language: str | None
) -> None:
    """Approving another model, which is said where nothing is released, would not help."""
    (tmp_path / DOCUMENT).parent.mkdir(parents=True)
    (tmp_path / DOCUMENT).write_text("")
    serving.follower.look()
    said, (_, ready) = _told(serving, language), serving.ready()
    assert "release.json cannot be followed" in ready
    assert ready in said
    assert "approve" not in said


@pytest.mark.parametrize("language", [None, "en"])
def test_a_bundle_that_may_not_be_served_is_the_reason(serving: Serving, language: str | None) -> None:
    serving.folder.set_language("en", LanguageRelease((Route("e" * 64, 1.0),)))
    serving.follower.look()
    assert "was not read yet" not in _told(serving, language)
    deadline = time.monotonic() + 10
    while "nobody approved" not in serving.ready()[1] and time.monotonic() < deadline:
        serving.follower.act()
        time.sleep(0.01)
    said = _told(serving, language)
    assert said.count("nobody approved") == 1
    assert "approve a registered model" not in said


@pytest.mark.parametrize("language", [None, "en"])
def test_where_nothing_is_released_it_says_what_to_do(serving: Serving, language: str | None) -> None:
    assert "was not read yet" in _told(serving, language)
    serving.follower.look()
    serving.follower.act()
    assert "approve a registered model and release it" in _told(serving, language)
    assert serving.ready()[1].startswith("nothing is released yet")
