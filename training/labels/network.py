"""The network of a label model: a small TitaNet, built by NeMo.

Depth-wise separable convolutions with squeeze-and-excitation over the whole clip, attentive statistics pooling, and one
linear layer to the embedding (Koluguri et al., 2022, "TitaNet"). Its first convolution keeps every second frame: that
halves what a step costs and loses no accuracy worth it on clips of seconds.
"""

from typing import TYPE_CHECKING, Any

from training.labels.settings import LabelTrainingSettings
from training.network import FRAMES_PER_SECOND, MEL_BANDS, SAMPLE_RATE

if TYPE_CHECKING:
    from nemo.collections.asr.models.label_models import EncDecSpeakerLabelModel


def configuration(settings: LabelTrainingSettings, classes: int) -> dict[str, Any]:
    """NeMo's configuration of a network that tells so many classes apart."""
    width = settings.width
    plain = {"repeat": 1, "dilation": [1], "dropout": 0.0, "residual": False, "separable": False}
    squeeze = {"se": True, "se_context_size": -1, "se_reduction_ratio": 8}
    inner = {**plain, **squeeze, "filters": width, "kernel": [3], "stride": [1], "residual": True, "dropout": 0.1}
    return {
        "sample_rate": SAMPLE_RATE,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": SAMPLE_RATE,
            "normalize": "per_feature",
            "window_size": 0.025,
            "window_stride": 1 / FRAMES_PER_SECOND,
            "window": "hann",
            "features": MEL_BANDS,
            "n_fft": 512,
            "frame_splicing": 1,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": MEL_BANDS,
            "activation": "relu",
            "conv_mask": True,
            "jasper": [
                {**plain, "filters": width, "kernel": [5], "stride": [2]},
                {**plain, "filters": width, "kernel": [5], "stride": [2]},
                inner,
                {**inner, "dilation": [2]},
                {**plain, "filters": 2 * width, "kernel": [1], "stride": [1]},
            ],
        },
        "decoder": {
            "_target_": "nemo.collections.asr.modules.SpeakerDecoder",
            "feat_in": 2 * width,
            "num_classes": classes,
            "pool_mode": "attention",
            "attention_channels": 64,
            "emb_sizes": settings.dimensions,
            "angular": False,
        },
        "loss": {"_target_": "nemo.collections.common.losses.cross_entropy.CrossEntropyLoss"},
    }


def new_model(settings: LabelTrainingSettings, classes: int, seed: int) -> "EncDecSpeakerLabelModel":
    """An untrained network; equal seeds give equal weights."""
    import torch
    from nemo.collections.asr.models.label_models import EncDecSpeakerLabelModel
    from omegaconf import OmegaConf

    torch.manual_seed(seed)
    return EncDecSpeakerLabelModel(cfg=OmegaConf.create(configuration(settings, classes)))
