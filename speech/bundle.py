"""ModelBundle: the one format a trained model is served from.

A bundle is a folder of plain files: its networks as ONNX, the tokenizer, and bundle.json, which says how to use them
and holds the SHA-256 of each. The digest of a bundle is the SHA-256 of bundle.json: two bundles of equal content have
equal digests, and nothing in a bundle can change without changing it. Registry, verdicts and releases name
models by it.

Everything about a bundle that is not exactly as written is refused with a `BundleError`: loading never guesses, because
what it loads is what customers hear. It does not cover secrecy, nor who wrote the bundle: a digest from a trusted place
(the registry) is what `expected_digest` is for.

Schema 2 says which kind of model it is. One of schema 1 is always a streaming CTC model of spoken text, and is read as
that, under the digest that it has.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from speech.features import MelConfig
from speech.plain import from_plain, to_plain
from speech.store.outputs import DIGEST, digest_file, parse_json, write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BUNDLE_SCHEMA = 2
RUNNABLE = ("ctc", "streaming")  # the decoder and mode that `speech.recognition` has
MANIFEST = "bundle.json"
TOKENIZER = "tokenizer.model"
FETCH_AGAIN = "; fetch the bundle again"  # ends a refusal of what was whole once
# A vocabulary of 16,000 pieces takes 0.3 MB; more than this is not a bundle.json.
_MAX_MANIFEST_BYTES = 8 * 1024 * 1024

Text = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]  # a bundle is one flat folder
Sha256 = Annotated[str, Field(pattern=f"^{DIGEST.pattern}$")]
Role = Literal["encoder", "predictor", "joiner"]  # the last two: a transducer's
Precision = Literal["fp32", "int8"]
NETWORKS: Mapping[Precision, str] = {"fp32": "network.onnx", "int8": "network.int8.onnx"}  # an encoder's files
NETWORK = NETWORKS["fp32"]


class BundleError(Exception):
    """A folder is not a bundle that may be served; the message says what is wrong and where."""


class UnsupportedBundle(BundleError):
    """A bundle of a kind that this version cannot run; the message says what to do."""


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
        if min(self.history, *self.attention_cache, *self.convolution_cache) < 0:
            raise ValueError("no size may be below 0")
        if self.subsampling < 1 or self.chunk < 1 or self.chunk % self.subsampling:
            raise ValueError(f"chunk {self.chunk} must be a multiple of subsampling {self.subsampling}, both above 0")
        if self.lead < self.history or self.lead - self.history >= self.chunk or self.max_run_chunks < 1:
            raise ValueError("lead must hold the history and be less than a chunk longer; max_run_chunks is above 0")

    @property
    def chunk_outputs(self) -> int:
        """Output frames a chunk gives."""
        return self.chunk // self.subsampling

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


@dataclass(frozen=True, kw_only=True)
class Description:
    """What bundle.json says of a model, beside the digests of its files.

    `networks` names the files of each role. The encoder hears mel frames; with a CTC decoder its output are the
    log-probabilities of the symbols, with a transducer what its joiner takes. `parity` and `lineage` are JSON values;
    keep paths and times out of them, or equal models stop having equal digests.
    """

    name: Text
    language: Text
    decoder: Literal["ctc", "transducer"] = "ctc"
    mode: Literal["streaming", "offline"] = "streaming"  # offline: the encoder needs the whole recording
    text: Literal["spoken", "written"] = "spoken"  # written: with case, punctuation and digits
    networks: Mapping[Role, Mapping[Precision, str]] = field(default_factory=lambda: {"encoder": {"fp32": NETWORK}})
    features: MelConfig
    geometry: Geometry
    vocabulary: Annotated[tuple[str, ...], Field(min_length=1)] = field(repr=False)
    calibration: Calibration | None = None
    parity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    lineage: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def blank_id(self) -> int:
        """The symbol for nothing, right after the vocabulary."""
        return len(self.vocabulary)

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio the model hears."""
        return self.features.sample_rate

    @property
    def variants(self) -> tuple[Precision, ...]:
        """The precisions that the networks are there in: "fp32" always, smaller ones when exported."""
        return tuple(sorted(self.networks["encoder"]))


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A verified folder of files. `digest` is its identity everywhere else in the platform."""

    path: Path
    digest: str
    files: Mapping[FileName, Sha256] = field(repr=False)

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises BundleError where it is not there any more."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"{self.path}: cannot read {name}: {error.strerror}{FETCH_AGAIN}") from error


@dataclass(frozen=True, kw_only=True)
class ModelBundle(Description, Sealed):
    """A verified bundle of a recogniser."""

    def __post_init__(self) -> None:
        """Refuse a bundle without its parts."""
        if "fp32" not in self.networks.get("encoder", {}):
            raise ValueError("there must be an encoder in fp32")
        for name in (TOKENIZER, *(name for role in self.networks.values() for name in role.values())):
            if name not in self.files:
                raise ValueError(f"{name} is missing; a bundle needs it")

    def network_name(self, variant: Precision = "fp32") -> str:
        """Return the file name of a variant of the encoder; BundleError lists the ones there are."""
        if variant not in self.variants:
            raise BundleError(f"{self.path}: no {variant} network in this bundle; choose {', '.join(self.variants)}")
        return self.networks["encoder"][variant]

    @classmethod
    def load(cls, path: str | os.PathLike[str], expected_digest: str | None = None) -> "ModelBundle":
        """Read and verify a bundle folder: every byte, the schema, and that nothing else lies in it.

        Raises:
            UnsupportedBundle: it needs another version of this program.
            BundleError: it is not as it was written, or not the one expected.
        """
        folder = Path(path)
        bundle = _bundle_of(read_manifest(folder), folder, expected_digest)
        verify_files(folder, bundle.files)
        return bundle


def write_bundle(folder: str | os.PathLike[str], description: Description) -> ModelBundle:
    """Make a bundle of the files in `folder`: digest them, and write bundle.json. Raises BundleError."""
    folder = Path(folder)
    text = manifest_of(folder, BUNDLE_SCHEMA, description)
    bundle = _bundle_of(text.encode(), folder)
    write_atomically(folder / MANIFEST, text)
    return bundle


def with_calibration(bundle: ModelBundle, calibration: Calibration, destination: str | os.PathLike[str]) -> ModelBundle:
    """Copy a bundle to a folder that does not exist yet, with this calibration: another model, another digest."""
    with copied(bundle, destination) as staging:
        described = {item.name: getattr(bundle, item.name) for item in fields(Description)}
        write_bundle(staging, Description(**{**described, "calibration": calibration}))
    return ModelBundle.load(destination)


@contextmanager
def copied(bundle: Sealed, destination: str | os.PathLike[str]) -> Iterator[Path]:
    """A copy of a bundle to be changed in the block, after which it is at `destination`, which must not exist yet.

    Raises:
        BundleError: it does.
    """
    destination = Path(destination)
    if destination.exists():
        raise BundleError(f"{destination}: exists already; a bundle is never changed in place")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{destination.name}.", dir=destination.parent) as scratch:
        staging = shutil.copytree(bundle.path, Path(scratch) / destination.name)
        yield staging
        shutil.move(staging, destination)


def read_manifest(folder: Path) -> bytes:
    """The bytes of a folder's bundle.json. Raises BundleError where it is no bundle."""
    manifest = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(f"{folder}: there is no such folder")
    if manifest.is_symlink() or not manifest.is_file():
        raise BundleError(f"{folder}: there is no {MANIFEST}, so this is not a model bundle")
    if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
        raise BundleError(f"{manifest}: larger than {_MAX_MANIFEST_BYTES} bytes, so not a {MANIFEST}")
    return manifest.read_bytes()


