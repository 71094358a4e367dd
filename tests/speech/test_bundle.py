"""Bundles: equal content has one digest, and nothing but a whole, untouched bundle loads."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech.bundle import (
    BundleError,
    Calibration,
    Description,
    Geometry,
    ModelBundle,
    UnsupportedBundle,
    with_calibration,
    write_bundle,
)
from speech.features import MelConfig
from speech.recognition.offline import Recognizer
from tests.toy_bundle import tones, write_toy_bundle

CALIBRATION = Calibration((0.2, 0.6, 0.9), (0.1, 0.5, 0.95), words=300)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> ModelBundle:
    """A whole bundle; tests that break one copy it first."""
    return write_toy_bundle(tmp_path_factory.mktemp("bundles") / "original")


@pytest.fixture
def folder(original: ModelBundle, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(original.path, tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change bundle.json the way a forger would: with correct spelling."""
    record = json.loads((folder / "bundle.json").read_text("utf-8"))
    change(record)
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, indent=1) + "\n"
    (folder / "bundle.json").write_text(text, "utf-8")


def test_a_bundle_loads_as_it_was_written(original: ModelBundle) -> None:
    """The round trip keeps every field and the digest."""
    loaded = ModelBundle.load(original.path, expected_digest=original.digest)
    assert loaded == original
    assert loaded.sample_rate == 16_000
    assert loaded.blank_id == len(loaded.vocabulary)
    assert loaded.variants == ("fp32",)


def test_equal_content_has_one_digest_wherever_it_lies(original: ModelBundle, tmp_path: Path) -> None:
    """The digest names a model in the registry, in verdicts and releases; a place or a time must not be in it."""
    again = write_toy_bundle(tmp_path / "elsewhere" / "again")
    assert again.digest == original.digest
    assert (again.path / "bundle.json").read_bytes() == (original.path / "bundle.json").read_bytes()
    assert ModelBundle.load(Path(shutil.copytree(original.path, tmp_path / "moved"))).digest == original.digest


def test_any_difference_changes_the_digest(original: ModelBundle, tmp_path: Path) -> None:
    """A verdict for one model must never fit another."""
    digests = {
        original.digest,
        write_toy_bundle(tmp_path / "a", confuse=[("one", "two")]).digest,
        write_toy_bundle(tmp_path / "b", lineage={"recipe": "other"}).digest,
        write_toy_bundle(tmp_path / "c", name="other").digest,
        with_calibration(original, CALIBRATION, tmp_path / "d").digest,
    }
    assert len(digests) == 5


@pytest.mark.parametrize("name", ["network.onnx", "tokenizer.model"])
def test_a_changed_byte_is_refused(folder: Path, name: str) -> None:
    """Bit rot and tampering look the same: the model is not the one that was judged."""
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} differs"):
        ModelBundle.load(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    """Half a download must not be served."""
    (folder / "tokenizer.model").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.model is missing"):
        ModelBundle.load(folder)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "network.int8.onnx"])
def test_an_unlisted_file_is_refused(folder: Path, name: str) -> None:
    """What no digest covers could be loaded by a later version."""
    (folder / name).write_bytes(b"x")
    with pytest.raises(BundleError, match="not listed"):
        ModelBundle.load(folder)


def test_a_subfolder_is_refused(folder: Path) -> None:
    """A bundle is flat, so that every listing of it is complete."""
    (folder / "more").mkdir()
    with pytest.raises(BundleError, match="not listed"):
        ModelBundle.load(folder)


