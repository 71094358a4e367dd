"""A real ModelBundle made in a second, for tests that need a model but not a trained one.

The network is a few ONNX nodes with the inputs and outputs of an exported streaming model: it hears a
pure tone and writes the word that belongs to its pitch. It has caches that matter (each output
frame's scores are averaged with the one before), so a test notices when they are lost or swapped.
Louder is surer: a tone at amplitude 0.3 gives a confidence near 1, at 0.07 one near 0.8, and one at
0.03 is not heard at all.

    bundle = write_toy_bundle(tmp_path / "bundle")
    Recognizer(bundle).transcribe(tones(["one", "two", "two"])).text == "one two two"
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployment.registry.shelf import Shelf
from speech.bundle import NETWORK, TOKENIZER, Calibration, Description, Geometry, ModelBundle, write_bundle
from speech.features import MelConfig, log_mel
from speech.store.objects import Objects

WORDS: Mapping[str, tuple[str, ...]] = {
    "en": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero"),
    "de": ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "null"),
    "es": ("uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve", "cero"),
    "fr": ("un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "zéro"),
}
# One pitch a word, in the order of WORDS; all pass a telephone line but the last.
PITCHES_HZ = (300.0, 450.0, 650.0, 900.0, 1200.0, 1550.0, 1950.0, 2400.0, 3000.0, 4000.0)
WORD_S = 0.28
GAP_S = 0.24

_SHARPNESS = 2.0
_HEARD_FROM = 0.05  # amplitude at which a tone is as likely as the blank
_GEOMETRY = Geometry(
    subsampling=8,
    chunk=16,
    history=9,
    lead=16,
    attention_cache=(1, 4, 11),
    convolution_cache=(1, 11, 1),
    max_run_chunks=125,
)


def tones(
    words: Sequence[str],
    language: str = "en",
    amplitude: float = 0.3,
    noise: float = 0.0,
    seed: int = 0,
    word_s: float = WORD_S,
    gap_s: float = GAP_S,
) -> np.ndarray:
    """Return audio (float32 [n], 16 kHz) that a toy bundle of the language hears as these words.

    It begins and ends with a gap; word k sounds from gap_s + k * (word_s + gap_s) for word_s.
    `noise` is the standard deviation of white noise over all of it.
    """
    rate = MelConfig().sample_rate
    gap = np.zeros(round(gap_s * rate), np.float32)
    parts = [gap]
    for word in words:
        parts += [_tone(PITCHES_HZ[WORDS[language].index(word)], word_s, rate) * np.float32(amplitude), gap]
    samples = np.concatenate(parts)
    if noise:
        samples = samples + noise * np.random.default_rng(seed).standard_normal(len(samples))
    return samples.astype(np.float32)


def write_toy_bundle(
    folder: Path | str,
    language: str = "en",
    *,
    name: str = "toy",
    confuse: Sequence[tuple[str, str]] = (),
    heard_from: float = _HEARD_FROM,
    effort: int = 0,
    fails_after_s: float | None = None,
    calibration: Calibration | None = None,
    parity: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Write a toy bundle; `confuse` swaps pairs of words, which makes a worse model of another digest.

    Others are worse in other ways: it is deaf to tones quieter than `heard_from` (amplitude), every run of the network
    multiplies `effort` useless matrices (1 ms or more each), or it fails on runs longer than `fails_after_s`.

    Equal arguments give equal digests.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = WORDS[language]
    heard = list(words)
    for first, second in confuse:
        one, other = heard.index(first), heard.index(second)
        heard[one], heard[other] = heard[other], heard[one]
    tokenizer, vocabulary = _tokenizer(words)
    (folder / TOKENIZER).write_bytes(tokenizer)
    (folder / NETWORK).write_bytes(_network(vocabulary, heard, heard_from, effort, fails_after_s))
    description = Description(
        language=language,
        name=name,
        features=MelConfig(),
        geometry=_GEOMETRY,
        vocabulary=vocabulary,
        calibration=calibration,
        parity=parity if parity is not None else {"utterances": 1, "equal": 1.0, "differences": []},
        lineage=lineage if lineage is not None else {"recipe": "toy"},
    )
    return write_bundle(folder, description)


def shelved(objects: Objects, language: str = "en", **options: Any) -> ModelBundle:
    """A toy bundle where a deployment keeps its bundles."""
    with tempfile.TemporaryDirectory() as folder:
        return Shelf(objects).put(write_toy_bundle(folder, language, **options))


def _tone(pitch_hz: float, seconds: float, rate: int) -> np.ndarray:
    """Return a tone of amplitude 1 with 5 ms ramps, so that its ends do not click into other words' bands."""
    times = np.arange(round(seconds * rate)) / rate
    ramp = np.minimum(1.0, np.minimum(times, times[-1] - times) / 0.005)
    return (np.sin(2 * np.pi * pitch_hz * times) * ramp).astype(np.float32)


def _tokenizer(words: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
    """Return a sentencepiece model with one piece a word, and its pieces."""
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    model = io.BytesIO()
    # Earlier words come more often, which fixes the order of the pieces.
    lines = [word for index, word in enumerate(words) for _ in range(len(words) - index)]
    SentencePieceTrainer.Train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="word",
        vocab_size=len(words) + 1,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.getvalue())
    return model.getvalue(), tuple(processor.IdToPiece(index) for index in range(processor.GetPieceSize()))


