"""Where models are kept: each bundle and each checkpoint once, below a key named by its digest.

A training puts them here; its output, the assets after it and the registry's version refer to them, fine-tunes start
from a checkpoint and the serving tier loads a bundle. Whoever takes one has every byte compared with the digest first.
Nothing removes them: a version or a decision may name them for years. Should one be gone or damaged all the same, the
asset that made it makes it anew.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from speech.bundle import FETCH_AGAIN, MANIFEST, BundleError, ModelBundle, Sealed, UnsupportedBundle
from speech.labels import Kind, LabelBundle
from speech.store.objects import LostRace, Missing, Objects
from speech.store.outputs import DIGEST, digest_file

PLACE, CHECKPOINTS = "bundles", "checkpoints"  # in the data store
CHECKPOINT = "checkpoint.nemo"
BUNDLES_MADE_BY = "`finetuned_model` of its quarter"
LABELS_MADE_BY: Mapping[Kind, str] = {"speaker": "`speaker_model`", "language": "`language_id_model`"}
CHECKPOINTS_MADE_BY = "`base_model` or `finetuned_model` of its partition"
T = TypeVar("T")


@dataclass(frozen=True)
class Shelf:
    """The bundles and checkpoints in a data store."""

    objects: Objects

    def key(self, digest: str) -> str:
        """The key below which the files of a bundle lie.

        Raises:
            BundleError: it is no digest.
        """
        return f"{PLACE}/{_checked(digest)}"

    def place(self, digest: str) -> str:
        """The same for people."""
        return f"{self.objects.home}/{self.key(digest)}"

    def get(self, digest: str) -> Path:
        """A local folder with the verified bundle of a digest; raises as `load` does."""
        return self.load(digest).path

    def load(self, digest: str, made_by: str = BUNDLES_MADE_BY) -> ModelBundle:
        """The verified bundle of a digest, in a local folder; `made_by` tells a person which asset's partition made it.

        Raises:
            BundleError: it is no digest, there is no such bundle, or its bytes are others.
        """
        return self._loaded(ModelBundle.load, digest, made_by)

    def load_labels(self, digest: str, kind: Kind) -> LabelBundle:
        """The verified label bundle of a digest, in a local folder; raises as `load` does."""
        return self._loaded(partial(LabelBundle.load, kind=kind), digest, LABELS_MADE_BY[kind])

    def _loaded(self, load: Callable[[Path, str], T], digest: str, made_by: str) -> T:
        try:
            return load(self.objects.local_folder(self.key(digest)), digest)
        except Missing:
            raise BundleError(f"there is no bundle at {self.place(digest)}; {_anew(made_by)}") from None
        except UnsupportedBundle:
            raise
        except BundleError as damaged:
            raise BundleError(f"{str(damaged).removesuffix(FETCH_AGAIN)}; {_anew(made_by)}") from damaged

    def put(self, bundle: ModelBundle) -> ModelBundle:
        """Keep a copy of a bundle, unless it is there; a damaged one is replaced. Returns the one that is kept."""
        return self._put(bundle, lambda: self.load(bundle.digest))

    def put_labels(self, bundle: LabelBundle) -> LabelBundle:
        """Keep a copy of a label bundle as `put` does of a recogniser's."""
        return self._put(bundle, lambda: self.load_labels(bundle.digest, bundle.kind))

    def _put(self, bundle: Sealed, load: Callable[[], T]) -> T:
        files = (path for path in bundle.path.iterdir() if path.is_file())
        last = sorted(files, key=lambda path: path.name == MANIFEST)  # what makes it a bundle
        named = {path.name: path for path in last}
        return self._kept(self.key(bundle.digest), named, load)

    def checkpoint_place(self, digest: str) -> str:
        """Where a checkpoint lies, for people. Raises BundleError for what is no digest."""
        return f"{self.objects.home}/{CHECKPOINTS}/{_checked(digest)}/{CHECKPOINT}"

    def checkpoint(self, digest: str, made_by: str = CHECKPOINTS_MADE_BY) -> Path:
        """A local file with the verified checkpoint of a digest; `made_by` as for `load`.

        Raises:
            BundleError: it is no digest, there is no such checkpoint, or its bytes are others.
        """
        place = self.checkpoint_place(digest)
        try:
            file = self.objects.local(f"{CHECKPOINTS}/{digest}/{CHECKPOINT}")
        except Missing:
            raise BundleError(f"there is no checkpoint at {place}; {_anew(made_by)}") from None
        if digest_file(file) != digest:
            raise BundleError(f"{place}: the bytes are not those of the training; {_anew(made_by)}")
        return file

    def put_checkpoint(self, file: Path) -> str:
        """Keep a copy of a checkpoint as `put` does of a bundle; returns its digest."""
        digest = digest_file(file)
        self._kept(f"{CHECKPOINTS}/{digest}", {CHECKPOINT: file}, lambda: self.checkpoint(digest))
        return digest

    def _kept(self, key: str, files: Mapping[str, Path], load: Callable[[], T]) -> T:
        for damaged in (False, True):
            if damaged:
                self.objects.delete([item.key for item in self.objects.list(key)])
            for name, path in files.items():
                with suppress(LostRace):  # it is there already, or another process was faster
                    self.objects.upload(path, f"{key}/{name}")
            with suppress(BundleError):
                return load()
        raise BundleError(f"{self.objects.home}/{key} is damaged again and again: another program writes there")


def _anew(made_by: str) -> str:
    return f"materialise {made_by} in Dagster: the same data and recipe make the same bytes anew"


def _checked(digest: str) -> str:
    if not DIGEST.fullmatch(digest):  # whoever edits a tag writes it, so it is no key yet
        raise BundleError(f"{digest[:80]!r} is not the digest of a model: 64 hexadecimal digits are expected")
    return digest