def test_a_link_to_the_outside_is_refused(folder: Path, tmp_path: Path) -> None:
    """The right bytes today can be other bytes tomorrow where the bundle's owner does not rule."""
    outside = tmp_path / "outside.onnx"
    (folder / "network.onnx").rename(outside)
    (folder / "network.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="outside the bundle"):
        ModelBundle.load(folder)


def test_a_linked_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    """bundle.json is the root of all trust in the folder."""
    (folder / "bundle.json").rename(tmp_path / "bundle.json")
    (folder / "bundle.json").symlink_to(tmp_path / "bundle.json")
    with pytest.raises(BundleError, match=r"no bundle\.json"):
        ModelBundle.load(folder)


@pytest.mark.parametrize("name", ["../network.onnx", "/etc/hostname", "a/b", "..", "", "bundle.json", "x" * 200])
def test_a_file_name_that_leaves_the_folder_is_refused(folder: Path, name: str) -> None:
    """A manifest from elsewhere must not make the loader read other places."""

    def change(record: dict[str, Any]) -> None:
        record["files"][name] = record["files"]["network.onnx"]

    rewrite(folder, change)
    with pytest.raises(BundleError, match=r"files\.|bundle\.json is missing"):
        ModelBundle.load(folder)


def test_another_model_than_expected_is_refused(folder: Path) -> None:
    """The registry says which bundle it promoted."""
    with pytest.raises(BundleError, match="was expected"):
        ModelBundle.load(folder, expected_digest="0" * 64)


@pytest.mark.parametrize("schema", [0, 3, "1", None, True, 1.5, 2.0])
def test_an_unknown_schema_is_refused(folder: Path, schema: object) -> None:
    """A newer bundle may mean something else by the same keys."""
    rewrite(folder, lambda record: record.update(schema=schema))
    with pytest.raises(UnsupportedBundle, match="schema .*this version reads 1 and 2; use the one that wrote it"):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "change", [{"decoder": "transducer"}, {"mode": "offline"}, {"decoder": "transducer", "mode": "offline"}]
)
def test_a_decoder_or_mode_that_cannot_be_run_is_refused_with_what_to_do(folder: Path, change: dict[str, str]) -> None:
    """Such a bundle is whole, and another version runs it: that is another answer than to a damaged one."""
    rewrite(folder, lambda record: record.update(change, geometry=None))  # whatever else such a model has
    with pytest.raises(UnsupportedBundle, match="this version runs ctc in mode streaming only; update this install"):
        ModelBundle.load(folder)


STORED = Path(__file__).with_name("schema_1") / "bundle"
STORED_DIGEST = "9bb7d2699ffe1f0ad6e31025c8e390c0222c0fcb4a9165c9abfce2c38affa56e"


def test_a_stored_bundle_of_schema_1_loads_under_its_digest_and_says_the_same(tmp_path: Path) -> None:
    """What is in production stays there: ledger, verdicts and releases name it by this digest."""
    bundle = ModelBundle.load(STORED, STORED_DIGEST)
    assert (bundle.name, bundle.language, bundle.lineage) == ("stored", "en", {"recipe": "toy", "steps": 10})
    assert (bundle.decoder, bundle.mode, bundle.text) == ("ctc", "streaming", "spoken")
    assert bundle.variants == ("fp32", "int8")
    assert (bundle.features, bundle.blank_id, bundle.calibration) == (
        MelConfig(),
        11,
        Calibration((0.2, 0.9), (0.1, 0.95), words=300),
    )
    for variant in bundle.variants:
        assert Recognizer(bundle, variant=variant).transcribe(tones(["six", "one", "two"])).text == "seven one two"
    written = with_calibration(bundle, CALIBRATION, tmp_path / "again")
    assert json.loads((written.path / "bundle.json").read_bytes())["schema"] == 2
    assert (written.files, written.networks) == (bundle.files, bundle.networks)


@pytest.mark.parametrize("key", ["kind", "files", "geometry", "vocabulary", "features"])
def test_a_bundle_of_schema_1_without_its_parts_is_refused(tmp_path: Path, key: str) -> None:
    """Being old is no excuse."""
    copy = Path(shutil.copytree(STORED, tmp_path / "copy"))
    rewrite(copy, lambda record: record.pop(key))
    with pytest.raises(BundleError, match=key):
        ModelBundle.load(copy)


