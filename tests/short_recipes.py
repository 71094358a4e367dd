"""The shipped recipes cut short: enough small steps to hear something, far too few to be good."""

from pathlib import Path

import yaml

from training.recipe import RECIPES

BASE_STEPS = 400  # a release refuses a model that hears nothing, as one of fewer steps does
FINETUNE_STEPS = 6
BATCH = {"seconds": 12, "utterances": 16}  # a third of the recipes': a step teaches as much, and costs a third

# So few steps teach little: tests with them are about what moves a model, so the measures may be as bad as they are.
SHORT_LIMITS = """
[corpus]
min_hours = 0.02

[gates]
wer = 1.0
cer = 1.0
slice_wer = 9.0
min_words = 50
min_speakers = 3
insertions_per_minute = 100000.0
"""


def write_short_recipes(folder: Path, base_steps: int = BASE_STEPS) -> str:
    """Write both recipes into `folder`; returns the settings that name them."""
    for name, steps in (("tiny", base_steps), ("finetune", FINETUNE_STEPS)):
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        recipe |= {"max_steps": steps, "evaluate_every": steps, "batch": BATCH}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return f'base_recipe = "{folder}/tiny.yaml"\nfinetune_recipe = "{folder}/finetune.yaml"\n'
