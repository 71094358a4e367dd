"""Where bundles are kept: each once, below a key named by its digest, for as long as a version or a decision names it.

The asset that makes a bundle puts it here, its partition's output and the registry's version refer to it, and the
serving tier loads it from here. Whoever takes one has every byte compared with the digest first.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from speech.bundle import MANIFEST, BundleError, ModelBundle
from speech.store.objects import LostRace, Missing, Objects
from speech.store.outputs import DIGEST

PLACE = "bundles"  # in the data store


@dataclass(frozen=True)
class Shelf:
    """The bundles in a data store."""

    objects: Objects

    def key(self, digest: str) -> str:
        """The key below which the files of a bundle lie.

        Raises:
            BundleError: it is no digest.
        """
        if not DIGEST.fullmatch(digest):  # whoever edits a tag writes it, so it is no key yet
            raise BundleError(f"{digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected")
        return f"{PLACE}/{digest}"

    def place(self, digest: str) -> str:
        """The same for people."""
        return f"{self.objects.home}/{self.key(digest)}"

    def get(self, digest: str) -> Path:
        """A local folder with the verified bundle of a digest; raises as `load` does."""
        return self.load(digest).path

    def load(self, digest: str) -> ModelBundle:
        """The verified bundle of a digest, in a local folder.

        Raises:
            BundleError: it is no digest, there is no such bundle, or its bytes are others.
        """
        try:
            return ModelBundle.load(self.objects.local_folder(self.key(digest)), digest)
        except Missing:
            raise BundleError(f"there is no bundle at {self.place(digest)}") from None

    def put(self, bundle: ModelBundle) -> ModelBundle:
        """Keep a copy of a bundle, unless it is there; a damaged one is replaced. Returns the one that is kept."""
        key = self.key(bundle.digest)
        for damaged in (False, True):
            if damaged:
                self.objects.delete([item.key for item in self.objects.list(key)])
            files = (path for path in bundle.path.iterdir() if path.is_file())
            for path in sorted(files, key=lambda path: path.name == MANIFEST):  # what makes it a bundle comes last
                with suppress(LostRace):  # it is there already, or another process was faster
                    self.objects.upload(path, f"{key}/{path.name}")
            with suppress(BundleError):
                return self.load(bundle.digest)
        raise BundleError(f"{self.place(bundle.digest)} is damaged again and again: another program writes there")
