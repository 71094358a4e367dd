"""The review page: over HTTP what is refused, and in a real browser ten tasks by keyboard alone."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount

from deployment.batch.settings import InferenceSettings
from deployment.pages import PagesSettings, application
from deployment.review import desk as desks
from deployment.review.answers import Answers
from deployment.settings import Settings
from speech.store.objects import open_objects
from tests.deployment.review_hours import HOUR, PEOPLE, transcript, write_hour

OURS = {"X-Soundstage": "review"}
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


@contextmanager
def serving(home: Path, below: str = "", user_header: str | None = None, **inference: Any) -> Iterator[str]:
    """The real server over a store; gives the address of its pages."""
    asked = InferenceSettings.model_validate({"review": {"reviewers": PEOPLE, "double_share": 0.0, **inference}})
    settings = Settings(home=home, inference=asked, pages=PagesSettings(user_header=user_header))
    pages = application(open_objects(home), {}, settings)
    app = Starlette(routes=[Mount(below, app=pages)]) if below else pages
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}{below}"
        server.should_exit = True
        thread.join()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def client(home: Path) -> Iterator[httpx.Client]:
    write_hour(home, [transcript(1, "turn the light on", HOSTILE)])
    with serving(home) as url, httpx.Client(base_url=f"{url}/review/") as client:
        yield client


def asked(client: httpx.Client, who: str = "Ada", **wanted: Any) -> Any:
    return client.post("next", json={"who": who, **wanted}, headers=OURS)


def test_a_task_is_shown_answered_and_gone(client: httpx.Client, home: Path) -> None:
    task = asked(client).json()["task"]
    assert client.get(f"clip/{task['id']}").content.startswith(b"fLaC")
    assert 0 < task["start_s"] < task["end_s"]
    answer = client.post("answer", json={"who": "Ada", "task": task["id"], "kind": "text", "text": "on"}, headers=OURS)
    assert answer.json() == {"state": "settled"}
    following = asked(client).json()
    assert following["waiting"] == 1
    assert following["task"]["id"] != task["id"]
    late = client.post("answer", json={"who": "Ben", "task": task["id"], "kind": "text", "text": "off"}, headers=OURS)
    assert late.status_code == 409
    assert "Ada has answered this" in late.json()["detail"]
    assert Answers(open_objects(home), 0.0).outcomes(HOUR)[task["id"]].settled.text == "on"  # type: ignore[union-attr]


def test_filters_choose_what_comes_and_what_is_listed(client: httpx.Client) -> None:
    assert asked(client, only={"language": "de"}).json()["task"] is None
    assert asked(client, only={"language": "en", "why": "low-confidence"}).json()["task"] is not None
    assert "turn the light on" in client.get("./?language=en").text
    assert "No task is like that" in client.get("./?language=de").text
    for page in ("0", "-1", "2", "x", "9" * 400):
        assert client.get(f"./?page={page}").status_code == 200


def test_what_strangers_said_is_text(client: httpx.Client) -> None:
    page = client.get("./")
    assert "<img" not in page.text
    assert "&lt;img src=x" in page.text
    refused = asked(client, who=HOSTILE)
    assert refused.status_code == 403
    assert refused.headers["content-type"] == "application/json"
    for path in ("./", "work", "review.js"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
    assert HOSTILE not in client.get(f"./?language={HOSTILE}").text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 403),  # a form of another site can send it, as text/plain too
        ({"Content-Type": "text/plain", **OURS}, 403),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site", **OURS}, 403),
        ({"Content-Type": "application/json; charset=utf-8", "Sec-Fetch-Site": "same-origin", **OURS}, 200),
    ],
)
def test_other_sites_cannot_answer_in_somebodys_name(
    client: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = client.post("next", content=b'{"who": "Ada"}', headers=headers)
    assert answer.status_code == status
    assert not [name for name in answer.headers if name.startswith("access-control")]
    assert client.options("next", headers={"Origin": "http://evil"}).status_code == 405


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"x" * (64 << 10) + b"x", 413),
        (b"{", 422),
        (b"[]", 422),
        (b'{"who": "Ada", "task": 5, "kind": "text"}', 422),
        (b'{"who": "Ada", "task": "none", "kind": "text"}', 404),
        (b'{"who": "Ada", "task": "none", "kind": "approved"}', 422),
        (b'{"who": "Ada", "task": "TASK", "kind": "text", "seconds": NaN}', 422),
        (b'{"who": "Ada", "task": "TASK", "kind": "text", "seconds": -1}', 422),
        (b'{"who": "Ada", "task": "TASK", "kind": "unusable", "reason": "dull"}', 422),
        (b'{"who": "Ada", "task": "TASK", "kind": "text", "text": "\\ud800"}', 422),
        (b'{"who": "Eve", "task": "TASK", "kind": "text"}', 403),
        (b"[" * 60_000, 422),
    ],
)
def test_what_is_no_answer_is_refused_and_nothing_kept(
    client: httpx.Client, home: Path, body: bytes, status: int
) -> None:
    body = body.replace(b"TASK", asked(client).json()["task"]["id"].encode())
    answer = client.post("answer", content=body, headers={"Content-Type": "application/json", **OURS})
    assert answer.status_code == status
    assert answer.json()["detail"]
    assert not Answers(open_objects(home), 0.0).hours()


def test_a_body_that_does_not_end_is_cut_off(client: httpx.Client) -> None:
    answer = client.post(
        "answer", content=(b"x" * 1024 for _ in range(1000)), headers={"Content-Type": "application/json", **OURS}
    )
    assert answer.status_code == 413


def test_a_proxy_that_signs_people_in_says_who_they_are(home: Path) -> None:
    write_hour(home, [transcript(1, "one two")])
    with serving(home, user_header="X-Forwarded-User") as url, httpx.Client(base_url=f"{url}/review/") as client:
        assert asked(client, who="Ada").status_code == 403
        signed = client.post("next", json={"who": "Ada"}, headers={**OURS, "X-Forwarded-User": "Ben"})
        assert signed.json()["who"] == "Ben"
        assert 'data-signed-in="yes"' in client.get("work").text


def test_the_page_is_reached_from_the_index_and_by_its_name(client: httpx.Client) -> None:
    assert 'href="review/"' in client.get("../").text
    assert client.get("../review").headers["location"] == "review/"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1100, "height": 800})
    page = context.new_page()
    page.set_default_timeout(10_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
    page.on("request", lambda request: page.problems.append(request.url) if "127.0.0.1" not in request.url else None)
    yield page
    context.close()


def signed_in(page: Any, url: str, name: str = "Ada", path: str = "work") -> None:
    page.goto(f"{url}/review/{path}")
    page.keyboard.type(name)
    page.keyboard.press("Enter")


def shown(page: Any, text: str) -> None:
    page.wait_for_function("text => document.getElementById('text').textContent === text", arg=text)


def test_ten_tasks_by_keyboard_alone_below_the_path_of_a_proxy(page: Any, home: Path) -> None:
    write_hour(
        home, [transcript(number, f"word {'abcdefghij'[number]}", confidence=0.1 + number / 20) for number in range(10)]
    )
    with serving(home, below="/speech/stage") as url:
        signed_in(page, url)
        for number in range(10):
            shown(page, f"word {'abcdefghij'[number]}")
            if number == 1:  # corrected: the first unsure word is chosen, and typing takes its place
                page.keyboard.press("e")
                page.keyboard.type("ward")
                page.keyboard.press("Tab")
                page.keyboard.press("Shift+Tab")
            if number == 2:
                page.keyboard.press("x")
                page.keyboard.press("1")
                continue
            if number == 3:  # saved too soon
                page.keyboard.press("Enter")
                shown(page, "word e")
                page.keyboard.press("u")
                shown(page, "word d")
                page.keyboard.press("e")
                page.keyboard.press("End")
                page.keyboard.type(" again")
            if number == 4:
                for key in ("s", " ", "ArrowLeft", " "):
                    page.keyboard.press(key)
            if number == 5:  # nobody speaks
                page.keyboard.press("e")
                page.keyboard.press("Control+a")
                page.keyboard.press("Delete")
            page.keyboard.press("Enter")
        page.wait_for_selector("#done:not([hidden])")
        assert "10 done" in page.inner_text("#progress")
        assert page.problems == []
    settled = [outcome.settled for outcome in Answers(open_objects(home), 0.0).outcomes(HOUR).values()]
    assert len(settled) == 10
    said = sorted((answer.kind, answer.text, answer.reason, answer.who) for answer in settled if answer)
    plain = [("text", f"word {letter}", "", "Ada") for letter in "aeghij"]
    others = [
        ("text", "", "", "Ada"),
        ("text", "ward b", "", "Ada"),
        ("text", "word d again", "", "Ada"),
        ("unusable", "", "noise", "Ada"),
    ]
    assert said == sorted(plain + others)
    assert all(answer.seconds > 0 for answer in settled if answer)


def test_the_sound_is_played_drawn_and_slowed(page: Any, home: Path) -> None:
    write_hour(home, [transcript(1, "one two", "three four")])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, "one two")
        page.wait_for_function("() => !audio.paused && audio.currentTime > 0.2")
        page.keyboard.press("s")
        page.keyboard.press("Space")
        assert page.evaluate("[audio.paused, audio.playbackRate]") == [True, 0.75]
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("audio.currentTime") == 0
        drawn = "[...wave.getContext('2d').getImageData(0, 0, wave.width, wave.height).data].some(value => value)"
        assert page.evaluate(drawn)
        assert page.evaluate("following.then(item => item.text)") == "three four", "the next is there already"


def test_words_show_how_sure_they_are_and_which_were_changed(page: Any, home: Path) -> None:
    write_hour(home, [transcript(1, "one two", confidence=0.3)])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, "one two")
        assert page.locator("#text .low").count() == 2
        page.keyboard.press("e")
        page.keyboard.type("won")
        assert page.inner_text("#text .changed") == "won"
        assert page.locator("#text .low").count() == 1


def test_text_that_was_typed_survives_a_reload_and_a_server_that_is_gone(page: Any, home: Path) -> None:
    write_hour(home, [transcript(1, "one two")])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, "one two")
        page.keyboard.press("e")
        page.keyboard.press("Control+a")
        page.keyboard.type("one and two")
        page.reload()
        shown(page, "one and two")
        page.route("**/answer", lambda route: route.abort())
        page.keyboard.press("Enter")
        page.wait_for_selector("#said.problem")
        assert "still here" in page.inner_text("#said")
        shown(page, "one and two")
        page.unroute("**/answer")
        page.keyboard.press("Enter")
        page.wait_for_selector("#done:not([hidden])")
    (outcome,) = Answers(open_objects(home), 0.0).outcomes(HOUR).values()
    assert outcome.settled is not None
    assert outcome.settled.text == "one and two"


@pytest.mark.parametrize(("language", "text"), [("ar", "افتح الباب من فضلك"), ("ja", "電気をつけて"), ("en", HOSTILE)])
def test_any_script_and_any_text_is_shown_and_kept_as_it_is(page: Any, home: Path, language: str, text: str) -> None:
    write_hour(home, [transcript(1, text, language=language)])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, text)
        direction = page.evaluate("getComputedStyle(document.getElementById('text')).direction")
        assert direction == ("rtl" if language == "ar" else "ltr")
        page.keyboard.press("Enter")
        page.wait_for_selector("#done:not([hidden])")
        assert page.problems == []
    (outcome,) = Answers(open_objects(home), 0.0).outcomes(HOUR).values()
    assert outcome.settled is not None
    assert outcome.settled.text == text


def test_keys_of_other_layouts_and_input_methods_do_what_people_mean(page: Any, home: Path) -> None:
    """Who writes Russian presses the key that holds S, and Enter within an input method ends a word, not the task."""
    write_hour(home, [transcript(1, "один два", language="ru")])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, "один два")
        key = "document.dispatchEvent(new KeyboardEvent('keydown', {key: %r, code: %r, isComposing: %s}))"
        page.evaluate(key % ("ы", "KeyS", "false"))
        assert page.evaluate("audio.playbackRate") == 0.75
        page.evaluate(key % ("Enter", "Enter", "true"))
        page.wait_for_timeout(200)
    assert not Answers(open_objects(home), 0.0).hours()


def test_somebody_who_may_not_answer_is_told_who_may(page: Any, home: Path) -> None:
    write_hour(home, [transcript(1, "one two")])
    with serving(home) as url:
        signed_in(page, url, HOSTILE)
        page.wait_for_selector("#said.problem")
        assert "allowed: Ada, Ben, Cleo" in page.inner_text("#said")
        assert page.locator("img").count() == 0


def test_tasks_that_others_have_before_them_are_not_called_done(page: Any, home: Path) -> None:
    write_hour(home, [transcript(1, "one two")])
    with serving(home) as url:
        httpx.post(f"{url}/review/next", json={"who": "Ben"}, headers=OURS)
        signed_in(page, url)
        page.wait_for_selector("#done:not([hidden])")
        assert "Others have 1 before them" in page.inner_text("#done")


def test_what_others_did_meanwhile_is_said_and_the_next_comes(
    page: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "FRESH_S", 0.0)
    first, _ = write_hour(home, [transcript(1, "one two", "three four")])
    with serving(home) as url:
        signed_in(page, url)
        shown(page, "one two")
        Answers(open_objects(home), 0.0).add(HOUR, first, "Ben", "text", "one too")
        page.keyboard.press("Enter")
        shown(page, "three four")
        assert "Ben has answered this" in page.inner_text("#said")
