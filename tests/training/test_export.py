"""Export: the bundle says what the checkpoint says, frame by frame, and nothing else is exported.

The model has random weights, drawn so that it talks a lot: parity is about equal arithmetic, and text
on the edge between two pieces is the sharpest test of it. NeMo takes half a minute to import, so one
model and one bundle serve all tests.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech.bundle import ModelBundle
from speech.features import log_mel
from speech.recognition.offline import Recognizer
from speech.spelling import UNREADABLE
from training.export import ExportError, export, parity

SENTENCES = (
    "one two three four five six seven eight nine zero",
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "how vexingly quick daft zebras jump",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentencepiece model as the trainer leaves it: a folder with tokenizer.model and vocab.txt."""
    return _train_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer: Path) -> Any:
    """A cache-aware FastConformer of 1 M parameters with random weights."""
    return _build(tokenizer)


@pytest.fixture(scope="module")
def recordings() -> list[np.ndarray]:
    """Sounds whose mel frames have every remainder by the chunk of 16, and lengths off the hop."""
    return [_sound(160 * frames + 37 * (frames % 4), seed=frames) for frames in range(60, 94)]


@pytest.fixture(scope="module")
def bundle(
    model: Any, tokenizer: Path, recordings: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> ModelBundle:
    """The model, exported with both variants."""
    folder = tmp_path_factory.mktemp("bundles") / "full"
    return export(model, tokenizer, folder, "en", "random", {"recipe": "none"}, recordings, variants=("int8",))


def test_features_equal_those_of_the_preprocessor(model: Any) -> None:
    """The numpy mel stands in for NeMo's in all serving; 2e-4 on the log scale is float32's rounding."""
    import torch

    for samples in [*(_sound(size, seed=size) for size in (160, 401, 16_000, 48_123)), np.zeros(5_000, np.float32)]:
        frames, lengths = model.preprocessor(
            input_signal=torch.from_numpy(samples)[None], length=torch.tensor([len(samples)])
        )
        expected = frames[0, :, : int(lengths[0])].numpy().T
        heard = log_mel(samples)
        assert heard.shape == expected.shape
        assert np.abs(heard - expected).max() < 2e-4


def test_the_bundle_says_what_the_checkpoint_says(
    model: Any, bundle: ModelBundle, recordings: list[np.ndarray]
) -> None:
    """Every remainder by the chunk size: a wrong first or last chunk shows in most of them."""
    assert bundle.parity["utterances"] == len(recordings)
    assert bundle.parity["equal"] == 1.0
    assert bundle.parity["differences"] == []
    assert bundle.parity["log_prob_difference"] <= 1e-2
    texts = [result.text for result in Recognizer(bundle).transcribe_batch(recordings)]
    assert len(set(texts)) > len(texts) / 2, "the random model must not say the same every time"
    assert all(len(text) > 3 for text in texts)


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9, 10, 15, 16, 17, 18, 24, 25, 26])
def test_the_shortest_recordings_agree_too(model: Any, bundle: ModelBundle, frames: int) -> None:
    """Commands of one syllable are shorter than a chunk."""
    result = parity(model, bundle, [_sound(160 * frames + 5, seed=1)])
    assert result["equal"] == 1.0
    assert result["log_prob_difference"] <= 1e-2


