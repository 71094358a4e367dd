"""The data store's promises: whole outputs or none, the same content under the same name, nothing lost to a kill."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from speech.store.folder import FolderObjects
from speech.store.objects import LostRace, open_objects
from speech.store.outputs import KEPT_S, DataStore, StoreError
from tests.s3_server import BUCKET


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
    assert [p.name for p in Path(store.home, "asset", "en").iterdir() if p.name.startswith(".staging")] == []


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
    abandoned = Path(store.home, "asset", "en") / ".staging-dead"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    publish(store, "x", "asset", "en")
    assert not abandoned.exists()


@pytest.mark.parametrize("part", ["..", ".", "", "a/b", "a\\b"])
def test_a_place_outside_the_store_is_refused(tmp_path: Path, part: str) -> None:
    with pytest.raises(StoreError, match="plain name"):
        DataStore(tmp_path).key("asset", part)


def test_what_was_never_published_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="materialise it first"):
        DataStore(tmp_path).current("asset", "en")


def test_superseded_outputs_are_kept_for_readers_then_removed(tmp_path: Path) -> None:
    store = DataStore(tmp_path, kept_s=0.0)
    for number in range(6):
        publish(store, str(number), "asset", "en")
    folders = [p for p in Path(store.home, "asset", "en").iterdir() if p.is_dir()]
    assert len(folders) == 3
    assert store.current("asset", "en").path in folders


@pytest.fixture(params=["folder", "s3"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> DataStore:
    """A data store in a folder and one in S3, where superseded outputs are kept only by their number."""
    if request.param == "folder":
        return DataStore(tmp_path / "home", kept_s=0.0)
    request.getfixturevalue("s3")
    return DataStore(open_objects(f"s3://{BUCKET}/{random.getrandbits(64)}", tmp_path / "cache"), kept_s=0.0)


def contents(store: DataStore, *parts: str) -> set[str]:
    """What the outputs hold that are still there."""
    listed = store.objects.list(store.key(*parts))
    return {store.objects.read(item.key).data.decode() for item in listed if not item.key.endswith("/current")}


def test_an_output_that_was_published_again_lately_is_not_the_oldest(anywhere: DataStore) -> None:
    """A, B, C, A, D: whoever reads A, in force a moment ago, is not cut off; B goes."""
    for text in "ABCAD":
        publish(anywhere, text, "asset", "en")
    assert contents(anywhere, "asset", "en") == {"D", "A", "C"}
    assert anywhere.current("asset", "en").read("a.txt") == b"D"


def test_content_whose_removal_was_killed_half_way_is_published_whole(tmp_path: Path) -> None:
    store = DataStore(tmp_path, kept_s=0.0)

    def publish_two(text: str) -> None:
        with store.replace("asset", "en") as staging:
            for name in ("a.txt", "b.txt"):
                (staging.path / name).write_text(text)

    publish_two("A")
    old = store.current("asset", "en").path
    for text in "BC":
        publish_two(text)
    with patch.object(type(store.objects), "delete", lambda *_: None), patch("shutil.rmtree"):
        publish_two("D")  # ... and was about to remove A
    (old / "a.txt").unlink()
    publish_two("A")
    current = store.current("asset", "en").path
    assert {path.name: path.read_text() for path in current.iterdir()} == {"a.txt": "A", "b.txt": "A"}
    publish_two("E")
    assert not old.exists(), "the next publication ends the removal"


def test_content_that_another_run_is_about_to_remove_is_published_whole(tmp_path: Path) -> None:
    """One run removes A, superseded long ago, while the next publishes A again."""
    store = DataStore(tmp_path, kept_s=0.0)
    for text in "ABC":
        publish(store, text, "asset", "en")
    delete = type(store.objects).delete

    def publish_first(objects: FolderObjects, keys: list[str]) -> None:
        with patch.object(FolderObjects, "delete", delete):
            publish(store, "A", "asset", "en")
            delete(objects, keys)

    with patch.object(FolderObjects, "delete", publish_first):
        publish(store, "D", "asset", "en")
    assert store.current("asset", "en").read("a.txt") == b"A"


def test_a_superseded_output_is_kept_for_its_time(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    now = store.objects.now()
    with patch.object(FolderObjects, "now", lambda _: now):
        for text in "ABCDEF":
            publish(store, text, "asset", "en")
    assert contents(store, "asset", "en") == set("ABCDEF")
    with patch.object(FolderObjects, "now", lambda _: now + KEPT_S + 1):
        publish(store, "G", "asset", "en")
    assert contents(store, "asset", "en") == set("GFE")


def test_who_began_before_another_published_is_told(anywhere: DataStore) -> None:
    publish(anywhere, "old", "asset", "en")
    with pytest.raises(LostRace, match="another run"), anywhere.replace("asset", "en") as staging:
        (staging.path / "a.txt").write_text("mine")
        publish(anywhere, "theirs", "asset", "en")
    assert anywhere.current("asset", "en").read("a.txt") == b"theirs"
    publish(anywhere, "next", "asset", "en")
    assert contents(anywhere, "asset", "en") == {"next", "theirs", "old"}, "what the loser uploaded is removed"


def test_two_that_publish_the_same_content_both_have_it(anywhere: DataStore) -> None:
    with anywhere.replace("asset", "en") as staging:
        (staging.path / "a.txt").write_text("same")
        publish(anywhere, "same", "asset", "en")
    assert staging.published == anywhere.current("asset", "en")
    assert staging.published.path.joinpath("a.txt").read_text() == "same"


def test_an_output_in_a_folder_that_only_others_fill_is_not_lost(anywhere: DataStore) -> None:
    publish(anywhere, "x", "asset", "2024-01", "en")
    assert anywhere.exists("asset", "2024-01", "en")
    assert not anywhere.exists("asset", "2024-01")


def test_an_output_without_a_file_is_refused(anywhere: DataStore) -> None:
    with pytest.raises(StoreError, match="holds nothing"), anywhere.replace("asset", "en"):
        pass
