"""Where recordings come from, as `[[sources]]` in soundstage.toml."""

from datetime import date
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from speech.settings import Section


class Defaults(Section):
    """What to assume where the rows of a source do not say it."""

    language: str | None = Field(
        None,
        description="Language of rows that do not say it; None: the only one of `languages`, or the rows must say it.",
    )
    domain: str = Field("unknown", description="Domain of rows that do not say it.")
    recorded_at: date | None = Field(None, description="Date of rows that do not say it; it decides their quarter.")
    speaker: str | None = Field(
        None, description="Speaker of rows that do not say it, for a source of one voice; None: the rows must say it."
    )
    audio_root: str | None = Field(
        None,
        description="Folder that the recordings' paths are relative to; None: the manifest's own. A Kaldi recipe's are "
        "relative to where it is run.",
    )


class Source(Defaults):
    """Where the recordings of one or more languages come from."""

    kind: Literal["synthetic", "reviewed", "kaldi", "table", "nemo", "lhotse", "common_voice"] = Field(
        description="How transcripts and audio are laid out; `synthetic` is the embedded corpus, and `reviewed` what "
        "people wrote on the review page."
    )
    path: str | None = Field(
        None, description="Folder or manifest file of the source; not used by `synthetic` and `reviewed`."
    )

    @model_validator(mode="after")
    def _path_where_needed(self) -> Self:
        if self.kind not in ("synthetic", "reviewed") and not self.path:
            raise ValueError(f"a source of kind '{self.kind}' needs a path")
        return self

    def under(self, folder: Path) -> Self:
        """The same source; its relative places are relative to `folder`."""
        places = {name: given for name in ("path", "audio_root") if (given := getattr(self, name))}
        return self.model_copy(update={name: str(folder / Path(given).expanduser()) for name, given in places.items()})
