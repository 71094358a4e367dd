"""What goes over the wire as JSON. Every answer is made through these models, so what they describe is what is sent."""

from dataclasses import dataclass, fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from deployment.serving.core import Answer
from deployment.serving.problems import Problem
from deployment.serving.routing import LoadedModel
from speech.transcript import Transcript


class _Answer(BaseModel):
    """A field that is not described here is a fault, and not an addition."""

    model_config = ConfigDict(extra="forbid")


class ModelName(_Answer):
    """Which model wrote a transcript."""

    name: str = Field(description="Registered model.", examples=["soundstage-en"])
    version: str = Field(description="Its version in the registry; empty when released without one.", examples=["3"])
    digest: str = Field(description="SHA-256 that names the bundle, byte for byte.")

    @staticmethod
    def of(model: LoadedModel) -> "ModelName":
        """The name of a loaded model."""
        return ModelName(name=model.name, version=model.route.version, digest=model.digest)


@dataclass(frozen=True, kw_only=True)
class TranscriptAnswer(Transcript):
    """A transcript, and which model wrote it."""

    __pydantic_config__ = ConfigDict(json_schema_serialization_defaults_required=True)

    request_id: str
    model: ModelName

    @staticmethod
    def of(answer: Answer, request_id: str) -> "TranscriptAnswer":
        """What is sent for a transcript."""
        said = {part.name: getattr(answer.transcript, part.name) for part in fields(answer.transcript)}
        return TranscriptAnswer(**said, request_id=request_id, model=ModelName.of(answer.model))


class ModelAnswer(ModelName):
    """A model that requests can reach."""

    language: str
    share: float = Field(description="Share of the language's requests that it gets; 0: only when asked by digest.")


class Readiness(_Answer):
    """Whether requests should be sent here."""

    ready: bool
    languages: list[str]
    reason: str


class Health(_Answer):
    """That the process is alive."""

    status: str = "ok"


class ReleaseAnswer(_Answer):
    """What a replica runs, as its report says it, and the release document; null where that cannot be read."""

    running: dict[str, Any]
    wanted: dict[str, Any] | None


class ProblemDocument(BaseModel):
    """What every error answer holds (RFC 9457); some hold more members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="URN of the kind of problem.", examples=["urn:soundstage:problem:truncated"])
    title: str = Field(description="The kind of problem in words.")
    status: int = Field(description="The HTTP status again.")
    detail: str = Field(description="What is wrong in this request and what to do about it.")
    code: str = Field(description="Stable slug for programs.", examples=["truncated", "unknown-language", "busy"])
    request_id: str = Field(description="The X-Request-Id of this answer; quote it when you report a fault.")

    @staticmethod
    def of(problem: Problem, request_id: str) -> "ProblemDocument":
        """What is sent for a problem."""
        return ProblemDocument(
            **problem.extra,
            type=f"urn:soundstage:problem:{problem.code}",
            title=problem.title,
            status=problem.status,
            detail=problem.detail,
            code=problem.code,
            request_id=request_id,
        )
