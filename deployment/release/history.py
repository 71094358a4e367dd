"""The history of roll-outs: one line a step. It is shown, and nothing rests on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from deployment.release.document import WRONG_KIND, ReleaseDocumentError, State, parse_state


def utc_now() -> str:
    """The time for people: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass(frozen=True)
class Transition:
    """One step of a roll-out, as the history keeps it.

    Attributes:
        time: UTC, ISO 8601.
        rollout: names one attempt; all its steps have it.
        state: what was entered; `refused` when nothing had been changed yet, `returned` when it had.
        share: of new requests that the version gets from here on.
        seconds: since the attempt began.
        figures: what led here, of the version itself (`requests`, `errors`, `empty_share`, `p50_s`, `p95_s`); empty
            for steps without requests.
        against: the same of the version that served meanwhile.
    """

    time: str
    rollout: str
    language: str
    state: State
    digest: str
    model: str
    version: str
    share: float
    seconds: float
    replicas: tuple[str, ...] = ()
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    against: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any) -> "Transition":
        """From JSON values.

        Raises:
            ReleaseDocumentError: fields are missing or of other kinds.
        """
        try:
            datetime.fromisoformat(values["time"]).astimezone(UTC)
            return cls(
                time=values["time"],
                rollout=str(values["rollout"] if "rollout" in values else values["release"]),
                language=str(values["language"]),
                state=parse_state(values["state"]),
                digest=str(values["digest"]),
                model=str(values["model"]),
                version=str(values["version"]),
                share=float(values["share"]),
                seconds=float(values["seconds"]),
                replicas=tuple(str(replica) for replica in values["replicas"]),
                reason=str(values["reason"]),
                figures=_summary(values["figures"]),
                against=_summary(values["against"]),
            )
        except WRONG_KIND as error:
            raise ReleaseDocumentError(f"step is not valid ({type(error).__name__}: {error})") from error


def _summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as `Figures.summary` gives them, or none."""
    if not values:
        return {}
    return {
        "requests": int(values["requests"]),
        "errors": int(values["errors"]),
        "empty_share": float(values["empty_share"]),
        **{name: None if values[name] is None else float(values[name]) for name in ("p50_s", "p95_s")},
    }
