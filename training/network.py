"""The network: a cache-aware streaming FastConformer with CTC, from a recipe or from a base model.

A base model is a `.nemo` file or the name of a published checkpoint. A `.nemo` file carries a configuration whose
classes are instantiated when it is read: give only files that you trust.
"""

import contextlib
import os
import re
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.batches import SAMPLE_RATE
from training.recipe import Recipe, TrainingError
from training.tokenizer import write_tokenizer

if TYPE_CHECKING:
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE
    from nemo.core.classes.modelPT import ModelPT

FRAMES_PER_SECOND = 100  # 10 ms hop
SUBSAMPLING = 8  # an encoder frame every 80 ms
MEL_BANDS = 80
CONFIGURATION = "model_config.yaml"  # in a .nemo file


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


def save_checkpoint(model: "ModelPT", path: Path) -> None:
    """Write a model as a `.nemo` file: the same bytes for the same model, so that its digest can name it.

    NeMo's own writing notes times, the folder of the tokenizer, and a random number before each name.
    """
    from omegaconf import OmegaConf

    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        folder = Path(scratch, "files")
        model.save_to(str(Path(scratch, path.name)))
        with tarfile.open(Path(scratch, path.name)) as archive:
            archive.extractall(folder, filter="data")
        configuration = (folder / CONFIGURATION).read_text(encoding="utf-8")
        for file in list(folder.iterdir()):
            if numbered := re.fullmatch(r"[0-9a-f]{32}_(.+)", file.name):
                configuration = configuration.replace(file.name, numbered[1])
                file.rename(folder / numbered[1])
        settings = OmegaConf.create(configuration)
        if "tokenizer" in settings:
            settings.tokenizer.dir = ""
        OmegaConf.save(settings, folder / CONFIGURATION)
        with tarfile.open(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                member = tarfile.TarInfo(f"./{file.name}")
                member.size, member.mode = file.stat().st_size, 0o644
                with file.open("rb") as content:
                    archive.addfile(member, content)


def is_file_base(base: str) -> bool:
    """Tell whether a base is a file rather than the name of a published checkpoint."""
    return base.endswith(".nemo") or Path(base).exists()


def _restored(path: str, **options: Any) -> Any:
    from nemo.collections.asr.models import ASRModel

    return ASRModel.restore_from(path, map_location="cpu", **options)


def _apply_recipe(configuration: Any, recipe: Recipe) -> None:
    """Take what fine-tuning may change from the recipe; geometry and tokenizer stay the base's.

    So does the dropout that the recipe does not say: what a network was trained with suits its size.
    """
    configuration.spec_augment = network_configuration(recipe, Path())["spec_augment"]
    if "dropout" in recipe.model.model_fields_set:
        configuration.encoder.dropout = configuration.encoder.dropout_pre_encoder = recipe.model.dropout
    if "attention_dropout" in recipe.model.model_fields_set:
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
    """Refuse before a training what could not be exported after it."""
    from training.export import ExportError, streaming_form

    try:
        streaming_form(model)
    except ExportError as error:
        raise TrainingError(f"Base model '{base}' cannot stream: {error}.") from error


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return (text if len(text) <= 160 else text[:157] + "...").rstrip(".")
