"""Batch transcription, as `[inference]` in soundstage.toml."""

import os
import re
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from deployment.aws import s3_place
from deployment.batch.webhooks import keys_of
from speech.diarization import DiarizationSettings
from speech.language import LanguageSettings
from speech.settings import Section, Share
from speech.understanding.personal import PersonalData
from speech.vad import VadSettings

HOUR_FORMAT = "%Y-%m-%d-%H"
HEARD = frozenset(  # what a transcript depends on; the others say where recordings come from and transcripts go to
    "channels loudness noise_reduction vad spoken_language speakers written_forms redact".split()
)
HOUR_KEY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{2}")


class JobSettings(Section):
    """Recordings that are given over HTTP, and who is told when they are transcribed; `[inference.jobs]`."""

    sources: tuple[str, ...] = Field(
        (),
        description="Places in S3 whose recordings a job may name by their URI, as s3://bucket/prefix; none: jobs are "
        "given their recording.",
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Signs notices to webhooks: `whsec_` and the base64 of at least 24 random bytes; several, with "
        "spaces between, while one takes another's place. Give it by SOUNDSTAGE_INFERENCE__JOBS__WEBHOOK_SECRET. None: "
        "jobs with a webhook are refused.",
    )
    webhook_http: bool = Field(False, description="Whether webhooks may be http:// too.")
    webhook_private: bool = Field(False, description="Whether webhooks may be in a private network.")
    topic: str | None = Field(None, description="ARN of an SNS topic that is told of each job that has ended.")

    @field_validator("sources")
    @classmethod
    def _are_in_s3(cls, places: tuple[str, ...]) -> tuple[str, ...]:
        for place in places:
            s3_place(place)
        return places

    @field_validator("topic")
    @classmethod
    def _is_a_topic(cls, topic: str | None) -> str | None:
        if topic is not None and not topic.startswith("arn:"):
            raise ValueError(f"must be the ARN of a topic, such as arn:aws:sns:eu-west-1:1234:jobs; got '{topic}'")
        return topic

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not keys_of(secret.get_secret_value()):
            raise ValueError("must not be empty")
        return secret


class ReviewSettings(Section):
    """What people are asked, and who answers; `[inference.review]`."""

    reviewers: tuple[str, ...] = Field(
        (), description="Names that may answer review tasks. Empty: nobody can, until the team names someone."
    )
    control_share: Share = Field(
        0.02,
        description="Share of the recordings that people hear whole however sure their transcript is, drawn by a hash "
        "of the recording: what confidence does not show.",
    )
    double_share: Share = Field(
        0.1,
        description="Share of the tasks that two people answer, neither knowing of the other; where they differ a "
        "third is asked. How much they differ is what people's own answers are worth. None, with fewer than three "
        "reviewers.",
    )
    claim_s: float = Field(
        600.0, gt=0, description="A task that somebody has before them is given to nobody else for so long (s)."
    )

    @property
    def doubled(self) -> float:
        """The share that two people answer, where there is a third to ask."""
        return self.double_share if len(set(self.reviewers)) > 2 else 0.0


