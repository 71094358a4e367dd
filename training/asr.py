"""Acoustic models: a cache-aware streaming FastConformer with CTC over BPE pieces, fitted with NeMo.

`fit` builds the network of a recipe (or continues from a base model), trains it on whatever the machine has, and leaves
the weights that did best on the dev set in a NeMo model. NeMo brings the network, the features and the checkpoint
format.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.batches import Corpus
from training.data import SplitRows, corpus_of
from training.loop import Progress, cores, hardware, load_state, module_of, run_loop
from training.network import FRAMES_PER_SECOND, calibrate_subsampling, load_base, new_model, quiet_nemo
from training.readings import readings_said
from training.recipe import Recipe, TrainingError
from training.tokenizer import coverage_of, train_tokenizer

if TYPE_CHECKING:
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE


class Interrupted(Exception):
    """The run was asked to stop; its state is in the checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"Stopped at step {step}; the same command goes on from there.")


@dataclass
class Fitted:
    """A trained model and how it came about."""

    model: "EncDecCTCModelBPE"
    steps: int
    epochs: int
    loss: float | None
    dev_wer: float
    dev_cer: float
    seconds: float  # training time, over all resumptions
    audio_hours_seen: float
    resumed_from: int | None
    parameters: int
    hardware: dict[str, Any]
    history: list[dict[str, float]]
    readings: dict[str, Any] | None  # of numbers, told by the base model; None from scratch
    findings: list[str]  # what there was to say about the text and about what training came to


def fit(
    recipe: Recipe,
    train: SplitRows,
    dev: SplitRows,
    *,
    language: str,
    checkpoints: Path,
    base: str | None = None,
    seed: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Train the recipe's model and return it with the weights to keep.

    Goes on from what is in `checkpoints`, which is of this training alone. Raises TrainingError for data or a base
    that cannot be used, Interrupted after saving when `should_stop` says so.
    """
    if recipe.start == "base" and not base:
        raise TrainingError(f"Recipe '{recipe.name}' continues from a base model: give one (base).")
    if recipe.start != "base" and base:
        raise TrainingError(f"Recipe '{recipe.name}' starts from scratch: leave the base out or use 'finetune'.")
    # Text and audio first: a fault in them shows within seconds, before the long import.
    report(Progress("reading audio", 0, recipe.max_steps))
    corpus = corpus_of(train, recipe)
    dev_corpus = corpus_of(dev, recipe, bound_s=recipe.dev_minutes * 60)
    findings: list[str] = []
    tokenizer = None
    if recipe.start != "base":
        size = recipe.tokenizer.vocabulary_size
        if uncovered := coverage_of(corpus.texts, language, size).finding:
            findings.append(uncovered)
            report(Progress("tokenizer", 0, recipe.max_steps, finding=uncovered))
        tokenizer = train_tokenizer(corpus.texts, language, checkpoints / "tokenizer", size, recipe.tokenizer.sentences)
    corpus.cache.fill(corpus.utterances)
    dev_corpus.cache.fill(dev_corpus.utterances)
    report(Progress("loading NeMo", 0, recipe.max_steps))
    quiet_nemo()
    import torch

    torch.set_num_threads(recipe.threads or cores())
    torch.set_flush_denormal(True)
    report(Progress("building the model", 0, recipe.max_steps))
    chosen = None
    if tokenizer is None:
        model = load_base(str(base), recipe, checkpoints / "tokenizer")
        report(Progress("hearing how numbers were read", 0, recipe.max_steps))
        learnt = readings_said(model, corpus, language, checkpoints / "readings-train.json")
        measured = readings_said(model, dev_corpus, language, checkpoints / "readings-dev.json")
        corpus.texts, dev_corpus.texts = list(learnt.texts), list(measured.texts)
        several, heard = learnt.several + measured.several, len(learnt.texts) + len(measured.texts)
        said = f"readings of written forms chosen for {several:,} of {heard:,} utterances"
        report(Progress("building the model", 0, recipe.max_steps, finding=said))
        chosen = {
            name: {"several": found.several, "other": found.other, "digest": found.digest}
            for name, found in (("train", learnt), ("dev", measured))
        }
        _require_known_characters(model, corpus.texts, str(base))
    else:
        model = new_model(recipe, tokenizer, seed)
        typical = sorted(range(len(corpus.texts)), key=lambda index: (corpus.durations_s[index], index))
        step = max(1, len(typical) // 50)
        calibrate_subsampling(
            model, [corpus.cache.samples(corpus.utterances[index]) / np.float32(32_768) for index in typical[::step]]
        )
    # Devices evaluate their own share of the dev set: none may wait for the others within the encoder.
    model.encoder.sync_max_audio_length = False
    corpus.tokens = [model.tokenizer.text_to_ids(text) for text in corpus.texts]
    if too_long := _too_long(corpus, int(model.encoder.subsampling_factor) / FRAMES_PER_SECOND):
        findings.append(too_long)
        report(Progress("tokenizer", 0, recipe.max_steps, finding=too_long))
    state = load_state(checkpoints, lambda said: report(Progress("resuming", 0, recipe.max_steps, finding=said)))
    module = module_of(model, recipe, corpus, dev_corpus, checkpoints, seed, state, report, should_stop)
    run_loop(module, recipe)
    if module.interrupted:
        raise Interrupted(module.step)
    if recipe.keep == "best":
        model.load_state_dict(module.best["weights"])
        result = module.best
        if recipe.start == "base" and result["step"] == 0:
            findings.append(
                f"the base was kept: at none of {module.step} steps was the dev WER below its {result['wer']:.2%}, so"
                " training taught nothing; a lower optimizer.learning_rate, other augmentation or more audio may"
            )
            report(Progress("choosing", module.step, recipe.max_steps, finding=findings[-1]))
    else:
        model.load_state_dict(module.last_weights())
        result = module.history[-1]
    model.eval()
    return Fitted(
        model=model.cpu(),
        steps=module.step,
        epochs=module.epoch,
        loss=module.loss,
        dev_wer=result["wer"],
        dev_cer=result["cer"],
        seconds=module.seconds,
        audio_hours_seen=module.audio_s / 3600,
        resumed_from=None if state is None else int(state["step"]),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        hardware=hardware(recipe),
        history=module.history,
        readings=chosen,
        findings=findings,
    )


def _require_known_characters(model: "EncDecCTCModelBPE", texts: Sequence[str], base: str) -> None:
    unknown = model.tokenizer.tokenizer.unk_id()
    used = sorted({character for text in texts for character in text} - {" "})
    if missing := [character for character in used if unknown in model.tokenizer.text_to_ids(character)]:
        raise TrainingError(
            f"Base model '{base}' cannot write {len(missing)} characters of the training text"
            f" ({' '.join(missing[:10])}): choose a base of this language, or train from scratch."
        )


def _too_long(corpus: Corpus, frame_s: float) -> str:
    """Say how many utterances have more pieces than the network has outputs, which CTC cannot align; "": none."""
    rows = zip(corpus.tokens, corpus.durations_s, strict=True)
    # between two equal pieces stands a blank
    needed = ((len(t) + sum(a == b for a, b in itertools.pairwise(t)), duration) for t, duration in rows)
    count = sum(pieces > math.ceil(duration_s / frame_s) for pieces, duration_s in needed)
    if not count:
        return ""
    return (
        f"{count:,} of {len(corpus.tokens):,} training utterances have more pieces than the network has outputs (one in"
        f" {frame_s * 1000:.0f} ms), and nothing is learnt from them: raise tokenizer.vocabulary_size"
    )
