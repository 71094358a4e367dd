"""Label models: networks that hear a clip of speech and say who it may be, or in which language it is.

A speaker model gives a clip a direction in space (an embedding): clips of one voice point the same way, whoever it is.
A language model also gives the probability of each of its languages, and of none of them. Both are small networks that
see a whole clip at once, trained by `training/labels/` and kept as a bundle that is verified as a recogniser's is.

What a clip gives depends on that clip alone, to the last bit, whatever it is heard together with: only clips of equal
length share a run, and no clip is padded.
"""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from speech.bundle import (
    MANIFEST,
    NETWORK,
    BundleError,
    Sealed,
    Text,
    UnsupportedBundle,
    copied,
    manifest_of,
    read_manifest,
    record_of,
    require_as_written,
    verify_files,
)
from speech.features import MelConfig, log_mel
from speech.plain import from_plain
from speech.recognition.network import open_session
from speech.store.outputs import write_atomically

SCHEMA = "labels-1"
Kind = Literal["speaker", "language"]
UNKNOWN = "unknown"  # the last label of a language model: none of its languages, or no speech
SHORTEST_S = 0.5  # a shorter clip is repeated up to this: its frames alone have no statistics
LONGEST_S = 20.0  # a longer clip is heard in equal parts, which count alike: memory stays bounded
_BATCH = 32
_DEVIATION_GUARD = 1e-5  # NeMo's, added to each band's standard deviation
_INPUT = "features"


class LabelError(Exception):
    """A clip that cannot be heard; `index` is its place among the clips."""

    def __init__(self, reason: str, index: int) -> None:
        """Keep the reason, one sentence, and the place of the clip."""
        super().__init__(reason)
        self.index = index


