"""The training loop: one Lightning module, one learning-rate function of the step, one atomic checkpoint file.

All randomness of a step is seeded by the step, so a run that was killed and resumed does what it would have done.
"""

import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from speech.scripts import join_words
from speech.store.outputs import replacing
from speech.text import words_of
from training.batches import BatchMaker, Corpus, StepSampler, collate
from training.recipe import Recipe, TrainingError

if TYPE_CHECKING:
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE

KEPT_STATE = ("step", "epoch", "loss", "audio_s", "seconds", "history", "best", "stale")  # of a run, beside weights
KEPT_CHECKPOINTS = 2  # the newest, and the one before it should the newest be torn or damaged
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Progress:
    """Where a run is; `loss` is the mean since the last report, `wer` the last dev result."""

    phase: str
    step: int
    max_steps: int
    epoch: int = 0
    loss: float | None = None
    wer: float | None = None
    cer: float | None = None
    learning_rate: float | None = None
    audio_s_per_s: float | None = None
    eta_s: float | None = None
    finding: str = ""  # about the data, for a person to read


def rate_of(step: int, recipe: Recipe) -> float:
    """Share of the highest learning rates in use at a step (from 0): linear warm-up, then a cosine."""
    settings = recipe.optimizer
    warmup = min(settings.warmup_steps, recipe.max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, recipe.max_steps - warmup))
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * done))


def word_errors(references: Sequence[str], hypotheses: Sequence[str], language: str) -> dict[str, int]:
    """Count word and character edits and lengths as evaluation does, to be added up over batches and devices."""
    import jiwer

    expected, heard = ([words_of(text, language) for text in texts] for texts in (references, hypotheses))
    words = jiwer.process_words(list(map(" ".join, expected)), list(map(" ".join, heard)))
    characters = jiwer.process_characters(list(map(join_words, expected)), list(map(join_words, heard)))
    return {
        "word_edits": words.substitutions + words.deletions + words.insertions,
        "words": words.hits + words.substitutions + words.deletions,
        "character_edits": characters.substitutions + characters.deletions + characters.insertions,
        "characters": characters.hits + characters.substitutions + characters.deletions,
    }


def greedy_texts(model: "EncDecCTCModelBPE", sounds: Sequence[Any]) -> list[str]:
    """Return what the model hears in each sound (float32, 16 kHz), by the best piece of every frame."""
    import torch

    batch = collate(sounds, [[]] * len(sounds))
    device = next(model.parameters()).device
    with torch.inference_mode():
        log_probs, lengths, _ = model.forward(
            input_signal=batch["audio"].to(device), input_signal_length=batch["audio_lengths"].to(device)
        )
        best = log_probs.argmax(dim=-1).cpu()
    blank = log_probs.shape[-1] - 1
    texts = []
    for row, length in zip(best, lengths.cpu().tolist(), strict=True):
        pieces = torch.unique_consecutive(row[: int(length)]).tolist()
        texts.append(model.tokenizer.ids_to_text([piece for piece in pieces if piece != blank]))
    return texts


def evaluate(model: "EncDecCTCModelBPE", corpus: Corpus, rank: int = 0, world_size: int = 1) -> dict[str, int]:
    """Word and character errors of every `world_size`-th utterance from `rank` on."""
    model.eval()
    order = sorted(range(len(corpus.utterances)), key=lambda index: corpus.durations_s[index])[rank::world_size]
    totals: dict[str, int] = {"word_edits": 0, "words": 0, "character_edits": 0, "characters": 0}
    for start in range(0, len(order), 16):
        chosen = order[start : start + 16]
        sounds = [corpus.cache.samples(corpus.utterances[index]).astype("float32") / 32_768 for index in chosen]
        references = [corpus.texts[index] for index in chosen]
        language = corpus.utterances[chosen[0]].language
        for key, count in word_errors(references, greedy_texts(model, sounds), language).items():
            totals[key] += count
    return totals


