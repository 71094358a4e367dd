"""A quarter whose data store is in S3: the same digests as in a folder, and nothing lost when the service is killed."""

import random
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from speech.store.objects import open_objects
from speech.store.outputs import DataStore
from tests.s3_server import BUCKET, S3Server

QUARTER, LANGUAGE = "2024-01", "en"
CHAIN = ("recordings", "normalized_audio", "utterances")
SETTINGS = """
home = "{home}"
work = "work"
cache = "cache"
languages = ["en"]
first_quarter = "2024-01"

[synthetic]
minutes = 2
speakers = 12

[training]
base_recipe = "tiny"
finetune_recipe = "finetune"
"""


def quarter_of(folder: Path, home: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Materialise the corpus of a quarter in a deployment below `folder`; returns what Dagster says."""
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build

    (folder / "dagster").mkdir(parents=True)
    (folder / "soundstage.toml").write_text(SETTINGS.format(home=home))
    monkeypatch.setenv("SOUNDSTAGE_CONFIG", str(folder / "soundstage.toml"))
    graph = build(Settings.load()).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.local_temp(str(folder / "dagster")) as instance:
        return graph.execute_in_process(
            asset_selection=[dg.AssetKey(asset) for asset in CHAIN],
            partition_key=f"{LANGUAGE}|{QUARTER}",
            instance=instance,
            raise_on_error=False,
        )


def checks(ended: Any) -> Mapping[str, bool]:
    """How each check ended; so short a quarter fails some, the last of which are those of `utterances`."""
    found = {check.check_name: check.passed for check in ended.get_asset_check_evaluations()}
    assert found["every_row_accounted_for"]
    assert found["no_utterance_lost"]
    return found


def digests(store: DataStore) -> Mapping[str, str]:
    """The digest of each output in force."""
    return {asset: store.current(asset, QUARTER, LANGUAGE).digest for asset in CHAIN[1:]}


def test_a_quarter_outlives_a_kill_of_s3_and_is_the_one_of_a_folder(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOUNDSTAGE_HOME", "")
    monkeypatch.delenv("SOUNDSTAGE_HOME")
    home = f"s3://{BUCKET}/{random.getrandbits(64)}"
    store = DataStore(open_objects(home, tmp_path / "seen"))
    killed: list[str] = []

    def kill() -> None:
        while not store.exists("recordings", QUARTER, LANGUAGE):
            time.sleep(0.05)
        s3.kill()
        killed.append("after recordings")
        time.sleep(2)  # the run asks, and is not answered
        s3.start()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = checks(quarter_of(tmp_path / "s3", home, monkeypatch))
    killer.join()
    assert killed
    assert ended == checks(quarter_of(tmp_path / "folder", "home", monkeypatch))
    assert digests(store) == digests(DataStore(tmp_path / "folder" / "home"))
