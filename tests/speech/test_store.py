"""The data store's promises: whole outputs or none, the same content under the same name, nothing lost to a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from speech.store.outputs import DataStore, StoreError


def publish(store: DataStore, text: str, *parts: str) -> str:
    with store.replace(*parts) as staging:
        (staging.path / "a.txt").write_text(text)
    return staging.published.digest


def test_same_content_is_the_same_output(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    first = publish(store, "one", "asset", "2024-01", "en")
    assert publish(store, "one", "asset", "2024-01", "en") == first
    assert publish(store, "two", "asset", "2024-01", "en") != first
    assert (store.current("asset", "2024-01", "en").path / "a.txt").read_text() == "two"


def test_a_failed_write_leaves_the_old_output_in_force(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    publish(store, "old", "asset", "en")
    with pytest.raises(RuntimeError), store.replace("asset", "en") as staging:
        (staging.path / "a.txt").write_text("half")
        raise RuntimeError
    assert (store.current("asset", "en").path / "a.txt").read_text() == "old"
    assert [p.name for p in store.path("asset", "en").iterdir() if p.name.startswith(".staging")] == []


def test_a_killed_writer_changes_nothing(tmp_path: Path) -> None:
    """A process killed between writing and publishing leaves readers with what was there before."""
    store = DataStore(tmp_path)
    publish(store, "old", "asset", "en")
    code = (
        "import os, signal, sys; from speech.store.outputs import DataStore\n"
        "with DataStore(sys.argv[1]).replace('asset', 'en') as s:\n"
        "    (s.path / 'a.txt').write_text('new'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (store.current("asset", "en").path / "a.txt").read_text() == "old"
    publish(store, "next", "asset", "en")
    assert (store.current("asset", "en").path / "a.txt").read_text() == "next"


def test_abandoned_staging_is_cleared_after_a_day(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    abandoned = store.path("asset", "en") / ".staging-dead"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    publish(store, "x", "asset", "en")
    assert not abandoned.exists()


@pytest.mark.parametrize("part", ["..", ".", "", "a/b", "a\\b"])
def test_a_place_outside_the_store_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(StoreError, match="plain name"):
        DataStore(tmp_path).path("asset", part)


def test_what_was_never_published_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="materialise it first"):
        DataStore(tmp_path).current("asset", "en")


def test_superseded_outputs_are_kept_for_readers_then_removed(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    for number in range(6):
        publish(store, str(number), "asset", "en")
    folders = [p for p in store.path("asset", "en").iterdir() if p.is_dir()]
    assert len(folders) == 3
    assert store.current("asset", "en").path in folders