def _network(
    vocabulary: Sequence[str], heard: Sequence[str], heard_from: float, effort: int, fails_after_s: float | None
) -> bytes:
    """Return the ONNX bytes: mean of each output frame's eight mel frames -> scores -> mean with the last."""
    from onnx import TensorProto, checker, helper, numpy_helper

    config, shape = MelConfig(), _GEOMETRY
    symbols = len(vocabulary) + 1
    if shape.convolution_cache[1] != symbols - 1:
        raise ValueError(f"the toy's caches are made for {shape.convolution_cache[1]} pieces")
    weights = np.zeros((symbols - 1, config.mels), np.float32)
    bias = np.full((1, symbols - 1, 1), -100.0, np.float32)  # the unknown piece is never heard
    for pitch, word in zip(PITCHES_HZ, heard, strict=True):
        loudest = log_mel(_tone(pitch, 0.2, config.sample_rate))[10]
        symbol = list(vocabulary).index("\N{LOWER ONE EIGHTH BLOCK}" + word)
        weights[symbol, loudest.argmax()] = _SHARPNESS
        bias[0, symbol] = -_SHARPNESS * (loudest.max() + 2 * np.log(heard_from))

    constants = {
        "weights": weights,
        "bias": bias,
        "half": np.float32(0.5),
        "zero": np.float32(0.0),
        "silence": np.float32(np.log(config.log_guard)),
        "history": np.array([shape.history], np.int64),
        "short": np.array([1 - shape.subsampling + shape.history], np.int64),
        "eight": np.array([shape.subsampling], np.int64),
        "tail": np.array([0, 0, 0, 0, 0, shape.subsampling - 1], np.int64),
        "none": np.array([0], np.int64),
        "one": np.array([1], np.int64),
        "last": np.array([-1], np.int64),
        "kept": np.array([-shape.attention_cache[1]], np.int64),
        "size": np.array([shape.attention_cache[1]], np.int64),
        "end": np.array([2**31], np.int64),
        "axis1": np.array([1], np.int64),
        "axis2": np.array([2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Slice", ["audio_signal", "history", "end", "axis2"], ["new"]),
        # frames before and after the recording are all zero, which means no audio and not loud audio
        node("Pad", ["new", "tail"], ["with_tail"]),
        node("Equal", ["with_tail", "zero"], ["absent"]),
        node("Where", ["absent", "silence", "with_tail"], ["padded"]),
        node("AveragePool", ["padded"], ["frames"], kernel_shape=[8], strides=[8]),
        node("MatMul", ["weights", "frames"], ["energies"]),
        node("Add", ["energies", "bias"], ["scores"] if fails_after_s is None and not effort else ["cheap"]),
        # the score before each: the convolution cache holds the last one of the run before
        node("Squeeze", ["cache_last_time", "axis1"], ["before"]),
        node("Concat", ["before", "scores"], ["all"], axis=2),
        node("Slice", ["all", "none", "last", "axis2"], ["previous"]),
        node("Add", ["scores", "previous"], ["sum"]),
        node("Mul", ["sum", "half"], ["smooth"]),
        node("Transpose", ["smooth"], ["by_frame"], perm=[0, 2, 1]),
        # the blank scores 0
        node("Pad", ["by_frame", "blank_pad"], ["logits"]),
        node("LogSoftmax", ["logits"], ["logprobs"], axis=2),
        node("Sub", ["length", "short"], ["rounded"]),
        node("Div", ["rounded", "eight"], ["encoded_lengths"]),
        node("Slice", ["all", "last", "end", "axis2"], ["newest"]),
        node("Unsqueeze", ["newest", "axis1"], ["cache_last_time_next"]),
        node("Transpose", ["scores"], ["rows"], perm=[0, 2, 1]),
        node("Unsqueeze", ["rows", "axis1"], ["layer"]),
        node("Concat", ["cache_last_channel", "layer"], ["memory"], axis=2),
        node("Slice", ["memory", "kept", "end", "axis2"], ["cache_last_channel_next"]),
        node("Shape", ["rows"], ["row_shape"], start=1, end=2),
        node("Add", ["cache_last_channel_len", "row_shape"], ["filled"]),
        node("Min", ["filled", "size"], ["cache_last_channel_next_len"]),
    ]
    if fails_after_s is not None or effort:
        # a zero that takes its time, or that cannot be looked up for too many frames
        limit = round((fails_after_s or 3600) / config.frame_s)
        constants["zeros"] = np.zeros(limit, np.float32)
        constants["matrix"] = np.zeros((512, 512), np.float32)
        burden = [
            node("Shape", ["audio_signal"], ["frame_count"], start=2, end=3),
            node("Sub", ["frame_count", "one"], ["last_frame"]),
            node("Gather", ["zeros", "last_frame"], ["looked_up"]),
            node("Add", ["matrix", "looked_up"], ["product_0"]),
            *(node("MatMul", [f"product_{n}", "matrix"], [f"product_{n + 1}"]) for n in range(effort)),
            node("ReduceMax", [f"product_{effort}"], ["nothing"], keepdims=0),
            node("Add", ["cheap", "nothing"], ["scores"]),
        ]
        place = next(index for index, step in enumerate(nodes) if "cheap" in step.output)
        nodes[place + 1 : place + 1] = burden
    constants["blank_pad"] = np.array([0, 0, 0, 0, 0, 1], np.int64)
    floats, integers = TensorProto.FLOAT, TensorProto.INT64
    value = helper.make_tensor_value_info
    attention, convolution = ["B", *shape.attention_cache], ["B", *shape.convolution_cache]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            value("audio_signal", floats, ["B", config.mels, "T"]),
            value("length", integers, ["B"]),
            value("cache_last_channel", floats, attention),
            value("cache_last_time", floats, convolution),
            value("cache_last_channel_len", integers, ["B"]),
        ],
        [
            value("logprobs", floats, ["B", "N", symbols]),
            value("encoded_lengths", integers, ["B"]),
            value("cache_last_channel_next", floats, attention),
            value("cache_last_time_next", floats, convolution),
            value("cache_last_channel_next_len", integers, ["B"]),
        ],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
