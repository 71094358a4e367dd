"""Errors that a client can act on, each with a stable code; how they go over the wire is each transport's matter."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(eq=False)
class Problem(Exception):
    """An answer other than success.

    Attributes:
        status: the HTTP status that says the same.
        code: stable slug for programs.
        title: the kind of problem, the same for every occurrence.
        detail: this occurrence, and what to do about it.
        retry_after_s: when it is worth trying again, if it is.
        closes: nothing more is read from this client.
        extra: further members for programs.
    """

    status: int
    code: str
    title: str
    detail: str
    _: KW_ONLY
    retry_after_s: int | None = None
    closes: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.detail
