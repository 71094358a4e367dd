"""ModelBundle: the one format a trained model is served from.

A bundle is a folder of plain files: the network as ONNX with its streaming caches as inputs and
outputs, the tokenizer, and bundle.json, which says how to use them and holds the SHA-256 of each. The
digest of a bundle is the SHA-256 of bundle.json: two bundles of equal content have equal digests, and
nothing in a bundle can change without changing it. Registry, verdicts and releases name models by it.

Everything about a bundle that is not exactly as written is refused with a `BundleError`: loading
never guesses, because what it loads is what customers hear. It does not cover secrecy, nor who wrote
the bundle: a digest from a trusted place (the registry) is what `expected_digest` is for.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from speech.features import MelConfig
from speech.store.outputs import DIGEST, digest_file, parse_json

BUNDLE_SCHEMA = 1
MANIFEST = "bundle.json"
NETWORK = "network.onnx"
TOKENIZER = "tokenizer.model"
# A vocabulary of 16,000 pieces takes 0.3 MB; more than this is not a bundle.json.
_MAX_MANIFEST_BYTES = 8 * 1024 * 1024
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_KEYS = frozenset(
    {"schema", "kind", "name", "language", "sample_rate", "features", "geometry"}
    | {"vocabulary", "blank_id", "calibration", "parity", "lineage", "files"}
)


class BundleError(Exception):
    """A folder is not a bundle that may be served; the message says what is wrong and where."""


@dataclass(frozen=True)
class Geometry:
    """The shapes of a cache-aware streaming network, in mel frames unless said otherwise.

    A run takes `history` frames already seen and a number of new ones. The first run of a stream sees
    `lead` all-zero frames ("no audio yet") in place of the history, and so has room for
    `lead - history` fewer new ones. Every run but a stream's last must bring whole chunks, that is
    `history + n * chunk` frames in all; the last one says its true length.
    """

    subsampling: int  # mel frames for one output frame
    chunk: int  # new mel frames in the smallest run: subsampling * (look-ahead + 1)
    history: int  # mel frames of the past that every run sees again
    lead: int  # all-zero mel frames before the first real one
    attention_cache: tuple[int, int, int]  # layers, output frames, width
    convolution_cache: tuple[int, int, int]  # layers, width, output frames
    max_run_chunks: int  # chunks in the largest run the network's position table allows

    def __post_init__(self) -> None:
        """Refuse shapes that no network of this family has."""
        counts = [self.subsampling, self.chunk, self.history, self.lead, self.max_run_chunks]
        counts += [*self.attention_cache, *self.convolution_cache]
        if any(not isinstance(count, int) or isinstance(count, bool) or count < 0 for count in counts):
            raise ValueError("geometry must hold whole numbers, none below 0")
        if len(self.attention_cache) != 3 or len(self.convolution_cache) != 3:
            raise ValueError("attention_cache and convolution_cache must have three sizes each")
        if self.subsampling < 1 or self.chunk < 1 or self.chunk % self.subsampling:
            raise ValueError(f"chunk {self.chunk} must be a multiple of subsampling {self.subsampling}, both above 0")
        if self.lead < self.history or self.lead - self.history >= self.chunk or self.max_run_chunks < 1:
            raise ValueError("lead must hold the history and be less than a chunk longer; max_run_chunks is above 0")

    @property
    def chunk_outputs(self) -> int:
        """Output frames a chunk gives."""
        return self.chunk // self.subsampling

    @property
    def first_chunk(self) -> int:
        """New mel frames in a stream's first run of one chunk."""
        return self.chunk - (self.lead - self.history)

    def outputs_of(self, frames: int) -> int:
        """Return how many output frames a recording of that many mel frames gives."""
        if frames <= 0:
            return 0
        return -(-(frames + self.lead - self.history) // self.subsampling)

    def frame_span(self, output: int) -> tuple[int, int]:
        """Return the new mel frames [from, to) that the output frame at that index stands for.

        The outputs tile the recording: each stands for the frames that became known with it.
        """
        to = (output + 1) * self.subsampling - (self.lead - self.history)
        return max(0, to - self.subsampling), max(0, to)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form that bundle.json stores."""
        record = {item.name: getattr(self, item.name) for item in fields(self)}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in record.items()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Geometry":
        """Read the plain form; ValueError names what is missing or unknown."""
        names = {item.name for item in fields(cls)}
        if set(record) != names:
            odd = ", ".join(sorted(set(record) ^ names))
            raise ValueError(f"geometry must hold exactly {', '.join(sorted(names))}; check {odd}")
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in record.items()}
        return cls(**values)


@dataclass(frozen=True)
class Calibration:
    """A monotone map from a model's own confidence to the probability that a word is right.

    Straight lines between knots; constant before the first and after the last. A network's highest
    softmax value is not a probability of being right, and differs from model to model, so a threshold
    means something only after this map (Guo et al., 2017, "On Calibration of Modern Neural Networks").
    """

    confidences: tuple[float, ...]  # strictly increasing, 0..1
    probabilities: tuple[float, ...]  # never decreasing, 0..1
    words: int = 0  # how many words it was fitted on

    def __post_init__(self) -> None:
        """Refuse what is not a monotone map of [0, 1] into [0, 1]."""
        object.__setattr__(self, "confidences", tuple(float(value) for value in self.confidences))
        object.__setattr__(self, "probabilities", tuple(float(value) for value in self.probabilities))
        knots = np.asarray(self.confidences), np.asarray(self.probabilities)
        if len(knots[0]) != len(knots[1]) or not len(knots[0]):
            raise ValueError("a calibration needs as many probabilities as confidences, at least one of each")
        if not all(np.all((values >= 0) & (values <= 1)) for values in knots):
            raise ValueError("confidences and probabilities must lie between 0 and 1")
        if np.any(np.diff(knots[0]) <= 0) or np.any(np.diff(knots[1]) < 0):
            raise ValueError("confidences must increase and probabilities must not decrease")

    def apply(self, confidences: np.ndarray) -> np.ndarray:
        """Return the probabilities (float64, same shape) of confidences of any shape."""
        return np.interp(np.asarray(confidences, dtype=np.float64), self.confidences, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form that bundle.json stores."""
        return {
            "confidences": list(self.confidences),
            "probabilities": list(self.probabilities),
            "words": self.words,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Calibration":
        """Read the plain form; ValueError says what is wrong with it."""
        if set(record) != {"confidences", "probabilities", "words"} or not isinstance(record["words"], int):
            raise ValueError("calibration must hold exactly confidences, probabilities and words")
        return cls(tuple(record["confidences"]), tuple(record["probabilities"]), record["words"])


@dataclass(frozen=True)
class ModelBundle:
    """A verified bundle folder. `digest` is its identity everywhere else in the platform."""

    path: Path
    digest: str
    name: str
    language: str
    features: MelConfig
    geometry: Geometry
    vocabulary: tuple[str, ...] = field(repr=False)
    blank_id: int
    calibration: Calibration | None = None
    parity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    lineage: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: Mapping[str, str] = field(default_factory=dict, repr=False)  # name -> SHA-256
    kind: str = "ctc"

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio the model hears."""
        return self.features.sample_rate

    @property
    def variants(self) -> tuple[str, ...]:
        """The networks in the bundle: "fp32" always, smaller ones when exported."""
        extra = [name.split(".")[1] for name in self.files if re.fullmatch(r"network\.[a-z0-9]+\.onnx", name)]
        return ("fp32", *sorted(extra))

    def network_name(self, variant: str = "fp32") -> str:
        """Return the file name of a variant; BundleError lists the ones there are."""
        if variant not in self.variants:
            raise BundleError(f"{self.path}: no {variant} network in this bundle; choose {', '.join(self.variants)}")
        return NETWORK if variant == "fp32" else f"network.{variant}.onnx"

    def read(self, name: str) -> bytes:
        """Return a file's bytes, verified again: what is used is what the digest names, not what is there now."""
        if name not in self.files:
            raise BundleError(f"{self.path}: no file {name} in this bundle")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: cannot read {name}: {error.strerror}; fetch the bundle again") from error
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise BundleError(f"{self.path}: {name} changed after the bundle was loaded; fetch the bundle again")
        return data

    @classmethod
    def load(cls, path: str | os.PathLike[str], expected_digest: str | None = None) -> "ModelBundle":
        """Read and verify a bundle folder: every byte, the schema, and that nothing else lies in it."""
        folder = Path(path)
        data = _read_manifest(folder)
        digest = hashlib.sha256(data).hexdigest()
        if expected_digest is not None and digest != expected_digest:
            raise BundleError(f"{folder}: digest is {digest}, but {expected_digest} was expected; not the model meant")
        record = _parse_manifest(data, folder)
        try:
            bundle = _bundle_of(record, folder, digest)
        except (ValueError, TypeError, AttributeError) as error:
            raise BundleError(f"{folder / MANIFEST}: {error}") from error
        _verify_files(bundle)
        return bundle


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    language: str,
    name: str,
    features: MelConfig,
    geometry: Geometry,
    vocabulary: Sequence[str],
    calibration: Calibration | None = None,
    parity: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> ModelBundle:
    """Make a bundle of the files in `folder`: digest them, write bundle.json, load the result.

    `parity` and `lineage` are JSON values; keep paths and times out of them, or equal models stop
    having equal digests. The CTC blank comes after the vocabulary. Raises BundleError.
    """
    folder = Path(folder)
    names = sorted(entry.name for entry in folder.iterdir() if entry.name != MANIFEST)
    for required in (NETWORK, TOKENIZER):
        if required not in names:
            raise BundleError(f"{folder}: {required} is missing; a bundle needs it")
    record = {
        "schema": BUNDLE_SCHEMA,
        "kind": "ctc",
        "name": name,
        "language": language,
        "sample_rate": features.sample_rate,
        "features": features.to_dict(),
        "geometry": geometry.to_dict(),
        "vocabulary": list(vocabulary),
        "blank_id": len(vocabulary),
        "calibration": calibration.to_dict() if calibration else None,
        "parity": dict(parity or {}),
        "lineage": dict(lineage or {}),
        "files": {entry: {"sha256": _digest(folder / entry), "bytes": _size(folder / entry)} for entry in names},
    }
    try:
        data = _canonical(record)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: parity and lineage must be finite JSON values: {error}") from error
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.json"
    temporary.write_bytes(data)
    os.replace(temporary, folder / MANIFEST)
    return ModelBundle.load(folder)


def with_calibration(bundle: ModelBundle, calibration: Calibration, destination: str | os.PathLike[str]) -> ModelBundle:
    """Copy a bundle to a folder that does not exist yet, with this calibration: another model, another digest."""
    destination = Path(destination)
    if destination.exists():
        raise BundleError(f"{destination}: exists already; a bundle is never changed in place")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        staging = Path(scratch) / destination.name
        staging.mkdir()
        for name in bundle.files:
            (staging / name).write_bytes(bundle.read(name))
        write_bundle(
            staging,
            language=bundle.language,
            name=bundle.name,
            features=bundle.features,
            geometry=bundle.geometry,
            vocabulary=bundle.vocabulary,
            calibration=calibration,
            parity=bundle.parity,
            lineage=bundle.lineage,
        )
        shutil.move(staging, destination)
    return ModelBundle.load(destination)


def _canonical(record: Mapping[str, Any]) -> bytes:
    """Return the one spelling of a JSON value: sorted keys, no NaN, UTF-8, one line break at the end."""
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
    return (text + "\n").encode("utf-8")


def _read_manifest(folder: Path) -> bytes:
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such folder")
    if manifest.is_symlink() or not manifest.is_file():
        raise BundleError(f"{folder}: there is no {MANIFEST}, so this is not a model bundle")
    if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest}: larger than {_MAX_MANIFEST_BYTES} bytes, so not a {MANIFEST}")
    return manifest.read_bytes()


def _parse_manifest(data: bytes, folder: Path) -> dict[str, Any]:
    manifest = folder / MANIFEST
    try:
        record = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{manifest}: not complete JSON ({error}); fetch the bundle again") from error
    if not isinstance(record, dict):
        raise BundleError(f"{manifest}: not a JSON object; fetch the bundle again")
    schema = record.get("schema")
    if schema != BUNDLE_SCHEMA or isinstance(schema, bool):
        raise BundleError(f"{manifest}: schema {schema!r}, this version reads {BUNDLE_SCHEMA}; export the model again")
    if set(record) != _KEYS:
        missing, unknown = sorted(_KEYS - set(record)), sorted(set(record) - _KEYS)
        what = f"{', '.join(missing)} missing" if missing else f"{', '.join(unknown)} unknown"
        raise BundleError(f"{manifest}: {what}; export the model again")
    try:
        spelled = _canonical(record)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest}: holds a value that JSON has no word for ({error})") from error
    if spelled != data:
        raise BundleError(f"{manifest}: not as write_bundle writes it (edited, or a key twice); export the model again")
    return record


