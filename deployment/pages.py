"""The pages: evaluation reports and Data Docs as files, before them the index of all quarters and languages, and the
page on which people review (`deployment/review/web.py`).

`soundstage pages` serves what lies below `pages` in the data store. The index is made at each request, of what is
stored then, so that it needs neither Dagster nor MLflow to be up. A file that is broken or gone costs its row what the
file would have said, and nothing else.

Not covered: what MLflow alone knows, which is the number of a version that nobody decided about, and its note of the
ledger's end, without which an unfinished or hand-written last entry looks like any other (Dagster's check
`ledger_intact` compares). Nor whether an approval would be refused for another reason than a failed gate: that the
verdict is too old, or on other thresholds or another champion than today's (`challenger_waits` says so).
"""

import logging
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http import HTTPStatus
from mimetypes import guess_type
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pydantic import Field

from deployment.addresses import WebAddress, listens_at
from deployment.promotion.actions import DONE, PRODUCTION
from deployment.promotion.ledger import PLACE, Decision, Ledger, LedgerError, champion_in_force
from evaluation.corpus.validation import ValidationUnknown, failed_checks
from evaluation.gates import GateRefused, Verdict, load_verdict, verdict_key
from evaluation.index import Champion, Entry, render_index
from evaluation.results import EvaluationError, Summary
from speech.corpus.manifest import LANGUAGE_TAG, QUARTER_KEY
from speech.settings import Section
from speech.store.objects import Missing, Objects, StoreError
from speech.store.outputs import DataStore

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from deployment.settings import Settings

log = logging.getLogger(__name__)
HEALTH, METRICS = "/healthz", "/metrics"
INDEX = "index.html"
PAGES = "pages"  # in the data store
REPORTS, DATA_DOCS = "reports", "data-docs"  # below it, a quarter and language each
READERS = 8  # of what the index shows, side by side
_FRESH = {"Cache-Control": "no-store"}
_ASSETS = ("recordings", "utterances", "evaluation")  # a quarter that has one of these has a row


class PagesSettings(Section):
    """The index of all quarters, evaluation reports and Data Docs, as `[pages]` in soundstage.toml."""

    url: WebAddress = Field(
        "http://127.0.0.1:5001",
        description="Where people open the pages; links point there. Behind a proxy they are served on 127.0.0.1:5001.",
    )
    user_header: str | None = Field(
        None,
        description="Header in which the proxy in front of the pages says who is signed in, such as X-Forwarded-User; "
        "then nobody but the proxy may reach them. None: who reviews types a name, as approvers do.",
    )

    @property
    def listens(self) -> str:
        """Where the pages are served on this machine."""
        return listens_at(self.url, 5001)


def publish(objects: Objects, place: str, page: Path) -> None:
    """Show a page, or a folder of them, below `place` of the pages, in place of what was shown there."""
    files = {INDEX: page}
    if page.is_dir():
        files = {path.relative_to(page).as_posix(): path for path in page.rglob("*") if path.is_file()}
    below = f"{PAGES}/{place}"
    first = [name for name in files if name != INDEX]
    objects.each(lambda name: objects.put(f"{below}/{name}", files[name].read_bytes()), first)
    objects.put(f"{below}/{INDEX}", files[INDEX].read_bytes())  # it links to the others
    shown = {f"{below}/{name}" for name in files}
    objects.delete([item.key for item in objects.list(below) if item.key not in shown])


def index(objects: Objects, links: Mapping[str, str] | None = None) -> str:
    """The index of what the data store holds at this moment."""
    store = DataStore(objects)
    partitions = {key for asset in _ASSETS for key in _partitions(objects, asset)}
    reports, docs = (_partitions(objects, f"{PAGES}/{pages}") for pages in (REPORTS, DATA_DOCS))
    decided = {name for name in objects.folders(PLACE) if LANGUAGE_TAG.fullmatch(name)}
    languages = sorted(decided | {language for _, language in partitions})
    decisions: dict[str, tuple[Decision, ...]] = {}
    unreadable = []
    for language in languages:
        try:
            decisions[language] = Ledger(objects, language).entries()
        except (LedgerError, OSError) as broken:
            unreadable.append(str(broken))

    def entry(key: tuple[str, str]) -> Entry:
        found = _entry(store, *key, decisions.get(key[1]))
        place = "/".join(key)
        return replace(
            found,
            report=f"/{REPORTS}/{place}/" if key in reports else "",
            data_docs=f"/{DATA_DOCS}/{place}/" if key in docs else "",
        )

    with ThreadPoolExecutor(READERS) as readers:
        entries = readers.map(entry, sorted(partitions, key=lambda key: (-int(key[0].replace("-", "")), key[1])))
    return render_index(
        list(entries),
        [_champion(language, decisions[language]) for language in languages if language in decisions],
        unreadable=unreadable,
        links=links,
    )


