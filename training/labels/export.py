"""A fitted label model -> a label bundle, and the proof that both say the same."""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speech.bundle import NETWORK
from speech.labels import LONGEST_S, Kind, LabelBundle, LabelDescription, LabelNetwork, write_label_bundle
from training.export import OPSET, ExportError, canonical_onnx, evaluating, features_of, silence
from training.network import FRAMES_PER_SECOND

SAME_COSINE = 0.999  # of the embeddings of checkpoint and bundle; rounding of float32 leaves 0.99999


def export_labels(
    model: Any,
    folder: Path,
    *,
    kind: Kind,
    labels: Sequence[str],
    name: str,
    lineage: Mapping[str, Any],
    clips: Sequence[np.ndarray],
) -> LabelBundle:
    """Write a NeMo label model as a bundle into a new or empty folder and return it, verified; not yet calibrated.

    `clips` (float32 [n], 16 kHz) are what parity is measured on. Raises ExportError.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder}: not empty; export into a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    features = features_of(model, normalize="per_feature")
    with evaluating(model):
        (folder / NETWORK).write_bytes(_network_of(model, kind, features.mels))
        described = LabelDescription(
            name=name,
            kind=kind,
            labels=tuple(labels) if kind == "language" else (),
            dimensions=int(model.cfg.decoder.emb_sizes),
            features=features,
            threshold=0.5,
            lineage=lineage,
        )
        unproven = write_label_bundle(folder, described)
        return write_label_bundle(folder, replace(described, parity=label_parity(model, unproven, clips)))


def label_parity(model: Any, bundle: LabelBundle, clips: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare a model with its bundle, clip by clip: the share that has the same embedding, and the same label.

    Returns {"clips", "equal" (share), "cosine_difference" (an upper bound, a power of ten)}.
    """
    import torch

    network = LabelNetwork(bundle)
    served, logits = network.embeddings(clips), network.logits(clips)
    equal, furthest = 0, 0.0
    for place, clip in enumerate(clips):
        with torch.inference_mode():
            frames, counts = model.preprocessor(
                input_signal=torch.from_numpy(np.ascontiguousarray(clip, np.float32))[None],
                length=torch.tensor([len(clip)]),
            )
            encoded, counts = model.encoder(audio_signal=frames, length=counts)
            scores, embedding = model.decoder(encoder_output=encoded, length=counts)
        expected = embedding[0].numpy() / max(float(embedding[0].norm()), 1e-12)
        cosine = float(expected @ served[place])
        same = not bundle.labels or int(scores[0].argmax()) == int(logits[place].argmax())
        equal += cosine >= SAME_COSINE and same
        furthest = max(furthest, 1.0 - cosine)
    return {
        "clips": len(clips),
        "equal": round(equal / len(clips), 6) if clips else 0.0,
        # Rounded up to a power of ten: the last digits depend on the machine, the digest must not.
        "cosine_difference": 10.0 ** max(-6, math.ceil(math.log10(furthest))) if furthest > 0 else 0.0,
    }


@contextlib.contextmanager
def _without_padding(encoder: Any) -> Iterator[None]:
    """The encoder without masks of padding, which there is none of; their tables of a fixed length do not export."""
    masked = [part for part in encoder.modules() if getattr(part, "use_mask", False)]
    for part in encoder.modules():
        if hasattr(part, "set_max_len"):
            part.set_max_len(round(LONGEST_S * FRAMES_PER_SECOND) + 1)
    for part in masked:
        part.use_mask = False
    try:
        yield
    finally:
        for part in masked:
            part.use_mask = True


def _network_of(model: Any, kind: Kind, mels: int) -> bytes:
    """The ONNX bytes: normalised frames [clips, mels, frames] -> embedding, and logits of a language model.

    A speaker model leaves its classes behind: they are the voices that it learnt from.
    """
    import onnx
    import torch

    class Whole(torch.nn.Module):
        """Encoder and decoder of clips of one length."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = model.encoder, model.decoder

        def forward(self, features: Any) -> Any:
            lengths = torch.ones_like(features[:, 0, 0], dtype=torch.int64) * features.shape[2]
            encoded, counts = self.encoder(audio_signal=features, length=lengths)
            logits, embedding = self.decoder(encoder_output=encoded, length=counts)
            return (embedding, logits) if kind == "language" else embedding

    outputs = ["embedding", "logits"] if kind == "language" else ["embedding"]
    axes = {"features": {0: "clips", 2: "frames"}, **{name: {0: "clips"} for name in outputs}}
    with tempfile.TemporaryDirectory() as scratch, silence(), _without_padding(model.encoder), torch.inference_mode():
        torch.onnx.export(
            Whole().eval(),
            (torch.randn(2, mels, 150),),
            f"{scratch}/network.onnx",
            input_names=["features"],
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return canonical_onnx(onnx.load(f"{scratch}/network.onnx"))
