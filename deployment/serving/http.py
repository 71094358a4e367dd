"""The HTTP interface of a replica: a recording in, a transcript out. What is done with it is `serving.core`'s matter.

The event loop only moves bytes; errors are `application/problem+json` (RFC 9457). When a client goes away its work
stops at the next chunk.
"""

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.batch.jobs import Jobs
from deployment.release.document import ReleaseDocumentError
from deployment.release.reports import BUNDLE_HEADER, RUNNING_PATH, TIMING_HEADER, WORK_TIMING
from deployment.serving.answers import (
    Health,
    ModelAnswer,
    ModelName,
    ProblemDocument,
    Readiness,
    ReleaseAnswer,
    TranscriptAnswer,
)
from deployment.serving.core import FORMATS, Answer, Serving, ServingOptions, Source
from deployment.serving.formats import chosen_format
from deployment.serving.jobs import add_jobs
from deployment.serving.metrics import Metrics
from deployment.serving.problems import Problem
from deployment.serving.transcription import Cancelled
from deployment.serving.uploads import Upload, received, recording_form
from speech.plain import to_plain
from speech.store.objects import StoreError

PROBLEM_TYPE = "application/problem+json"
REQUEST_ID_HEADER = "X-Request-Id"
MODEL_HEADER = "X-Soundstage-Model"
VERSION_HEADER = "X-Soundstage-Version"
CLIENT_GONE = 499  # nobody reads it; it is for the metrics
DISCONNECT_POLL_S = 0.25

log = logging.getLogger(__name__)


def create_app(options: ServingOptions, jobs: Jobs | None = None) -> FastAPI:
    """The application of one replica; its lifespan starts and ends everything else. With `jobs` it takes those, too."""
    serving = Serving(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        serving.start()
        try:
            yield
        finally:
            await asyncio.to_thread(serving.close)

    app = FastAPIOffline(
        redoc_url=None,
        title="Soundstage",
        summary="Speech recognition with models that passed their gates.",
        description=(
            "Send a recording in any common audio format and get its transcript as JSON with word times and "
            "confidences, or as SRT or WebVTT subtitles. Every answer names the model version and the digest of the "
            "bundle that wrote it. Errors are `application/problem+json` (RFC 9457) with a stable `code`."
        ),
        version="1",
        lifespan=lifespan,
    )
    app.add_middleware(_Observed, metrics=serving.metrics)
    app.exception_handler(Problem)(_problem)
    app.exception_handler(HTTPException)(_http_problem)
    app.exception_handler(RequestValidationError)(_validation_problem)
    _add_transcription(app, serving)
    if jobs is not None:
        add_jobs(app, serving, jobs)
    _add_operations(app, serving)
    return app


def _add_transcription(app: FastAPI, serving: Serving) -> None:
    problem: dict[str, Any] = {"model": ProblemDocument, "content": {PROBLEM_TYPE: {}}}
    binary = {"schema": {"type": "string", "format": "binary"}}

    @app.post(
        "/v1/transcribe",
        tags=["transcription"],
        summary="Transcribe a recording",
        description=(
            "The recording is the body itself, or the part `file` of a multipart form, in any common audio format; "
            f"`language` and `format` may also be form fields. With `{BUNDLE_HEADER}` a loaded bundle can be asked for "
            "by its digest, which is how a roll-out probes a new one before it gets traffic."
        ),
        response_model=None,
        responses={
            200: {
                "model": TranscriptAnswer,
                "description": "The transcript.",
                "content": {FORMATS["srt"]: {}, FORMATS["vtt"]: {}},
            },
            400: {**problem, "description": "The request itself: no recording, no language, an unknown format."},
            404: {**problem, "description": "The language is not served; `served` lists those that are."},
            408: {**problem, "description": "The upload stalled or was too slow."},
            413: {**problem, "description": "Larger than this server accepts."},
            422: {**problem, "description": "The recording cannot be used; `code` and `reason` say why."},
            503: {
                **problem,
                "description": "No model is served (`detail` says why), or too busy; `Retry-After` says when to retry.",
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": binary,
                    "audio/*": binary,
                    "multipart/form-data": recording_form(
                        language={"type": "string"}, format={"type": "string", "enum": list(FORMATS)}
                    ),
                },
            }
        },
    )
    async def post_transcribe(
        request: Request,
        language: Annotated[
            str | None,
            Query(
                description="Spoken language, such as `en`; of a longer tag such as `en-US` its first part counts. "
                "Only needed when several are served."
            ),
        ] = None,
        format: Annotated[
            str | None, Query(description="`json`, `srt` or `vtt`; without it the Accept header decides, else JSON.")
        ] = None,
        digest: Annotated[
            str | None, Header(alias=BUNDLE_HEADER, description="Digest of the loaded bundle to use.")
        ] = None,
    ) -> Response:
        if language:
            request.state.language = serving.language(language, digest)  # before a long upload, where possible
        if format:
            chosen_format(format, request, FORMATS)
        with serving.receiving():
            upload = await received(request, serving.options)
        try:
            spoken = serving.language(language or upload.fields.get("language"), digest)
            request.state.language = spoken
            wanted = chosen_format(format or upload.fields.get("format"), request, FORMATS)
            return _answer(request, await _transcribed(serving, request, upload, spoken, digest), wanted)
        finally:
            await asyncio.to_thread(upload.file.close)


