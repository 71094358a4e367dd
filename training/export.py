"""A fitted NeMo model -> a ModelBundle, and the proof that both say the same.

The network is exported in its streaming form: caches go in and come out, and a run may hold one
chunk (live) or hundreds (recordings). Two things differ from NeMo's own export:

- A stream begins with all-zero mel frames. NeMo pads with zeros before each convolution of the
  subsampling, which zeros in front of the first one do not reproduce (the biases turn them into
  something else). Here leading all-zero frames stay zero through the subsampling, so that the first
  words come out as they do offline, to the rounding of float32.
- The number of outputs is not cut to one chunk, so that long audio needs few runs.

What a bundle says about its own geometry is read off the model, then proven by running it: `parity`
compares the text of NeMo's offline decoding with the text of the finished bundle. Two exports of the
same weights give the same bytes.

Covered: cache-aware FastConformer/Conformer encoders with a CTC decoder over sentencepiece pieces.
Anything else is refused with an `ExportError`.
"""

import collections
import contextlib
import io
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speech.bundle import NETWORK, NETWORKS, TOKENIZER, Description, Geometry, ModelBundle, write_bundle
from speech.features import MelConfig, mel_filters
from speech.recognition.offline import Recognizer
from speech.scripts import join_words
from training.tokenizer import without_paths

OPSET = 17
# The longest run the network's position table allows; longer runs are not faster.
_LONGEST_RUN_S = 30.0
_SHOWN_DIFFERENCES = 10
# Weights that share a scale in the int8 variant.
_BLOCK = 32


class ExportError(Exception):
    """A model that cannot be served as a bundle; the message says why and what to change."""


def export(
    model: Any,
    tokenizer_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    language: str,
    name: str,
    lineage: Mapping[str, Any],
    parity_utterances: Sequence[np.ndarray],
    variants: Sequence[str] = (),
) -> ModelBundle:
    """Write a NeMo CTC model as a bundle into `folder` (new or empty) and return it, verified.

    model: an `EncDecCTCModelBPE`; left as it was found. tokenizer_path: its sentencepiece
    model. parity_utterances: mono float samples [n] at the model's rate; the share of them whose text
    survived the export is in the bundle's `parity`. variants: "int8" adds network.int8.onnx, whose
    weights (not activations) are rounded to 8 bits, so that rows of a batch stay independent.
    Raises ExportError.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ExportError(f"{folder}: not empty; export into a new folder")
    unknown = sorted(set(variants) - {"int8"})
    if unknown:
        raise ExportError(f"unknown variant {', '.join(unknown)}; int8 is the one there is")
    features, geometry = streaming_form(model)
    tokenizer, vocabulary = _tokenizer_of(model, Path(tokenizer_path))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER).write_bytes(tokenizer)
    with evaluating(model):
        network = _network_of(model, geometry)
        (folder / NETWORK).write_bytes(network)
        if "int8" in variants:
            (folder / NETWORKS["int8"]).write_bytes(_with_8_bit_weights(network))
        described = Description(
            name=name,
            language=language,
            decoder="ctc",
            mode="streaming",
            text="spoken",
            networks={"encoder": {key: file for key, file in NETWORKS.items() if key in ("fp32", *variants)}},
            features=features,
            geometry=geometry,
            vocabulary=vocabulary,
            lineage=lineage,
        )
        unproven = write_bundle(folder, described)
        return write_bundle(folder, replace(described, parity=parity(model, unproven, parity_utterances)))


def streaming_form(model: Any) -> tuple[MelConfig, Geometry]:
    """How a model hears, and the shapes of its streaming network. Raises ExportError for one that cannot stream."""
    features = features_of(model)
    return features, _geometry_of(model, features)


def parity(model: Any, bundle: ModelBundle, utterances: Sequence[np.ndarray]) -> dict[str, Any]:
    """Compare NeMo's offline greedy text with the bundle's, utterance by utterance.

    Returns {"utterances", "equal" (share, 1.0 of none), "differences" (the first pairs of texts),
    "log_prob_difference" (an upper bound over all frames and symbols, a power of ten), and for every
    further variant its share under "equal_<variant>"}.
    """
    offline = [_offline(model, samples) for samples in utterances]
    recognizers = {variant: Recognizer(bundle, variant=variant) for variant in bundle.variants}
    largest = 0.0
    for (_, log_probs), samples in zip(offline, utterances, strict=True):
        served = recognizers["fp32"].log_probs(samples)
        if served.shape != log_probs.shape:
            raise ExportError(
                f"the network gives {len(served)} frames where the model gives {len(log_probs)}; "
                "its geometry is not that of a cache-aware model"
            )
        largest = max(largest, float(np.abs(served - log_probs).max(initial=0.0)))
    differences, equal = {}, {}
    for variant, recognizer in recognizers.items():
        heard = zip(offline, recognizer.transcribe_batch(utterances), strict=True)
        differences[variant] = [(before, result.text) for (before, _), result in heard if before != result.text]
        equal[variant] = round(1 - len(differences[variant]) / len(offline), 6) if offline else 1.0
    shown = differences["fp32"][:_SHOWN_DIFFERENCES]
    return {
        "utterances": len(offline),
        "equal": equal.pop("fp32"),
        "differences": [{"checkpoint": before, "bundle": after} for before, after in shown],
        # Rounded up to a power of ten: the last digits depend on the machine, the digest must not.
        "log_prob_difference": 10.0 ** math.ceil(math.log10(largest)) if largest else 0.0,
        **{f"equal_{variant}": share for variant, share in equal.items()},
    }


def _offline(model: Any, samples: np.ndarray) -> tuple[str, np.ndarray]:
    """Return NeMo's own greedy text of a whole utterance and its log-probabilities [frames, symbols]."""
    import torch

    if len(samples) < model.preprocessor.featurizer.hop_length:
        return "", np.zeros((0, _decoder_of(model).num_classes_with_blank), np.float32)
    device = next(model.parameters()).device
    with torch.inference_mode():
        signal = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None].to(device)
        frames, lengths = model.preprocessor(input_signal=signal, length=torch.tensor([len(samples)], device=device))
        encoded, counts = model.encoder(audio_signal=frames, length=lengths)
        log_probs = _decoder_of(model)(encoder_output=encoded)
        hypotheses = model.decoding.ctc_decoder_predictions_tensor(log_probs, decoder_lengths=counts)
    # The recogniser sets spaces between words as their scripts do.
    return join_words(hypotheses[0].text.split()), log_probs[0, : int(counts[0])].cpu().numpy()


