"""The HTTP interface of a replica: a recording in, a transcript out.

What may wait or fail is bounded: bytes and seconds of a recording, uploads at a time, workers, and how many received
recordings wait for one. Beyond that the answer is a typed problem with `Retry-After`, at once. Decoding and recognition
run in threads; the event loop only moves bytes. When a client goes away its work stops at the next chunk.
"""

import asyncio
import contextlib
import logging
import os
import re
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployment.release.document import (
    BUNDLE_HEADER,
    TIMING_HEADER,
    WORK_TIMING,
    ReleaseDocumentError,
    ReleaseFolder,
)
from deployment.serving.metrics import CONTENT_TYPE, Metrics
from deployment.serving.models import LoadedModel, Models, NoModel
from deployment.serving.problems import MEDIA_TYPE, Problem, ProblemDocument
from deployment.serving.transcription import Cancelled, Transcribed, transcribe
from deployment.serving.uploads import Upload, receive
from speech.audio.decode import AudioError, AudioLimits
from speech.recognition.offline import RecognitionError
from speech.scripts import primary_language

REQUEST_ID_HEADER = "X-Request-Id"
MODEL_HEADER = "X-Soundstage-Model"
VERSION_HEADER = "X-Soundstage-Version"
CLIENT_GONE = 499  # nobody reads it; it is for the metrics
RETRY_AFTER_S = "2"
DISCONNECT_POLL_S = 0.25
FORMATS = {"json": "application/json", "srt": "application/x-subrip", "vtt": "text/vtt"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingOptions:
    """How one replica serves.

    Attributes:
        home: the data store, where the release document lies.
        url: where other processes reach this replica.
        replica: name of this replica, unique among those that share the home.
        workers: recordings transcribed at the same time; each needs its own copy of every model in memory.
        threads: threads of one recognition.
        queue_limit: received recordings that may wait for a worker.
        upload_limit: recordings being received at the same time.
        max_bytes, max_duration_s: largest and longest recording.
        upload_idle_s: a client that sends nothing for so long, or that falls so far behind the slowest pace, gives its
            place to another.
    """

    home: Path
    url: str = ""
    replica: str = field(default_factory=lambda: f"{os.uname().nodename}-{os.getpid()}")
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    threads: int = 1
    queue_limit: int = 32
    upload_limit: int = 64
    max_bytes: int = 1 << 30
    max_duration_s: float = 4 * 3600.0
    upload_idle_s: float = 20.0


class ModelName(BaseModel):
    """Which model wrote a transcript."""

    name: str = Field(description="Registered model.", examples=["soundstage-en"])
    version: str = Field(description="Its version in the registry; empty when released without one.", examples=["3"])
    digest: str = Field(description="SHA-256 that names the bundle, byte for byte.")


class WordAnswer(BaseModel):
    """One word."""

    text: str
    start_s: float = Field(description="Seconds from the start of the recording.")
    end_s: float
    confidence: float = Field(description="Probability that the word is right, 0 to 1.")
    speaker: str | None = None


class SegmentAnswer(BaseModel):
    """Words between two pauses, about 14 seconds at most."""

    start_s: float
    end_s: float
    text: str
    speaker: str | None = None
    confidence: float | None = None
    written: str | None = None
    intent: dict[str, Any] | None = None
    words: list[WordAnswer]


class TranscriptAnswer(BaseModel):
    """A transcript, and which model wrote it."""

    request_id: str
    model: ModelName
    schema_version: int
    language: str
    language_confidence: float | None = None
    text: str = Field(description="All words, one line.")
    confidence: float = Field(description="Mean confidence of the words; 0 when nothing was said.")
    duration_s: float
    source_digest: str = Field(description="SHA-256 of the recording as received.")
    models: dict[str, str]
    segments: list[SegmentAnswer]


class ModelAnswer(ModelName):
    """A model that requests can reach."""

    language: str
    share: float = Field(description="Share of the language's requests that it gets; 0: only when asked by digest.")


class Readiness(BaseModel):
    """Whether requests should be sent here."""

    ready: bool
    languages: list[str]
    reason: str = ""


def create_app(options: ServingOptions) -> FastAPI:
    """The application of one replica; its lifespan starts and ends everything else."""
    replica = Replica(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        replica.models.start()
        try:
            yield
        finally:
            await asyncio.to_thread(replica.close)

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
    app.add_middleware(_Observed, metrics=replica.metrics)
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(HTTPException, _http_problem)
    app.add_exception_handler(RequestValidationError, _validation_problem)
    _add_transcription(app, replica)
    _add_operations(app, replica)
    return app


class Replica:
    """What the routes of one process share."""

    def __init__(self, options: ServingOptions) -> None:
        self.options = options
        self.folder = ReleaseFolder(options.home)
        self.metrics = Metrics()
        self.models = Models(
            self.folder, options.replica, options.url, options.workers, options.threads, self.metrics.show_models
        )
        self.limits = AudioLimits(max_duration_s=options.max_duration_s, max_encoded_bytes=options.max_bytes)
        self._workers = ThreadPoolExecutor(options.workers, thread_name_prefix="transcribe")
        self._uploads = 0
        self._taken = 0

    def close(self) -> None:
        """End the background work; requests have ended by now."""
        self.models.stop()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def language(self, wanted: str | None, digest: str | None) -> str:
        """The language to transcribe, as its primary subtag.

        Raises:
            Problem: it is not served, or it was not named although several are.
        """
        served = self.models.languages()
        if not wanted:
            if len(served) > 1:
                raise Problem(
                    400,
                    "language-required",
                    "Language required",
                    f"Say which language is spoken, as `language=`: one of {', '.join(served)}.",
                    served=served,
                )
            if not served:
                broken = [
                    error for report in self.models.report().languages.values() for error in report.errors.values()
                ]
                raise self._no_model("; ".join(broken) or "No language has a model in production")
            wanted = served[0]
        wanted = primary_language(wanted) or wanted  # what is no tag is refused as it was written
        try:
            self.models.require(wanted, digest)
        except NoModel as error:
            if digest is not None and (error.known or served):
                raise Problem(404, "bundle-not-loaded", "Bundle not loaded", f"This replica says: {error}.") from error
            if error.known or not served:
                raise self._no_model(str(error)) from error
            raise Problem(
                404,
                "unknown-language",
                "Language not served",
                f"'{wanted[:35]}' is not served here; served: {', '.join(served)}.",
                served=served,
            ) from error
        return wanted

    @contextlib.contextmanager
    def uploading(self) -> Any:
        """Count an upload; refuses when there are too many, or when nobody would have time for it."""
        if self._uploads >= self.options.upload_limit or self._full():
            raise self._busy()
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1

    async def answer(
        self, request: Request, upload: Upload, language: str, digest: str | None
    ) -> tuple[Transcribed, LoadedModel]:
        """Transcribe with the version whose turn it is, or with the one asked for, and count how that went.

        A new version that fails on its canary share costs no customer an answer: the version it is tried against takes
        over, and the failure stands in the new one's figures.

        Raises:
            NoModel: nothing serves the language any more.
            Problem: too many wait already, or the recording cannot be used.
            ClientDisconnect: the client went away.
        """
        with self.models.lease(language, digest) as model:
            try:
                return await self._counted(request, upload, model, routed=digest is None), model
            except (Problem, ClientDisconnect):
                raise
            except Exception:
                if digest is not None:
                    raise
                with contextlib.suppress(NoModel), self.models.lease(language, instead_of=model) as stable:
                    log.exception(
                        "request %s: version %s failed, version %s answers instead",
                        request.state.request_id,
                        model.version,
                        stable.version,
                    )
                    return await self._counted(request, upload, stable, routed=True), stable
                raise

    async def _counted(self, request: Request, upload: Upload, model: LoadedModel, *, routed: bool) -> Transcribed:
        """Transcribe, and note in the model's figures how that went; what clients do wrong is not its fault."""
        try:
            done = await self.transcribe(request, upload, model)
        except (Problem, ClientDisconnect):
            raise
        except Exception:
            self._count(model, None, routed=routed)
            raise
        self._count(model, done.seconds, empty=not done.transcript.words, routed=routed)
        return done

    def _count(self, model: LoadedModel, seconds: float | None, *, empty: bool = False, routed: bool) -> None:
        self.metrics.count(model, seconds, empty=empty)
        if routed:  # probes do not tell how customers are served
            self.models.count(model, seconds, empty=empty)

    async def transcribe(self, request: Request, upload: Upload, model: LoadedModel) -> Transcribed:
        """Transcribe in a worker thread; stops when the client goes away.

        Raises:
            Problem: too many wait already, or the recording cannot be used.
            ClientDisconnect: the client went away.
        """
        if self._full():
            raise self._busy()
        cancelled = Event()

        def work() -> Transcribed:
            if cancelled.is_set():
                raise Cancelled("the client closed the connection")
            return transcribe(upload.file, upload.name, model, self.limits, cancelled)

        self._taken += 1
        future = asyncio.get_running_loop().run_in_executor(self._workers, work)
        self._show_queue()
        watcher = asyncio.ensure_future(_gone(request))
        waiting: set[asyncio.Future[Any]] = {future, watcher}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                cancelled.set()
            return await future
        except Cancelled:
            raise ClientDisconnect from None
        except AudioError as error:
            raise Problem(
                422, error.code, "Recording cannot be used", f"{upload.name}: {error.reason}.", reason=error.reason
            ) from error
        except RecognitionError as error:
            raise Problem(422, "unusable-samples", "Recording cannot be used", f"{upload.name}: {error}.") from error
        finally:
            cancelled.set()
            watcher.cancel()
            with contextlib.suppress(Exception):
                await asyncio.shield(future)  # the spooled file and the lease must outlive the worker
            self._taken -= 1
            self._show_queue()

    def _full(self) -> bool:
        return self._taken >= self.options.workers + self.options.queue_limit

    def _show_queue(self) -> None:
        self.metrics.queued.set(max(0, self._taken - self.options.workers))

    def _busy(self) -> Problem:
        return Problem(
            503,
            "busy",
            "Server busy",
            "As many recordings wait as this replica accepts: try again, or add replicas.",
            {"Retry-After": RETRY_AFTER_S},
        )

    def _no_model(self, why: str) -> Problem:
        return Problem(
            503,
            "no-model",
            "No model in production yet",
            f"{why}: approve a registered model and release it; this replica follows {self.folder.document} and will "
            "serve it within seconds.",
            {"Retry-After": "10"},
        )


def _add_transcription(app: FastAPI, replica: Replica) -> None:
    problem: dict[str, Any] = {"model": ProblemDocument, "content": {MEDIA_TYPE: {}}}
    binary = {"schema": {"type": "string", "format": "binary"}}

    @app.post(
        "/v1/transcribe",
        tags=["transcription"],
        summary="Transcribe a recording",
        description=(
            "The recording is the body itself, or the part `file` of a multipart form, in any common audio format; "
            "`language` and `format` may also be form fields. With `"
            + BUNDLE_HEADER
            + "` a loaded bundle can be asked "
            "for by its digest, which is how a roll-out probes a new one before it gets traffic."
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
                "description": "No model in production yet, or too busy; `Retry-After` says when to retry.",
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/octet-stream": binary,
                    "audio/*": binary,
                    "multipart/form-data": {
                        "schema": {
                            "type": "object",
                            "required": ["file"],
                            "properties": {
                                "file": {"type": "string", "format": "binary"},
                                "language": {"type": "string"},
                                "format": {"type": "string", "enum": list(FORMATS)},
                            },
                        }
                    },
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
            request.state.language = replica.language(language, digest)  # before a long upload, where possible
        if format:
            _format(format, request)
        with replica.uploading():
            upload = await _received(request, replica.options)
        try:
            spoken = replica.language(language or upload.fields.get("language"), digest)
            request.state.language = spoken
            wanted = _format(format or upload.fields.get("format"), request)
            try:
                done, model = await replica.answer(request, upload, spoken, digest)
                return _answer(replica, request, done, model, wanted)
            except NoModel as error:  # the release changed between the two looks
                raise Problem(503, "no-model", "No model", f"{error}: try again.", {"Retry-After": "2"}) from error
        finally:
            await asyncio.to_thread(upload.file.close)


def _add_operations(app: FastAPI, replica: Replica) -> None:
    @app.get("/healthz", tags=["operation"], summary="Whether the process is alive")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["operation"],
        summary="Whether requests should be sent here",
        response_model=Readiness,
        responses={503: {"model": Readiness, "description": "No model is served yet."}},
    )
    async def readyz() -> JSONResponse:
        languages = list(replica.models.languages())
        report = replica.models.report()
        errors = [f"{lang}: {why}" for lang, said in report.languages.items() for why in said.errors.values()]
        reason = "; ".join([report.error] * bool(report.error) + errors)
        if not languages and not reason:
            reason = f"nothing is released yet in {replica.folder.document}"
        answer = Readiness(ready=bool(languages), languages=languages, reason=reason)
        return JSONResponse(answer.model_dump(), 200 if answer.ready else 503)

    @app.get("/metrics", tags=["operation"], summary="Metrics for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(replica.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/v1/models", tags=["models"], summary="Models that requests can reach", response_model=list[ModelAnswer])
    async def models() -> list[ModelAnswer]:
        languages = replica.models.report().languages
        return [
            ModelAnswer(
                name=model.name,
                version=model.route.version,
                digest=model.digest,
                language=model.language,
                share=languages[model.language].active.get(model.digest, 0.0),
            )
            for model in replica.models.loaded()
        ]

    @app.get("/v1/release", tags=["models"], summary="What this replica runs, and what it should run")
    async def release() -> dict[str, Any]:
        try:
            wanted: dict[str, Any] | None = (await asyncio.to_thread(replica.folder.read)).to_dict()
        except ReleaseDocumentError:
            wanted = None  # the report says why
        return {"running": replica.models.report().to_dict(), "wanted": wanted}


def _answer(replica: Replica, request: Request, done: Transcribed, model: LoadedModel, wanted: str) -> Response:
    transcript, metrics = done.transcript, replica.metrics
    metrics.audio_seconds.labels(transcript.language).inc(transcript.duration_s)
    metrics.words.labels(transcript.language).inc(len(transcript.words))
    if transcript.duration_s > 0:
        metrics.real_time_factor.labels(transcript.language).observe(done.seconds / transcript.duration_s)
    headers = {
        MODEL_HEADER: model.name,
        VERSION_HEADER: model.route.version,
        BUNDLE_HEADER: model.digest,
        TIMING_HEADER: f"{WORK_TIMING};dur={done.seconds * 1000:.1f}",
    }
    if wanted == "json":
        body = {
            **transcript.to_json(),
            "request_id": request.state.request_id,
            "model": {"name": model.name, "version": model.route.version, "digest": model.digest},
        }
        return JSONResponse(body, headers=headers)
    text = transcript.to_srt() if wanted == "srt" else transcript.to_vtt()
    return Response(text, headers=headers, media_type=f"{FORMATS[wanted]}; charset=utf-8")


async def _received(request: Request, options: ServingOptions) -> Upload:
    try:
        return await receive(request, options.max_bytes, options.upload_idle_s)
    except OSError as error:
        log.exception("request %s could not be spooled", request.state.request_id)
        raise Problem(
            503,
            "no-space",
            "Recording could not be stored",
            f"The recording could not be written to the server's temporary folder ({error.strerror}): try again later.",
            {"Retry-After": "30"},
        ) from error


async def _gone(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while not await request.is_disconnected():
        await asyncio.sleep(DISCONNECT_POLL_S)


def _format(wanted: str | None, request: Request) -> str:
    """The answer's format: as asked, or by the Accept header, or JSON."""
    if wanted:
        if wanted not in FORMATS:
            raise Problem(400, "unknown-format", "Unknown format", f"Ask for one of {', '.join(FORMATS)} as `format=`.")
        return wanted
    for accepted in _accepted(request.headers.get("accept", "")):
        for name, media_type in FORMATS.items():
            if accepted in (media_type, "*/*", media_type.split("/")[0] + "/*"):
                return name
    return "json"


def _accepted(header: str) -> list[str]:
    """Media types of an Accept header, best first (RFC 9110, section 12.5.1)."""
    ranked = []
    for place, part in enumerate(header.split(",")):
        media_type, _, parameters = part.partition(";")
        quality = re.search(r"(?:^|;)\s*q=([0-9.]+)", parameters)
        try:
            weight = float(quality.group(1)) if quality else 1.0
        except ValueError:
            weight = 0.0
        if media_type.strip() and weight > 0:
            ranked.append((-weight, place, media_type.strip().lower()))
    return [media_type for _, _, media_type in sorted(ranked)]


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    request.state.code = error.code
    return error.response(request.state.request_id)


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http-error")
    title = {404: "Not found", 405: "Method not allowed"}.get(error.status_code, "Request failed")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}. The interface is described at /docs."
    return await _problem(request, Problem(error.status_code, code, title, detail, error.headers))


async def _validation_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
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
            fault = Problem(
                500,
                "internal",
                "Internal error",
                f"This is a fault of the server; its log has the details under request {request_id}.",
            )
            await fault.response(request_id)(scope, receive, observed_send)
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