@pytest.mark.parametrize("run_s", [0.16, 0.32, 1.1, 4.0])
def test_small_runs_give_the_offline_log_probabilities(
    bundle: ModelBundle, recordings: list[np.ndarray], run_s: float
) -> None:
    """A stream of single chunks, a file in large runs: the same numbers, past the end of the attention cache."""
    samples = _sound(16_000 * 14 + 99, seed=3)
    whole = Recognizer(bundle).log_probs(samples)
    cut = Recognizer(bundle, run_s=run_s)
    assert np.abs(cut.log_probs(samples) - whole).max() < 1e-3
    assert len(whole) == bundle.geometry.outputs_of(len(samples) // 160)
    expected = [result.text for result in Recognizer(bundle).transcribe_batch(recordings)]
    assert [cut.transcribe(samples).text for samples in recordings] == expected


def test_long_recordings_agree_with_offline_over_several_runs(model: Any, bundle: ModelBundle) -> None:
    """Offline NeMo sees 50 s at once; the recogniser in three runs."""
    result = parity(model, bundle, [_sound(16_000 * 50 + 1, seed=9)])
    assert result["equal"] == 1.0
    assert result["log_prob_difference"] <= 1e-2


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_batch_mates_do_not_change_a_text(bundle: ModelBundle, recordings: list[np.ndarray], variant: str) -> None:
    """Activations stay in float32 in both variants; dynamic quantisation would fail here."""
    recognizer = Recognizer(bundle, variant=variant)
    loud = [samples * 4 for samples in recordings[:4]]
    together = recognizer.transcribe_batch([*recordings, *loud])
    alone = [recognizer.transcribe(samples).text for samples in recordings]
    assert [result.text for result in together[: len(recordings)]] == alone


def test_8_bit_weights_halve_the_file_and_keep_most_texts(bundle: ModelBundle) -> None:
    """The share is measured at export, so a gate can refuse the variant for a model that suffers."""
    sizes = {name: (bundle.path / name).stat().st_size for name in bundle.files}
    assert sizes["network.int8.onnx"] < 0.6 * sizes["network.onnx"]
    assert 0.5 < bundle.parity["equal_int8"] <= 1.0


def test_real_speech_agrees(model: Any, bundle: ModelBundle) -> None:
    """Tones and noise are not speech; real takes of many speakers have real pauses and breath."""
    data = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not data:
        pytest.skip("SOUNDSTAGE_REAL_DATA is unset: no real recordings to compare on")
    import soundfile

    files = (
        sorted(Path(data, "speechocean762").rglob("*.flac"))[::40] + sorted(Path(data, "fsdd").rglob("*.wav"))[::200]
    )
    samples = [soundfile.read(file, dtype="float32")[0] for file in files]
    result = parity(model, bundle, samples)
    assert result["utterances"] >= 40
    assert result["equal"] == 1.0, result["differences"]


def test_equal_weights_give_one_digest(
    model: Any, bundle: ModelBundle, tokenizer: Path, recordings: list[np.ndarray], tmp_path: Path
) -> None:
    """Exporting again, from a tokenizer trained elsewhere on the same text, is the same model."""
    elsewhere = _train_tokenizer(tmp_path / "elsewhere")
    assert elsewhere.read_bytes() != tokenizer.read_bytes(), "sentencepiece writes its paths into the model"
    again = export(
        model, elsewhere, tmp_path / "again", "en", "random", {"recipe": "none"}, recordings, variants=("int8",)
    )
    assert again.digest == bundle.digest
    assert str(tmp_path).encode() not in b"".join(again.read(name) for name in again.files)


def test_the_model_is_left_as_it_was(model: Any, tokenizer: Path, tmp_path: Path) -> None:
    """Training may go on after an export, and a second export must see the same model."""
    from nemo.core.classes.common import is_typecheck_enabled

    model.train()
    model.encoder.pre_encode.eval()
    try:
        training = [module.training for module in model.modules()]
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        table, valid = model.encoder.pos_enc.pe, model.encoder.streaming_cfg.valid_out_len
        grads = [parameter.requires_grad for parameter in model.parameters()]
        export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, [])
        assert [module.training for module in model.modules()] == training
        assert all(bool((weights[name] == value).all()) for name, value in model.state_dict().items())
        assert model.encoder.pos_enc.pe is table
        assert model.encoder.streaming_cfg.valid_out_len == valid
        assert "forward" not in vars(model.encoder.pre_encode.conv)
        assert [parameter.requires_grad for parameter in model.parameters()] == grads
        assert is_typecheck_enabled()
    finally:
        model.eval()


def test_export_is_quiet_and_quick(
    model: Any, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its log is read by the person who trains; a tracer's warnings about constants tell them nothing."""
    import time

    began = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, [])
    assert time.process_time() - began < 20
    assert not caught
    assert capfd.readouterr() == ("", "")


def test_geometry_is_read_off_the_model(bundle: ModelBundle) -> None:
    """Two look-ahead frames a chunk of 160 ms, four layers, 70 frames of left context, a kernel of 9."""
    geometry = bundle.geometry
    assert (geometry.subsampling, geometry.chunk, geometry.history, geometry.lead) == (8, 16, 9, 16)
    assert geometry.attention_cache == (4, 70, 96)
    assert geometry.convolution_cache == (4, 96, 8)
    assert geometry.max_run_chunks == 187


