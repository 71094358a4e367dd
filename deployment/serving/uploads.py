"""Receiving a recording: spooled to a temporary file as it comes, counted, and never whole in memory."""

import logging
import tempfile
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import anyio
import anyio.to_thread
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from deployment.serving.core import ServingOptions
from deployment.serving.problems import Problem

SPOOL_BYTES = 1 << 20  # smaller recordings stay in memory
DISCARD_S = 5.0  # how long an over-long upload is read on, so that its client gets to see the answer
FORM_FIELDS = 16
FIELD_BYTES = 4096
FILE_PART = b"file"
UNNAMED = b'; filename="recording"'
# An upload's floor, on average: below a poor GPRS line and a telephone call (8,000 bytes/s) sent as it is spoken, and
# far above what a client would send that only wants to keep others out.
SLOWEST_BYTES_PER_S = 4096

log = logging.getLogger(__name__)


@dataclass
class Upload:
    """A received recording and the form fields that came with it."""

    file: BinaryIO
    name: str
    fields: dict[str, str]


def recording_form(**fields: dict[str, Any]) -> dict[str, Any]:
    """What the OpenAPI page says of a form with a recording: its part `file`, and fields with their schemas."""
    properties = {"file": {"type": "string", "format": "binary"}, **fields}
    return {"schema": {"type": "object", "required": ["file"], "properties": properties}}


async def receive(request: Request, max_bytes: int, idle_s: float) -> Upload:
    """Receive the recording of a request: the part `file` of a multipart form, or else the body itself.

    Raises:
        Problem: larger than `max_bytes` (413), nothing for `idle_s` seconds or `idle_s` behind what
            `SLOWEST_BYTES_PER_S` would have brought (408), or no form with a file (400).
        ClientDisconnect: the client went away.
    """
    declared = request.headers.get("content-length", "")
    stream = _counted(request, max_bytes, idle_s, too_large=declared.isdigit() and int(declared) > max_bytes)
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _form(request, stream)
    spool = tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115 - the caller closes it
    try:
        async for piece in stream:
            await anyio.to_thread.run_sync(spool.write, piece)
    except BaseException:
        spool.close()
        raise
    return Upload(cast(BinaryIO, spool), "recording", {})


async def received(request: Request, options: ServingOptions) -> Upload:
    """Receive the recording of a request within the limits of this replica.

    Raises:
        Problem: as `receive` does; or there is no room for it here (503).
        ClientDisconnect: the client went away.
    """
    try:
        return await receive(request, options.max_bytes, options.upload_idle_s)
    except OSError as error:
        log.exception("request %s could not be spooled", request.state.request_id)
        detail = (
            f"The recording could not be written to the server's temporary folder ({error.strerror}): try again later."
        )
        raise Problem(503, "no-space", "Recording could not be stored", detail, retry_after_s=30) from error


class _FormParser(MultiPartParser):
    """Takes the part `file` for a file also where a client gave it no file name, as hand-written ones do."""

    def on_headers_finished(self) -> None:
        disposition, options = parse_options_header(self._current_part.content_disposition or b"")
        if disposition == b"form-data" and options.get(b"name") == FILE_PART and b"filename" not in options:
            self._current_part.content_disposition = (self._current_part.content_disposition or b"") + UNNAMED
        super().on_headers_finished()


async def _form(request: Request, stream: AsyncGenerator[bytes, None]) -> Upload:
    parser = _FormParser(request.headers, stream, max_files=1, max_fields=FORM_FIELDS, max_part_size=FIELD_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        detail = f"{error.message} Send one recording as the part 'file', and beside it only short fields."
        raise Problem(400, "bad-form", "Not a usable multipart form", detail) from error
    recordings = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not recordings:
        raise Problem(400, "no-recording", "No recording in the form", "Send the recording as the part 'file'.")
    fields = {key: value for key, value in form.multi_items() if isinstance(value, str)}
    return Upload(recordings[0].file, recordings[0].filename or "recording", fields)


async def _counted(request: Request, max_bytes: int, idle_s: float, too_large: bool) -> AsyncGenerator[bytes, None]:
    """The body's pieces; ends with a problem as soon as there are too many bytes, or too few for too long."""
    received = 0
    waited_s = 0.0  # for the client alone: a slow disk here is not its fault
    give_up_at = time.monotonic() + DISCARD_S
    pieces = request.stream()
    while True:
        credit_s = received / SLOWEST_BYTES_PER_S - waited_s
        wait_s = max(0.0, give_up_at - time.monotonic()) if too_large else idle_s + min(0.0, credit_s)
        asked_at = time.monotonic()
        try:
            with anyio.fail_after(wait_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            break
        except TimeoutError:
            if too_large:
                break
            raise _too_slow(idle_s, idle=credit_s >= 0) from None
        waited_s += time.monotonic() - asked_at
        received += len(piece)
        if not too_large and received > max_bytes:
            too_large, give_up_at = True, time.monotonic() + DISCARD_S
        if not too_large:
            yield piece
    if too_large:
        detail = (
            f"The recording is larger than {max_bytes:,} bytes, the most this server accepts: send it in parts, or in "
            "a compressed format such as FLAC or Opus."
        )
        raise Problem(413, "too-large", "Recording too large", detail, closes=True, extra={"max_bytes": max_bytes})


def _too_slow(idle_s: float, *, idle: bool) -> Problem:
    if idle:
        detail = f"Nothing of the recording came for {idle_s:g} s: send it again."
        return Problem(408, "upload-stalled", "Upload stalled", detail, closes=True)
    detail = (
        f"The recording came slower than {SLOWEST_BYTES_PER_S:,} bytes per second: send it again over a faster line, "
        "or in a compressed format such as FLAC or Opus."
    )
    return Problem(408, "upload-too-slow", "Upload too slow", detail, closes=True)
