"""The pages over HTTP: the index tells what the data store holds now, and a broken file costs its row only."""

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import uvicorn

from deployment.pages import PagesError, application, publish, serve
from evaluation.corpus.validation import VALIDATION_NAME
from evaluation.gates import GateSettings, judge, load_verdict, save_verdict
from evaluation.results import SUMMARY_NAME, Evaluation, NonSpeech, Scored
from speech.bundle import ModelBundle
from speech.store.objects import open_objects
from speech.store.outputs import DataStore, write_json
from tests.evaluation.conftest import result_of, rows_with
from tests.toy_bundle import write_toy_bundle
from tests.toy_registry import decide

LINKS = {"Dagster": "http://127.0.0.1:3000"}
HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)>'


def row_of(page: str, quarter: str, language: str = "en") -> str:
    """A quarter's row of the table, as HTML."""
    [found] = [row for row in page.split("<tr ") if f">{quarter}</td><td>{language}</td>" in row]
    return found.split("</tr>")[0]


class Store:
    """A data store as runs of the assets leave it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = DataStore(home)

    def corpus(self, quarter: str, *failed: str, language: str = "en") -> None:
        with self.store.replace("utterances", quarter, language) as staging:
            write_json(staging.path / VALIDATION_NAME, {"passed": not failed, "failed": failed})
        self.page("data-docs", quarter, language)

    def page(self, *place: str) -> None:
        page = self.home.parent / "page.html"
        page.write_text(f"<html>{'/'.join(place)}</html>")
        publish(self.store.objects, "/".join(place), page)

    def evaluated(
        self, quarter: str, rows: list[Scored] | None = None, language: str = "en", *, judged: bool = True
    ) -> ModelBundle:
        """A quarter with everything up to its verdict; returns the bundle that was judged."""
        self.corpus(quarter, language=language)
        bundle = write_toy_bundle(self.home / "toys" / f"{quarter}-{language}", language, lineage={"quarter": quarter})
        evaluation = Evaluation(
            bundle_digest=bundle.digest,
            model_name=bundle.name,
            language=language,
            partition=f"{language}|{quarter}",
            dataset_digests={},
            sets={"quarter": result_of(rows or rows_with(1)), "benchmark": result_of(rows_with(0))},
            champion_digest=None,
            champion_name=None,
            nonspeech=NonSpeech(0.0, 2.0, {"silence": 0.0}),
            parity={"utterances": 20, "equal": 1.0},
            rtfx=50.0,
        )
        with self.store.replace("evaluation", quarter, language) as staging:
            evaluation.save(staging.path)
        if judged:
            save_verdict(judge(evaluation), open_objects(self.home))
        self.page("reports", quarter, language)
        return bundle


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "home" / "pages").mkdir(parents=True)
    return Store(tmp_path / "home")


@pytest.fixture
def client(store: Store) -> Iterator[httpx.Client]:
    """Asks the real server over the store."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(application(open_objects(store.home), LINKS), log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            yield client
        server.should_exit = True
        thread.join()


def index(client: httpx.Client) -> str:
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.text


def test_an_empty_store_says_what_to_run(client: httpx.Client) -> None:
    page = index(client)
    assert "Nothing has been evaluated yet" in page
    assert "make demo" in page
    assert "soundstage backfill" in page
    assert "<table" not in page


def test_a_row_has_verdict_figures_and_links_that_lead_somewhere(store: Store, client: httpx.Client) -> None:
    store.evaluated("2024-01")
    store.evaluated("2024-04", rows_with(2))
    page = index(client)
    assert "Nothing has been evaluated" not in page
    assert page.index("2024 Q2") < page.index("2024 Q1"), "newest first"
    passed, refused = row_of(page, "2024 Q1"), row_of(page, "2024 Q2")
    assert "passed" in passed
    assert "10.0 %" in passed
    assert "10.0 to 10.0" in passed
    assert "none yet" in passed
    assert "refused" in refused
    assert "WER (quarter)" in refused
    assert "none yet" not in refused, "there is nothing to decide"
    for row, quarter in ((passed, "2024-01"), (refused, "2024-04")):
        for link in (f"/reports/{quarter}/en/", f"/data-docs/{quarter}/en/"):
            assert f'href="{link}"' in row
            assert client.get(link).status_code == 200
    assert 'href="http://127.0.0.1:3000"' in page


