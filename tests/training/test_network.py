"""Bases that others have published: the CTC half of a hybrid checkpoint goes on as a CTC model of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.network import load_base, network_configuration, new_model, save_checkpoint
from training.recipe import Recipe, TrainingError, load_recipe
from training.tokenizer import train_tokenizer

NETWORK = {"width": 16, "layers": 1, "heads": 2, "subsampling_channels": 8}
SMALL = {
    "max_steps": 1,
    "model": NETWORK,
    "tokenizer": {"vocabulary_size": 48},
}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(SMALL)


@pytest.fixture(scope="module")
def hybrid(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A streaming transducer with an auxiliary CTC head, small and untrained, as a published checkpoint is shaped."""
    from nemo.collections.asr.models.hybrid_rnnt_ctc_bpe_models import EncDecHybridRNNTCTCBPEModel
    from omegaconf import OmegaConf

    folder = tmp_path_factory.mktemp("hybrid")
    words = "one two three four five six seven eight nine zero send set stop play"
    tokenizer = train_tokenizer([words, *words.split()], "en", folder / "tokenizer", 48)
    configuration = network_configuration(recipe, tokenizer)
    head = configuration["decoder"]
    configuration |= {
        "model_defaults": {"enc_hidden": 16, "pred_hidden": 8, "joint_hidden": 8},
        "decoder": {
            "_target_": "nemo.collections.asr.modules.RNNTDecoder",
            "normalization_mode": None,
            "random_state_sampling": False,
            "blank_as_pad": True,
            "prednet": {"pred_hidden": 8, "pred_rnn_layers": 1, "t_max": None, "dropout": 0.0},
        },
        "joint": {
            "_target_": "nemo.collections.asr.modules.RNNTJoint",
            "log_softmax": None,
            "preserve_memory": False,
            "fuse_loss_wer": False,
            "jointnet": {
                "joint_hidden": 8,
                "activation": "relu",
                "dropout": 0.0,
                "encoder_hidden": 16,
                "pred_hidden": 8,
            },
        },
        "decoding": {"strategy": "greedy_batch", "greedy": {"max_symbols": 10}},
        "loss": {"loss_name": "default", "warprnnt_numba_kwargs": {"fastemit_lambda": 0.0}},
        "aux_ctc": {
            "ctc_loss_weight": 0.3,
            "use_cer": False,
            "ctc_reduction": "mean_batch",
            "decoder": head,
            "decoding": {"strategy": "greedy_batch"},
        },
    }
    model = EncDecHybridRNNTCTCBPEModel(cfg=OmegaConf.create(configuration))
    model.save_to(str(folder / "hybrid.nemo"))
    return model.eval(), folder / "hybrid.nemo"


def test_the_ctc_half_of_a_hybrid_checkpoint_says_what_the_hybrid_does(
    hybrid: tuple[Any, Path], recipe: Recipe, tmp_path: Path
) -> None:
    import torch

    model, path = hybrid
    half = load_base(str(path), recipe, tmp_path / "tokenizer").eval()
    signal = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (1, 24_000)).astype(np.float32))
    with torch.no_grad():
        encoded, lengths = model.forward(input_signal=signal, input_signal_length=torch.tensor([24_000]))
        expected = model.ctc_decoder(encoder_output=encoded)
        heard, heard_lengths, _ = half.forward(input_signal=signal, input_signal_length=torch.tensor([24_000]))
    assert heard_lengths.tolist() == lengths.tolist()
    assert torch.allclose(heard, expected, atol=1e-5)
    assert half.tokenizer.text_to_ids("one stop") == model.tokenizer.text_to_ids("one stop")


def test_a_base_that_is_not_there_or_no_checkpoint_is_one_sentence(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"does not exist: train it first"):
        load_base(str(tmp_path / "none.nemo"), recipe, tmp_path / "tokenizer")
    (tmp_path / "broken.nemo").write_bytes(b"no archive")
    with pytest.raises(TrainingError, match=r"is not a readable \.nemo file"):
        load_base(str(tmp_path / "broken.nemo"), recipe, tmp_path / "tokenizer")


@pytest.mark.parametrize(
    ("asked", "dropouts"), [({}, (0.0, 0.0, 0.0)), ({"dropout": 0.2, "attention_dropout": 0.3}, (0.2, 0.2, 0.3))]
)
def test_a_fine_tune_keeps_its_bases_dropout_unless_its_recipe_says_one(
    tmp_path: Path, asked: dict[str, float], dropouts: tuple[float, float, float]
) -> None:
    """A small network that was trained without any unlearns with ours."""
    plain = {**NETWORK, "dropout": 0.0, "attention_dropout": 0.0}
    tokenizer = train_tokenizer(["one two three", "four five"], "en", tmp_path / "tokenizer", 48)
    model = new_model(Recipe.model_validate({**SMALL, "model": plain}), tokenizer, seed=0)
    save_checkpoint(model, tmp_path / "base.nemo")
    tuned = load_base(str(tmp_path / "base.nemo"), load_recipe("finetune", {"model": asked}), tmp_path / "again")
    encoder = tuned.cfg.encoder
    assert (encoder.dropout, encoder.dropout_pre_encoder, encoder.dropout_att) == dropouts
