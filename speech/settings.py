"""The base of every table that a team writes: of the settings file, and of a recipe."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table with documented fields: unknown keys are errors, and nothing changes once it was read."""

    model_config = ConfigDict(extra="forbid", frozen=True)
