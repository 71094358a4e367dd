"""Decisions asked for by tags on a version in MLflow, for people who work there and not in Dagster.

Someone sets `soundstage.approver`, `soundstage.reason` and, last, `soundstage.decision`; whoever looks next takes the
request once, under the same rules as any other, and the answer comes back as a tag. Tags can be edited by anyone with
MLflow open, so nothing in them is taken for more than a request.
"""

import hashlib
import re
from dataclasses import dataclass

from deployment.registry.models import ModelVersion, Registry

ASKED_TAGS = DECISION_TAG, APPROVER_TAG, REASON_TAG = "soundstage.decision", "soundstage.approver", "soundstage.reason"
OUTCOME_TAG, ANSWERED_TAG = "soundstage.outcome", "soundstage.requests_answered"
_COUNT = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class TagRequest:
    """A decision that someone asked for by tags on a version; `number` counts the requests answered before it."""

    model: str
    version: str
    number: int
    decision: str
    approver: str
    reason: str

    @classmethod
    def on(cls, version: ModelVersion) -> "TagRequest":
        """What the tags of a version ask for."""
        answered = version.tags.get(ANSWERED_TAG, "")
        asked = (version.tags.get(tag, "").strip() for tag in ASKED_TAGS)
        number = int(answered) if _COUNT.fullmatch(answered) else 0  # anyone can edit the tag
        return cls(version.name, version.version, number, *asked)

    @property
    def key(self) -> str:
        """Names this request and no other, so that it is taken once."""
        asked = "\0".join((self.decision, self.approver, self.reason))
        return f"{self.model}/{self.version}/{self.number}/{hashlib.sha256(asked.encode()).hexdigest()[:16]}"

    @property
    def missing(self) -> str:
        """The tags that are still to be set, or empty."""
        given = zip(ASKED_TAGS, (self.decision, self.approver, self.reason), strict=True)
        return ", ".join(tag for tag, value in given if not value)


def answer(registry: Registry, key: str, outcome: str) -> None:
    """Write what became of the request of that key to its version, and take the request's tags off."""
    model, version, number, _ = key.rsplit("/", 3)
    now = TagRequest.on(registry.version(model, version))
    if str(now.number) != number:
        return  # answered already, by the run that this one repeats
    registry.set_version_tag(model, version, OUTCOME_TAG, outcome)
    registry.set_version_tag(model, version, ANSWERED_TAG, str(now.number + 1))
    if now.key == key:  # else someone changed the tags meanwhile, which is a new request
        for tag in ASKED_TAGS:
            registry.remove_version_tag(model, version, tag)


def remark(registry: Registry, request: TagRequest, outcome: str) -> None:
    """Tell who is setting the tags of a request what is still missing."""
    version = registry.version(request.model, request.version)
    if version.tags.get(OUTCOME_TAG) != outcome:
        registry.set_version_tag(request.model, request.version, OUTCOME_TAG, outcome)
