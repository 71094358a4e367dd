"""Who launched a bundle's training, kept beside the ledger: a tag in MLflow alone could be edited by anyone."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from deployment.registry.models import LAUNCHED_BY_TAG, ModelVersion
from evaluation.presentation import one_line
from speech.store.outputs import DIGEST, parse_json, write_json

UNSIGNED = "unknown"  # stands among a version's launchers for a training whose run named nobody


@dataclass(frozen=True)
class Launchers:
    """The notes of a folder, one file a bundle digest. Without a folder nothing is kept, and the tag alone says it."""

    folder: Path | None = None

    def note(self, digest: str, names: Collection[str]) -> None:
        """Keep who launched the training of a bundle, beside those noted before; no edit in MLflow takes one away."""
        if self.folder is None:
            return
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected")
        noted = sorted({*self._noted(digest), *(name for name in map(one_line, names) if name)})
        write_json(self.folder / f"{digest}.json", noted)

    def of(self, version: ModelVersion) -> tuple[str, ...]:
        """Who launched a version's training, by its tag or by what was noted."""
        tagged = version.tags.get(LAUNCHED_BY_TAG, "").split(",")
        return tuple(sorted({name for name in map(one_line, (*tagged, *self._noted(version.digest))) if name}))

    def _noted(self, digest: str) -> tuple[str, ...]:
        if self.folder is None or not DIGEST.fullmatch(digest):
            return ()
        try:
            names = parse_json((self.folder / f"{digest}.json").read_bytes())
        except FileNotFoundError:
            return ()
        except ValueError:
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return (UNSIGNED,)  # a damaged note clears nobody
        return tuple(names)
