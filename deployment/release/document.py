"""The release document: what the serving tier should run, one language beside the other.

Every replica follows it. It is plain JSON that can be read without this package, on one laptop and on a folder that
many hosts share, and carries the SHA-256 of what it says: a document that was edited by hand or cut short is noticed by
whoever reads it, with one reason, and followed by nobody. One that was put back is older than what replicas follow, and
they stay with that. A document says nothing about a language that it does not name, and not that nothing should be
served: replicas go on with what they have. So neither a lost document nor the first one after it takes anything down.

Not covered: a replica that starts meanwhile, which has nothing to follow.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

RELEASE_SCHEMA = 2
_UNSEALED_SCHEMA = 1  # had no digest and called a roll-out a release
State = Literal["verify", "load", "warm", "probe", "canary", "full", "drained", "refused", "returned"]
WRONG_KIND = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # raised by JSON values of other kinds
UNDER_WAY = frozenset({"load", "warm", "probe", "canary"})  # states that a document only has while somebody releases


class ReleaseDocumentError(Exception):
    """The release document or a replica's report cannot be read."""


@dataclass(frozen=True)
class Route:
    """A bundle and the share (0 to 1) of new requests that goes to it; with 0 it is loaded but only asked by name."""

    digest: str
    bundle: str  # folder; relative to the home folder when it lies inside, so that the home may be mounted elsewhere
    share: float
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

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        said = {
            "schema": RELEASE_SCHEMA,
            **asdict(self),
            "languages": {k: asdict(v) for k, v in self.languages.items()},
        }
        return {**said, "sha256": _digest(said)}

    @classmethod
    def from_dict(cls, values: Any) -> "ReleaseDocument":
        """From JSON values.

        Raises:
            ReleaseDocumentError: schema or fields are not those of this version, or it was edited.
        """
        try:
            if values["schema"] not in (_UNSEALED_SCHEMA, RELEASE_SCHEMA):
                raise ReleaseDocumentError(
                    f"release document has schema {values['schema']}, this version reads {RELEASE_SCHEMA}: upgrade"
                )
            said = {key: value for key, value in values.items() if key != "sha256"}
            if values["schema"] == RELEASE_SCHEMA and values["sha256"] != _digest(said):
                raise ReleaseDocumentError("it was edited since it was written")
            languages = {
                str(language): LanguageRelease(
                    routes=tuple(parse_route(route) for route in release["routes"]),
                    state=parse_state(release["state"]),
                    previous=tuple(parse_route(route) for route in release["previous"]),
                    rollout=str(release.get("rollout", release.get("release", ""))),
                    candidate=str(release.get("candidate", "")),
                    trial_s=None if release.get("trial_s") is None else float(release["trial_s"]),
                )
                for language, release in values["languages"].items()
            }
            return cls(int(values["revision"]), languages, str(values["updated_at"]))
        except WRONG_KIND as error:
            raise ReleaseDocumentError(f"release document is not valid ({type(error).__name__}: {error})") from error


def _digest(said: Mapping[str, Any]) -> str:
    """SHA-256 of a document without its digest, as hex."""
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def parse_route(values: Mapping[str, Any]) -> Route:
    """A route from JSON values; raises `WRONG_KIND` for others."""
    share = float(values["share"])
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is not between 0 and 1")
    return Route(
        str(values["digest"]),
        str(values["bundle"]),
        share,
        str(values.get("version", "")),
        str(values.get("model", "")),
    )


def parse_state(value: Any) -> State:
    """A state from a JSON value; ValueError for others."""
    if value not in get_args(State):
        raise ValueError(f"state {value!r} is none of {', '.join(get_args(State))}")
    return cast(State, value)
