"""Acoustic models: a cache-aware streaming FastConformer with CTC over BPE pieces, fitted with NeMo.

`fit` builds the network of a recipe (or continues from a base model), trains it with Lightning on
whatever the machine has, and leaves the weights that did best on the dev set in a NeMo model. NeMo
brings the network, the features and the checkpoint format; the loop is plain: one module, one
learning-rate function of the step, one atomic checkpoint file. All randomness of a step is seeded by
the step, so a run that was killed and resumed does what it would have done.

A base model is a `.nemo` file or the name of a published checkpoint. A `.nemo` file carries a
configuration whose classes are instantiated when it is read: give only files that you trust.
"""

import contextlib
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from speech.manifest import ManifestError, Utterance, audio_location, read_manifest
from speech.text import charset, normalize
from training.batches import SAMPLE_RATE, AudioCache, BatchMaker, Corpus, StepSampler, collate
from training.recipe import Recipe, TrainingError

if TYPE_CHECKING:
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE

Split = Literal["train", "dev", "test"]

FRAMES_PER_SECOND = 100  # 10 ms hop
SUBSAMPLING = 8  # an encoder frame every 80 ms
MEL_BANDS = 80
KEPT_CHECKPOINTS = 2  # the newest, and the one before it should the newest be torn


class Interrupted(Exception):
    """The run was asked to stop; its state is in the checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(f"Stopped at step {step}; the same command goes on from there.")


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


# ------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split, with audio located and text normalised, and what was left out."""

    utterances: tuple[Utterance, ...]
    texts: tuple[str, ...]
    left_out: Mapping[str, int]
    digests: Mapping[str, str]  # sha256 of each manifest

    @property
    def hours(self) -> float:
        """Audio in hours, as the manifests state it."""
        return sum(row.duration_s or 0.0 for row in self.utterances) / 3600


def read_split(manifests: Sequence[str | Path], split: Split, language: str) -> SplitRows:
    """Rows of `split` in order. Raises TrainingError when a manifest is missing or wrong, or no row is left."""
    utterances: list[Utterance] = []
    texts: list[str] = []
    left_out = {"no text": 0, "other language": 0}
    digests: dict[str, str] = {}
    seen: dict[str, int] = {}
    speakers: set[str] = set()
    if not manifests:
        raise TrainingError(f"No {split} manifest was given: name at least one.")
    for manifest in manifests:
        path = Path(manifest)
        if not path.is_file():
            raise TrainingError(f"Manifest {path} does not exist: build the corpus partition first.")
        digests[str(manifest)] = hashlib.sha256(path.read_bytes()).hexdigest()
        try:
            for row in read_manifest(path):
                speakers.add(row.speaker)
                if row.split != split:
                    continue
                if row.language.split("-")[0] != language.split("-")[0]:
                    left_out["other language"] += 1
                    continue
                text = normalize(row.text, language)
                if not text:
                    left_out["no text"] += 1
                    continue
                # Ids are unique in a partition only; the data order must be well defined over several.
                seen[row.id] = seen.get(row.id, 0) + 1
                name = row.id if seen[row.id] == 1 else f"{row.id}+{seen[row.id]}"
                utterances.append(replace(row, id=name, audio=audio_location(row, path)))
                texts.append(text)
        except ManifestError as error:
            raise TrainingError(f"Manifest cannot be used: {str(error).rstrip('.')}.") from error
    if not utterances:
        where = ", ".join(map(str, manifests))
        if not speakers:
            raise TrainingError(f"No {split} rows in {where}: the partition is empty.")
        if len(speakers) == 1:
            raise TrainingError(
                f"No {split} rows in {where}: a single speaker ('{min(speakers)}') leaves nobody else to measure on;"
                " add recordings of at least two more speakers."
            )
        reasons = ", ".join(f"{count} with {reason}" for reason, count in left_out.items() if count)
        raise TrainingError(
            f"No {split} rows in {where}"
            + (f" ({reasons})" if reasons else "")
            + f": none of its {len(speakers)} speakers is in the {split} split; add speakers."
        )
    return SplitRows(tuple(utterances), tuple(texts), left_out, digests)


