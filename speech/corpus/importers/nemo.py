"""NeMo manifests, and our own."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech.corpus.importers.intake import Defaults, Imported, Intake, column_of
from speech.corpus.manifest import RejectedRow
from speech.corpus.rows import (
    BadLine,
    ManifestError,
    PathLike,
    as_quality,
    as_text_mapping,
    cell_text,
    numbered_objects,
    reason_of,
    text_field,
)


def import_nemo(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A NeMo JSON-lines manifest, plain or gzipped; our own manifests come back complete."""
    manifest = Path(path)
    if not manifest.is_file():
        raise ManifestError(manifest, None, "is missing; give a JSON-lines manifest")
    intake = Intake(defaults, manifest.parent)
    for number, row in numbered_objects(manifest):
        identity: str | None = None
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            identity = cell_text(row.get("id")) or None
            cells: dict[str, Any] = {column_of(key) or key: value for key, value in row.items()}
            utterance = intake.utterance(cells)
            if not row.keys().isdisjoint(("digest", "attributes", "quality")):
                utterance = replace(
                    utterance,
                    digest=text_field(row, "digest"),
                    attributes={**as_text_mapping(row.get("attributes")), **utterance.attributes},
                    quality=as_quality(row.get("quality")),
                )
            yield utterance
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield RejectedRow(str(manifest), number, reason_of(error), identity)
