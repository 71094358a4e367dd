"""What the index of a source promises: read once, read again when it changed, and every row in exactly one place."""

import datetime as dt
import json
import os
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from speech.corpus import index as indexing
from speech.corpus.importers import FILES, IMPORTERS, Defaults
from speech.corpus.index import SourceIndex, index_of, with_audio
from speech.corpus.manifest import ManifestError, RejectedRow, Utterance
from speech.store.outputs import DataStore

DEFAULTS = Defaults(language="en", speaker="somebody")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = [
        {"audio_filepath": f"{n}.wav", "text": f"text {n}", "date": date, "lang": language, "channel": n % 2}
        for n, (date, language) in enumerate(
            [
                ("2024-01-05", "en"),
                ("2024-05-01", "en"),
                ("2024-02-29", "en"),
                ("2024-01-31", "de"),
                ("1999-01-01", "fr"),
            ]
        )
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), "no json", '{"audio_filepath": "x.wav", "text": ""}']) + "\n")
    return path


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each reading of a source by the importer of NeMo's manifests."""
    found: list[str] = []
    read = IMPORTERS["nemo"]

    def counted(path: object, defaults: Defaults) -> object:
        found.append(str(path))
        return read(path, defaults)  # type: ignore[arg-type]

    monkeypatch.setattr(indexing, "IMPORTERS", {**IMPORTERS, "nemo": counted})
    return found


def opened(store: Path, manifest: Path, defaults: Defaults = DEFAULTS) -> SourceIndex:
    return index_of(DataStore(store), "nemo", str(manifest), defaults)


def test_every_row_is_in_exactly_one_place(manifest: Path, tmp_path: Path) -> None:
    found = opened(tmp_path / "store", manifest)
    assert found.read == 7
    assert found.counts == {("2024-01", "en"): 2, ("2024-04", "en"): 1, ("2024-01", "de"): 1, ("1999-01", "fr"): 1}
    filed = [row for partition in found.counts for row in found.rows(*partition)]
    direct = list(IMPORTERS["nemo"](manifest, DEFAULTS))
    assert sorted(filed, key=lambda row: row.id) == [row for row in direct if isinstance(row, Utterance)]
    assert list(found.rejections()) == [row for row in direct if isinstance(row, RejectedRow)]
    assert list(found.rows("2030-01", "en")) == []


def test_a_source_is_read_once_and_again_when_it_changed(manifest: Path, tmp_path: Path, readings: list[str]) -> None:
    store = tmp_path / "store"
    for _ in range(3):
        assert opened(store, manifest).read == 7
    assert len(readings) == 1
    with manifest.open("a") as file:
        file.write('{"audio_filepath": "9.wav", "text": "late", "date": "2024-03-01"}\n')
    assert opened(store, manifest).counts["2024-01", "en"] == 3
    same_length = manifest.read_bytes().replace(b"late", b"LATE")
    times = manifest.stat()
    manifest.write_bytes(same_length)
    os.utime(manifest, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a copy that keeps times leaves it
    assert [row.text for row in opened(store, manifest).rows("2024-01", "en")][-1] == "LATE"
    opened(store, manifest, Defaults(language="en", speaker="another"))
    assert len(readings) == 4


def test_partitions_that_start_together_read_a_source_once(manifest: Path, tmp_path: Path, readings: list[str]) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: opened(tmp_path / "store", manifest), range(6)))
    assert len(readings) == 1
    assert len({index.folder for index in found}) == 1


def test_two_machines_build_the_same_bytes(manifest: Path, tmp_path: Path) -> None:
    """They do not see each other's lock; then the second finds its own output published."""
    first, second = opened(tmp_path / "a", manifest), opened(tmp_path / "b", manifest)
    assert first.folder.name == second.folder.name


