"""A real label bundle made in a moment: it tells two languages apart by how much of a clip sounds.

    bundle = write_toy_labels(tmp_path / "bundle")
    LabelNetwork(bundle).log_probabilities([beeps(0.2), beeps(0.8), hiss()])

Sound a fifth of the time is the first language, sound four fifths of the time the second, and steady noise is neither.
An embedding is, of each band, how much of the time it is louder than on average.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speech.bundle import NETWORK
from speech.features import MelConfig
from speech.labels import UNKNOWN, Kind, LabelBundle, LabelDescription, write_label_bundle

RATE = MelConfig().sample_rate
_UNKNOWN = 5.0  # what the other labels have to exceed


def beeps(share: float, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Bursts of noise that sound for this share of each half second, over a faint hiss: float32 [n], 16 kHz."""
    count = round(seconds * RATE)
    draw = np.random.default_rng(seed)
    on = (np.arange(count) % (RATE // 2)) < share * RATE / 2
    return (draw.standard_normal(count) * np.where(on, 0.1, 1e-4)).astype(np.float32)


def hiss(seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """Steady noise: float32 [n], 16 kHz."""
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.05).astype(np.float32)


def write_toy_labels(
    folder: Path,
    kind: Kind = "language",
    languages: Sequence[str] = ("en", "de"),
    name: str = "toy",
    between: float = 0.0,
    sharpness: float = 20.0,
) -> LabelBundle:
    """Write a toy label bundle of two languages, or of voices, into a folder that is made.

    `between`: what lies between the two languages, as the mean over bands of how much more of the time they are louder
    than on average than not, -1 to 1; for the tones of `tests/toy_bundle.py` it is -0.63.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    mels = MelConfig().mels
    labels = (*languages, UNKNOWN) if kind == "language" else ()
    weights = np.zeros((mels, 3), np.float32)
    weights[:, 0], weights[:, 1] = -sharpness / mels, sharpness / mels
    bias = np.array([sharpness * between, -sharpness * between, _UNKNOWN], np.float32)
    node, value = helper.make_node, helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            node("Sign", ["features"], ["signs"]),
            node("ReduceMean", ["signs"], ["embedding"], axes=[2], keepdims=0),
            node("MatMul", ["embedding", "weights"], ["scores"]),
            node("Add", ["scores", "bias"], ["logits"]),
        ],
        "toy",
        [value("features", TensorProto.FLOAT, ["B", mels, "T"])],
        [value("embedding", TensorProto.FLOAT, ["B", mels]), value("logits", TensorProto.FLOAT, ["B", 3])],
        [
            numpy_helper.from_array(weights, "weights"),
            numpy_helper.from_array(bias, "bias"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    (folder / NETWORK).write_bytes(model.SerializeToString(deterministic=True))
    return write_label_bundle(
        folder,
        LabelDescription(
            name=name, kind=kind, labels=labels, dimensions=mels, features=MelConfig(), threshold=0.6, temperature=1.0
        ),
    )
