"""The pages: evaluation reports and Data Docs as files, and before them the index of all quarters and languages.

`soundstage pages` serves the folder `pages` of the data store. The index is made at each request, of what is
on disk then, so that it needs neither Dagster nor MLflow to be up. A file that is broken or gone costs its row what the
file would have said, and nothing else.

Not covered: what MLflow alone knows, which is the number of a version that nobody decided about, and its note of the
ledger's end, without which an unfinished or hand-written last entry looks like any other (Dagster's check
`ledger_intact` compares). Nor whether an approval would be refused for another reason than a failed gate: that the
verdict is too old, or on other thresholds or another champion than today's (`challenger_waits` says so).
"""

import io
import socket
from collections.abc import Mapping
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from pydantic import Field

from deployment.addresses import WebAddress, listens_at
from deployment.promotion.ledger import CLOSING, PLACE, Decision, Ledger, LedgerError, champion_in_force
from evaluation.corpus.validation import ValidationUnknown, failed_checks
from evaluation.gates import GateRefused, Verdict, load_verdict
from evaluation.index import Champion, Entry, render_index
from evaluation.results import EvaluationError, Summary
from speech.corpus.manifest import LANGUAGE_TAG, QUARTER_KEY
from speech.settings import Section
from speech.store.outputs import POINTER, DataStore, StoreError

HEALTH = "/healthz"
_INDEX = ("/", "/index.html")
_ASSETS = ("recordings", "utterances", "evaluation")  # a quarter that has one of these has a row
_DECIDED = {
    "approve": "was champion",
    "rollback": "was champion",
    "voice": "one of two approvals",
    "reject": "rejected",
    "request_changes": "changes asked for",
    "expire": "closed after waiting",
    "override": "failed gates accepted",
}


class PagesSettings(Section):
    """The index of all quarters, evaluation reports and Data Docs, as `[pages]` in soundstage.toml."""

    url: WebAddress = Field(
        "http://127.0.0.1:5001",
        description="Where people open the pages; links point there. Behind a proxy they are served on 127.0.0.1:5001.",
    )

    @property
    def listens(self) -> str:
        """Where the pages are served on this machine."""
        return listens_at(self.url, 5001)


def index(store: DataStore, links: Mapping[str, str] | None = None) -> str:
    """The index of what the data store holds at this moment."""
    partitions = {
        (folder.parent.name, folder.name)
        for asset in _ASSETS
        for folder in store.path(asset).glob("*/*")
        if QUARTER_KEY.fullmatch(folder.parent.name) and LANGUAGE_TAG.fullmatch(folder.name)
    }
    decided = {name for name in store.objects.folders(PLACE) if LANGUAGE_TAG.fullmatch(name)}
    languages = sorted(decided | {language for _, language in partitions})
    decisions: dict[str, tuple[Decision, ...]] = {}
    unreadable = []
    for language in languages:
        try:
            decisions[language] = Ledger(store.objects, language).entries()
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
        if _made(store, "utterances", quarter, language):
            found["corpus_failed"] = failed_checks(store.current("utterances", quarter, language).path)
    except (StoreError, ValidationUnknown, OSError) as broken:
        unreadable.append(str(broken))
    try:
        if _made(store, "evaluation", quarter, language):
            summary = Summary.load(store.current("evaluation", quarter, language).path)
            found["scores"] = summary.scores
            found |= _judged(store.path("verdicts"), summary, decisions)
    except (StoreError, EvaluationError, GateRefused, OSError) as broken:
        unreadable.append(str(broken))
    for page, folder in (("report", "reports"), ("data_docs", "data-docs")):
        if (store.path("pages", folder, quarter, language) / "index.html").is_file():
            found[page] = f"/{folder}/{quarter}/{language}/"
    return Entry(quarter, language, unreadable=tuple(unreadable), **found)


def _made(store: DataStore, asset: str, quarter: str, language: str) -> bool:
    return (store.path(asset, quarter, language) / POINTER).exists()


def _judged(verdicts: Path, summary: Summary, decisions: tuple[Decision, ...] | None) -> dict[str, Any]:
    """What the verdict says, and what people decided about the model."""
    if not (verdicts / f"{summary.bundle_digest}.json").exists():
        return {}
    verdict = load_verdict(verdicts, summary.bundle_digest)
    return {
        "verdict": verdict,
        "stale": verdict.evaluation_digest != summary.evaluation_digest,
        **({"decision": None} if decisions is None else _decided(verdict, decisions)),
    }


def _decided(verdict: Verdict, decisions: tuple[Decision, ...]) -> dict[str, Any]:
    """What the last decision about a bundle was, and whether it is the champion."""
    about = [decision for decision in decisions if decision.digest == verdict.bundle_digest]
    if not about:
        return {"decision": ""}
    last, champion = about[-1], champion_in_force(decisions)
    version = f"version {last.version}" if last.version else ""
    if champion and champion.digest == verdict.bundle_digest:
        return {"decision": version, "is_champion": True}
    said = _DECIDED[last.action]
    if last.action == "reject":
        said = f"{said}: {last.reason}"
    elif last.action in (*CLOSING, "voice", "override") and last.verdict_sha256 != verdict.file_sha256:
        said = f"{said}, judged again since"
    return {"decision": ", ".join(filter(None, (version, said)))}


class Pages(SimpleHTTPRequestHandler):
    """Files of one folder, and the index at its root; HEALTH answers without reading anything."""

    timeout = 30  # seconds that a client may be silent: each connection holds a thread

    def __init__(self, *arguments: Any, store: DataStore, links: Mapping[str, str], **options: Any) -> None:
        self.store = store
        self.links = links
        super().__init__(*arguments, directory=str(store.path("pages")), **options)

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        """Answer GET and HEAD up to the body."""
        try:
            path = urlsplit(self.path).path
            if path not in (HEALTH, *_INDEX):
                return super().send_head()
        except ValueError:  # a path that no file can have
            self.send_error(HTTPStatus.BAD_REQUEST)
            return None
        if path == HEALTH:
            return self._answer("ok", "text/plain")
        try:
            return self._answer(index(self.store, self.links), "text/html")
        except Exception as error:
            self.log_error("the index could not be made: %r", error)
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=f"The index could not be made: {error!r}")
            return None

    def _answer(self, text: str, kind: str) -> io.BytesIO:
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        return io.BytesIO(body)


class _ThreadingHTTP6Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def server(home: Path, host: str, port: int, links: Mapping[str, str] | None = None) -> ThreadingHTTPServer:
    """The pages of a data store, listening; port 0 takes a free one. The index shows `links`, name -> URL."""
    kind = _ThreadingHTTP6Server if ":" in host else ThreadingHTTPServer
    return kind((host, port), partial(Pages, store=DataStore(home), links=links or {}))


class PagesError(Exception):
    """The pages cannot be served; the message says why and what to do."""


def serve(home: Path, url: str, links: Mapping[str, str] | None = None) -> None:
    """Serve the pages of a data store at `url` until the process is ended; the index shows `links`, name -> URL.

    Raises:
        PagesError: nobody can listen at that address.
    """
    try:
        listen = urlsplit(url)
        if listen.scheme != "http" or not listen.hostname:
            raise ValueError("it must be http://, a host, and a port")
        pages = server(home, listen.hostname, listen.port or 80, links)
    except (OSError, ValueError) as error:
        raise PagesError(
            f"the pages cannot be served on {url} ({error}): choose another --url or `pages.url`"
        ) from error
    with pages:
        pages.serve_forever()
