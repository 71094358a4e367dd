"""The history of roll-outs: one object a step. It is shown, and nothing rests on it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, FiniteFloat

from deployment.release.canary import Summary
from deployment.release.document import State


def utc_now() -> str:
    """The time for people: UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _time(text: str) -> str:
    try:
        datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError as error:  # a year before the first
        raise ValueError(str(error)) from error
    return text


@dataclass(frozen=True)
class Transition:
    """One step of a roll-out, as the history keeps it.

    Attributes:
        time: UTC, ISO 8601.
        rollout: names one attempt; all its steps have it.
        state: what was entered; `refused` when nothing had been changed yet, `returned` when it had.
        share: of new requests that the version gets from here on.
        seconds: since the attempt began.
        figures: what led here, of the version itself; None for steps without requests.
        against: the same of the version that served meanwhile.
    """

    time: Annotated[str, AfterValidator(_time)]
    rollout: str
    language: str
    state: State
    digest: str
    model: str
    version: str
    share: FiniteFloat
    seconds: FiniteFloat
    replicas: tuple[str, ...] = ()
    reason: str = ""
    figures: Summary | None = None
    against: Summary | None = None
