"""In which format an answer goes: as it was asked for, or by the Accept header."""

import re
from collections.abc import Mapping

from starlette.requests import Request

from deployment.serving.problems import Problem


def chosen_format(wanted: str | None, request: Request, formats: Mapping[str, str]) -> str:
    """The answer's format, of those by name with their media types: as asked, or by the Accept header, or the first.

    Raises:
        Problem: what was asked for is none of them.
    """
    if wanted:
        if wanted not in formats:
            detail = f"Ask for one of {', '.join(formats)} as `format=`."
            raise Problem(400, "unknown-format", "Unknown format", detail)
        return wanted
    for accepted in _accepted(request.headers.get("accept", "")):
        for name, media_type in formats.items():
            if accepted in (media_type, "*/*", media_type.split("/")[0] + "/*"):
                return name
    return next(iter(formats))


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
