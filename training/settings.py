"""How a deployment makes its models, as `[training]` in soundstage.toml."""

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field

from speech.settings import Section
from training.recipe import TrainingError, load_recipe


class TrainingSettings(Section):
    """How models are made."""

    base: dict[str, str] = Field(
        default_factory=dict,
        description="Per language: a published checkpoint's name or a trusted `.nemo` path; a language not named here "
        "is trained from scratch with `base_recipe` on the `base_quarters` first quarters.",
    )
    base_recipe: str = Field("tiny", description="Recipe of a base model trained from scratch (name or YAML path).")
    finetune_recipe: str = Field("finetune", description="Recipe of the quarterly fine-tune (name or YAML path).")
    base_quarters: int = Field(1, ge=1, description="Quarters, from the first, that a base model learns from.")
    window: int = Field(4, ge=1, description="Quarters that a fine-tune reads: its own and those before it.")
    seed: int = Field(0, description="Seed of initialisation, augmentation and order.")
    threads: int = Field(
        max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        description="CPU threads of a training process; half the cores, since two run side by side. More threads than "
        "cores make both crawl.",
    )
    max_runtime_s: int = Field(
        7_200, gt=0, description="A training process is stopped after this many seconds; it leaves a checkpoint."
    )
    command: str = Field(
        "soundstage train",
        min_length=1,
        description="What trains: called with the path of a specification, it leaves `checkpoint.nemo`, `bundle/` and "
        "`training.json` in the folder named there (the whole contract stands in speech_assets/defs/processes.py).",
    )
    pool: Literal["training", "gpu"] = Field(
        "training",
        description="Pool that trainings queue in; `gpu` where they share the devices with other work. Its limit, and "
        "those of the other pools, are in [pools].",
    )
    price_per_device_hour: float = Field(
        0.0,
        ge=0,
        description="What an hour of one device (a GPU, or a machine without one) costs, in your currency; `cost` of "
        "a model in Dagster is its training's device hours times this. 0: no cost is shown.",
    )
    overrides: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="Recipe fields to replace in both recipes, such as `max_steps`."
    )

    def under(self, folder: Path) -> Self:
        """The same settings; relative paths of recipes and base models are relative to `folder`."""
        recipes = {
            name: str(folder / Path(recipe).expanduser())
            for name in ("base_recipe", "finetune_recipe")
            if (recipe := getattr(self, name)).endswith((".yaml", ".yml"))
        }
        base = {
            tag: str(folder / Path(base).expanduser()) if base.endswith(".nemo") else base
            for tag, base in self.base.items()
        }
        return self.model_copy(update={"base": base, **recipes})

    def problem(self) -> str | None:
        """What keeps a recipe from being read, or an override from being laid over it."""
        for field in ("base_recipe", "finetune_recipe"):
            named = field
            try:
                load_recipe(getattr(self, field))
                named = "overrides"
                load_recipe(getattr(self, field), self.overrides)
            except TrainingError as error:
                return f"training.{named}: {error}"
        return None