def _bundle_of(record: dict[str, Any], folder: Path, digest: str) -> ModelBundle:
    """Check the values; ValueError, TypeError or AttributeError say which one is wrong."""
    for key in ("name", "language", "kind"):
        if not isinstance(record[key], str) or not record[key]:
            raise ValueError(f"{key} must be a non-empty text")
    if record["kind"] != "ctc":
        raise ValueError(f"kind {record['kind']!r} is unknown; this version serves ctc")
    for key in ("features", "geometry", "parity", "lineage", "files"):
        if not isinstance(record[key], dict):
            raise ValueError(f"{key} must be an object")
    vocabulary = record["vocabulary"]
    if not isinstance(vocabulary, list) or not vocabulary or not all(isinstance(piece, str) for piece in vocabulary):
        raise ValueError("vocabulary must be a list of texts, not empty")
    if record["blank_id"] != len(vocabulary) or isinstance(record["blank_id"], bool):
        raise ValueError(f"blank_id must be {len(vocabulary)}, right after the vocabulary, not {record['blank_id']!r}")
    features = MelConfig.from_dict(record["features"])
    if record["sample_rate"] != features.sample_rate:
        raise ValueError(f"sample_rate {record['sample_rate']!r} differs from the features' {features.sample_rate}")
    calibration = record["calibration"]
    if calibration is not None and not isinstance(calibration, dict):
        raise ValueError("calibration must be an object or null")
    return ModelBundle(
        path=folder,
        digest=digest,
        name=record["name"],
        language=record["language"],
        features=features,
        geometry=Geometry.from_dict(record["geometry"]),
        vocabulary=tuple(vocabulary),
        blank_id=record["blank_id"],
        calibration=Calibration.from_dict(calibration) if calibration is not None else None,
        parity=record["parity"],
        lineage=record["lineage"],
        files=_listed_files(record["files"]),
        kind=record["kind"],
    )


