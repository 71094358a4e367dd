"""Errors that a client can act on: RFC 9457 `application/problem+json`, each with a stable code."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class Problem(Exception):
    """An answer other than success.

    Args:
        status: HTTP status.
        code: stable slug for programs.
        title: the kind of problem, the same for every occurrence.
        detail: this occurrence, and what to do about it.
        headers: such as Retry-After.
        extra: further members for programs.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        headers: Mapping[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = extra

    def response(self, request_id: str) -> JSONResponse:
        """The problem as it goes over the wire."""
        body = {
            **self.extra,
            "type": f"urn:soundstage:problem:{self.code}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        return JSONResponse(body, self.status, self.headers, MEDIA_TYPE)


class ProblemDocument(BaseModel):
    """What every error answer holds (RFC 9457); some hold more members."""

    type: str = Field(description="URN of the kind of problem.", examples=["urn:soundstage:problem:truncated"])
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status again.")
    detail: str = Field(description="What is wrong in this request and what to do about it.")
    code: str = Field(description="Stable slug for programs.", examples=["truncated", "unknown-language", "busy"])
    request_id: str = Field(description="The X-Request-Id of this answer; quote it when you report a fault.")
