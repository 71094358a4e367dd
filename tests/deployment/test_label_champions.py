"""Which label model is in use: only one whose verdict is there, its own, and passed."""

from dataclasses import replace
from pathlib import Path

import pytest

from deployment.registry.label_champions import label_champion, name_label_champion
from deployment.registry.shelf import Shelf
from evaluation.gates import GateRefused, GateResult
from evaluation.labels import REQUIRED, LabelVerdict, save_label_verdict
from speech.bundle import BundleError
from speech.labels import LabelBundle
from speech.store.objects import open_objects
from speech.store.outputs import DataStore
from tests.toy_labels import write_toy_labels


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    """A data store without models."""
    return DataStore(open_objects(str(tmp_path / "home")))


def shelved(store: DataStore, folder: Path, name: str = "toy") -> LabelBundle:
    """A toy language model on the shelf."""
    return Shelf(store.objects).put_labels(write_toy_labels(folder / name, name=name))


def verdict(bundle: LabelBundle, *, failed: str = "") -> LabelVerdict:
    """A full verdict of a bundle, in which one gate may have failed."""
    gates = tuple(GateResult(name, 0.0, 0.0, name != failed, "Measured.") for name in REQUIRED[bundle.kind])
    return LabelVerdict(bundle.kind, bundle.digest, bundle.name, not failed, gates)


def test_a_model_that_passed_is_in_use_and_one_that_fails_leaves_it_there(store: DataStore, tmp_path: Path) -> None:
    assert label_champion(store, "language") is None
    good, bad = shelved(store, tmp_path, "good"), shelved(store, tmp_path, "bad")
    save_label_verdict(verdict(good), store.objects)
    name_label_champion(store, good)
    save_label_verdict(verdict(bad, failed="language_accuracy"), store.objects)
    with pytest.raises(GateRefused, match="did not pass gate language_accuracy"):
        name_label_champion(store, bad)
    used = label_champion(store, "language")
    assert used is not None
    assert used.digest == good.digest
    assert label_champion(store, "speaker") is None


def test_a_verdict_that_is_missing_altered_foreign_or_not_whole_is_a_refusal(store: DataStore, tmp_path: Path) -> None:
    """Each is a mistake that would take a model into use that nobody judged."""
    bundle = shelved(store, tmp_path)
    with pytest.raises(GateRefused, match="has no verdict"):
        name_label_champion(store, bundle)
    save_label_verdict(verdict(bundle), store.objects)
    name_label_champion(store, bundle)
    key = f"verdicts/{bundle.digest}.json"
    written = store.objects.read(key).data
    store.objects.put(key, written.replace(b"Measured.", b"Guessed.."))
    with pytest.raises(GateRefused, match="altered"):
        label_champion(store, "language")
    other = shelved(store, tmp_path, "other")
    store.objects.put(f"verdicts/{other.digest}.json", written)
    with pytest.raises(GateRefused, match="foreign"):
        name_label_champion(store, other)
    whole = verdict(bundle)
    save_label_verdict(replace(whole, gates=whole.gates[1:]), store.objects)
    with pytest.raises(GateRefused, match="incomplete: gate language_accuracy"):
        label_champion(store, "language")


def test_a_damaged_model_is_a_refusal_that_names_its_asset(store: DataStore, tmp_path: Path) -> None:
    bundle = shelved(store, tmp_path)
    save_label_verdict(verdict(bundle), store.objects)
    name_label_champion(store, bundle)
    (bundle.path / "network.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match="materialise `language_id_model`"):
        label_champion(store, "language")
