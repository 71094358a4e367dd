"""Who launched a bundle's training, kept beside the ledger: a tag in MLflow alone could be edited by anyone."""

from collections.abc import Collection
from dataclasses import dataclass

from deployment.registry.models import LAUNCHED_BY_TAG, ModelVersion
from evaluation.presentation import one_line
from speech.store.objects import Objects
from speech.store.outputs import DIGEST, parse_json, to_json
from speech.store.records import Document

PLACE = "launchers"  # in the data store
UNSIGNED = "unknown"  # stands among a version's launchers for a training whose run named nobody


@dataclass(frozen=True)
class Launchers:
    """The notes in a data store, one a bundle digest. Without a store nothing is kept, and the tag alone says it."""

    objects: Objects | None = None

    def note(self, digest: str, names: Collection[str]) -> None:
        """Keep who launched the training of a bundle, beside those noted before; no edit in MLflow takes one away."""
        if self.objects is None:
            return
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is not the digest of a bundle: 64 hexadecimal digits are expected")
        said = {name for name in map(one_line, names) if name}
        note = Document(self.objects, f"{PLACE}/{digest}.json")
        note.change(lambda before: to_json(sorted({*_names(before), *said})))

    def of(self, version: ModelVersion) -> tuple[str, ...]:
        """Who launched a version's training, by its tag or by what was noted."""
        tagged = version.tags.get(LAUNCHED_BY_TAG, "").split(",")
        return tuple(sorted({name for name in map(one_line, (*tagged, *self._noted(version.digest))) if name}))

    def _noted(self, digest: str) -> tuple[str, ...]:
        if self.objects is None or not DIGEST.fullmatch(digest):
            return ()
        noted = Document(self.objects, f"{PLACE}/{digest}.json").read()
        return _names(noted.data if noted else None)


def _names(note: bytes | None) -> tuple[str, ...]:
    if note is None:
        return ()
    try:
        names = parse_json(note)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return (UNSIGNED,)  # a damaged note clears nobody
    return tuple(names)
