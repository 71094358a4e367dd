"""Errors that a client can act on, each with a stable code; how they go over the wire is each transport's matter."""

from typing import Any


class Problem(Exception):
    """An answer other than success.

    Args:
        status: the HTTP status that says the same.
        code: stable slug for programs.
        title: the kind of problem, the same for every occurrence.
        detail: this occurrence, and what to do about it.
        retry_after_s: when it is worth trying again, if it is.
        closes: nothing more is read from this client.
        extra: further members for programs.
    """

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        retry_after_s: int | None = None,
        closes: bool = False,
        **extra: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.closes = closes
        self.extra = extra
