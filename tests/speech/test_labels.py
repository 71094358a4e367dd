"""Label models: what is refused, and that a clip's label is the clip's alone."""

from pathlib import Path

import numpy as np
import pytest

from speech.bundle import BundleError, ModelBundle, UnsupportedBundle
from speech.labels import LONGEST_S, UNKNOWN, LabelBundle, LabelError, LabelNetwork, normalized
from tests.toy_bundle import write_toy_bundle
from tests.toy_labels import RATE, beeps, hiss, write_toy_labels


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> LabelNetwork:
    """A toy of two languages."""
    return LabelNetwork(write_toy_labels(tmp_path_factory.mktemp("labels") / "bundle"))


def test_a_clip_has_the_same_bits_alone_and_among_others_of_any_length(network: LabelNetwork) -> None:
    """A rerun of an hour whose recordings came in another order gives the same bytes."""
    clips = [beeps(0.1 + 0.02 * seed, 0.7 + 0.3 * (seed % 5), seed) for seed in range(40)]
    together, labels = network.embeddings(clips), network.log_probabilities(clips)
    for place in (0, 7, 21, 39):
        assert network.embeddings([clips[place]]).tobytes() == together[place].tobytes()
        assert network.log_probabilities([clips[place]]).tobytes() == labels[place].tobytes()
    assert network.embeddings(clips[::-1])[::-1].tobytes() == together.tobytes()


def test_each_language_and_neither_are_told_apart_with_probabilities(network: LabelNetwork) -> None:
    """Probabilities of a clip's labels sum to one."""
    found = network.log_probabilities([beeps(0.2), beeps(0.8), hiss()])
    assert [network.bundle.labels[place] for place in found.argmax(axis=1)] == ["en", "de", UNKNOWN]
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-6)


def test_embeddings_are_directions_whatever_the_length_of_the_clip(network: LabelNetwork) -> None:
    """No clip, an empty one, a few samples, and one that is heard in parts."""
    clips = [np.zeros(0, np.float32), beeps(0.3, 0.01), beeps(0.3, 2.5 * LONGEST_S)]
    found = network.embeddings(clips)
    assert found.dtype == np.float32
    assert found.shape == (3, network.bundle.dimensions)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found[1:], axis=1), 1.0, atol=1e-5)
    assert network.embeddings([]).shape == (0, network.bundle.dimensions)
    assert network.log_probabilities([]).shape == (0, 3)


def test_neither_loudness_nor_the_length_of_a_steady_clip_counts(network: LabelNetwork) -> None:
    """Telephones and microphones differ in level."""
    clip = beeps(0.2)
    loud, quiet = network.embeddings([clip, clip * np.float32(0.25)])
    assert float(loud @ quiet) > 0.98


def test_bands_are_brought_to_mean_0_and_deviation_1() -> None:
    """Over the clip, each for itself."""
    frames = np.random.default_rng(0).normal(3.0, 5.0, (200, 4)).astype(np.float32)
    np.testing.assert_allclose(normalized(frames).mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(normalized(frames).std(axis=0, ddof=1), 1.0, atol=1e-4)


@pytest.mark.parametrize("clip", [np.zeros((2, 8), np.float32), np.zeros(8, np.int16), [0.0, 0.1]])
def test_what_is_no_clip_is_refused_with_its_place(network: LabelNetwork, clip: np.ndarray) -> None:
    """Two channels or integers would be heard as something else."""
    with pytest.raises(LabelError, match="mono float") as refused:
        network.embeddings([beeps(0.2, 0.5), clip])
    assert refused.value.index == 1


def test_samples_that_are_no_numbers_are_refused(network: LabelNetwork) -> None:
    """One NaN would be all of an embedding."""
    clip = beeps(0.2, 1.0)
    clip[RATE // 2] = np.nan
    with pytest.raises(LabelError, match="not finite"):
        network.log_probabilities([clip])


def test_a_changed_byte_another_digest_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    """As for recognisers: nothing is guessed."""
    bundle = write_toy_labels(tmp_path / "bundle")
    assert LabelBundle.load(bundle.path, bundle.digest) == bundle
    with pytest.raises(BundleError, match="not the model meant"):
        LabelBundle.load(bundle.path, "0" * 64)
    (bundle.path / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"notes\.txt is not listed"):
        LabelBundle.load(bundle.path)
    (bundle.path / "notes.txt").unlink()
    network = bundle.path / "network.onnx"
    network.write_bytes(network.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="differs from its sha256"):
        LabelBundle.load(bundle.path)


def test_neither_kind_of_bundle_is_taken_for_another(tmp_path: Path) -> None:
    """A speaker model asked for languages, and a recogniser for voices."""
    voices = write_toy_labels(tmp_path / "voices", "speaker")
    with pytest.raises(BundleError, match="a speaker model, but a language model is needed"):
        LabelBundle.load(voices.path, kind="language")
    with pytest.raises(UnsupportedBundle):
        ModelBundle.load(voices.path)
    with pytest.raises(UnsupportedBundle, match="no label model"):
        LabelBundle.load(write_toy_bundle(tmp_path / "asr").path)


def test_a_manifest_that_says_more_or_less_is_refused(tmp_path: Path) -> None:
    """A key that no field has could matter."""
    bundle = write_toy_labels(tmp_path / "bundle")
    manifest = bundle.path / "bundle.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"name"', '"nickname"'))
    with pytest.raises(BundleError, match="name"):
        LabelBundle.load(bundle.path)
    manifest.write_text(text.replace('"unknown"', '"other"'))
    with pytest.raises(BundleError, match="'unknown' as its last label"):
        LabelBundle.load(bundle.path)
