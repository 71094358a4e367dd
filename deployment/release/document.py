"""The release document: what the serving tier should run, one language beside the other.

Every replica follows it. It is plain JSON that can be read without this package, the same in a folder and in S3, and
carries the SHA-256 of what it says: a document that was edited by hand or cut short is noticed by whoever reads it,
with one reason, and followed by nobody. One that was put back is older than what replicas follow, and they stay with
that. A document says nothing about a language that it does not name, and not that nothing should be served: replicas go
on with what they have. So neither a lost document nor the first one after it takes anything down.

Not covered: a replica that starts meanwhile, which has nothing to follow.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from speech.plain import from_plain, to_plain
from speech.store.outputs import parse_json, to_json

RELEASE_SCHEMA = 3
READABLE = (2, RELEASE_SCHEMA)  # in 2 a route said where its bundle lies
State = Literal["verify", "load", "warm", "probe", "canary", "full", "drained", "refused", "returned"]
UNDER_WAY = frozenset({"load", "warm", "probe", "canary"})  # states that a document only has while somebody releases


class ReleaseDocumentError(Exception):
    """The release document cannot be followed."""


@dataclass(frozen=True)
class Route:
    """A bundle and the share (0 to 1) of new requests that goes to it; with 0 it is loaded but only asked by name."""

    digest: str
    share: Annotated[float, Field(ge=0, le=1)]
    version: str = ""
    model: str = ""

    @property
    def title(self) -> str:
        """How people call it: its version, or the beginning of its digest."""
        return f"version {self.version}" if self.version else f"bundle {self.digest[:12]}"


@dataclass(frozen=True)
class LanguageRelease:
    """What is served for one language.

    Attributes:
        routes: the bundle or bundles with traffic, and with share 0 the standby and a candidate that is being probed.
        previous: while a release is under way, the routes before it; afterwards, what was served before.
        rollout: the attempt that wrote this.
        candidate: digest that this attempt is about, while it is under way.
        trial_s: replicas go back to `previous` by themselves when this document has lasted so long: what a canary
            falls back on when the process that watches it dies.
    """

    routes: tuple[Route, ...]
    state: State = "full"
    previous: tuple[Route, ...] = ()
    rollout: str = ""
    candidate: str = ""
    trial_s: float | None = None

    @property
    def serving(self) -> tuple[Route, ...]:
        """Routes that get traffic."""
        return tuple(route for route in self.routes if route.share > 0)

    @property
    def standby(self) -> tuple[Route, ...]:
        """Routes that served before and are kept warm without traffic."""
        return tuple(route for route in self.routes if route.share == 0 and route.digest != self.candidate)


@dataclass(frozen=True)
class ReleaseDocument:
    """What should be served, whole. `revision` grows with every change."""

    revision: int = 0
    languages: Mapping[str, LanguageRelease] = field(default_factory=dict)
    updated_at: str = ""

    def values(self) -> dict[str, Any]:
        """As JSON values, with their digest."""
        said = {"schema": RELEASE_SCHEMA, **to_plain(self)}
        return {**said, "sha256": _digest(said)}

    def write(self) -> bytes:
        """As it is stored."""
        return to_json(self.values())

    @staticmethod
    def read(data: bytes) -> "ReleaseDocument":
        """From what is stored.

        Raises:
            ReleaseDocumentError: schema or fields are not those of this version, or it was edited.
        """
        try:
            said = dict(parse_json(data))
            schema, digest = said["schema"], said.pop("sha256", None)
        except (ValueError, TypeError, KeyError) as error:
            raise ReleaseDocumentError(f"it is no release document ({type(error).__name__}: {error})") from error
        if schema not in READABLE:
            raise ReleaseDocumentError(f"it has schema {schema}, this version reads {RELEASE_SCHEMA}: upgrade")
        if digest != _digest(said):
            raise ReleaseDocumentError("it was edited since it was written")
        try:
            return from_plain(ReleaseDocument, said)
        except ValueError as error:
            raise ReleaseDocumentError(f"it is not valid ({error})") from error


def _digest(said: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its digest, as hex."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