def test_the_index_is_of_this_moment(store: Store, client: httpx.Client) -> None:
    index(client)
    store.corpus("2024-01")
    assert "not evaluated yet" in row_of(index(client), "2024 Q1")
    store.evaluated("2024-01")
    assert "10.0 %" in row_of(index(client), "2024 Q1")
    store.evaluated("2024-01", rows_with(2), judged=False)
    row = row_of(index(client), "2024 Q1")
    assert "20.0 %" in row
    assert "judged before the last evaluation" in row


def test_a_quarter_that_its_corpus_refused_has_a_row_with_its_data_docs(store: Store, client: httpx.Client) -> None:
    store.corpus("2024-07", "text_audio_correlation", "speech_rate")
    row = row_of(index(client), "2024 Q3")
    assert "refused" in row
    assert "corpus: text audio correlation, speech rate" in row
    assert 'href="/data-docs/2024-07/en/"' in row
    assert "/reports/" not in row


def test_who_is_champion_is_read_from_the_ledger(store: Store, client: httpx.Client) -> None:
    first, second = store.evaluated("2024-01"), store.evaluated("2024-04")
    german = store.evaluated("2024-01", language="de")
    decide(store.store.objects, first, "approve")
    decide(store.store.objects, second, "approve")
    decide(store.store.objects, german, "reject")
    page = index(client)
    assert "version 1, was champion" in row_of(page, "2024 Q1")
    assert ">champion<" in row_of(page, "2024 Q2")
    assert "version 2" in row_of(page, "2024 Q2")
    assert "version 1, rejected: for a test" in row_of(page, "2024 Q1", "de")
    assert "soundstage-en" in page.split("<table")[0]
    assert "none yet" in page.split("<table")[0], "German has no champion"


def test_a_broken_file_costs_its_row_what_it_would_have_said(store: Store, client: httpx.Client) -> None:
    first, *_ = [store.evaluated(quarter) for quarter in ("2024-01", "2024-04", "2024-07", "2024-10")]
    path = store.home / "verdicts" / f"{first.digest}.json"
    path.write_text(path.read_text().replace('"passed": true', '"passed": false'))
    (store.store.current("evaluation", "2024-04", "en").path / SUMMARY_NAME).write_text("{")
    (store.store.current("utterances", "2024-07", "en").path / VALIDATION_NAME).unlink()
    shutil.rmtree(store.store.current("evaluation", "2024-10", "en").path)
    page = index(client)
    altered = row_of(page, "2024 Q1")
    assert "no verdict" in altered
    assert "altered after judging" in altered
    assert "10.0 %" in altered, "the evaluation is still there"
    assert "is not readable" in row_of(page, "2024 Q2")
    assert "materialise the utterances again" in row_of(page, "2024 Q3")
    assert "passed" in row_of(page, "2024 Q3")
    assert "is gone" in row_of(page, "2024 Q4")


def test_a_verdict_that_is_missing_is_not_a_pass(store: Store, client: httpx.Client) -> None:
    store.evaluated("2024-01", judged=False)
    row = row_of(index(client), "2024 Q1")
    assert "not judged yet" in row
    assert "passed" not in row
    assert 'class="fail"' not in row, "it waits for its turn"


@pytest.mark.parametrize("content", ["{", "[" * 100_000])
def test_whatever_is_damaged_the_page_stands(store: Store, client: httpx.Client, content: str) -> None:
    bundle = store.evaluated("2024-01")
    decide(store.store.objects, bundle, "approve")
    for damaged in (
        store.store.current("evaluation", "2024-01", "en").path / SUMMARY_NAME,
        store.store.current("utterances", "2024-01", "en").path / VALIDATION_NAME,
        store.home / "verdicts" / f"{bundle.digest}.json",
        store.home / "ledger" / "en" / "00000001.json",
        store.home / "evaluation" / "2024-01" / "en" / "current",
    ):
        damaged.write_text(content + "\n")
        page = index(client)
        assert "Nothing has been evaluated" not in page
        assert "passed" not in row_of(page, "2024 Q1")