def _listed_files(files: Mapping[str, Any]) -> dict[str, str]:
    listed = {}
    for name, entry in files.items():
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise ValueError(f"file name {name!r} is not allowed; a bundle is one flat folder")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "bytes"}:
            raise ValueError(f"the entry of file {name} must hold sha256 and bytes")
        if not isinstance(entry["sha256"], str) or not DIGEST.fullmatch(entry["sha256"]):
            raise ValueError(f"the sha256 of file {name} is not one")
        listed[name] = entry["sha256"]
    for required in (NETWORK, TOKENIZER):
        if required not in listed:
            raise ValueError(f"file {required} is not listed; a bundle needs it")
    return listed


def _verify_files(bundle: ModelBundle) -> None:
    folder = bundle.path
    root = folder.resolve()
    present = {entry.name: entry for entry in folder.iterdir() if entry.name != MANIFEST}
    for name in sorted(set(present) - set(bundle.files)):
        raise BundleError(f"{folder}: {name} is not listed in {MANIFEST}; remove it or export the model again")
    for name, expected in bundle.files.items():
        entry = present.get(name)
        if entry is None:
            raise BundleError(f"{folder}: {name} is missing; fetch the bundle again")
        if entry.is_symlink() and root not in entry.resolve().parents:
            raise BundleError(f"{folder}: {name} is a link to a place outside the bundle; copy the file itself")
        if not entry.is_file():
            raise BundleError(f"{folder}: {name} is not a file; fetch the bundle again")
        if _digest(entry) != expected:
            raise BundleError(f"{folder}: {name} differs from its sha256 in {MANIFEST}; fetch the bundle again")


def _size(path: Path) -> int:
    return path.stat().st_size


def _digest(path: Path) -> str:
    if not path.is_file():
        raise BundleError(f"{path}: not a file; a bundle is one flat folder of files")
    return digest_file(path)