def require_disjoint_speakers(train: SplitRows, dev: SplitRows) -> None:
    """Raise TrainingError when a dev speaker is also trained on: its WER would be about memory."""
    shared = sorted({row.speaker for row in train.utterances} & {row.speaker for row in dev.utterances})
    if shared:
        shown = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        raise TrainingError(
            f"{len(shared)} speaker{'s are' if len(shared) > 1 else ' is'} in both train and dev ({shown}):"
            " the dev set must hold speakers of its own; add speakers or assign the splits again."
        )


def _corpus(rows: SplitRows, recipe: Recipe, *, bound_s: float | None = None) -> Corpus:
    """Rows with known durations, within the recipe's bounds; `bound_s` takes a fixed sample of that length."""
    cache = AudioCache(recipe.batch.cache_mb * 2**20)
    pairs = list(zip(rows.utterances, rows.texts, strict=True))
    if bound_s is not None:
        pairs.sort(key=lambda pair: hashlib.sha256(pair[0].id.encode()).digest())
    utterances: list[Utterance] = []
    texts: list[str] = []
    durations: list[float] = []
    for row, text in pairs:
        duration = row.duration_s if row.duration_s is not None else len(cache.samples(row)) / SAMPLE_RATE
        if bound_s is not None and utterances and sum(durations) + duration > bound_s:
            break
        if bound_s is None and not recipe.batch.shortest_s <= duration <= recipe.batch.longest_s:
            continue
        utterances.append(row)
        texts.append(text)
        durations.append(duration)
    if not utterances:
        raise TrainingError(
            f"No training utterance lasts between {recipe.batch.shortest_s} and {recipe.batch.longest_s} s:"
            " check the segmentation, or change batch.shortest_s and batch.longest_s."
        )
    return Corpus(utterances, texts, durations, cache)


# ------------------------------------------------------------------------------------------------ tokenizer


def train_tokenizer(texts: Iterable[str], language: str, folder: Path, size: int, sentences: int = 1_000_000) -> Path:
    """Learn at most `size` BPE pieces from normalised text; write tokenizer.model and vocab.txt.

    Small vocabularies end in whole words, which suit the 80 ms frames of the encoder. Every character of
    the language gets a piece, heard or not. Equal texts give equal bytes, in whatever order they come.
    """
    import io

    import sentencepiece

    lines = sorted(set(texts))
    if len(lines) > sentences:
        lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
        lines = sorted(lines[:sentences])
    heard = {character for line in lines for character in line if not character.isspace()}
    characters = heard | {character for character in charset(language) if not character.isspace()}

    def learn(pieces: int) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            character_coverage=1.0,
            required_chars="".join(sorted(characters)),
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            num_threads=1,
            max_sentence_length=65_536,
            minloglevel=3,
        )
        return model.getvalue()

    least = len(characters) + 2  # the unknown piece and the word boundary
    # A corpus of few words has fewer merges than asked for, and sentencepiece refuses instead of
    # stopping there: search for the largest vocabulary that it supports.
    low, high = least, max(size, least)
    best = None
    try:
        best = learn(high)
    except RuntimeError:
        while low <= high:
            middle = (low + high) // 2
            try:
                best = learn(middle)
                low = middle + 1
            except RuntimeError:
                high = middle - 1
    if best is None:
        raise TrainingError("No tokenizer can be learnt from the training text: it holds too little of the language.")
    return write_tokenizer(best, folder)


def write_tokenizer(model: bytes, folder: Path) -> Path:
    """Write a sentencepiece model as NeMo reads it: tokenizer.model, and its pieces in vocab.txt."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = "".join(f"{_wordpiece(pieces.id_to_piece(index))}\n" for index in range(1, len(pieces)))
    for name, content in (("tokenizer.model", model), ("vocab.txt", vocabulary.encode())):
        # Every device of a run writes the same bytes at the same time.
        unfinished = folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / name)
    return folder / "tokenizer.model"


def _wordpiece(piece: str) -> str:
    """Spell a piece as NeMo's vocab.txt does: continuations carry '##', word starts nothing."""
    return piece[1:] if piece.startswith("▁") and len(piece) > 1 else f"##{piece}"


# ------------------------------------------------------------------------------------------------ model