def run_loop(module: Any, recipe: Recipe) -> None:
    """Train the module of `module_of` to its last step, on every GPU that the recipe may use or on the CPU."""
    import lightning.pytorch as lightning
    import torch

    gpu = _on_gpu(recipe)
    devices: int | str = recipe.devices or ("auto" if gpu else 1)
    trainer = lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=devices,
        strategy="ddp" if devices not in (1, "auto") or (gpu and torch.cuda.device_count() > 1) else "auto",
        precision=_precision(recipe),
        max_steps=recipe.max_steps - module.step,
        max_epochs=-1,
        gradient_clip_val=recipe.optimizer.clip,
        accumulate_grad_batches=recipe.batch.accumulate,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        barebones=False,
    )
    if module.step >= recipe.max_steps:
        if not module.history or module.history[-1]["step"] < module.step:
            module.evaluate()
        return
    trainer.fit(module)
    if torch.distributed.is_initialized():  # what follows, export among it, is the first device's work alone
        torch.distributed.destroy_process_group()


def module_of(
    model: "EncDecCTCModelBPE",
    recipe: Recipe,
    corpus: Corpus,
    dev: Corpus,
    checkpoints: Path,
    seed: int,
    state: Mapping[str, Any] | None,
    report: Callable[[Progress], None],
    should_stop: Callable[[], bool],
) -> Any:
    """Return the Lightning module of a run. Made in a function: Lightning is imported only when a run starts."""
    import lightning.pytorch as lightning
    import torch

    on_sigterm = signal.getsignal(signal.SIGTERM)

    class Run(lightning.LightningModule):
        """Loss, schedule, dev evaluation, checkpoints and progress of one run."""

        def __init__(self) -> None:
            super().__init__()
            self.asr = model
            self.step = 0
            self.epoch = 0
            self.loss: float | None = None
            self.audio_s = 0.0
            self.seconds = 0.0
            self.history: list[dict[str, float]] = []
            self.best: dict[str, Any] = {}
            self.interrupted = False
            self.average: dict[str, torch.Tensor] = {}
            self._optimizer_state: dict[str, Any] | None = None
            self.stale = 0
            if state is not None:
                self._restore(state)
            if recipe.optimizer.average and not self.average:
                self.average = {name: value.detach().clone() for name, value in self._floats()}
            now = time.monotonic()
            self._last_tick = self._last_report = self._last_checkpoint = now
            self._losses: list[torch.Tensor] = []
            self._dropouts = [(part, part.p) for part in self.asr.modules() if isinstance(part, torch.nn.Dropout)]
            self._masks = self.asr.spec_augmentation
            self._audio_at_report = self.audio_s
            self._start_step, self._start_seconds = self.step, self.seconds

        # -- what Lightning asks for

        def configure_optimizers(self) -> torch.optim.Optimizer:
            optimizer = _optimizer(self.asr, recipe)
            if self._optimizer_state is not None:
                optimizer.load_state_dict(self._optimizer_state)
                self._optimizer_state = None
            return optimizer

        def train_dataloader(self) -> Any:
            sampler = StepSampler(
                corpus,
                recipe.batch,
                recipe.augmentation.join,
                seed,
                start=self.step * recipe.batch.accumulate,
                rank=self.global_rank,
                world_size=self.trainer.world_size,
                start_longest_s=recipe.start_longest_s,
                lengthen_s_per_step=recipe.lengthen_s_per_step / recipe.batch.accumulate,
            )
            workers = recipe.batch.workers
            return torch.utils.data.DataLoader(
                BatchMaker(corpus, recipe.augmentation, seed, unchanged=recipe.settle_steps * recipe.batch.accumulate),  # type: ignore[arg-type]
                sampler=sampler,
                batch_size=None,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                prefetch_factor=4 if workers else None,
            )

        def on_train_start(self) -> None:
            # Lightning's own handler ends the process with code 0 and on each device at another step.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
            self.average = {name: value.to(self.device) for name, value in self.average.items()}
            self._last_tick = time.monotonic()
            if recipe.start == "base" and not self.history:
                self.evaluate()  # the base is a candidate too: a fine-tune never ends worse on dev than it began
            # Lightning leaves the mode as it finds it, and dropout and dither would begin with the first evaluation.
            self.asr.train()

        def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
            # Dropout and masks of a step depend on the step alone, so that resuming repeats them.
            torch.manual_seed(hash((seed, self.step, batch_index % recipe.batch.accumulate, self.global_rank)) % 2**63)
            settled = self.step >= recipe.settle_steps
            for part, probability in self._dropouts:
                part.p = probability if settled else 0.0
            self.asr.spec_augmentation = self._masks if settled else None
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group["highest_lr"] * rate_of(self.step, recipe)

        def training_step(self, batch: dict[str, Any], batch_index: int) -> torch.Tensor:
            log_probs, lengths, _ = self.asr.forward(
                input_signal=batch["audio"], input_signal_length=batch["audio_lengths"]
            )
            loss: torch.Tensor = torch.nn.functional.ctc_loss(
                log_probs.float().transpose(0, 1),
                batch["tokens"],
                lengths,
                batch["token_lengths"],
                blank=log_probs.shape[-1] - 1,
                reduction="none",
                zero_infinity=True,
            ).mean()
            if not torch.isfinite(loss):
                raise TrainingError(
                    f"The loss is no longer a number at step {self.step}: lower optimizer.learning_rate or raise"
                    " optimizer.warmup_steps."
                )
            self._losses.append(loss.detach())
            self.audio_s += float(batch["seconds"]) * self.trainer.world_size
            self.epoch = max(self.epoch, int(batch["epoch"]))
            return loss

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_index: int) -> None:
            if (batch_index + 1) % recipe.batch.accumulate:
                return
            self.step += 1
            now = time.monotonic()
            self.seconds += now - self._last_tick
            self._last_tick = now
            self._follow_average()
            if now - self._last_report >= recipe.report_every_s:
                self._report(now)
            done = self.step >= recipe.max_steps
            if done or self.step % recipe.evaluate_every == 0:
                self.evaluate()
            stop = self._agreed(should_stop())
            every = recipe.checkpoint_every_steps
            due = self._agreed(now - self._last_checkpoint >= recipe.checkpoint_every_s)
            if done or stop or due or (every and self.step % every == 0):
                self._save()
            if stop and not done:
                self.interrupted = True
                self.trainer.should_stop = True
            if recipe.patience and self.stale >= recipe.patience:
                self.trainer.should_stop = True

        # -- our own

        def evaluate(self) -> None:
            """Measure the weights that would be kept, and keep them when they are the best so far."""
            began = time.monotonic()
            current = None
            if self.average:
                current = {name: value.detach().clone() for name, value in self._floats()}
                self._load_floats(self.average)
            counts = evaluate(self.asr, dev, self.global_rank, self._world())
            counts = self._summed(counts)
            wer = counts["word_edits"] / max(1, counts["words"])
            cer = counts["character_edits"] / max(1, counts["characters"])
            if not self.best or (wer, cer) < (self.best["wer"], self.best["cer"]):
                weights = {name: value.detach().cpu().clone() for name, value in self.asr.state_dict().items()}
                self.best = {"wer": wer, "cer": cer, "step": self.step, "weights": weights}
                self.stale = 0
            else:
                self.stale += 1
            if current is not None:
                self._load_floats(current)
            self.asr.train()
            self._flush_losses()
            learnt = {} if self.loss is None else {"loss": self.loss}
            self.history.append(
                {"step": self.step, "wer": wer, "cer": cer, **learnt, "seconds": round(self.seconds, 3)}
            )
            spent = time.monotonic() - began
            self.seconds += spent
            self._last_tick += spent
            self._report(time.monotonic(), phase="evaluated")

        def last_weights(self) -> dict[str, torch.Tensor]:
            if self.average:
                self._load_floats(self.average)
            return dict(self.asr.state_dict())

        def _floats(self) -> list[tuple[str, torch.Tensor]]:
            return [(name, value) for name, value in self.asr.named_parameters() if value.is_floating_point()]

        @torch.no_grad()
        def _load_floats(self, values: Mapping[str, torch.Tensor]) -> None:
            for name, parameter in self._floats():
                parameter.copy_(values[name])

        @torch.no_grad()
        def _follow_average(self) -> None:
            if not self.average:
                return
            # A young average would be dominated by the random start: its memory grows with the steps.
            decay = min(recipe.optimizer.average, (1 + self.step) / (10 + self.step))
            names, values = zip(*self._floats(), strict=True)
            torch._foreach_lerp_([self.average[name] for name in names], list(values), 1 - decay)

        def _flush_losses(self) -> None:
            if self._losses:
                self.loss = float(torch.stack(self._losses).mean())
                self._losses = []

        def _report(self, now: float, phase: str = "training") -> None:
            self._flush_losses()
            elapsed = max(1e-6, now - self._last_report)
            pace = (self.seconds - self._start_seconds) / max(1, self.step - self._start_step)
            latest = self.history[-1] if self.history else {}
            report(
                Progress(
                    phase=phase,
                    step=self.step,
                    max_steps=recipe.max_steps,
                    epoch=self.epoch,
                    loss=self.loss,
                    wer=latest.get("wer"),
                    cer=latest.get("cer"),
                    learning_rate=recipe.optimizer.learning_rate * rate_of(max(0, self.step - 1), recipe),
                    audio_s_per_s=round((self.audio_s - self._audio_at_report) / elapsed, 1),
                    eta_s=round(pace * (recipe.max_steps - self.step), 1) if self.step > self._start_step else None,
                )
            )
            self._last_report, self._audio_at_report = now, self.audio_s

        def _world(self) -> int:
            return int(self.trainer.world_size) if self._trainer is not None else 1

        def _agreed(self, wish: bool) -> bool:
            """All devices must save and stop at the same step, or they would wait for each other for ever."""
            if self._world() == 1:
                return wish
            return bool(self.trainer.strategy.reduce_boolean_decision(wish, all=False))

        def _summed(self, counts: dict[str, int]) -> dict[str, int]:
            if self._world() == 1:
                return counts
            totals = torch.tensor(list(counts.values()), dtype=torch.float64, device=self.device)
            summed = self.trainer.strategy.reduce(totals, reduce_op="sum")
            return dict(zip(counts, (int(value) for value in summed), strict=True))

        def _save(self) -> None:
            if self.global_rank == 0:
                optimizer = self.trainer.optimizers[0]
                save_state(
                    checkpoints,
                    {
                        **{name: getattr(self, name) for name in KEPT_STATE},
                        "average": {name: value.cpu() for name, value in self.average.items()},
                        "weights": {name: value.cpu() for name, value in self.asr.state_dict().items()},
                        "optimizer": optimizer.state_dict(),
                    },
                )
            self._last_checkpoint = time.monotonic()

        def _restore(self, saved: Mapping[str, Any]) -> None:
            self.asr.load_state_dict(saved["weights"])
            for name in (*KEPT_STATE, "average"):
                setattr(self, name, saved[name])
            self._optimizer_state = saved["optimizer"]

    return Run()