@pytest.mark.parametrize(
    "key",
    [
        *("decoder", "mode", "text", "networks", "language", "features", "geometry", "vocabulary", "calibration"),
        *("files", "lineage"),
    ],
)
def test_a_missing_key_is_refused_by_name(folder: Path, key: str) -> None:
    """The person who reads the message must know what to look for."""
    rewrite(folder, lambda record: record.pop(key))
    with pytest.raises(BundleError, match=key):
        ModelBundle.load(folder)


def test_an_unknown_key_is_refused_by_name(folder: Path) -> None:
    """A key this version ignores could matter."""
    rewrite(folder, lambda record: record.update(threshold=0.5))
    with pytest.raises(BundleError, match="threshold"):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": "rnnt"},
        {"mode": None},
        {"text": "shouted"},
        {"networks": {}},
        {"networks": {"encoder": {"int8": "network.onnx"}}},
        {"networks": {"encoder": {"fp32": "other.onnx"}}},
        {"networks": {"listener": {"fp32": "network.onnx"}}},
        {"name": ""},
        {"language": 5},
        {"vocabulary": []},
        {"vocabulary": ["a", 1]},
        {"vocabulary": "abc"},
        {"features": []},
        {"features": {"mels": 80}},
        {"features": {**asdict(MelConfig()), "mels": True}},
        {"features": {**asdict(MelConfig()), "hop": 0}},
        {"features": {**asdict(MelConfig()), "window_s": 0.025}},
        {"geometry": {}},
        {"calibration": [1, 2]},
        {"calibration": {"confidences": [0.5, 0.2], "probabilities": [0, 1], "words": 2}},
        {"calibration": {"confidences": None, "probabilities": [0, 1], "words": 2}},
        {"files": {}},
        {"files": {"network.onnx": "abc"}},
        {"files": {"network.onnx": "0" * 64}},
        {"parity": 1},
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(folder: Path, change: dict[str, Any]) -> None:
    """Every field is checked before anything is run."""
    rewrite(folder, lambda record: record.update(change))
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"chunk": 12},
        {"chunk": 0},
        {"lead": 8},
        {"lead": 25},
        {"max_run_chunks": 0},
        {"attention_cache": [4, 70]},
        {"attention_cache": 4},
        {"history": 9.0},
        {"history": None},
    ],
)
def test_an_impossible_geometry_is_refused(folder: Path, change: dict[str, Any]) -> None:
    """Wrong shapes would lose the first or the last word silently."""
    rewrite(folder, lambda record: record["geometry"].update(change))
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        ModelBundle.load(folder)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}', b"[" * 100_000, b'{"schema": 1, "schema": 2}'],
)
def test_a_manifest_that_is_not_whole_json_is_refused(folder: Path, data: bytes) -> None:
    """Truncated downloads and hostile files end in one sentence, not in a traceback."""
    (folder / "bundle.json").write_bytes(data)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        ModelBundle.load(folder)


def test_every_truncation_of_a_manifest_is_refused(folder: Path) -> None:
    """Wherever the copy stopped."""
    data = (folder / "bundle.json").read_bytes()
    for size in range(0, len(data), 37):
        (folder / "bundle.json").write_bytes(data[:size])
        with pytest.raises(BundleError):
            ModelBundle.load(folder)


def test_a_huge_manifest_is_refused_unread(folder: Path) -> None:
    """Memory is not spent on something that cannot be a manifest."""
    with (folder / "bundle.json").open("r+b") as handle:
        handle.truncate(64 * 1024 * 1024)
    with pytest.raises(BundleError, match="larger than"):
        ModelBundle.load(folder)


def test_not_a_number_is_refused(folder: Path) -> None:
    """NaN passes every comparison with a threshold the wrong way."""
    text = (folder / "bundle.json").read_text("utf-8").replace('"equal": 1.0', '"equal": NaN')
    (folder / "bundle.json").write_text(text, "utf-8")
    with pytest.raises(BundleError, match="not JSON compliant"):
        ModelBundle.load(folder)