def manifest_of(folder: Path, schema: int | str, description: "DataclassInstance") -> str:
    """What bundle.json says of the files in a folder, with their digests. Raises BundleError."""
    files = {entry.name: _digest(entry) for entry in folder.iterdir() if entry.name != MANIFEST}
    record = {"schema": schema, **asdict(description), "files": files}
    try:
        return json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: parity and lineage must be finite JSON values: {error}") from error


def record_of(data: bytes, folder: Path, expected_digest: str | None = None) -> tuple[dict[str, Any], str]:
    """The JSON object that a bundle.json of these bytes holds, and its digest.

    Raises:
        BundleError: it is not whole, or not the one expected.
    """
    manifest, digest = folder / MANIFEST, hashlib.sha256(data).hexdigest()
    if expected_digest is not None and digest != expected_digest:
        raise BundleError(f"{folder}: digest is {digest}, but {expected_digest} was expected; not the model meant")
    try:
        record = parse_json(data)
    except ValueError as error:
        raise BundleError(f"{manifest}: not complete JSON ({error}){FETCH_AGAIN}") from error
    if not isinstance(record, dict):
        raise BundleError(f"{manifest}: not a JSON object{FETCH_AGAIN}")
    return record, digest


def require_as_written(bundle: Sealed, record: Mapping[str, Any]) -> None:
    """Raise BundleError where a bundle says other than the record it was read from.

    What was passed over could matter, and what is left out is not guessed at.
    """
    said = {key: value for key, value in to_plain(bundle).items() if key not in ("path", "digest")}
    if odd := sorted(key for key in {**said, **record} if said.get(key, ...) != record.get(key, ...)):
        manifest = bundle.path / MANIFEST
        raise BundleError(f"{manifest}: {', '.join(odd)} not as write_bundle writes it; export the model again")


