"""Batch transcription, as `[inference]` in soundstage.toml."""

import os
import re
from pathlib import Path

from pydantic import Field, field_validator

from speech.settings import Section, Share
from speech.vad import VadSettings

HOUR_FORMAT = "%Y-%m-%d-%H"
HOUR_KEY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}-[0-9]{2}")


class InferenceSettings(Section):
    """Recordings in, transcripts out, every hour."""

    uploads: str | None = Field(
        None,
        description="Folder that recordings arrive in; the first folder of a name may say the language: "
        "uploads/en/call.mp3. None: `uploads` in this machine's folder.",
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
    workers: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, description="Recordings worked on at once.")
    vad: VadSettings = Field(default_factory=VadSettings)

    @field_validator("first_hour")
    @classmethod
    def _is_an_hour(cls, hour: str | None) -> str | None:
        if hour is not None and not HOUR_KEY.fullmatch(hour):
            raise ValueError(f"must be an hour such as 2026-11-01-00; got '{hour}'")
        return hour

    def folder(self, local: Path) -> Path:
        """Where recordings arrive; `local` is this machine's folder."""
        return Path(self.uploads).expanduser() if self.uploads else local / "uploads"
