"""The review page over HTTP: a list of what is asked, and a page on which people answer by keyboard alone.

Everything is relative, so it works below any path of a proxy, and nothing comes from elsewhere. Who answers is a name
that has to be among `inference.review.reviewers`, taken as given as an approver's is; a proxy that signs people in can
say it in a header instead (`pages.user_header`).

Against forged requests: what changes anything is a POST with a header and a media type that a page of another site
cannot send without asking, and no other site is allowed to.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from deployment.review.answers import UNUSABLE, AlreadyAnswered, Kind, NotAnAnswer, disagreement
from deployment.review.desk import Asked, Desk, NotAllowed, NotAsked
from evaluation.presentation import template
from speech.plain import from_plain
from speech.store.objects import StoreError
from speech.store.outputs import parse_json

HERE = Path(__file__).parent / "templates"
PLACE = "/review"
MARK = "X-Soundstage"  # a header that only a page of ours sends
MAX_BODY = 64 << 10  # bytes; an answer is a sentence
ROWS = 100  # of the list, on a page
STATES = {"open": "waits", "second": "waits for another person", "differ": "two differ", "settled": "answered"}
WHY = {"low-confidence": "unsure", "control": "control sample"}
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; media-src blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
AskedFor = TypeVar("AskedFor")


@dataclass(frozen=True, kw_only=True)
class Only:
    """Some of the tasks; an empty text leaves open what it is about."""

    language: str = ""
    hour: str = ""
    why: str = ""
    state: str = ""

    def fits(self, asked: Asked) -> bool:
        """Whether a task is one of those."""
        own = (asked.task.language, asked.hour, asked.task.why, asked.outcome.state)
        wanted = (self.language, self.hour, self.why, self.state)
        return all(want in ("", is_so) for want, is_so in zip(wanted, own, strict=True))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which task somebody asks for."""

    who: str = ""
    task: str = ""  # exactly this one; "" for the next
    only: Only = field(default_factory=Only)
    beside: tuple[str, ...] = ()  # tasks that they have already


@dataclass(frozen=True, kw_only=True)
class Given:
    """What somebody answers."""

    who: str = ""
    task: str
    kind: Kind
    text: str = ""
    reason: str = ""
    seconds: float = 0.0


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


def routes(desk: Desk, user_header: str | None = None) -> list[Route]:
    """The review page's routes, below `/review/`; `user_header` names the header that says who is signed in."""

    def who(request: Request, said: str) -> str:
        return desk.person(request.headers.get(user_header, "") if user_header else said)

    def overview(request: Request) -> Response:
        query = request.query_params
        chosen = {name: query.get(name, "") for name in ("language", "hour", "why", "state")}
        every, only = desk.every(), Only(**chosen)
        found = [asked for asked in every if only.fits(asked)]
        pages = max(1, math.ceil(len(found) / ROWS))
        number = query.get("page", "")
        page = min(pages, max(1, int(number))) if re.fullmatch("[0-9]{1,9}", number) else 1
        html = template("review_list.html.j2", HERE).render(
            asked=found[(page - 1) * ROWS : page * ROWS],
            count=len(found),
            page=page,
            pages=pages,
            wanted=chosen,
            wanted_query=urlencode({name: value for name, value in chosen.items() if value}),
            filters=(
                ("language", "Language", [(tag, tag) for tag in sorted({asked.task.language for asked in every})]),
                ("why", "Why", WHY.items()),
                ("state", "State", STATES.items()),
                ("hour", "Hour", [(hour, hour) for hour in sorted({asked.hour for asked in every}, reverse=True)]),
            ),
            states=STATES,
            reasons=WHY,
            counts=Counter(asked.outcome.state for asked in every),
            disagreement=disagreement([asked.outcome for asked in every]),
            unreadable=desk.unreadable,
        )
        return HTMLResponse(html, headers=HEADERS)

    def work(request: Request) -> Response:
        html = template("review.html.j2", HERE).render(unusable=UNUSABLE, signed_in=bool(user_header))
        return HTMLResponse(html, headers=HEADERS)

    def script(request: Request) -> Response:
        return Response((HERE / "review.js").read_bytes(), media_type="text/javascript", headers=HEADERS)

    def clip(request: Request) -> Response:
        return Response(desk.clip(request.path_params["task"]), media_type="audio/flac", headers=HEADERS)

    def following(request: Request, wanted: Wanted) -> dict[str, Any]:
        person = who(request, wanted.who)
        if wanted.task:
            asked: Asked | None = desk.find(wanted.task)
        else:
            asked = desk.next(person, wanted.only.fits, wanted.beside)
        waiting = sum(each.outcome.awaits(person) and wanted.only.fits(each) for each in desk.every())
        return {"who": person, "waiting": waiting, "task": asked and _shown(asked, person)}

    def answered(request: Request, given: Given) -> dict[str, Any]:
        person = who(request, given.who)
        outcome = desk.answer(person, given.task, given.kind, given.text, given.reason, given.seconds)
        return {"state": outcome.state}

    return [
        Route(PLACE, lambda request: RedirectResponse(f"{PLACE.lstrip('/')}/")),
        Route(f"{PLACE}/", _guarded(overview)),
        Route(f"{PLACE}/work", _guarded(work)),
        Route(f"{PLACE}/review.js", script),
        Route(f"{PLACE}/clip/{{task}}", _guarded(clip)),
        Route(f"{PLACE}/next", partial(_posted, Wanted, following), methods=["POST"]),
        Route(f"{PLACE}/answer", partial(_posted, Given, answered), methods=["POST"]),
    ]


