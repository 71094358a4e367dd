"""The pages: evaluation reports and Data Docs as files, and before them the index of all quarters and languages.

`python -m deployment.pages` serves the folder `pages` of the data store. The index is made at each request, of what is
on disk then, so that it needs neither Dagster nor MLflow to be up. A file that is broken or gone costs its row what the
file would have said, and nothing else.

Not covered: the number of a version that nobody decided about. MLflow alone knows it; the ledger names the others.
"""

import argparse
import io
import json
import re
import sys
from collections.abc import Mapping
from functools import lru_cache, partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from deployment.ledger import Decision, Ledger, LedgerError, champion_in_force
from deployment.settings import Settings, SettingsError
from evaluation.expectations import VALIDATION_NAME
from evaluation.gates import GateRefused, load_verdict
from evaluation.index import Champion, Entry, render_index
from evaluation.results import EVALUATION_NAME, Evaluation, EvaluationError, Score
from speech.store import POINTER, DataStore, StoreError

INDEX = ("/", "/index.html")
MADE_IN_ORDER = ("recordings", "utterances", "evaluation")  # a quarter that has one of these has a row
_QUARTER, _LANGUAGE = re.compile(r"\d{4}-(01|04|07|10)"), re.compile(r"[a-z]{2,3}")

DECIDED = {
    "approve": "was champion",
    "rollback": "was champion",
    "voice": "one of two approvals",
    "reject": "rejected",
    "request_changes": "changes asked for",
    "expire": "closed after waiting",
    "override": "failed gates accepted",
}


def index(store: DataStore, links: Mapping[str, str] | None = None) -> str:
    """The index of what the data store holds at this moment."""
    partitions = {
        (folder.parent.name, folder.name)
        for asset in MADE_IN_ORDER
        for folder in store.path(asset).glob("*/*")
        if _QUARTER.fullmatch(folder.parent.name) and _LANGUAGE.fullmatch(folder.name)
    }
    languages = sorted({language for _, language in partitions})
    decisions: dict[str, tuple[Decision, ...]] = {}
    unreadable = []
    for language in languages:
        try:
            decisions[language] = Ledger(store.path("ledger"), language).entries()
        except (LedgerError, OSError) as broken:
            unreadable.append(str(broken))
    return render_index(
        [
            _entry(store, quarter, language, decisions.get(language))
            for quarter, language in sorted(partitions, key=lambda key: (-int(key[0].replace("-", "")), key[1]))
        ],
        [_champion(language, decisions[language]) for language in languages if language in decisions],
        unreadable=unreadable,
        links=links,
    )


def _champion(language: str, decisions: tuple[Decision, ...]) -> Champion:
    now = champion_in_force(decisions)
    return Champion(language, now.version, now.model, now.approver, now.time[:10]) if now else Champion(language)


def _entry(store: DataStore, quarter: str, language: str, decisions: tuple[Decision, ...] | None) -> Entry:
    """A quarter's row; `decisions` is None when the ledger of its language cannot be read."""
    found: dict[str, Any] = {}
    unreadable: list[str] = []
    try:
        found["corpus_failed"] = _corpus_failed(store, quarter, language)
    except (StoreError, OSError, ValueError, KeyError, TypeError) as broken:
        unreadable.append(f"{VALIDATION_NAME} of the utterances cannot be read ({broken}): materialise them again")
    try:
        bundle, evaluation, found["scores"] = _last_evaluation(store, quarter, language)
    except (StoreError, EvaluationError, OSError) as broken:
        unreadable.append(str(broken))
        bundle = evaluation = ""
    if bundle:
        try:
            verdict = load_verdict(store.path("verdicts"), bundle)
            found |= {"verdict": verdict, "stale": verdict.evaluation_digest != evaluation}
        except (GateRefused, OSError) as refused:
            unreadable.append(str(refused))
        found |= {"decision": None} if decisions is None else _decided(bundle, decisions)
    for page, folder in (("report", "reports"), ("data_docs", "data-docs")):
        if (store.path("pages", folder, quarter, language) / "index.html").is_file():
            found[page] = f"/{folder}/{quarter}/{language}/"
    return Entry(quarter, language, unreadable=tuple(unreadable), **found)


def _corpus_failed(store: DataStore, quarter: str, language: str) -> tuple[str, ...]:
    """The checks for which a quarter's utterances were refused; none where they passed or are not there yet."""
    if not (store.path("utterances", quarter, language) / POINTER).exists():
        return ()
    validation = json.loads((store.current("utterances", quarter, language).path / VALIDATION_NAME).read_text())
    return () if validation["passed"] is True else tuple(map(str, validation["failed"])) or ("not passed",)


def _last_evaluation(store: DataStore, quarter: str, language: str) -> tuple[str, str, Mapping[str, Score]]:
    """Digests of the bundle and of its evaluation, and the scores; empty where nothing was evaluated yet."""
    if not (store.path("evaluation", quarter, language) / POINTER).exists():
        return "", "", {}
    path = store.current("evaluation", quarter, language).path / EVALUATION_NAME
    return _measured(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1_000)
def _measured(path: Path, modified_ns: int) -> tuple[str, str, Mapping[str, Score]]:
    """What the index shows of an evaluation, which is read once: it holds every utterance, and never changes."""
    evaluation = Evaluation.load(path)
    scores = {name: result.score for name, result in evaluation.sets.items()}
    return evaluation.bundle_digest, evaluation.digest, scores


def _decided(bundle: str, decisions: tuple[Decision, ...]) -> dict[str, Any]:
    """What the last decision about a bundle was, and whether it is the champion."""
    about = [decision for decision in decisions if decision.digest == bundle]
    if not about:
        return {"decision": ""}
    last, champion = about[-1], champion_in_force(decisions)
    version = f"version {last.version}" if last.version else ""
    if champion and champion.digest == bundle:
        return {"decision": version, "is_champion": True}
    said = f"{DECIDED[last.action]}: {last.reason}" if last.action == "reject" else DECIDED[last.action]
    return {"decision": ", ".join(filter(None, (version, said)))}


class Pages(SimpleHTTPRequestHandler):
    """Files of one folder, and the index at its root."""

    def __init__(self, *arguments: Any, store: DataStore, links: Mapping[str, str], **options: Any) -> None:
        self.store = store
        self.links = links
        super().__init__(*arguments, directory=str(store.path("pages")), **options)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Answer GET and HEAD up to the body."""
        if urlsplit(self.path).path not in INDEX:
            return super().send_head()
        page = index(self.store, self.links).encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return io.BytesIO(page)


def server(home: Path, host: str, port: int, links: Mapping[str, str] | None = None) -> ThreadingHTTPServer:
    """The pages of a data store, listening; port 0 takes a free one. The index shows `links`, name -> URL."""
    return ThreadingHTTPServer((host, port), partial(Pages, store=DataStore(home), links=links or {}))


def main(arguments: list[str] | None = None) -> int:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser("python -m deployment.pages", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--home", type=Path, help="data store (default: from the settings)")
    parser.add_argument("--url", help="where to listen (default: `pages.url` of the settings)")
    chosen = parser.parse_args(arguments)
    try:
        settings = Settings.load()
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    listen = urlsplit(chosen.url or settings.pages.url)
    links = {"Dagster": settings.dagster_url, "MLflow": f"{settings.registry.ui_url}/#/models"}
    with server(chosen.home or settings.home, str(listen.hostname), listen.port or 80, links) as pages:
        pages.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
