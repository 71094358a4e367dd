"""NeMo manifests, and our own."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech.corpus.importers.intake import Imported, Intake, column_of
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
from speech.corpus.sources import Defaults


def import_nemo(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """A NeMo JSON-lines manifest, plain or gzipped; our own manifests come back complete."""
    manifest = Path(path)
    if not manifest.is_file():
        raise ManifestError(manifest, None, "is missing; give a JSON-lines manifest")
    intake = Intake(defaults, manifest.parent)
    for number, row in numbered_objects(manifest):
        identity: str | None = None
        cells: Mapping[str, Any] = {} if isinstance(row, BadLine) else row
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            identity = cell_text(row.get("id")) or None
            cells = _cells(row)
            utterance = intake.utterance(cells, number)
            if not row.keys().isdisjoint(("digest", "attributes", "quality")):
                utterance = replace(
                    utterance,
                    digest=text_field(row, "digest"),
                    attributes={**as_text_mapping(row.get("attributes")), **utterance.attributes},
                    quality=as_quality(row.get("quality")),
                )
            yield utterance
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield intake.refused(manifest, number, reason_of(error), identity, cells)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a row by their columns. Raises ValueError where two names of one column say different things."""
    cells = {column_of(key) or key: value for key, value in row.items()}
    if len(cells) == len(row):
        return cells
    for column in cells:
        given = [key for key, value in row.items() if (column_of(key) or key) == column and value not in (None, "")]
        if any(row[key] != row[given[0]] for key in given):
            raise ValueError(f"{' and '.join(given)} are names for the same thing and differ; keep one")
        cells[column] = row[given[0]] if given else None
    return cells