def _decoder_of(model: Any) -> Any:
    decoder = getattr(model, "decoder", None)
    if decoder is None or not hasattr(decoder, "num_classes_with_blank") or not hasattr(decoder, "decoder_layers"):
        raise ExportError(f"{type(model).__name__} has no CTC decoder; give a CTC model")
    return decoder


def features_of(model: Any, normalize: str = "NA") -> MelConfig:
    """Read how the model hears, and make sure that `speech.features` computes just that, up to the normalisation.

    Raises ExportError where it does not, or where features are normalised otherwise than said.
    """
    heard = model.preprocessor.featurizer
    if (heard.normalize or "NA") != normalize:
        raise ExportError(
            f"features are normalised {heard.normalize!r} over a recording, where '{normalize}' is needed"
        )
    if heard.exact_pad or heard.frame_splicing != 1 or heard.mag_power != 2.0 or not heard.log:
        raise ExportError("the preprocessor uses exact_pad, frame_splicing, mag_power or log=False; use the defaults")
    if heard.log_zero_guard_type != "add" or not isinstance(heard.log_zero_guard_value, float):
        raise ExportError("the preprocessor's log_zero_guard must be a number that is added")
    config = model.cfg.preprocessor
    features = MelConfig(
        sample_rate=int(heard.sample_rate),
        window=int(heard.win_length),
        hop=int(heard.hop_length),
        fft=int(heard.n_fft),
        mels=int(heard.nfilt),
        low_hz=float(config.get("lowfreq", 0) or 0.0),
        high_hz=float(config.get("highfreq", None) or heard.sample_rate / 2),
        preemphasis=float(heard.preemph or 0.0),
        log_guard=float(heard.log_zero_guard_value),
    )
    same_filters = np.allclose(mel_filters(features), heard.fb[0].cpu().numpy(), atol=1e-6)
    if not same_filters or not np.allclose(np.hanning(features.window), heard.window.cpu().numpy(), atol=1e-5):
        raise ExportError("the preprocessor's window or mel filters are not Hann and Slaney; use the defaults")
    return features