@pytest.mark.parametrize("place", ["nowhere", "bundle.json"])
def test_what_is_no_folder_is_refused(folder: Path, place: str) -> None:
    """A path mistake reads as one."""
    with pytest.raises(BundleError, match="no such folder"):
        ModelBundle.load(folder / place)


def test_a_file_that_has_gone_is_an_error_that_names_it(folder: Path) -> None:
    """A copy may be removed while it is being opened; it is fetched again then."""
    bundle = ModelBundle.load(folder)
    (folder / "network.onnx").unlink()
    with pytest.raises(BundleError, match=r"cannot read network\.onnx"):
        bundle.read("network.onnx")


def test_a_bundle_is_not_written_without_its_parts(original: ModelBundle, tmp_path: Path) -> None:
    """An export that failed half-way must not look like a model."""
    (tmp_path / "network.onnx").write_bytes(original.read("network.onnx"))
    half = Description(
        language="en",
        name="half",
        features=original.features,
        geometry=original.geometry,
        vocabulary=original.vocabulary,
    )
    with pytest.raises(BundleError, match=r"tokenizer\.model is missing"):
        write_bundle(tmp_path, half)
    (tmp_path / "tokenizer.model").write_bytes(original.read("tokenizer.model"))
    with pytest.raises(BundleError, match="finite JSON"):
        write_bundle(tmp_path, replace(half, parity={"equal": float("nan")}))
    with pytest.raises(BundleError, match="finite JSON"):
        write_bundle(tmp_path, replace(half, lineage={"path": tmp_path}))
    assert not (tmp_path / "bundle.json").exists()


def test_calibration_makes_another_bundle_and_keeps_the_rest(original: ModelBundle, tmp_path: Path) -> None:
    """Calibrating changes what is published above a threshold, so it changes the model's identity."""
    calibrated = with_calibration(original, CALIBRATION, tmp_path / "deep" / "calibrated")
    assert calibrated.calibration == CALIBRATION
    assert calibrated.digest != original.digest
    assert calibrated.files == original.files
    assert (calibrated.parity, calibrated.lineage, calibrated.name) == (
        original.parity,
        original.lineage,
        original.name,
    )
    assert sorted(entry.name for entry in calibrated.path.parent.iterdir()) == ["calibrated"]
    with pytest.raises(BundleError, match="exists already"):
        with_calibration(original, CALIBRATION, tmp_path / "deep" / "calibrated")


def test_calibration_is_monotone_and_keeps_shapes() -> None:
    """A surer word never becomes less probable; beyond the knots the map is flat."""
    values = np.linspace(-0.5, 1.5, 201).reshape(3, 67)
    mapped = CALIBRATION.apply(values)
    assert mapped.shape == values.shape
    assert (np.diff(mapped.ravel()) >= 0).all()
    assert CALIBRATION.apply(np.array([0.0, 0.4, 0.75, 1.0])).tolist() == pytest.approx([0.1, 0.3, 0.725, 0.95])


@pytest.mark.parametrize(
    ("confidences", "probabilities"),
    [((), ()), ((0.5,), ()), ((0.5, 0.5), (0, 1)), ((0, 1), (1, 0)), ((0, 2), (0, 1)), ((0, 1), (float("nan"), 1))],
)
def test_a_map_that_is_not_monotone_in_the_unit_square_is_refused(
    confidences: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    """A broken fit must not decide what is published."""
    with pytest.raises(ValueError, match=r"must|needs"):
        Calibration(confidences, probabilities)


def test_geometry_counts_outputs_as_the_runs_give_them() -> None:
    """The first run is short by lead - history frames; outputs tile the recording without a gap."""
    shape = Geometry(8, 16, 9, 16, (4, 70, 96), (4, 96, 8), 10)
    assert [shape.outputs_of(frames) for frames in (0, 1, 2, 9, 10, 17, 18)] == [0, 1, 2, 2, 3, 3, 4]
    spans = [shape.frame_span(index) for index in range(5)]
    assert spans == [(0, 1), (1, 9), (9, 17), (17, 25), (25, 33)]