class InferenceSettings(Section):
    """Recordings in, transcripts out, every hour."""

    uploads: str | None = Field(
        None,
        description="Folder that recordings arrive in, or s3://bucket/prefix; the first folder of a name may say the "
        "language: uploads/en/call.mp3. None: `uploads` in this machine's folder.",
    )
    queue: str | None = Field(
        None,
        description="Address of an SQS queue that gets the bucket's events, `s3:ObjectCreated:*`, also by way of SNS "
        "or EventBridge; None: the bucket is listed.",
    )
    first_hour: str | None = Field(
        None, description="First hour, UTC, as YYYY-MM-DD-HH; None: the first of `first_quarter`."
    )
    language: str | None = Field(
        None,
        description="Language of uploads that do not say it, and whose champion hears those that have none; None: the "
        "first of `languages`.",
    )
    publish_confidence: Share = Field(
        0.8, description="Transcripts whose mean confidence is above it are published, the others go to people."
    )
    alert_confidence: Share = Field(0.7, description="An hour whose mean confidence is below it is told to people.")
    written_forms: bool = Field(
        True,
        description="Numbers, amounts, dates and addresses as people write them, beside the words; in languages whose "
        "forms are known (de, en, es, fr, it, ru, tr), and where the model does not write so itself.",
    )
    alert_failed: Share = Field(
        0.2, description="An hour of whose new recordings more than this share cannot be used is told to people."
    )
    truth: str | None = Field(
        None,
        description="JSON lines of what was really said in recordings that arrive: `name` (of the upload) or `digest`, "
        "`text`, perhaps `domain`. Hours that have some of them say their word error rate.",
    )
    redact: tuple[PersonalData, ...] = Field(
        (),
        description="Kinds of personal data that published transcripts, review tasks and their clips may not hold: "
        'CREDIT_CARD, PHONE, EMAIL, IBAN, SSN. A label such as "[PHONE]" takes their place, and silence in the audio. '
        "None: all is kept.",
    )
    redaction_padding_s: float = Field(
        0.2, ge=0, description="Silence before and after what is taken out of the audio (seconds)."
    )
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="Recordings worked on at once.")
    channels: Literal["auto", "mix", "separate"] = Field(
        "auto",
        description="Channels of a recording: heard each alone where they hold different speakers, as in a call, and "
        "mixed where they are stereo of one scene (auto), always mixed, or always each alone.",
    )
    loudness: Annotated[float, Field(ge=-50, le=-5)] | Literal["off"] = Field(
        -23.0,
        description="Integrated loudness in LUFS that sounds are brought to before anybody listens, or 'off'. Models "
        "know the levels that they were trained on: far microphones cost them most of their words.",
    )
    noise_reduction: Literal["spectral-gating"] | None = Field(
        None, description="Takes noise out before anybody listens. Measure first: it makes most models worse."
    )
    vad: VadSettings = Field(default_factory=VadSettings)
    spoken_language: LanguageSettings = Field(default_factory=LanguageSettings)
    speakers: DiarizationSettings = Field(default_factory=DiarizationSettings)
    jobs: JobSettings = Field(default_factory=JobSettings)
    review: ReviewSettings = Field(default_factory=ReviewSettings)

    @field_validator("uploads")
    @classmethod
    def _is_a_folder_or_in_s3(cls, uploads: str | None) -> str | None:
        if uploads is not None and is_uri(uploads):
            s3_place(uploads)
        return uploads

    @field_validator("first_hour")
    @classmethod
    def _is_an_hour(cls, hour: str | None) -> str | None:
        try:
            if hour is not None and datetime.strptime(hour, HOUR_FORMAT).strftime(HOUR_FORMAT) != hour:
                raise ValueError("is written otherwise")
        except ValueError:
            raise ValueError(f"must be an hour such as 2026-11-01-00; got '{hour}'") from None
        return hour

    @model_validator(mode="after")
    def _queue_of_a_bucket(self) -> Self:
        if self.queue is not None and not is_uri(self.uploads or ""):
            raise ValueError(f"`queue` tells of a bucket: set `uploads` to s3://bucket/prefix; got '{self.uploads}'")
        return self

    def place(self, local: Path) -> str:
        """Where recordings arrive, as `arrivals.receive` wants it; `local` is this machine's folder."""
        return self.uploads or str(local / "uploads")

    def heard_with(self) -> dict[str, Any]:
        """What a transcript depends on, as JSON values: it keeps them, to be made again by."""
        return self.model_dump(mode="json", include=set(HEARD))

    def folder(self, local: Path) -> Path:
        """The folder that recordings arrive in, where they do not arrive in a bucket."""
        return Path(self.place(local)).expanduser()


def is_uri(place: str) -> bool:
    """Whether a place is written with a scheme, and so is no folder; `s3:/x` is a slip, and no folder either."""
    return "://" in place or place.startswith("s3:/")