def _shown(asked: Asked, person: str) -> dict[str, Any]:
    """A task for the page: what the model heard, and what this person said before; never what others said."""
    task = asked.task
    own = next((voice for voice in asked.outcome.voices if voice.who == person), None)
    return {
        "id": task.id,
        "hour": asked.hour,
        "language": task.language,
        "why": WHY[task.why],
        "confidence": task.confidence,
        "text": task.text,
        "words": [{"text": word.text, "confidence": round(word.confidence, 3)} for word in task.words],
        "start_s": round(task.start_s - task.clip_start_s, 3),
        "end_s": round(task.end_s - task.clip_start_s, 3),
        "said": own.text if own and own.kind == "text" else None,
    }


async def _posted(
    kind: type[AskedFor], act: Callable[[Request, AskedFor], Mapping[str, Any]], request: Request
) -> Response:
    """What a POST of our own page asks for, done in a thread; refusals are JSON with a `detail`."""
    try:
        asked = await _asked(kind, request)
        return JSONResponse(await run_in_threadpool(act, request, asked), headers=HEADERS)
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)
    except Exception as error:
        status, detail = _said(error)
        return JSONResponse({"detail": detail}, status, headers=HEADERS)


async def _asked(kind: type[AskedFor], request: Request) -> AskedFor:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" or MARK not in request.headers:
        raise _Refused(HTTPStatus.FORBIDDEN, f"this takes application/json with the header {MARK}, from its own page")
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise _Refused(HTTPStatus.FORBIDDEN, "this takes nothing from other sites")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {MAX_BODY >> 10} KiB is no answer")
    try:
        return from_plain(kind, parse_json(body))
    except ValueError as error:
        raise _Refused(HTTPStatus.UNPROCESSABLE_ENTITY, f"cannot be read: {error}") from None


def _guarded(handler: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            return handler(request)
        except Exception as error:
            status, detail = _said(error)
            return Response(detail, status, HEADERS, "text/plain")

    return answer


def _said(error: Exception) -> tuple[HTTPStatus, str]:
    """How a refusal is answered; whatever is none is raised again."""
    if isinstance(error, _Refused):
        return error.status, str(error)
    for kind, status in (
        (NotAllowed, HTTPStatus.FORBIDDEN),
        (NotAsked, HTTPStatus.NOT_FOUND),
        (AlreadyAnswered, HTTPStatus.CONFLICT),
        (NotAnAnswer, HTTPStatus.UNPROCESSABLE_ENTITY),
        (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
        (OSError, HTTPStatus.SERVICE_UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return status, str(error)
    raise error
