"""Where bundles are kept: each once, in a folder named by its digest, for as long as a version or a decision names it.

The asset that makes a bundle puts it here, its partition's output and the registry's version refer to it, and the
serving tier loads it from here. Whoever takes one has every byte compared with the digest first.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from speech.bundle import BundleError, ModelBundle
from speech.store.outputs import DIGEST

PLACE = "bundles"  # in the data store


@dataclass(frozen=True)
class Shelf:
    """The bundles in a folder."""

    folder: Path

    def find(self, digest: str) -> Path | None:
        """The verified bundle of a digest; None when there is none, or it is damaged."""
        try:
            return self.get(digest)
        except BundleError:
            return None

    def get(self, digest: str) -> Path:
        """The verified bundle of a digest.

        Raises:
            BundleError: it is no digest, there is no such bundle, or its bytes are others.
        """
        if not DIGEST.fullmatch(digest):  # whoever edits a tag writes it, so it is no path yet
            raise BundleError(f"{digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected")
        return ModelBundle.load(self.folder / digest, digest).path

    def put(self, bundle: ModelBundle) -> Path:
        """Keep a copy of a bundle, unless it is there; a damaged one is replaced."""
        with self.scratch() as scratch:
            return self.find(bundle.digest) or self.take(Path(shutil.copytree(bundle.path, scratch / bundle.digest)))

    def take(self, folder: Path) -> Path:
        """Keep the bundle in a folder of `scratch`, without copying it."""
        digest = ModelBundle.load(folder).digest
        place = self.folder / digest
        if self.find(digest) is None:
            shutil.rmtree(place, ignore_errors=True)
            try:
                os.replace(folder, place)
            except OSError:  # another process was faster, which is as good
                ModelBundle.load(place, digest)
        return place

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder beside the bundles, for one that is being made; gone when the block ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=".new-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