def _optimizer(model: "EncDecCTCModelBPE", recipe: Recipe) -> Any:
    """Return Muon and AdamW as one optimiser, each with its share of the parameters."""
    import torch

    settings = recipe.optimizer
    matrices: list[torch.nn.Parameter] = []
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, value in model.named_parameters():
        if not value.requires_grad:
            continue
        if settings.matrix_learning_rate and value.ndim == 2 and "encoder.layers" in name and "pos_bias" not in name:
            matrices.append(value)
        else:
            # Biases and norms are left undecayed: shrinking them regularises nothing.
            (decayed if value.ndim > 1 else plain).append(value)
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.learning_rate,
            betas=settings.betas,
        )
    ]
    if matrices:
        parts.append(
            torch.optim.Muon(
                matrices, lr=settings.matrix_learning_rate, momentum=0.95, weight_decay=settings.weight_decay
            )
        )
    for part in parts:
        for group in part.param_groups:
            group["highest_lr"] = group["lr"]

    class Together(torch.optim.Optimizer):
        """Steps its parts one after the other; shares their parameter groups with who sets the rates."""

        def __init__(self) -> None:
            super().__init__([value for part in parts for group in part.param_groups for value in group["params"]], {})
            self.param_groups = [group for part in parts for group in part.param_groups]

        def step(self, closure: Any = None) -> Any:
            loss = closure() if closure is not None else None
            for part in parts:
                part.step()
            return loss

        def state_dict(self) -> dict[str, Any]:
            return {"parts": [part.state_dict() for part in parts]}

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            for part, state in zip(parts, state_dict["parts"], strict=True):
                part.load_state_dict(state)
            self.param_groups = [group for part in parts for group in part.param_groups]

    return Together()