def test_what_was_judged_again_is_not_shown_as_closed(store: Store, client: httpx.Client) -> None:
    bundle = store.evaluated("2024-01")
    seen = load_verdict(open_objects(store.home), bundle.digest)
    decide(store.store.objects, bundle, "request_changes", seen.file_sha256)
    assert "judged again" not in row_of(index(client), "2024 Q1")
    evaluation = Evaluation.load(store.store.current("evaluation", "2024-01", "en").path)
    save_verdict(judge(evaluation, GateSettings(wer=0.14)), open_objects(store.home))
    assert "changes asked for, judged again since" in row_of(index(client), "2024 Q1")


def test_a_champion_whose_quarter_was_cleared_away_is_still_named(store: Store, client: httpx.Client) -> None:
    decide(store.store.objects, store.evaluated("2024-01"), "approve")
    for asset in ("utterances", "evaluation"):
        shutil.rmtree(store.home / asset)
    assert "soundstage-en" in index(client)


def test_it_says_that_it_is_up_without_reading_the_store(store: Store, client: httpx.Client) -> None:
    (store.home / "ledger").write_text("not a folder")
    assert client.get("/healthz").text == "ok"


def test_a_broken_ledger_is_named_and_leaves_the_rest(store: Store, client: httpx.Client) -> None:
    decide(store.store.objects, store.evaluated("2024-01"), "approve")
    ledger = store.home / "ledger" / "en" / "00000001.json"
    ledger.write_text(ledger.read_text().replace("Ada", "Eve"))
    page = index(client)
    assert "entry 1 was changed after it was written" in page
    assert "none yet" not in page, "that nobody decided is not known"
    assert "10.0 %" in row_of(page, "2024 Q1")


def test_what_strangers_wrote_is_text(store: Store, client: httpx.Client) -> None:
    store.corpus("2024-01", HOSTILE)
    (store.home / "utterances" / "2024-01" / "<script>").mkdir()
    page = index(client)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "default-src &#39;none&#39;" in page


def test_the_other_paths_are_files_of_the_pages_and_nothing_else(store: Store, client: httpx.Client) -> None:
    store.page("reports", "2024-01", "en")
    assert client.get("/reports/2024-01/en/").text == "<html>reports/2024-01/en</html>"
    assert client.get("/reports/2024-01/none/").status_code == 404
    assert client.head("/").status_code == 200
    assert client.get("/?quarter=2024-01").text == index(client) == client.get("/index.html").text
    (store.home / "secret").write_text("of the data store")
    port = client.base_url.port
    assert port is not None
    for path in ("/../secret", "/reports/../../secret", "/%2e%2e/secret", "//../secret"):
        with socket.create_connection(("127.0.0.1", port)) as raw:  # httpx would tidy the path
            raw.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        assert b" 404 " in answer.splitlines()[0]
        assert b"of the data store" not in answer


@pytest.mark.parametrize("path", ["/%00", "/%ED%A0%80", "http://["])
def test_a_path_that_no_file_can_have_gets_an_answer(client: httpx.Client, path: str) -> None:
    port = client.base_url.port
    assert port is not None
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert b" 40" in raw.recv(4096).splitlines()[0]


def test_silent_clients_keep_nobody_waiting(client: httpx.Client) -> None:
    port = client.base_url.port
    assert port is not None
    with ExitStack() as silent:
        for _ in range(200):
            raw = silent.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            raw.sendall(b"GET / HTT")
        assert client.get("/healthz", timeout=5).text == "ok"


def test_pages_that_are_published_again_replace_the_former_ones(
    store: Store, client: httpx.Client, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    for name in ("index.html", "old/figure.png"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(name)
    publish(store.store.objects, "data-docs/2024-01/en", docs)
    assert client.get("/data-docs/2024-01/en/old/figure.png").headers["content-type"] == "image/png"
    assert client.get("/data-docs/2024-01/en").headers["location"] == "/data-docs/2024-01/en/"
    (docs / "old" / "figure.png").unlink()
    (docs / "index.html").write_text("new")
    publish(store.store.objects, "data-docs/2024-01/en", docs)
    assert client.get("/data-docs/2024-01/en/").text == "new"
    assert client.get("/data-docs/2024-01/en/old/figure.png").status_code == 404


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:99999", "http://[x", "TAKEN"])
def test_an_address_that_cannot_be_served_is_one_sentence(store: Store, client: httpx.Client, url: str) -> None:
    url = url.replace("TAKEN", f"http://127.0.0.1:{client.base_url.port}")
    with pytest.raises(PagesError) as refused:
        serve(store.store.objects, url)
    assert f"the pages cannot be served on {url} (" in str(refused.value)