@pytest.mark.parametrize("context", [[70, 0], [28, 13]])
def test_another_look_ahead_is_another_geometry_with_the_same_parity(
    tokenizer: Path, tmp_path: Path, context: list[int]
) -> None:
    """Nothing in the export is made for one chunk size."""
    recordings = [_sound(160 * frames + 3, seed=frames) for frames in range(100, 230, 13)]
    model = _build(tokenizer, att_context_size=context, n_layers=2)
    bundle = export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, recordings)
    assert bundle.geometry.chunk == 8 * (context[1] + 1)
    assert bundle.geometry.attention_cache[1] == context[0]
    assert bundle.parity["equal"] == 1.0
    assert bundle.parity["log_prob_difference"] <= 1e-2


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ({"causal_downsampling": False}, "causal_downsampling"),
        ({"conv_context_size": None}, "conv_context_size"),
        ({"att_context_size": [-1, -1], "att_context_style": "regular"}, "left context"),
        ({"att_context_size": [70, 2], "att_context_style": "regular"}, "chunked_limited"),
    ],
)
def test_a_model_that_cannot_stream_is_refused(
    tokenizer: Path, tmp_path: Path, encoder: dict[str, Any], message: str
) -> None:
    """Its live text would differ from the text it was judged by."""
    model = _build(tokenizer, n_layers=1, **encoder)
    with pytest.raises(ExportError, match=message):
        export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, [])
    assert not (tmp_path / "bundle").exists()


def test_features_that_need_the_whole_recording_are_refused(model: Any, tokenizer: Path, tmp_path: Path) -> None:
    """Per-feature normalisation looks into the future."""
    featurizer = model.preprocessor.featurizer
    before = featurizer.normalize
    featurizer.normalize = "per_feature"
    try:
        with pytest.raises(ExportError, match="where 'NA' is needed"):
            export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, [])
    finally:
        featurizer.normalize = before


def test_a_foreign_tokenizer_is_refused(model: Any, tmp_path: Path) -> None:
    """The decoder's ids would be spelled as other words."""
    other = _train_tokenizer(tmp_path / "other", size=40)
    with pytest.raises(ExportError, match="not the decoder's vocabulary"):
        export(model, other, tmp_path / "bundle", "en", "random", {}, [])
    for content in (b"", b"nonsense", other.read_bytes()[:1000]):
        (tmp_path / "broken.model").write_bytes(content)
        with pytest.raises(ExportError, match=r"broken\.model"):
            export(model, tmp_path / "broken.model", tmp_path / "bundle", "en", "random", {}, [])
    with pytest.raises(ExportError, match=r"absent\.model"):
        export(model, tmp_path / "absent.model", tmp_path / "bundle", "en", "random", {}, [])


def test_a_used_folder_and_an_unknown_variant_are_refused(model: Any, tokenizer: Path, tmp_path: Path) -> None:
    """A bundle is never written over another, and never with less than was asked for."""
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    with pytest.raises(ExportError, match="not empty"):
        export(model, tokenizer, tmp_path / "used", "en", "random", {}, [])
    with pytest.raises(ExportError, match="unknown variant int4"):
        export(model, tokenizer, tmp_path / "bundle", "en", "random", {}, [], variants=("int4",))


def test_parity_tells_which_texts_differ(model: Any, bundle: ModelBundle, recordings: list[np.ndarray]) -> None:
    """A gate on parity is only worth something when a broken export lowers it."""
    import torch

    bias = model.decoder.decoder_layers[0].bias
    before = bias.detach().clone()
    try:
        with torch.no_grad():
            bias.copy_(torch.roll(before, 1))
        result = parity(model, bundle, recordings)
    finally:
        with torch.no_grad():
            bias.copy_(before)
    assert result["equal"] < 1.0
    assert 0 < len(result["differences"]) <= 10
    assert set(result["differences"][0]) == {"checkpoint", "bundle"}


def _sound(size: int, seed: int) -> np.ndarray:
    """Return a few gliding tones that come and go over noise, float32 [size]."""
    generator = np.random.default_rng(seed)
    times = np.arange(size) / 16_000
    sound = 0.003 * generator.standard_normal(size)
    for _ in range(3):
        pitch, glide, beat = generator.uniform(100, 3_000), generator.uniform(-300, 300), generator.uniform(1, 5)
        loudness = np.maximum(0.0, np.sin(2 * np.pi * beat * times + generator.uniform(0, 6)))
        sound += 0.15 * loudness * np.sin(2 * np.pi * (pitch + glide * times) * times)
    return sound.astype(np.float32)