def _partitions(objects: Objects, asset: str) -> set[tuple[str, str]]:
    """The quarters and languages that something lies below."""
    return {
        (quarter, language)
        for quarter in objects.folders(asset)
        if QUARTER_KEY.fullmatch(quarter)
        for language in objects.folders(f"{asset}/{quarter}")
        if LANGUAGE_TAG.fullmatch(language)
    }


def _champion(language: str, decisions: tuple[Decision, ...]) -> Champion:
    now = champion_in_force(decisions)
    return Champion(language, now.version, now.model, now.approver, now.time[:10]) if now else Champion(language)


def _entry(store: DataStore, quarter: str, language: str, decisions: tuple[Decision, ...] | None) -> Entry:
    """A quarter's row; `decisions` is None when the ledger of its language cannot be read."""
    found: dict[str, Any] = {}
    unreadable: list[str] = []
    try:
        with suppress(Missing):
            found["corpus_failed"] = failed_checks(store.current("utterances", quarter, language))
    except (StoreError, ValidationUnknown, OSError) as broken:
        unreadable.append(str(broken))
    try:
        with suppress(Missing):
            summary = Summary.load(store.current("evaluation", quarter, language).path)
            found["scores"] = summary.scores
            found |= _judged(store.objects, summary, decisions)
    except (StoreError, EvaluationError, GateRefused, OSError) as broken:
        unreadable.append(str(broken))
    return Entry(quarter, language, unreadable=tuple(unreadable), **found)


def _judged(objects: Objects, summary: Summary, decisions: tuple[Decision, ...] | None) -> dict[str, Any]:
    """What the verdict says, and what people decided about the model; nothing where there is none yet."""
    objects.read(verdict_key(summary.bundle_digest))
    verdict = load_verdict(objects, summary.bundle_digest)
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
    said = "was champion" if last.action in PRODUCTION else DONE[last.action]
    if last.action == "reject":
        said = f"{said}: {last.reason}"
    elif last.action not in PRODUCTION and last.verdict_sha256 != verdict.file_sha256:
        said = f"{said}, judged again since"
    return {"decision": ", ".join(filter(None, (version, said)))}


class PagesError(Exception):
    """The pages cannot be served; the message says why and what to do."""


def application(
    objects: Objects, links: Mapping[str, str] | None = None, settings: "Settings | None" = None
) -> "Starlette":
    """The pages of a data store over HTTP: the index at the root, which shows `links`, name -> URL.

    With `settings` people can review there.
    """
    from prometheus_client import CONTENT_TYPE_LATEST
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
    from starlette.routing import Route

    def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    def overview(request: Request) -> Response:
        try:
            return HTMLResponse(index(objects, links), headers=_FRESH)
        except Exception as error:
            log.exception("the index could not be made")
            return PlainTextResponse(f"The index could not be made: {error!r}", HTTPStatus.INTERNAL_SERVER_ERROR)

    def metrics(request: Request) -> Response:
        from deployment.batch.exposition import exposition

        try:
            return Response(exposition(objects), media_type=CONTENT_TYPE_LATEST, headers=_FRESH)
        except (StoreError, ValueError, OSError) as error:
            return PlainTextResponse(
                f"The last hour's measures cannot be read: {error}", HTTPStatus.SERVICE_UNAVAILABLE
            )

    def page(request: Request) -> Response:
        path = request.path_params["path"]
        name = f"{path}{INDEX}" if path.endswith("/") else path
        try:
            return Response(objects.read(f"{PAGES}/{name}").data, media_type=guess_type(name)[0], headers=_FRESH)
        except StoreError:
            with suppress(StoreError):
                if objects.folders(f"{PAGES}/{path}") or objects.read(f"{PAGES}/{path}/{INDEX}"):
                    return RedirectResponse(f"/{path}/")
            return PlainTextResponse("There is no such page.", HTTPStatus.NOT_FOUND)

    review: list[Route] = []
    if settings is not None:
        from deployment.review.desk import Desk
        from deployment.review.web import routes

        review = routes(Desk(objects, settings.inference), settings.pages.user_header)
        links = {"Review": "review/", **(links or {})}

    return Starlette(
        routes=[
            Route(HEALTH, health),
            Route(METRICS, metrics),
            Route("/", overview),
            Route(f"/{INDEX}", overview),
            *review,
            Route("/{path:path}", page),
        ]
    )


def serve(
    objects: Objects, url: str, links: Mapping[str, str] | None = None, settings: "Settings | None" = None
) -> None:
    """Serve the `application` of a data store at `url` until the process is ended.

    Raises:
        PagesError: nobody can listen at that address.
    """
    import uvicorn

    try:
        listen = urlsplit(url)
        if listen.scheme != "http" or not listen.hostname:
            raise ValueError("it must be http://, a host, and a port")
        family = socket.AF_INET6 if ":" in listen.hostname else socket.AF_INET
        listener = socket.create_server((listen.hostname, listen.port or 80), family=family)
    except (OSError, ValueError) as error:
        raise PagesError(
            f"the pages cannot be served on {url} ({error}): choose another --url or `pages.url`"
        ) from error
    config = uvicorn.Config(application(objects, links, settings), log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
