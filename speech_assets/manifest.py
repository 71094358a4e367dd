"""A manifest to train on by hand, from a source: what the assets make of its rows, without Dagster or a data store.

Rows go the way of the corpus assets: imported, heard, selected and split by the same functions and settings. All of the
source is one corpus, whatever its quarters. What it does not cover are the checks of a partition, which say whether it
is fit to learn.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.corpus.expectations import CorpusSettings
from speech.corpus.importers import IMPORTERS, file_of_rows
from speech.corpus.index import with_audio
from speech.corpus.manifest import ManifestError, RejectedRow, Utterance, assign_splits
from speech.corpus.normalize import (
    REVIEWED,
    Quarantined,
    Sorted,
    normalize_audio,
    select_utterances,
    source_digests,
)
from speech.corpus.sources import Source
from speech.scripts import primary_language

OTHER_LANGUAGE = "language"  # code of rows that are for another manifest


def write_manifest_of(source: Source, language: str, folder: Path, settings: CorpusSettings) -> Sorted:
    """Write the utterances of a source, their audio and what was refused into a new or empty folder.

    Raises:
        FileExistsError: the folder holds something.
        ManifestError: the language is none, the source cannot be read, or gives a speaker two splits.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds something: give a new or empty folder")
    assert source.path is not None  # a source without one is made and not read
    wanted = primary_language(language)
    if wanted is None:
        raise ManifestError(source.path, None, f"'{language}' is not a language: write its tag, such as en or de")
    rows: list[Utterance] = []
    refused: list[Quarantined] = []
    file = file_of_rows(source.kind, source.path)
    for row in IMPORTERS[source.kind](source.path, source):
        if isinstance(row, RejectedRow):
            refused.append(quarantined(row))
        elif row.language != wanted:
            reason = f"the row is in '{row.language}': make a manifest of that language of it"
            refused.append(Quarantined(row.id, f"{file}, row {row.row}", OTHER_LANGUAGE, reason))
        else:
            rows.append(row)
    there = list(with_audio(rows))
    refused += [quarantined(replace(row, source=file)) for row in there if isinstance(row, RejectedRow)]
    found = [row for row in there if isinstance(row, Utterance)]
    digests = source_digests(found)
    heard = normalize_audio([replace(row, digest=row.digest or digests[row.audio]) for row in found], folder)
    chosen = selected(heard.kept, wanted, settings)
    outcome = Sorted(chosen.kept, (*refused, *heard.quarantined, *chosen.quarantined))
    outcome.write(folder)
    return outcome


def selected(rows: Sequence[Utterance], language: str, settings: CorpusSettings) -> Sorted:
    """The normalised rows that are fit to train and test on, each with its split, and the others with the reason."""
    outcome = select_utterances(
        rows,
        language,
        min_duration_s=settings.min_duration_s,
        max_duration_s=settings.max_duration_s,
        markers=settings.markers,
    )
    if settings.split != "speaker":
        return outcome
    # A split of the source could move a speaker from one quarter to the next; what people were asked about is learnt.
    rows_without = [row if REVIEWED in row.attributes else replace(row, split=None) for row in outcome.kept]
    kept = assign_splits(rows_without, settings.dev_share, settings.test_share)
    return replace(outcome, kept=tuple(kept))


def quarantined(row: RejectedRow) -> Quarantined:
    """A refused row as the quarantine of a manifest keeps it."""
    place = f"{row.source}, row {row.row}" if row.row else row.source
    return Quarantined(row.id or f"row {row.row}", place, "row", row.reason)