def _geometry_of(model: Any, features: MelConfig) -> Geometry:
    """Read the streaming shapes off the encoder; refuse one whose streaming differs from its offline form."""
    encoder = model.encoder
    streaming = getattr(encoder, "streaming_cfg", None)
    pre_encode = getattr(encoder, "pre_encode", None)
    if streaming is None or not getattr(pre_encode, "is_causal", False):
        raise ExportError("the encoder is not cache-aware; train with causal_downsampling: true")
    if streaming.cache_drop_size or encoder.conv_context_size[1] or encoder.att_context_size[0] < 0:
        raise ExportError(
            "the encoder sees more than its chunk; train with conv_context_size: causal, "
            "att_context_style: chunked_limited and a limited left context"
        )
    subsampling = int(encoder.subsampling_factor)
    chunk = int(streaming.chunk_size[1])
    attention, convolution, _ = encoder.get_initial_cache_state(batch_size=1)
    outputs = chunk // subsampling
    table = (encoder.pos_enc.pe.size(1) + 1) // 2 - attention.shape[2]  # outputs the position table leaves room for
    longest = int(_LONGEST_RUN_S / (chunk * features.frame_s))
    return Geometry(
        subsampling=subsampling,
        chunk=chunk,
        history=int(streaming.pre_encode_cache_size[1]),
        lead=int(streaming.drop_extra_pre_encoded) * subsampling,
        attention_cache=(attention.shape[0], attention.shape[2], attention.shape[3]),
        convolution_cache=(convolution.shape[0], convolution.shape[2], convolution.shape[3]),
        max_run_chunks=max(1, min(longest, table // outputs)),
    )


def _tokenizer_of(model: Any, path: Path) -> tuple[bytes, tuple[str, ...]]:
    """Return the tokenizer without the paths it was trained from, and its pieces in the decoder's order."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        data = without_paths(path.read_bytes())
        processor.LoadFromSerializedProto(data)
    except (OSError, RuntimeError, ValueError) as error:
        raise ExportError(f"{path}: not a sentencepiece model ({error}); give the model's tokenizer.model") from error
    pieces = tuple(processor.IdToPiece(index) for index in range(processor.GetPieceSize()))
    if pieces != tuple(_decoder_of(model).vocabulary):
        raise ExportError(f"{path}: its pieces are not the decoder's vocabulary; give the tokenizer the model has")
    return data, pieces


def _network_of(model: Any, geometry: Geometry) -> bytes:
    """Return the ONNX bytes of the streaming network."""
    import onnx
    import torch

    encoder, decoder = model.encoder, _decoder_of(model)

    class Streaming(torch.nn.Module):
        """Encoder and decoder as one function; caches have the batch first."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder
            self.decoder = decoder

        def forward(
            self, audio: Any, length: Any, attention: Any, convolution: Any, filled: Any
        ) -> tuple[Any, Any, Any, Any, Any]:
            rets = self.encoder.forward_internal(
                audio,
                length,
                cache_last_channel=attention.transpose(0, 1),
                cache_last_time=convolution.transpose(0, 1),
                cache_last_channel_len=filled,
            )
            encoded, counts, attention, convolution, filled = self.encoder.streaming_post_process(rets)
            log_probs = self.decoder(encoder_output=encoded)
            return log_probs, counts, attention.transpose(0, 1), convolution.transpose(0, 1), filled

    batch, chunks = 2, 2
    frames = geometry.history + chunks * geometry.chunk
    example = (
        torch.randn(batch, encoder._feat_in, frames),
        torch.tensor([frames, frames - 3]),
        torch.zeros(batch, *geometry.attention_cache),
        torch.zeros(batch, *geometry.convolution_cache),
        torch.zeros(batch, dtype=torch.int64),
    )
    device = next(model.parameters()).device
    inputs = ["audio_signal", "length", "cache_last_channel", "cache_last_time", "cache_last_channel_len"]
    outputs = (
        ["logprobs", "encoded_lengths"] + [f"{name}_next" for name in inputs[2:4]] + ["cache_last_channel_next_len"]
    )
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in inputs + outputs}
    axes["audio_signal"][2] = "frames"
    axes["logprobs"][1] = "outputs"
    with (
        tempfile.TemporaryDirectory() as scratch,
        silence(),
        _streaming_form(encoder, geometry),
        torch.inference_mode(),
    ):
        torch.onnx.export(
            Streaming().eval(),
            tuple(value.to(device) for value in example),
            f"{scratch}/network.onnx",
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        network = onnx.load(f"{scratch}/network.onnx")
    return canonical_onnx(network)


def canonical_onnx(network: Any) -> bytes:
    """Return ONNX bytes without what differs between two exports of equal weights (places, versions, notes)."""
    network.producer_name = network.producer_version = network.doc_string = ""
    del network.metadata_props[:]
    network.graph.doc_string = ""
    for node in network.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    return bytes(network.SerializeToString(deterministic=True))


def _with_8_bit_weights(network: bytes) -> bytes:
    """Return the network with the weights of its matrix products in 8 bits, one scale for each block of 32.

    Activations stay float32, unlike in dynamic quantisation, whose one scale for a whole batch lets a
    row's text depend on its batch-mates. Convolutions stay as they are: they are small and lose most.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(network)
    graph = model.graph
    weights = {item.name: item for item in graph.initializer}
    shared = collections.Counter(name for node in graph.node for name in node.input)
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or shared[node.input[1]] > 1:
            continue
        name = node.input[1]
        matrix = numpy_helper.to_array(weights[name])
        if matrix.ndim != 2 or matrix.shape[0] < _BLOCK:
            continue
        inputs, outputs = matrix.shape
        blocks = -(-inputs // _BLOCK)
        padded = np.zeros((outputs, blocks * _BLOCK), np.float32)
        padded[:, :inputs] = matrix.T
        padded = padded.reshape(outputs, blocks, _BLOCK)
        scales = np.maximum(np.abs(padded).max(axis=2), np.finfo(np.float32).tiny) / 127.0
        rounded = (np.rint(padded / scales[:, :, None]) + 128).clip(1, 255).astype(np.uint8)
        graph.initializer.remove(weights[name])
        graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_8bit"))
        graph.initializer.append(numpy_helper.from_array(scales.astype(np.float32).reshape(-1), f"{name}_scales"))
        replacement = helper.make_node(
            "MatMulNBits",
            [node.input[0], f"{name}_8bit", f"{name}_scales"],
            list(node.output),
            name=node.name,
            domain="com.microsoft",
            K=inputs,
            N=outputs,
            bits=8,
            block_size=_BLOCK,
            accuracy_level=1,  # computes in float32
        )
        node.CopyFrom(replacement)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return canonical_onnx(model)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put the model into evaluation mode without NeMo's run-time type checks; leave it as it was."""
    from nemo.core.classes.common import typecheck

    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with typecheck.disable_checks():
            yield
    finally:
        for module, was_training in training.items():
            module.training = was_training


@contextlib.contextmanager
def _streaming_form(encoder: Any, geometry: Geometry) -> Iterator[None]:
    """Give the encoder the form that is exported (see the module's words); leave it as it was."""
    subsampling, streaming, positions = encoder.pre_encode.conv, encoder.streaming_cfg, encoder.pos_enc
    valid, table = streaming.valid_out_len, positions.pe
    centre = table.size(1) // 2
    reach = geometry.attention_cache[1] + geometry.max_run_chunks * geometry.chunk_outputs - 1
    subsampling.forward = lambda x, lengths: _subsample(subsampling, x, lengths)
    streaming.valid_out_len = 0  # 0: outputs are not cut to one chunk
    positions.pe = table[:, centre - reach : centre + reach + 1].clone()
    try:
        yield
    finally:
        del subsampling.forward
        streaming.valid_out_len = valid
        positions.pe = table


def _subsample(convolutions: Any, x: Any, lengths: Any) -> tuple[Any, Any]:
    """Run the causal subsampling on [batch, frames, mels] with nothing before the first frame that is not all zero.

    As NeMo's masked sequence, which keeps what lies behind the end at zero; this one also keeps what
    lies before the beginning at zero, where NeMo offline pads with zeros.
    """
    import torch

    begun = (x.abs().amax(dim=2) > 0).to(torch.int64).cumsum(dim=1) > 0  # [batch, frames]
    x = x.unsqueeze(1)
    lengths = lengths.clone()

    def masked(x: Any) -> Any:
        ends = torch.arange(x.size(2), device=x.device)[None, :] < lengths[:, None]
        return x * (ends & begun)[:, None, :, None].to(x.dtype)

    for layer in convolutions:
        x = layer(masked(x))
        if getattr(layer, "stride", (1, 1)) != (1, 1):
            # With two frames padded in front and one behind, output i ends with input 2 i.
            lengths = torch.div(lengths, 2, rounding_mode="floor") + 1
            begun = torch.cat([begun, torch.ones_like(begun[:, :1])], dim=1)[:, ::2]
    return masked(x), lengths


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporters' warnings and prints off the log: none of them is for the person who trains."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)
