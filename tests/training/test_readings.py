"""A number has several right readings; a base model that has heard the audio tells which one was said."""

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech.corpus.manifest import Utterance
from speech.text import normalize
from training.batches import AudioCache, Corpus, collate
from training.network import new_model
from training.readings import readings_said
from training.recipe import Recipe
from training.tokenizer import train_tokenizer

WRITTEN = "in 1984"
YEAR, DIGITS = "in nineteen eighty four", "in one nine eight four"
RECIPE = Recipe.model_validate(
    {
        "max_steps": 1,
        "model": {"width": 32, "layers": 1, "heads": 2, "subsampling_channels": 16, "dropout": 0.0},
        "tokenizer": {"vocabulary_size": 48},
    }
)


def spoken(folder: Path, name: str, seed: int) -> Utterance:
    """Three seconds of tones that no other name has."""
    generator = np.random.default_rng(seed)
    time = np.arange(4_800) / 16_000
    sound = np.concatenate([0.3 * np.sin(2 * np.pi * hertz * time) for hertz in generator.uniform(300, 4_000, 10)])
    soundfile.write(folder / f"{name}.flac", sound.astype(np.float32), 16_000, subtype="PCM_16")
    return Utterance(
        id=name, audio=str(folder / f"{name}.flac"), duration_s=3.0, text=WRITTEN, speaker="s", language="en",
        domain="calls", recorded_at=dt.date(2024, 5, 1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readings")


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    rows = [spoken(folder, "year", 1), spoken(folder, "digits", 2)]
    return Corpus(rows, [normalize(row.text, "en") for row in rows], [3.0, 3.0], AudioCache(2**24))


@pytest.fixture(scope="module")
def base(folder: Path, corpus: Corpus) -> Any:
    """A network that has learnt by heart what is said in both recordings."""
    import torch

    tokenizer = train_tokenizer([YEAR, DIGITS, *YEAR.split(), *DIGITS.split()], "en", folder / "tokenizer", 48)
    model = new_model(RECIPE, tokenizer, seed=0)
    sounds = [corpus.cache.samples(row).astype("float32") / 32_768 for row in corpus.utterances]
    batch = collate(sounds, [model.tokenizer.text_to_ids(text) for text in (YEAR, DIGITS)])
    model.spec_augmentation = None
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        log_probs, lengths, _ = model.forward(input_signal=batch["audio"], input_signal_length=batch["audio_lengths"])
        loss = model.loss(
            log_probs=log_probs, targets=batch["tokens"], input_lengths=lengths, target_lengths=batch["token_lengths"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_the_reading_that_was_said_is_trained_on(base: Any, corpus: Corpus, tmp_path: Path) -> None:
    """Both rows are written alike, and only the audio differs."""
    found = readings_said(base, corpus, "en", tmp_path / "readings.json")
    assert found.texts == (YEAR, DIGITS)
    assert (found.several, found.other) == (2, 1)


def test_a_run_that_goes_on_trains_on_what_it_began_with(base: Any, corpus: Corpus, tmp_path: Path) -> None:
    """The choice is the same each time, and on a machine that computes a little differently it is remembered."""
    remembered = tmp_path / "readings.json"
    first = readings_said(base, corpus, "en", remembered)
    before = remembered.read_bytes()
    remembered.unlink()
    again = readings_said(base, corpus, "en", remembered)
    assert (again, again.digest, remembered.read_bytes()) == (first, first.digest, before)
    remembered.write_bytes(before.replace(DIGITS.encode(), YEAR.encode()))
    assert readings_said(base, corpus, "en", remembered).texts == (YEAR, YEAR)
    for damaged in (b"{", b"[]", before.replace(b"nine", b"nike"), before.replace(DIGITS.encode(), b"")):
        remembered.write_bytes(damaged)
        assert readings_said(base, corpus, "en", remembered) == first, "it is chosen again where it cannot be read"
        assert remembered.read_bytes() == before


def test_a_text_with_one_reading_never_touches_the_network(corpus: Corpus, tmp_path: Path) -> None:
    """A corpus of spoken words costs nothing, however large it is."""
    import dataclasses

    words = [dataclasses.replace(row, text="in May", audio="nowhere.flac") for row in corpus.utterances]
    plain = Corpus(words, ["in may", "in may"], [3.0, 3.0], AudioCache(0))
    found = readings_said(None, plain, "en", tmp_path / "readings.json")  # type: ignore[arg-type]
    assert (found.texts, found.several, found.other) == (("in may", "in may"), 0, 0)
    assert not (tmp_path / "readings.json").exists()
