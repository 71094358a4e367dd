"""Importers for the shapes in which speech corpora arrive: Kaldi, tables, Common Voice, NeMo and Lhotse manifests.

Importers stream: they yield an :class:`Utterance` for each good row and a :class:`RejectedRow` for each bad one, so
that one broken line never stops a quarter and nothing is dropped silently. Only a source that cannot be read at all
(no such folder, a table without a header) raises :class:`ManifestError`. What an importer does not do is look at the
audio: whether it is there, and how long it is, shows when the recording is read. (One header is an exception: that of a
file whose Kaldi directory says that it is the second side of a call.)
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from speech.corpus.importers import kaldi, lhotse, nemo, tables
from speech.corpus.importers.intake import Imported, Importer
from speech.corpus.rows import PathLike
from speech.corpus.sources import Defaults

IMPORTERS: Mapping[str, Importer] = {
    "kaldi": kaldi.import_kaldi,
    "table": tables.import_table,
    "nemo": nemo.import_nemo,
    "lhotse": lhotse.import_lhotse,
    "common_voice": tables.import_common_voice,
}
FILES: Mapping[str, Callable[[PathLike], list[Path]]] = {
    "kaldi": kaldi.files,
    "table": lambda path: [tables.table_of(path)],
    "nemo": lambda path: [Path(path)],
    "lhotse": lhotse.files,
    "common_voice": lambda path: [tables.common_voice_table(path)],
}


def file_of_rows(kind: str, path: PathLike) -> str:
    """The file of a source that its utterances are the rows of."""
    return str(next((file for file in FILES[kind](path) if file.is_file()), path))


__all__ = ["FILES", "IMPORTERS", "Defaults", "Imported", "Importer", "file_of_rows"]