@dataclass(frozen=True, kw_only=True)
class LabelDescription:
    """What bundle.json says of a label model, beside the digests of its files."""

    name: Text
    kind: Kind
    labels: tuple[Text, ...]  # of the classes; none of a speaker model: the voices it learnt from are nobody's business
    dimensions: Annotated[int, Field(ge=1)]  # of an embedding
    features: MelConfig  # each band is then brought to mean 0 and deviation 1 over the clip
    temperature: Annotated[float, Field(gt=0)] = 1.0  # what logits are divided by to be calibrated (Guo et al., 2017)
    # speaker: the cosine from which on two clips are taken to be of one voice; language: the least probability that a
    # label is believed with. Both chosen on the dev set.
    threshold: float
    parity: Mapping[str, Any] = field(default_factory=dict, repr=False)
    lineage: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class LabelBundle(LabelDescription, Sealed):
    """A verified bundle of a label model."""

    def __post_init__(self) -> None:
        """Refuse a bundle without its parts."""
        if NETWORK not in self.files:
            raise ValueError(f"{NETWORK} is missing; a bundle needs it")
        if self.kind == "language" and (len(self.labels) < 2 or self.labels[-1] != UNKNOWN):
            raise ValueError(f"a language model has at least one language, and '{UNKNOWN}' as its last label")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("a label is there twice")

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio the model hears."""
        return self.features.sample_rate

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], expected_digest: str | None = None, kind: Kind | None = None
    ) -> "LabelBundle":
        """Read and verify a bundle folder, as `ModelBundle.load` does; `kind` refuses one of another kind.

        Raises:
            UnsupportedBundle: it is no label model, or needs another version of this program.
            BundleError: it is not as it was written, or not the one expected.
        """
        folder = Path(path)
        bundle = _bundle_of(read_manifest(folder), folder, expected_digest)
        if kind is not None and bundle.kind != kind:
            raise BundleError(f"{folder}: a {bundle.kind} model, but a {kind} model is needed")
        verify_files(folder, bundle.files)
        return bundle


def write_label_bundle(folder: str | os.PathLike[str], description: LabelDescription) -> LabelBundle:
    """Make a bundle of the files in `folder`: digest them, and write bundle.json. Raises BundleError."""
    folder = Path(folder)
    text = manifest_of(folder, SCHEMA, description)
    bundle = _bundle_of(text.encode(), folder)
    write_atomically(folder / MANIFEST, text)
    return bundle


def with_thresholds(
    bundle: LabelBundle, destination: str | os.PathLike[str], *, threshold: float, temperature: float = 1.0
) -> LabelBundle:
    """Copy a bundle to a folder that does not exist yet, calibrated so: another model, another digest."""
    with copied(bundle, destination) as staging:
        described = {item.name: getattr(bundle, item.name) for item in fields(LabelDescription)}
        write_label_bundle(
            staging, LabelDescription(**{**described, "threshold": threshold, "temperature": temperature})
        )
    return LabelBundle.load(destination)


def _bundle_of(data: bytes, folder: Path, expected_digest: str | None = None) -> LabelBundle:
    record, digest = record_of(data, folder, expected_digest)
    if (schema := record.pop("schema", None)) != SCHEMA:
        raise UnsupportedBundle(
            f"{folder / MANIFEST}: schema {schema!r} is no label model's, which is '{SCHEMA}'; give a bundle that"
            " `soundstage train-labels` made"
        )
    try:
        bundle = from_plain(LabelBundle, {**record, "path": str(folder), "digest": digest})
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder / MANIFEST}: {error}; export the model again") from error
    require_as_written(bundle, record)
    return bundle


class LabelNetwork:
    """The network of a label bundle. One instance serves any number of threads."""

    def __init__(self, bundle: LabelBundle, threads: int = 1) -> None:
        """Open the network and run it once. Raises BundleError."""
        self.bundle = bundle
        self._session = open_session(bundle, NETWORK, threads)
        name = f"{bundle.path}: {NETWORK}"
        try:
            embedding, logits = self._run(np.zeros((2, 8, bundle.features.mels), np.float32))
        except Exception as error:  # onnxruntime raises its own types, which share no base but Exception
            raise BundleError(f"{name} does not run as that of a label model ({error})") from error
        if embedding.shape != (2, bundle.dimensions) or logits.shape != (2, len(bundle.labels)):
            raise BundleError(f"{name} gives other shapes than its bundle.json promises")

    def embeddings(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The direction of each clip: float32 [clips, dimensions], each of length 1.

        Clips are mono float32 [n], 16 kHz, -1..1, each of any length. Raises LabelError before any work.
        """
        return _of_unit_length(self._heard(clips)[0])

    def log_probabilities(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """The calibrated log-probability of each label: float32 [clips, labels]. Clips as for `embeddings`."""
        scaled = self._heard(clips)[1].astype(np.float64) / self.bundle.temperature
        scaled -= scaled.max(axis=1, keepdims=True)
        normalized: np.ndarray = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        return normalized.astype(np.float32)

    def logits(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """What `log_probabilities` is made of: float32 [clips, labels], not calibrated."""
        return self._heard(clips)[1]

    def _heard(self, clips: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of unit length and logits of the clips; those of a long clip are its parts' mean."""
        parts: list[np.ndarray] = []
        owners: list[int] = []
        for index, clip in enumerate(clips):
            _check(clip, index)
            count = max(1, -(-len(clip) // round(LONGEST_S * self.bundle.sample_rate)))
            parts += np.array_split(clip, count)
            owners += [index] * count
        frames = [self._frames(part) for part in parts]
        alike: dict[int, list[int]] = defaultdict(list)
        for place, rows in enumerate(frames):
            alike[len(rows)].append(place)
        embeddings = np.zeros((len(clips), self.bundle.dimensions), np.float64)
        logits = np.zeros((len(clips), len(self.bundle.labels)), np.float64)
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for places in alike.values():
            for first in range(0, len(places), _BATCH):
                batch = places[first : first + _BATCH]
                heard = self._run(np.stack([frames[place] for place in batch]))
                found.update(zip(batch, zip(*heard, strict=True), strict=True))
        shares = np.bincount(owners, minlength=len(clips))
        for place, owner in enumerate(owners):
            embedding, scores = found[place]
            embeddings[owner] += _of_unit_length(embedding) / shares[owner]
            logits[owner] += scores / shares[owner]
        return embeddings.astype(np.float32), logits.astype(np.float32)

    def _run(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings and logits of [clips, frames, mels]."""
        banded = np.ascontiguousarray(features.transpose(0, 2, 1), np.float32)
        if not self.bundle.labels:
            (embedding,) = self._session.run(["embedding"], {_INPUT: banded})
            return embedding, np.zeros((len(features), 0), np.float32)
        embedding, logits = self._session.run(["embedding", "logits"], {_INPUT: banded})
        return embedding, logits

    def _frames(self, clip: np.ndarray) -> np.ndarray:
        shortest = round(SHORTEST_S * self.bundle.sample_rate)
        if len(clip) < shortest:
            clip = np.resize(clip, shortest) if len(clip) else np.zeros(shortest, np.float32)
        return normalized(log_mel(clip, self.bundle.features))


def normalized(frames: np.ndarray) -> np.ndarray:
    """Log-mel frames [frames, mels] with each band at mean 0 and deviation 1 over the clip, float32.

    So neither loudness nor the line's frequency response counts; as NeMo's `per_feature`.
    """
    values = frames.astype(np.float64)
    centred = values - values.mean(axis=0)
    deviation = np.sqrt((centred**2).sum(axis=0) / max(1, len(values) - 1))
    scaled: np.ndarray = (centred / (deviation + _DEVIATION_GUARD)).astype(np.float32)
    return scaled


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=-1, keepdims=True))
    unit: np.ndarray = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


def _check(clip: np.ndarray, index: int) -> None:
    if not isinstance(clip, np.ndarray) or clip.ndim != 1 or clip.dtype.kind != "f":
        raise LabelError("a clip must be a mono float array of shape [n]; mix down and scale to -1..1", index)
    if not np.isfinite(clip).all():
        raise LabelError("a clip has samples that are not finite numbers; decode the recording again", index)