class _Digesting:
    """A stream that keeps the SHA-256 of what is written through it: a second pass would cost as much as the first."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self._stream.write(data)

    def flush(self) -> None:
        self._stream.flush()


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint so that a kill at any time leaves either the whole file or none; drop old ones.

    The file ends in the SHA-256 of what stands before: torch reads other weights from changed bytes without a word.
    """
    import torch

    path = folder / f"step-{state['step']:09d}.pt"
    with replacing(path) as stream:
        digesting = _Digesting(stream)
        torch.save(dict(state), digesting)  # type: ignore[arg-type]  # it writes from the beginning to the end
        stream.write(digesting.sha256.digest())
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, told: Callable[[str], None] = lambda finding: None) -> dict[str, Any] | None:
    """Return the newest whole checkpoint in a run's folder; torn and damaged ones are passed over.

    `told` hears what was passed over, and from which step the run goes on.
    """
    import torch

    passed_over: list[str] = []
    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            if not _whole(path):
                raise ValueError("its bytes are not those that were written")
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever torch raises
            passed_over.append(f"{path.name} is passed over ({_first_line(error)})")
            continue
        told("; ".join([*passed_over, f"going on at step {state['step']}"]))
        return state
    if passed_over:
        told("; ".join([*passed_over, "starting from the beginning"]))
    return None


def _whole(path: Path) -> bool:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - digest.digest_size
        while left > 0 and (block := file.read(min(left, READ_BYTES))):
            digest.update(block)
            left -= len(block)
        return left == 0 and file.read() == digest.digest()


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def cores() -> int:
    """Cores that this process may run on, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _on_gpu(recipe: Recipe) -> bool:
    import torch

    if recipe.accelerator == "gpu" and not torch.cuda.is_available():
        raise TrainingError("The recipe asks for a GPU and none is there: set accelerator to 'auto' or 'cpu'.")
    return recipe.accelerator != "cpu" and torch.cuda.is_available()


def _precision(recipe: Recipe) -> str:
    import torch

    if recipe.precision == "auto":
        return "bf16-mixed" if _on_gpu(recipe) and torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if recipe.precision == "bfloat16" else "32-true"


def hardware(recipe: Recipe) -> dict[str, Any]:
    """What a run was computed on, as training.json keeps it."""
    import platform

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if _on_gpu(recipe) else []
    return {
        "devices": recipe.devices or max(1, len(gpus)),
        "gpus": gpus,
        "cpu": platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "precision": _precision(recipe),
        "torch": torch.__version__,
    }
