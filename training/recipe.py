"""How a model is trained, as a typed document: everything that changes the result is a field here.

A recipe is a YAML file. The ones shipped in ``recipes/`` are known by name; any other is given by its
path. A run may override single fields by their dotted name ("optimizer.learning_rate=1e-3"). Unknown
fields are refused, so a misspelt setting cannot silently train another model.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from speech.settings import Section, Share

RECIPES = Path(__file__).parent / "recipes"

# Fields that say how a training runs and is told of, and leave its result alone.
EXECUTION: dict[str, Any] = {
    "description": True,
    "threads": True,
    "checkpoint_every_s": True,
    "checkpoint_every_steps": True,
    "report_every_s": True,
    "batch": {"workers", "cache_mb"},
}


class TrainingError(Exception):
    """A run that cannot start or go on for a reason that the user can mend; the message says how."""


class ModelSettings(Section):
    """The network: a cache-aware streaming FastConformer with a CTC head (Noroozi et al. 2023)."""

    width: int = Field(96, ge=8, description="Features per frame inside the encoder.")
    layers: int = Field(4, ge=1, description="Conformer blocks.")
    heads: int = Field(4, ge=1, description="Attention heads; must divide the width.")
    feed_forward_expansion: int = Field(4, ge=1, description="Width of the feed-forward layers, in encoder widths.")
    convolution_kernel: int = Field(9, ge=3, description="Frames that the causal convolution looks back.")
    subsampling_channels: int = Field(96, ge=8, description="Channels of the 8-fold subsampling in front.")
    attention_context: list[tuple[int, int]] = Field(
        default=[(70, 1)],
        min_length=1,
        description="[look-back, look-ahead] in frames of 80 ms. Several: one is drawn per batch, so that one"
        " model serves several latencies; the first is what a bundle is exported with.",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="A fine-tune that does not say it keeps its base's.")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="Likewise.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self


class TokenizerSettings(Section):
    """The output units, learnt from the normalised training text."""

    vocabulary_size: int = Field(
        256, ge=8, description="At most this many pieces; a small corpus gets as many as its words support."
    )
    sentences: int = Field(1_000_000, ge=1, description="At most this many distinct sentences are read.")


class BatchSettings(Section):
    """How utterances are put together for one step."""

    seconds: float = Field(120.0, gt=0, description="Audio of one batch on one device, padding included.")
    utterances: int = Field(64, ge=1, description="At most this many utterances in a batch.")
    accumulate: int = Field(1, ge=1, description="Batches per optimiser step: larger batches in less memory.")
    buckets: int = Field(8, ge=1, description="Duration classes; more waste less on padding and mix less.")
    longest_s: float = Field(40.0, gt=0, description="Longer training utterances are left out, and counted.")
    shortest_s: float = Field(0.1, gt=0, description="Shorter training utterances are left out, and counted.")
    workers: int = Field(0, ge=0, description="Processes that prepare batches; 0 prepares in the training process.")
    cache_mb: int = Field(2048, ge=0, description="Decoded audio kept in memory; beyond it, files are read again.")


class JoinSettings(Section):
    """Joining utterances of one speaker: more context, more kinds of endings, no two epochs alike."""

    probability: Share = Field(0.3, description="Share of examples that are joined from several.")
    parts: int = Field(3, ge=2, description="At most this many utterances in one example.")
    longest_s: float = Field(15.0, gt=0, description="Joined examples stay below this duration.")
    gap_s: tuple[float, float] = Field((0.0, 0.4), description="Pause between two parts, drawn from this range.")


class AugmentationSettings(Section):
    """What happens to the sound before it is learnt from; probabilities are per example."""

    join: JoinSettings = JoinSettings()
    speed: tuple[float, float] = Field((0.9, 1.1), description="Playing speed, drawn from this range; pitch follows.")
    speed_probability: Share = 0.7
    gain_db: tuple[float, float] = Field((-12.0, 6.0), description="Loudness change, drawn from this range.")
    noise_probability: Share = 0.5
    noise_snr_db: tuple[float, float] = Field((8.0, 35.0), description="Speech over noise, drawn from this range.")
    noise_folder: Path | None = Field(None, description="Recordings of noise; without it noise is synthesised.")
    nonspeech_probability: float = Field(
        0.05, ge=0, lt=1, description="Share of examples replaced by noise, babble or hum in which nobody says a word."
    )
    telephone_probability: Share = Field(0.0, description="Share band-limited to 300-3,400 Hz.")
    silence_s: tuple[float, float] = Field((0.0, 0.0), description="Pause before and after, drawn from this range.")
    frequency_masks: int = Field(2, ge=0, description="SpecAugment (Park et al. 2019).")
    frequency_mask_bands: int = Field(15, ge=1)
    time_masks: int = Field(2, ge=0)
    time_mask_share: float = Field(0.05, gt=0, le=1, description="Longest time mask, as a share of the example.")

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Self:
        for name in ("speed", "gain_db", "noise_snr_db", "silence_s"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} is above {high}")
        if self.speed[0] <= 0:
            raise ValueError("speed must be positive")
        return self


class OptimizerSettings(Section):
    """Muon for the encoder's matrices, AdamW for the rest; a linear warm-up, then a cosine down.

    Muon (Jordan et al. 2024) orthogonalises each matrix's update, so that rare directions are learnt as
    soon as frequent ones: from scratch it needs about a third of AdamW's steps here.
    """

    learning_rate: float = Field(3e-3, gt=0, description="AdamW's highest rate, reached after the warm-up.")
    matrix_learning_rate: float = Field(0.02, ge=0, description="Muon's highest rate; 0: AdamW for the matrices too.")
    final_share: Share = Field(0.0, description="What is left of both rates at the last step.")
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    average: float = Field(
        0.0, ge=0, lt=1, description="Decay of the running mean of the weights that is evaluated and kept; 0: none."
    )


class Recipe(Section):
    """One way of training an acoustic model."""

    name: str = "custom"
    description: str = ""
    start: Literal["scratch", "base"] = Field("scratch", description="'base' continues from a checkpoint.")
    max_steps: int = Field(ge=1, description="Optimiser steps.")
    start_longest_s: float = Field(
        0.0,
        ge=0,
        description="Longest utterance of the first step: a network that hears short answers first leaves CTC's blank"
        " plateau sooner (SortaGrad, Amodei et al. 2016). 0: utterances of any length from the start.",
    )
    lengthen_s_per_step: float = Field(0.01, gt=0, description="How fast that limit grows.")
    settle_steps: int = Field(
        0,
        ge=0,
        description="Steps at the start without dropout, masks and changes of the sound: a small network that first"
        " learns to listen to plain speech gets over CTC's blank plateau several times sooner.",
    )
    evaluate_every: int = Field(100, ge=1, description="Steps between two evaluations on the dev set.")
    dev_minutes: float = Field(30.0, gt=0, description="Audio of the dev set that is evaluated, a fixed sample.")
    patience: int = Field(0, ge=0, description="Evaluations without a better WER that end the run; 0: never.")
    keep: Literal["best", "last"] = Field("best", description="Which weights become the model.")
    checkpoint_every_s: float = Field(60.0, gt=0, description="Seconds between two checkpoints.")
    checkpoint_every_steps: int = Field(0, ge=0, description="Steps between two checkpoints; 0: by time alone.")
    report_every_s: float = Field(5.0, gt=0, description="Seconds between two lines of progress.")
    threads: int = Field(0, ge=0, description="CPU threads of the network; 0: one per core.")
    devices: int = Field(0, ge=0, description="GPUs (or CPU processes) trained on; 0: every GPU, or one process.")
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    variants: list[Literal["int8"]] = Field(
        default=[],
        description="Further networks in the bundle beside float32; int8 keeps weights in 8 bits, at half the size.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where the GPU can.")
    model: ModelSettings = ModelSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    batch: BatchSettings = BatchSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    optimizer: OptimizerSettings = OptimizerSettings()

    def deciding(self) -> dict[str, Any]:
        """The fields that decide what a training comes to, as plain JSON values."""
        return self.model_dump(mode="json", exclude=EXECUTION)


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name_or_path: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe by name or path, with single fields replaced.

    Override keys are field names, nested ones dotted or as mappings. Raises TrainingError with what is known.
    """
    path = RECIPES / f"{name_or_path}.yaml"
    if name_or_path not in recipe_names():
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            raise TrainingError(
                f"Unknown recipe '{name_or_path}': choose one of {', '.join(recipe_names())}, or give a .yaml file."
            )
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # a date that does not exist is a ValueError
        raise TrainingError(f"Recipe {path} cannot be read: {str(error).splitlines()[0].rstrip('.')}.") from error
    if not isinstance(document, dict):
        raise TrainingError(f"Recipe {path} must hold a mapping of settings.")
    document.setdefault("name", path.stem)
    for key, value in (overrides or {}).items():
        _replace(document, key, value)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        fault = error.errors()[0]
        field = ".".join(str(part) for part in fault["loc"]) or "recipe"
        raise TrainingError(f"Recipe {name_or_path}: '{field}' {_lower_first(fault['msg'])}.") from error


def _replace(document: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for inner, content in value.items():
            _replace(document, f"{key}.{inner}", content)
        return
    *sections, field = key.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise TrainingError(f"Override '{key}': '{section}' is not a section of the recipe.")
    document[field] = value


def _lower_first(message: str) -> str:
    message = message.removeprefix("Value error, ").rstrip(".")
    return message[:1].lower() + message[1:]