def quiet_nemo() -> None:
    """Import NeMo (20 s of CPU) with its notices and telemetry off."""
    import logging
    import warnings

    for name in ("nv_one_logger", "lightning.pytorch", "lightning.fabric", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("nv_one_logger.training_telemetry").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(lightning|nemo|torch|pydub|lhotse)\b.*")
    os.environ.setdefault("NEMO_NO_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with contextlib.redirect_stderr(None if os.environ.get("SOUNDSTAGE_DEBUG") else open(os.devnull, "w")):
        import nemo.collections.asr.models.ctc_bpe_models  # noqa: F401
    from nemo.utils import logging as nemo_logging

    nemo_logging.setLevel(nemo_logging.ERROR)


def network_configuration(recipe: Recipe, tokenizer: Path) -> dict[str, Any]:
    """NeMo's configuration of the recipe's network."""
    model, augmentation = recipe.model, recipe.augmentation
    return {
        "sample_rate": SAMPLE_RATE,
        "log_prediction": False,
        "ctc_reduction": "mean_batch",
        "skip_nan_grad": False,
        "tokenizer": {"dir": str(tokenizer.parent), "type": "bpe"},
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": "NA",  # statistics of the whole utterance do not exist while it is streaming
            "window_size": 0.025,
            "window_stride": 1 / FRAMES_PER_SECOND,
            "window": "hann",
            "features": MEL_BANDS,
            "n_fft": 512,
            "log": True,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
            "pad_value": 0.0,
        },
        "spec_augment": {
            "_target_": "nemo.collections.asr.modules.SpectrogramAugmentation",
            "freq_masks": augmentation.frequency_masks,
            "freq_width": augmentation.frequency_mask_bands,
            "time_masks": augmentation.time_masks,
            "time_width": augmentation.time_mask_share,
            # Masks look like digital silence of this log scale; 0 would be the loudest sound.
            "mask_value": -10.0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": MEL_BANDS,
            "feat_out": -1,
            "n_layers": model.layers,
            "d_model": model.width,
            "subsampling": "dw_striding",
            "subsampling_factor": SUBSAMPLING,
            "subsampling_conv_channels": model.subsampling_channels,
            "causal_downsampling": True,
            "ff_expansion_factor": model.feed_forward_expansion,
            "self_attention_model": "rel_pos",
            "n_heads": model.heads,
            "att_context_size": [list(context) for context in model.attention_context],
            "att_context_style": "chunked_limited",
            "xscaling": True,
            "untie_biases": True,
            "pos_emb_max_len": 5000,
            "conv_kernel_size": model.convolution_kernel,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
            "dropout": model.dropout,
            "dropout_pre_encoder": model.dropout,
            "dropout_emb": 0.0,
            "dropout_att": model.attention_dropout,
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": None,
            "num_classes": -1,
            "vocabulary": [],
        },
        "decoding": {"strategy": "greedy_batch"},
        # `transcribe` copies these keys of a validation set, though none is ever opened here.
        "validation_ds": {"manifest_filepath": None, "sample_rate": SAMPLE_RATE, "batch_size": 8, "shuffle": False},
    }


def new_model(recipe: Recipe, tokenizer: Path, seed: int) -> "EncDecCTCModelBPE":
    """Return an untrained network; equal seeds give equal weights."""
    import torch
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE
    from omegaconf import OmegaConf

    torch.manual_seed(seed)
    return EncDecCTCModelBPE(cfg=OmegaConf.create(network_configuration(recipe, tokenizer)))


def calibrate_subsampling(model: "EncDecCTCModelBPE", sounds: Sequence[Any]) -> None:
    """Give each layer of a new network's subsampling outputs of mean 0 and unit deviation on these sounds.

    Features of a streaming model are not normalised, and with the usual random weights the five
    convolutions shrink what they hear to a few percent of their own biases: training then spends
    hundreds of steps on learning to listen at all. One pass per layer avoids that (layer-sequential
    unit variance, Mishkin & Matas 2016).
    """
    import torch

    signal = torch.from_numpy(np.concatenate(sounds))[None]
    model.eval()
    with torch.no_grad():
        features, lengths = model.preprocessor(input_signal=signal, length=torch.tensor([signal.shape[1]]))
        subsampling = model.encoder.pre_encode
        for layer in subsampling.modules():
            if not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                continue
            heard: list[torch.Tensor] = []
            hook = layer.register_forward_hook(lambda module, inputs, output, heard=heard: heard.append(output))
            subsampling(x=features.transpose(1, 2), lengths=lengths)
            hook.remove()
            channel = 1 if isinstance(layer, torch.nn.Conv2d) else -1
            values = heard[0].transpose(channel, -1).flatten(0, -2)
            deviation = values.std(dim=0).mean().clamp(min=1e-4)
            if isinstance(layer, torch.nn.Linear) and model.cfg.encoder.get("xscaling"):
                deviation *= model.cfg.encoder.d_model**0.5  # which the encoder multiplies by again
            layer.weight.div_(deviation)
            if layer.bias is not None:
                layer.bias.sub_(values.mean(dim=0)).div_(deviation)


def load_base(base: str, recipe: Recipe, tokenizer: Path) -> "EncDecCTCModelBPE":
    """Return a base model to continue from, with the recipe's augmentation and dropout.

    `base` is a trusted `.nemo` file (its configuration is instantiated) or a published checkpoint's name. A
    hybrid transducer-CTC checkpoint gives its CTC half. The tokenizer is written into the folder
    `tokenizer`, where it must stay until the model is saved. Raises TrainingError when it cannot be had or
    cannot stream.
    """
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE
    from omegaconf import OmegaConf, open_dict

    settings = None
    if is_file_base(base):
        path = Path(base)
        if not path.is_file():
            raise TrainingError(f"Base model {path} does not exist: train it first, or give a published name.")
        try:
            settings = _restored(base, return_config=True)
        except Exception as error:
            raise TrainingError(f"Base model {path} is not a readable .nemo file: {_reason(error)}.") from error
        with open_dict(settings):
            _apply_recipe(settings, recipe)
        try:
            model = _restored(base, override_config_path=settings)
        except Exception as error:
            raise TrainingError(f"Base model {path} cannot be restored: {_reason(error)}.") from error
    else:
        from nemo.collections.asr.models import ASRModel

        try:
            model = ASRModel.from_pretrained(base, map_location="cpu")
        except Exception as error:
            raise TrainingError(
                f"Published checkpoint '{base}' could not be fetched ({_reason(error)}): check the name and that this"
                " machine reaches the model hub, or download its .nemo file and give the path."
            ) from error
    if not hasattr(getattr(getattr(model, "tokenizer", None), "tokenizer", None), "serialized_model_proto"):
        raise TrainingError(f"Base model '{base}' has no sentencepiece tokenizer: choose a BPE model.")
    write_tokenizer(model.tokenizer.tokenizer.serialized_model_proto(), tokenizer)
    if not isinstance(model, EncDecCTCModelBPE):
        model = _ctc_half(model, base, recipe, tokenizer)
    elif not is_file_base(base):
        configuration = OmegaConf.create(OmegaConf.to_container(model.cfg, resolve=True))
        with open_dict(configuration):
            _apply_recipe(configuration, recipe)
        model.spec_augmentation = model.from_config_dict(configuration.spec_augment)
    _require_streaming(model, base)
    return model


def is_file_base(base: str) -> bool:
    """Tell whether a base is a file rather than the name of a published checkpoint."""
    return base.endswith(".nemo") or Path(base).exists()


def _restored(path: str, **options: Any) -> Any:
    from nemo.collections.asr.models import ASRModel

    return ASRModel.restore_from(path, map_location="cpu", **options)


def _apply_recipe(configuration: Any, recipe: Recipe) -> None:
    """Take what fine-tuning may change from the recipe; geometry and tokenizer stay the base's."""
    configuration.spec_augment = network_configuration(recipe, Path())["spec_augment"]
    configuration.encoder.dropout = recipe.model.dropout
    configuration.encoder.dropout_pre_encoder = recipe.model.dropout
    configuration.encoder.dropout_att = recipe.model.attention_dropout


def _ctc_half(model: Any, base: str, recipe: Recipe, tokenizer: Path) -> "EncDecCTCModelBPE":
    """Return the encoder and CTC head of a hybrid transducer-CTC model as a CTC model of their own."""
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE
    from omegaconf import OmegaConf

    if not hasattr(model, "ctc_decoder"):
        raise TrainingError(f"Base model '{base}' is a {type(model).__name__} without a CTC head: choose a CTC one.")
    configuration = network_configuration(recipe, tokenizer / "tokenizer.model")
    for part in ("preprocessor", "encoder"):
        configuration[part] = OmegaConf.to_container(model.cfg[part], resolve=True)
    configuration["decoder"] = OmegaConf.to_container(model.cfg.aux_ctc.decoder, resolve=True)
    half = EncDecCTCModelBPE(cfg=OmegaConf.create(configuration))
    half.encoder.load_state_dict(model.encoder.state_dict())
    half.decoder.load_state_dict(model.ctc_decoder.state_dict())
    return half


def _require_streaming(model: Any, base: str) -> None:
    encoder = model.cfg.encoder
    faults = []
    if str(model.cfg.preprocessor.get("normalize")) not in ("NA", "None"):
        faults.append(f"its features are normalised per utterance (normalize: {model.cfg.preprocessor.normalize})")
    if encoder.get("att_context_style") != "chunked_limited":
        faults.append("its attention sees the whole utterance")
    if not encoder.get("causal_downsampling") or encoder.get("conv_context_size") != "causal":
        faults.append("its convolutions look ahead")
    if faults:
        raise TrainingError(
            f"Base model '{base}' cannot stream: {'; '.join(faults)}; choose a cache-aware streaming one."
        )


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return (text if len(text) <= 160 else text[:157] + "...").rstrip(".")


# ------------------------------------------------------------------------------------------------ checkpoints


def save_state(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write a checkpoint so that a kill at any time leaves either the whole file or none; drop old ones."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:09d}.pt"
    unfinished = path.with_suffix(".tmp")
    with open(unfinished, "wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(unfinished, path)
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT_CHECKPOINTS]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the newest whole checkpoint of this run; a torn one or another run's is passed over."""
    import torch

    for path in sorted(folder.glob("step-*.pt"), reverse=True):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            continue
        if state.get("fingerprint") == fingerprint:
            return state
    return None


# ------------------------------------------------------------------------------------------------ fitting


def rate_of(step: int, recipe: Recipe) -> float:
    """Share of the highest learning rates in use at a step (from 0): linear warm-up, then a cosine."""
    settings = recipe.optimizer
    warmup = min(settings.warmup_steps, recipe.max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, recipe.max_steps - warmup))
    return settings.final_share + (1 - settings.final_share) * 0.5 * (1 + math.cos(math.pi * done))


def word_errors(references: Sequence[str], hypotheses: Sequence[str]) -> dict[str, int]:
    """Count word and character edits and lengths, to be added up over batches and devices."""
    import jiwer

    words = jiwer.process_words(list(references), list(hypotheses))
    characters = jiwer.process_characters(list(references), list(hypotheses))
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
        for key, count in word_errors([corpus.texts[index] for index in chosen], greedy_texts(model, sounds)).items():
            totals[key] += count
    return totals


def fit(
    recipe: Recipe,
    train: SplitRows,
    dev: SplitRows,
    *,
    language: str,
    checkpoints: Path,
    fingerprint: str,
    base: str | None = None,
    seed: int = 0,
    report: Callable[[Progress], None] = lambda progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Train the recipe's model and return it with the weights to keep.

    Resumes from `checkpoints` when they belong to `fingerprint`. Raises TrainingError for data or a base
    that cannot be used, Interrupted after saving when `should_stop` says so.
    """
    # Audio first: a fault in it shows within seconds, before the long import.
    report(Progress("reading audio", 0, recipe.max_steps))
    corpus = _corpus(train, recipe)
    dev_corpus = _corpus(dev, recipe, bound_s=recipe.dev_minutes * 60)
    corpus.cache.fill(corpus.utterances)
    dev_corpus.cache.fill(dev_corpus.utterances)
    report(Progress("loading NeMo", 0, recipe.max_steps))
    quiet_nemo()
    import torch

    torch.set_num_threads(recipe.threads or _cores())
    torch.set_flush_denormal(True)
    report(Progress("building the model", 0, recipe.max_steps))
    if recipe.start == "base":
        if not base:
            raise TrainingError(f"Recipe '{recipe.name}' continues from a base model: give one (base).")
        model = load_base(base, recipe, checkpoints / "tokenizer")
        _require_known_characters(model, corpus.texts, base)
    else:
        if base:
            raise TrainingError(f"Recipe '{recipe.name}' starts from scratch: leave the base out or use 'finetune'.")
        tokenizer = train_tokenizer(
            corpus.texts,
            language,
            checkpoints / "tokenizer",
            recipe.tokenizer.vocabulary_size,
            recipe.tokenizer.sentences,
        )
        model = new_model(recipe, tokenizer, seed)
        typical = sorted(range(len(corpus.texts)), key=lambda index: (corpus.durations_s[index], index))
        step = max(1, len(typical) // 50)
        calibrate_subsampling(
            model, [corpus.cache.samples(corpus.utterances[index]) / np.float32(32_768) for index in typical[::step]]
        )
    # Devices evaluate their own share of the dev set: none may wait for the others within the encoder.
    model.encoder.sync_max_audio_length = False
    corpus.tokens = [model.tokenizer.text_to_ids(text) for text in corpus.texts]
    state = load_state(checkpoints, fingerprint)
    module = _module(model, recipe, corpus, dev_corpus, checkpoints, fingerprint, seed, state, report, should_stop)
    _train(module, recipe)
    if module.interrupted:
        raise Interrupted(module.step)
    if recipe.keep == "best":
        model.load_state_dict(module.best["weights"])
        result = module.best
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
        hardware=_hardware(recipe),
        history=module.history,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require_known_characters(model: "EncDecCTCModelBPE", texts: Sequence[str], base: str) -> None:
    unknown = model.tokenizer.tokenizer.unk_id()
    missing: set[str] = set()
    for character in sorted({character for text in texts for character in text if character != " "}):
        if unknown in model.tokenizer.text_to_ids(character):
            missing.add(character)
    if missing:
        raise TrainingError(
            f"Base model '{base}' cannot write {len(missing)} characters of the training text"
            f" ({' '.join(sorted(missing)[:10])}): choose a base of this language, or train from scratch."
        )


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


def _hardware(recipe: Recipe) -> dict[str, Any]:
    import platform

    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())] if _on_gpu(recipe) else []
    return {
        "gpus": gpus,
        "cpu": platform.machine(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "precision": _precision(recipe),
        "torch": torch.__version__,
    }


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


def _train(module: Any, recipe: Recipe) -> None:
    import lightning.pytorch as lightning
    import torch

    gpu = _on_gpu(recipe)
    devices: int | str = recipe.devices or ("auto" if gpu else 1)
    trainer = lightning.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=devices,
        strategy="ddp" if devices not in (1, "auto") or (gpu and _gpus() > 1) else "auto",
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


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _module(
    model: "EncDecCTCModelBPE",
    recipe: Recipe,
    corpus: Corpus,
    dev: Corpus,
    checkpoints: Path,
    fingerprint: str,
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
            self._stale = 0
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
            if recipe.patience and self._stale >= recipe.patience:
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
                self._stale = 0
            else:
                self._stale += 1
            if current is not None:
                self._load_floats(current)
            self.asr.train()
            self._flush_losses()
            self.history.append(
                {"step": self.step, "wer": wer, "cer": cer, "loss": self.loss or 0.0, "seconds": round(self.seconds, 3)}
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
                    eta_s=round(pace * (recipe.max_steps - self.step), 1),
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
                        "fingerprint": fingerprint,
                        "step": self.step,
                        "epoch": self.epoch,
                        "loss": self.loss,
                        "audio_s": self.audio_s,
                        "seconds": self.seconds,
                        "history": self.history,
                        "best": self.best,
                        "stale": self._stale,
                        "average": {name: value.cpu() for name, value in self.average.items()},
                        "weights": {name: value.cpu() for name, value in self.asr.state_dict().items()},
                        "optimizer": optimizer.state_dict(),
                    },
                )
            self._last_checkpoint = time.monotonic()

        def _restore(self, saved: Mapping[str, Any]) -> None:
            self.asr.load_state_dict(saved["weights"])
            self.step, self.epoch, self.loss = saved["step"], saved["epoch"], saved["loss"]
            self.audio_s, self.seconds = saved["audio_s"], saved["seconds"]
            self.history, self.best, self._stale = list(saved["history"]), dict(saved["best"]), saved["stale"]
            self.average = dict(saved["average"])
            self._optimizer_state = saved["optimizer"]

    return Run()


def recorded(fitted: Fitted) -> dict[str, Any]:
    """Return what training.json says of a fit: everything but the model."""
    return {field.name: getattr(fitted, field.name) for field in fields(fitted) if field.name != "model"}