def _add_operations(app: FastAPI, serving: Serving) -> None:
    @app.get("/healthz", tags=["operation"], summary="Whether the process is alive")
    async def healthz() -> Health:
        return Health()

    @app.get(
        "/readyz",
        tags=["operation"],
        summary="Whether requests should be sent here",
        responses={503: {"model": Readiness, "description": "No model is served yet."}},
    )
    async def readyz(response: Response) -> Readiness:
        languages, reason = serving.ready()
        if not languages:
            response.status_code = 503
        return Readiness(ready=bool(languages), languages=list(languages), reason=reason)

    @app.get("/metrics", tags=["operation"], summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["models"], summary="Models that requests can reach")
    async def models() -> list[ModelAnswer]:
        shares = {id(model): share for table in serving.routes.tables().values() for model, share in table.traffic}
        return [
            ModelAnswer(**dict(ModelName.of(model)), language=model.language, share=shares.get(id(model), 0.0))
            for model in serving.routes.loaded()
        ]

    @app.get(RUNNING_PATH, tags=["models"], summary="What this replica runs, and what it should run")
    async def release() -> ReleaseAnswer:
        try:
            wanted: dict[str, Any] | None = (await asyncio.to_thread(serving.folder.read)).values()
        except (ReleaseDocumentError, StoreError, OSError):
            wanted = None  # the report says why
        return ReleaseAnswer(running=to_plain(serving.follower.report()), wanted=wanted)


async def _transcribed(serving: Serving, request: Request, upload: Upload, language: str, digest: str | None) -> Answer:
    """Transcribe in a worker; stops when the client goes away.

    Raises:
        Problem: too many wait already, or the recording cannot be used.
        ClientDisconnect: the client went away.
    """
    cancelled = Event()
    source = Source(upload.file, upload.name, request.state.request_id)
    future = asyncio.wrap_future(serving.submit(source, language, digest, cancelled))
    watcher = asyncio.ensure_future(_gone(request))
    waiting: set[asyncio.Future[Any]] = {future, watcher}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            cancelled.set()
        return await asyncio.shield(future)
    except Cancelled:
        raise ClientDisconnect from None
    finally:
        cancelled.set()
        watcher.cancel()
        with contextlib.suppress(Exception):
            await asyncio.shield(future)  # the spooled file must outlive the worker


def _answer(request: Request, answer: Answer, wanted: str) -> Response:
    model, transcript = answer.model, answer.transcript
    headers = {
        MODEL_HEADER: model.name,
        VERSION_HEADER: model.route.version,
        BUNDLE_HEADER: model.digest,
        TIMING_HEADER: f"{WORK_TIMING};dur={answer.seconds * 1000:.1f}",
    }
    if wanted == "json":
        body = TranscriptAnswer.of(answer, request.state.request_id).to_json()
        return JSONResponse(body, headers=headers, media_type=FORMATS[wanted])
    text = transcript.to_srt() if wanted == "srt" else transcript.to_vtt()
    return Response(text, headers=headers, media_type=f"{FORMATS[wanted]}; charset=utf-8")


def _problem_response(problem: Problem, request_id: str) -> Response:
    """The problem as it goes over the wire."""
    headers = {}
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    if problem.closes:
        headers["Connection"] = "close"
    body = ProblemDocument.of(problem, request_id).model_dump_json()
    return Response(body, problem.status, headers, PROBLEM_TYPE)


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(DISCONNECT_POLL_S)


async def _problem(request: Request, error: Problem) -> Response:
    request.state.code = error.code
    return _problem_response(error, request.state.request_id)


async def _http_problem(request: Request, error: HTTPException) -> Response:
    known = {404: ("not-found", "Not found"), 405: ("method-not-allowed", "Method not allowed")}
    code, title = known.get(error.status_code, ("http-error", "Request failed"))
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}. The interface is described at /docs."
    response = await _problem(request, Problem(error.status_code, code, title, detail))
    response.headers.update(error.headers or {})
    return response


async def _validation_problem(request: Request, error: RequestValidationError) -> Response:
    faults = "; ".join(f"{'.'.join(str(at) for at in e['loc'])}: {e['msg']}" for e in error.errors())
    return await _problem(request, Problem(422, "bad-parameters", "Parameters cannot be used", faults))


class _Observed:
    """Gives every request an id, measures it, and turns what nobody expected into a typed 500."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        given = dict(scope["headers"]).get(REQUEST_ID_HEADER.lower().encode(), b"").decode("latin-1")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given) else uuid.uuid4().hex
        state["request_id"] = request_id
        status = 0
        began = time.monotonic()

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], (REQUEST_ID_HEADER.lower().encode(), request_id.encode())],
                }
            await send(message)

        self._metrics.in_flight.inc()
        try:
            await self._app(scope, receive, observed_send)
        except ClientDisconnect:
            status, state["code"] = CLIENT_GONE, "client-gone"
        except Exception:
            log.exception("request %s failed", request_id)
            state["code"] = "internal"
            if status:
                raise
            detail = f"This is a fault of the server; its log has the details under request {request_id}."
            fault = Problem(500, "internal", "Internal error", detail)
            await _problem_response(fault, request_id)(scope, receive, observed_send)
        finally:
            self._metrics.in_flight.dec()
            self._count(scope, state, status, time.monotonic() - began, request_id)

    def _count(self, scope: Scope, state: dict[str, Any], status: int, seconds: float, request_id: str) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        language = state.get("language", "")
        self._metrics.requests.labels(route, str(status), language).inc()
        self._metrics.latency.labels(route).observe(seconds)
        if code := state.get("code"):
            self._metrics.errors.labels(code).inc()
        if route.startswith("/v1/transcribe"):
            log.info("%s %s %s %s %.3f s %s", request_id, route, status, language or "-", seconds, code or "")