def _bundle_of(data: bytes, folder: Path, expected_digest: str | None = None) -> ModelBundle:
    """The bundle that a bundle.json of these bytes describes; its files are not looked at."""
    manifest = folder / MANIFEST
    record, digest = record_of(data, folder, expected_digest)
    schema = record.pop("schema", None)
    if type(schema) is not int or schema not in (1, BUNDLE_SCHEMA):
        raise UnsupportedBundle(f"{manifest}: schema {schema!r}, this version reads 1 and 2; use the one that wrote it")
    try:
        record = _of_schema_1(record) if schema == 1 else record
        if (record.get("decoder"), record.get("mode")) != RUNNABLE:
            raise UnsupportedBundle(
                f"{manifest}: decoder {record.get('decoder')!r} in mode {record.get('mode')!r}, this version runs "
                f"{' in mode '.join(RUNNABLE)} only; update this installation, or export a cache-aware CTC model"
            )
        bundle = from_plain(ModelBundle, {**record, "path": str(folder), "digest": digest})
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise BundleError(f"{manifest}: {error}; export the model again") from error
    require_as_written(bundle, record)
    return bundle


def _of_schema_1(record: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of schema 1 as schema 2 says the same."""
    files = {name: entry["sha256"] for name, entry in record["files"].items()}
    encoder = {precision: name for precision, name in NETWORKS.items() if name in files}
    kept = {key: value for key, value in record.items() if key not in ("kind", "sample_rate", "blank_id")}
    added = {"decoder": record["kind"], "mode": "streaming", "text": "spoken", "networks": {"encoder": encoder}}
    return {**kept, **added, "files": files}


def verify_files(folder: Path, files: Mapping[FileName, Sha256]) -> None:
    """Raise BundleError unless a folder holds exactly these files, by name and SHA-256."""
    root = folder.resolve()
    present = {entry.name: entry for entry in folder.iterdir() if entry.name != MANIFEST}
    for name in sorted(set(present) - set(files)):
        raise BundleError(f"{folder}: {name} is not listed in {MANIFEST}; remove it or export the model again")
    for name, expected in files.items():
        entry = present.get(name)
        if entry is None:
            raise BundleError(f"{folder}: {name} is missing{FETCH_AGAIN}")
        if entry.is_symlink() and root not in entry.resolve().parents:
            raise BundleError(f"{folder}: {name} is a link to a place outside the bundle; copy the file itself")
        if not entry.is_file():
            raise BundleError(f"{folder}: {name} is not a file{FETCH_AGAIN}")
        if _digest(entry) != expected:
            raise BundleError(f"{folder}: {name} differs from its sha256 in {MANIFEST}{FETCH_AGAIN}")


def _digest(path: Path) -> str:
    if not path.is_file():
        raise BundleError(f"{path}: not a file; a bundle is one flat folder of files")
    return digest_file(path)
