"""Jobs over HTTP: a recording now, its transcript later. What a job is, and where it stands, is `batch.jobs`' matter.

Nothing here transcribes, and no model has to be served: any replica takes jobs and answers about them.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

from fastapi import FastAPI, Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import JSONResponse, Response

from deployment.batch.branch import written
from deployment.batch.jobs import Job, Jobs, JobView, Status
from deployment.serving.answers import ProblemDocument
from deployment.serving.core import FORMATS, Serving
from deployment.serving.formats import chosen_format
from deployment.serving.problems import Problem
from deployment.serving.uploads import receive, received, recording_form
from speech.plain import to_plain
from speech.store.objects import StoreError, StoreUnavailable

KEY_HEADER = "Idempotency-Key"
REPLAYED_HEADER = "Idempotent-Replayed"
RESULT_FORMATS = {
    **FORMATS,
    "amazon.json": "application/json",
    "txt": "text/plain",
    "ctm": "text/plain",
    "rttm": "text/plain",
}
JSON_BYTES = 1 << 16  # of a request that names a recording
PAGE = 50
UNREACHABLE_RETRY_S = 10
ResultT = TypeVar("ResultT")


class JobRequest(BaseModel):
    """A job whose recording is in S3."""

    model_config = ConfigDict(extra="forbid")

    uri: str = Field(max_length=2_048, description="s3://bucket/key, below one of the places that jobs may name.")
    language: str | None = Field(None, description="Spoken language, such as `en`; null: as the deployment's uploads.")
    webhook: str | None = Field(None, description="Address that is told of the end, with a signature.")


class JobList(BaseModel):
    """A page of jobs, the newest first."""

    model_config = ConfigDict(extra="forbid")

    jobs: list[JobView]
    next: str | None = Field(description="What `before` is for the next page; null: there is none.")


def add_jobs(app: FastAPI, serving: Serving, jobs: Jobs) -> None:
    """Add the routes below /v1/jobs."""
    problem: dict[str, Any] = {"model": ProblemDocument, "content": {"application/problem+json": {}}}
    unknown: dict[int | str, dict[str, Any]] = {404: {**problem, "description": "There is no such job."}}
    ended: dict[int | str, dict[str, Any]] = {
        409: {**problem, "description": "The job has ended, has not, or has no transcript; `code` says which."}
    }
    binary = {"schema": {"type": "string", "format": "binary"}}

    @app.post(
        "/v1/jobs",
        tags=["jobs"],
        summary="Have a recording transcribed later",
        description=(
            "The recording is the body itself, the part `file` of a multipart form, or named by a JSON body with its "
            "`uri` in S3. It is transcribed with the other recordings of its hour. At the end `webhook` gets a POST "
            "with `type`, `timestamp` and the job as `data`, signed as the Standard Webhooks say: `webhook-signature` "
            "is `v1,` and the base64 of HMAC-SHA256 over `<webhook-id>.<webhook-timestamp>.<body>`. Send an "
            f"`{KEY_HEADER}` of your own, and a request that is sent again makes no second job."
        ),
        status_code=202,
        response_model=None,
        responses={
            202: {"model": JobView, "description": "The job, new or of before; `Location` is where it is asked about."},
            400: {**problem, "description": "The request itself: no recording, a key that is none."},
            403: {**problem, "description": "The URI is not below a place that jobs may name."},
            404: {**problem, "description": "The language is not transcribed here."},
            409: {**problem, "description": "The key has made a job of another recording, language or webhook."},
            413: {**problem, "description": "Larger than this server accepts."},
            422: {**problem, "description": "Nothing is at the URI, or the webhook is not allowed."},
            503: {**problem, "description": "The data store or S3 does not answer; `Retry-After` says when to retry."},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {"schema": JobRequest.model_json_schema()},
                    "application/octet-stream": binary,
                    "audio/*": binary,
                    "multipart/form-data": recording_form(language={"type": "string"}, webhook={"type": "string"}),
                },
            }
        },
    )
    async def post_job(
        request: Request,
        language: Annotated[str | None, Query(description="Spoken language, where the recording is the body.")] = None,
        webhook: Annotated[str | None, Query(description="Who is told, where the recording is the body.")] = None,
        key: Annotated[
            str | None, Header(alias=KEY_HEADER, description="Makes one job, however often it is sent.")
        ] = None,
    ) -> Response:
        if _media_type(request) == "application/json":
            asked = await _named(request, serving.options.upload_idle_s)
            spoken = await _in_thread(lambda: jobs.check(asked.language or language, asked.webhook or webhook, key))
            place = await _in_thread(lambda: jobs.found(asked.uri))
            made = await _in_thread(
                lambda: jobs.submit(place, place.key, spoken, asked.webhook or webhook, key, datetime.now(UTC))
            )
            return _accepted(jobs, *made)
        await _in_thread(lambda: jobs.check(language, webhook, key))  # before a long upload, where possible
        with serving.receiving(for_later=True):
            upload = await received(request, serving.options)
        try:
            spoken, told = language or upload.fields.get("language"), webhook or upload.fields.get("webhook")
            return await _in_thread(
                lambda: _accepted(jobs, *_submitted(jobs, upload.file, upload.name, spoken, told, key))
            )
        finally:
            await asyncio.to_thread(upload.file.close)

    @app.get("/v1/jobs", tags=["jobs"], summary="Jobs, the newest first")
    async def list_jobs(
        status: Annotated[Status | None, Query(description="Only those.")] = None,
        limit: Annotated[int, Query(ge=1, le=200, description="At most so many; a page may hold fewer.")] = PAGE,
        before: Annotated[str | None, Query(description="`next` of the page before.")] = None,
    ) -> JobList:
        found, following = await _in_thread(lambda: jobs.page(status, limit, before))
        return JobList(jobs=found, next=following)

    @app.get("/v1/jobs/{job}", tags=["jobs"], summary="Where a job stands", responses=unknown)
    async def get_job(job: str) -> JobView:
        return await _in_thread(lambda: jobs.view(jobs.job(job)))

    @app.get(
        "/v1/jobs/{job}/result",
        tags=["jobs"],
        summary="The transcript of a job",
        description=f"As one of {', '.join(RESULT_FORMATS)}, by `format` or the Accept header.",
        response_model=None,
        responses={
            200: {
                "description": "The transcript.",
                "content": {media_type: {} for media_type in RESULT_FORMATS.values()},
            },
            **unknown,
            **ended,
        },
    )
    async def get_result(
        request: Request,
        job: str,
        format: Annotated[str | None, Query(description="Without it the Accept header decides, else JSON.")] = None,
    ) -> Response:
        form = chosen_format(format, request, RESULT_FORMATS)

        def result() -> str:
            found = jobs.job(job)
            return written(jobs.transcript(found), form, found.id)

        media_type = RESULT_FORMATS[form] + ("" if form.endswith("json") else "; charset=utf-8")
        return Response(await _in_thread(result), media_type=media_type)

    @app.delete("/v1/jobs/{job}", tags=["jobs"], summary="Cancel a job", responses={**unknown, **ended})
    async def delete_job(job: str) -> JobView:
        return await _in_thread(lambda: jobs.cancel(jobs.job(job), datetime.now(UTC)))


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def _named(request: Request, idle_s: float) -> JobRequest:
    """The request that names a recording. Raises Problem where it is none."""
    upload = await receive(request, JSON_BYTES, idle_s)
    try:
        upload.file.seek(0)
        return JobRequest.model_validate_json(upload.file.read())
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(str(at) for at in e['loc']) or 'body'}: {e['msg']}" for e in error.errors())
        raise Problem(422, "bad-parameters", "Parameters cannot be used", faults) from None
    finally:
        upload.file.close()


def _submitted(
    jobs: Jobs, recording: BinaryIO, name: str, language: str | None, webhook: str | None, key: str | None
) -> tuple[Job, bool]:
    """The job of a recording that was given."""
    spoken = jobs.check(language, webhook, key)
    with tempfile.NamedTemporaryFile(prefix="soundstage-job-") as file:
        recording.seek(0)
        shutil.copyfileobj(recording, file, 1 << 20)
        file.flush()
        if not file.tell():
            detail = "Send the recording as the body, as the part 'file' of a form, or name it as JSON with its 'uri'."
            raise Problem(400, "no-recording", "No recording", detail)
        return jobs.submit(Path(file.name), name, spoken, webhook, key, datetime.now(UTC))


def _accepted(jobs: Jobs, job: Job, replayed: bool) -> Response:
    headers = {"Location": f"/v1/jobs/{job.id}", **({REPLAYED_HEADER: "true"} if replayed else {})}
    return JSONResponse(to_plain(jobs.view(job)), 202, headers)


async def _in_thread(act: Callable[[], ResultT]) -> ResultT:
    """Do what waits for the data store beside the event loop, and say so where it does not answer."""
    try:
        return await asyncio.to_thread(act)
    except StoreUnavailable as error:
        retry = UNREACHABLE_RETRY_S
        raise Problem(503, "store-unreachable", "Data store away", f"{error}.", retry_after_s=retry) from error
    except StoreError as error:
        raise Problem(500, "store-refuses", "Data store refuses", f"{error}.") from error