def test_a_source_that_changes_while_it_is_read_is_noticed(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the old delivery and half of the new is neither."""
    read = IMPORTERS["nemo"]

    def disturbed(path: object, defaults: Defaults) -> object:
        for row in read(path, defaults):  # type: ignore[arg-type]
            manifest.write_bytes(manifest.read_bytes() + b"\n")
            yield row

    with monkeypatch.context() as patch:
        patch.setattr(indexing, "IMPORTERS", {"nemo": disturbed})
        with pytest.raises(ManifestError, match="was changed while it was read"):
            opened(tmp_path / "store", manifest)
    assert opened(tmp_path / "store", manifest).read == 7


def test_a_damaged_index_is_built_anew(manifest: Path, tmp_path: Path, readings: list[str]) -> None:
    found = opened(tmp_path / "store", manifest)
    (found.folder / "index.json").write_text("{")
    assert opened(tmp_path / "store", manifest).read == 7
    assert len(readings) == 2


def test_whether_audio_is_there_is_asked_when_its_partition_is_read(manifest: Path, tmp_path: Path) -> None:
    found = opened(tmp_path / "store", manifest)
    (missing,) = with_audio(found.rows("2024-01", "de"))
    assert isinstance(missing, RejectedRow)
    (placed,) = found.placed([missing])
    assert (placed.source, placed.row, placed.id, placed.reason) == (str(manifest), 4, "3@1", missing.reason)
    assert f"there is no audio file {tmp_path}/3.wav: if paths are relative to another folder, set audio_root" == (
        missing.reason
    )
    (tmp_path / "3.wav").touch()
    assert list(with_audio(found.rows("2024-01", "de"))) == list(found.rows("2024-01", "de"))


@pytest.mark.parametrize("segmented", [True, False])
def test_a_missing_file_of_a_kaldi_directory_is_named_by_the_row_that_needs_it(tmp_path: Path, segmented: bool) -> None:
    (tmp_path / "wav.scp").write_text("u0 0.wav\nu1 1.wav\n")
    (tmp_path / "text").write_text("u0 hi\nu1 ho\n")
    if segmented:
        (tmp_path / "segments").write_text("u0 u0 0 1\n\nu1 u1 0 1\n")
    (tmp_path / "0.wav").touch()
    defaults = Defaults(language="en", speaker="s", recorded_at=dt.date(2024, 1, 5))
    found = index_of(DataStore(tmp_path / "store"), "kaldi", str(tmp_path), defaults)
    (refused,) = found.placed([row for row in with_audio(found.rows("2024-01", "en")) if isinstance(row, RejectedRow)])
    place = ("segments", 3) if segmented else ("wav.scp", 2)
    assert (Path(refused.source).name, refused.row, refused.id) == (*place, "u1")


@pytest.mark.parametrize("written", ["한국/été.wav", "한국\\été.wav"])
@pytest.mark.parametrize(("folder", "name"), [("NFC", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_a_file_is_found_by_any_spelling_of_its_name(tmp_path: Path, folder: str, name: str, written: str) -> None:
    """Archives packed on a Mac hold other characters than the table that names them, and Windows parts otherwise."""
    home = tmp_path / "Täglich"  # which the table has nothing to do with
    file = home / unicodedata.normalize(folder, "한국") / unicodedata.normalize(name, "été.wav")
    file.parent.mkdir(parents=True)
    file.touch()
    (home / "m.jsonl").write_text(json.dumps({"audio_filepath": written, "text": "hi", "date": "2024-01-01"}))
    (row,) = with_audio(opened(tmp_path, home / "m.jsonl").rows("2024-01", "en"))
    assert isinstance(row, Utterance)
    assert row.audio == str(file)


def test_each_file_that_an_importer_opens_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is read and not watched could change and nobody would read it again."""
    kaldi, lhotse = tmp_path / "kaldi", tmp_path / "lhotse"
    for folder in (kaldi, lhotse, tmp_path / "table"):
        folder.mkdir()
    names = "wav.scp segments text utt2spk spk2gender spk2age utt2lang utt2dom utt2date reco2file_and_channel"
    for name in names.split():
        (kaldi / name).write_text("u1 u1 0 1\n")
    for name in ("a_supervisions.jsonl", "a_recordings.jsonl"):
        (lhotse / name).write_text("{}\n")
    for name in ("transcripts.tsv", "validated.tsv"):
        (tmp_path / "table" / name).write_text("path\ttext\n")
    (tmp_path / "m.jsonl").write_text("{}\n")
    sources = {"kaldi": kaldi, "lhotse": lhotse, "table": tmp_path / "table", "common_voice": tmp_path / "table"}
    read: set[Path] = set()
    plain_open: Callable[..., object] = open

    def watched(path: Path, *arguments: object) -> object:
        read.add(Path(path))
        return plain_open(path, *arguments)

    monkeypatch.setattr("speech.corpus.rows.open", watched, raising=False)
    for kind in IMPORTERS:
        read.clear()
        source = sources.get(kind, tmp_path / "m.jsonl")
        list(IMPORTERS[kind](source, DEFAULTS))
        assert read
        assert read <= set(FILES[kind](source)), kind


def test_memory_does_not_grow_with_the_source(tmp_path: Path) -> None:
    """A hundred times the rows of another, in less than a few batches' worth of memory more."""
    import subprocess
    import sys

    script = """
import json, sys
from pathlib import Path
from speech.corpus.importers import Defaults
from speech.corpus.index import index_of
from speech.store.outputs import DataStore
folder, rows = Path(sys.argv[1]), int(sys.argv[2])
with (folder / f"{rows}.jsonl").open("w") as file:
    for n in range(rows):
        row = {"audio_filepath": f"{n}.wav", "text": "word " * 40, "date": f"2024-{n % 12 + 1:02d}-01"}
        file.write(json.dumps(row) + "\\n")
defaults = Defaults(language="en", speaker="s")
print(index_of(DataStore(folder / "store"), "nemo", str(folder / f"{rows}.jsonl"), defaults).read)
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    peaks = {}
    for rows in (1_000, 100_000):
        command = [sys.executable, "-c", script, str(tmp_path), str(rows)]
        read, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(read) == rows
        peaks[rows] = int(peak) / 1024
    assert peaks[100_000] < peaks[1_000] + 80, "MiB; the rows themselves are 40"
