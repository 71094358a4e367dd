"""Fits a label model: one loop, seeded by the step, with a checkpoint that it goes on at."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.asr import Interrupted
from training.labels.data import Batches, Examples
from training.labels.network import new_model
from training.labels.settings import LabelTrainingSettings
from training.loop import load_state, save_state
from training.recipe import TrainingError

if TYPE_CHECKING:
    import torch
    from nemo.collections.asr.models.label_models import EncDecSpeakerLabelModel

WARMUP_SHARE = 0.1  # of the steps
SCALE = 16.0  # of the cosines of voices (Wang et al., 2017, "NormFace"); a margin is not learnt in so few steps
SMOOTHING = 0.05  # of a language's label: what is neither is often nearly one of them
WEIGHT_DECAY = 0.02
CLIP = 5.0  # gradients are scaled down to this norm
REPORT_EVERY_S = 5.0


@dataclass
class FittedLabels:
    """A trained label model and how it came about."""

    model: "EncDecSpeakerLabelModel"
    steps: int
    loss: float  # mean over the last tenth of the steps
    seconds: float  # training time, over all resumptions
    resumed_from: int | None


def fit_labels(
    examples: Examples,
    settings: LabelTrainingSettings,
    steps: int,
    checkpoints: Path,
    report: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> FittedLabels:
    """Train on the examples for so many steps, or go on at what is in `checkpoints`. NeMo has to be imported.

    Raises Interrupted after saving when `should_stop` says so, and TrainingError where the loss is no number any more.
    """
    import torch
    from nemo.core.classes.common import typecheck

    torch.set_num_threads(settings.threads)
    torch.set_flush_denormal(True)
    model = new_model(settings, len(examples.labels), settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY)
    saved = load_state(checkpoints, report)
    step, seconds, losses = 0, 0.0, list[float]()
    if saved is not None:
        model.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds, losses = saved["step"], saved["seconds"], saved["losses"]
    resumed_from = step if saved is not None else None
    batches = Batches(examples, settings)
    model.train()
    kept = told = began = time.monotonic()
    with typecheck.disable_checks(), ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batches.__getitem__, step)
        while step < steps:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _rate_of(step, steps)
            torch.manual_seed(settings.seed * 1_000_003 + step)  # dither and dropout of a step, whoever repeats it
            clips, classes = coming.result()
            coming = ahead.submit(batches.__getitem__, step + 1)  # the next is made while this one is learnt
            loss = _loss(model, clips, classes, by_cosine=examples.kind == "speaker")
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            losses = [*losses, float(loss.detach())][-max(1, steps // 10) :]
            step += 1
            if not math.isfinite(losses[-1]):
                raise TrainingError(f"The loss is no longer a number at step {step}: lower learning_rate.")
            now = time.monotonic()
            stopping = should_stop() and step < steps
            if stopping or step == steps or now - kept > settings.checkpoint_every_s:
                kept = now
                save_state(
                    checkpoints,
                    {
                        "step": step,
                        "seconds": seconds + now - began,
                        "losses": losses,
                        "weights": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                    },
                )
            if stopping:
                raise Interrupted(step)
            if now - told > REPORT_EVERY_S:
                told = now
                left_s = (now - began) / (step - (resumed_from or 0)) * (steps - step)
                report(f"{examples.kind}: step {step}/{steps}, loss {np.mean(losses):.3f}, {left_s:.0f} s to go")
    model.eval()
    return FittedLabels(
        model, step, float(np.mean(losses)) if losses else math.nan, seconds + time.monotonic() - began, resumed_from
    )


def _loss(model: Any, clips: np.ndarray, classes: np.ndarray, *, by_cosine: bool) -> "torch.Tensor":
    """Cross-entropy over the classes, or over the cosines between embeddings and classes."""
    import torch
    from torch.nn import functional

    signal, labels = torch.from_numpy(clips), torch.from_numpy(classes)
    lengths = torch.full((len(clips),), clips.shape[1])
    frames, counts = model.preprocessor(input_signal=signal, length=lengths)
    encoded, counts = model.encoder(audio_signal=frames, length=counts)
    logits, embeddings = model.decoder(encoder_output=encoded, length=counts)
    if not by_cosine:
        return functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
    cosines = functional.normalize(embeddings) @ functional.normalize(model.decoder.final.weight).T
    return functional.cross_entropy(SCALE * cosines, labels)


def _rate_of(step: int, steps: int) -> float:
    """Share of the highest learning rate in use at a step: linear warm-up, then a cosine down to nothing."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
