"""Who signed for a bundle's training, kept beside the ledger: a tag in MLflow alone could be edited by anyone."""

from collections.abc import Collection
from dataclasses import dataclass

from pydantic import TypeAdapter, ValidationError

from evaluation.presentation import one_line
from speech.store.objects import Objects
from speech.store.outputs import to_json
from speech.store.records import Document

PLACE = "launchers"  # in the data store
UNSIGNED = "unknown"  # stands among the launchers of a training whose run named nobody


@dataclass(frozen=True)
class Launchers:
    """Notes of who launched a training, one a bundle digest."""

    objects: Objects

    def note(self, digest: str, names: Collection[str]) -> None:
        """Keep who launched the training of a bundle, beside those noted before."""
        said = {*map(one_line, names)} - {""}
        self._note(digest).change(lambda before: to_json(sorted({*_names(before), *said})))

    def of(self, digest: str) -> tuple[str, ...]:
        """Who launched the training of a bundle, as far as anybody signed for it."""
        noted = self._note(digest).read()
        return _names(noted.data if noted else None)

    def _note(self, digest: str) -> Document:
        return Document(self.objects, f"{PLACE}/{digest}.json")


def _names(note: bytes | None) -> tuple[str, ...]:
    try:
        return TypeAdapter(tuple[str, ...]).validate_json(note or b"[]")
    except ValidationError:
        return (UNSIGNED,)  # a damaged note clears nobody