@pytest.mark.parametrize(
    ("language", "frequent"), [("zh", "今天天气怎么样打开厨房的灯"), ("ko", "내일 아침에 까닭 없이 전화해 주세요")]
)
def test_spelt_characters_are_the_same_in_checkpoint_and_bundle(
    recordings: list[np.ndarray], tmp_path: Path, language: str, frequent: str
) -> None:
    """What NeMo decodes chooses checkpoints, what the bundle decodes is served; both must make one text of digits."""
    from training.tokenizer import train_tokenizer

    rare = [chr(0x4E00 + 53 * n) for n in range(58)] if language == "zh" else []
    tokenizer = train_tokenizer([frequent * 99, *rare], language, tmp_path / "tokenizer", 48 if not rare else 24)
    model = _build(tokenizer)
    assert model.tokenizer.ids_to_text(model.tokenizer.text_to_ids(frequent)) == frequent
    bundle = export(model, tokenizer, tmp_path / "bundle", language, "random", {}, recordings[:12])
    assert bundle.parity["equal"] == 1.0, bundle.parity["differences"][:2]
    texts = [result.text for result in Recognizer(bundle).transcribe_batch(recordings[:12])]
    assert any(UNREADABLE in text for text in texts) == bool(rare)
    assert all(any(character in frequent for character in text) for text in texts if text)


def _train_tokenizer(folder: Path, size: int = 48) -> Path:
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    text.write_text("\n".join(SENTENCES * 5), "utf-8")
    SentencePieceTrainer.Train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=size,
        character_coverage=1.0,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    pieces = [processor.IdToPiece(index) for index in range(processor.GetPieceSize())]
    (folder / "vocab.txt").write_text("\n".join(pieces), "utf-8")
    return folder / "tokenizer.model"


def _build(tokenizer: Path, **encoder: Any) -> Any:
    """Return a small model with random weights whose greedy text is lively."""
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from nemo.utils import logging
    from omegaconf import OmegaConf

    logging.setLevel(logging.ERROR)
    config = {
        "sample_rate": 16_000,
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16_000,
            "normalize": "NA",
            "window_size": 0.025,
            "window_stride": 0.01,
            "window": "hann",
            "features": 80,
            "n_fft": 512,
            "dither": 1e-5,
            "pad_to": 0,
        },
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConformerEncoder",
            "feat_in": 80,
            "n_layers": 4,
            "d_model": 96,
            "subsampling": "dw_striding",
            "subsampling_factor": 8,
            "subsampling_conv_channels": 64,
            "causal_downsampling": True,
            "n_heads": 4,
            "att_context_size": [70, 1],
            "att_context_style": "chunked_limited",
            "conv_kernel_size": 9,
            "conv_norm_type": "layer_norm",
            "conv_context_size": "causal",
        }
        | encoder,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": 96,
            "num_classes": -1,
            "vocabulary": [],
        },
        "tokenizer": {"dir": str(tokenizer.parent), "type": "bpe"},
        "decoding": {"strategy": "greedy_batch"},
        "train_ds": None,
        "validation_ds": None,
        "optim": {"name": "adamw", "lr": 1e-3},
    }
    torch.manual_seed(7)
    model = EncDecCTCModelBPE(OmegaConf.create(config))
    model.eval()
    # Random encoders say nearly the same at all times; the decoder here hears what little differs.
    with torch.no_grad():
        signal = torch.from_numpy(_sound(16_000 * 20, seed=5))[None]
        frames, lengths = model.preprocessor(input_signal=signal, length=torch.tensor([signal.shape[1]]))
        encoded = model.encoder(audio_signal=frames, length=lengths)[0][0]
        weight = torch.randn(model.decoder.num_classes_with_blank, len(encoded)) / encoded.std(dim=1) / 5
        model.decoder.decoder_layers[0].weight.copy_(weight[:, :, None])
        model.decoder.decoder_layers[0].bias.copy_(-weight @ encoded.mean(dim=1))
        model.decoder.decoder_layers[0].bias[-1] += 2.0
    return model
