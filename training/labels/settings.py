"""How label models are made, as `[label_models]` in soundstage.toml."""

import os

from pydantic import Field

from speech.settings import Section


class LabelTrainingSettings(Section):
    """A small TitaNet (Koluguri et al., 2022) that hears crops of 1 to 3 s.

    The defaults are made for minutes on two cores and for the embedded corpus; a model for thousands of real voices
    wants a width of 512 and some 50,000 steps on a GPU.
    """

    width: int = Field(128, ge=16, description="Channels of the encoder.")
    dimensions: int = Field(96, ge=8, description="Length of an embedding.")
    speaker_steps: int = Field(120, ge=1, description="Optimiser steps of the speaker model.")
    language_steps: int = Field(130, ge=1, description="Optimiser steps of the language model.")
    batch: int = Field(32, ge=2, description="Clips in a step.")
    learning_rate: float = Field(6e-3, gt=0, description="AdamW's highest rate.")
    per_speaker: int = Field(
        24, ge=2, description="Most utterances learnt of one speaker, so that who talks most does not count most."
    )
    longest_hours: float = Field(8.0, gt=0, description="Audio that is kept in memory; a fixed sample of the corpus.")
    foreign_clips: int = Field(
        16, ge=1, description="Clips of each language that is none of the deployment's, as examples of `unknown`."
    )
    seed: int = Field(0, description="Seed of initialisation, augmentation and order.")
    checkpoint_every_s: float = Field(30.0, gt=0, description="Seconds between two checkpoints.")
    command: str = Field(
        "soundstage train-labels",
        min_length=1,
        description="What trains: called with the path of a specification, it leaves a folder for each kind with "
        "`checkpoint.nemo`, `bundle/` and `training.json` in the folder named there.",
    )
    max_runtime_s: int = Field(7_200, gt=0, description="The training is stopped after this many seconds.")
    threads: int = Field(
        max(1, (os.cpu_count() or 1) // 2),
        ge=1,
        description="CPU threads of the training; more than cores that are free make it crawl.",
    )
