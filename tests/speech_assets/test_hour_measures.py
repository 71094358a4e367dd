"""An hour in numbers: the same names each hour, times in no digest, and people told of an hour that fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.batch.measures import StageTimes
from tests.sounds import sound_bytes
from tests.speech_assets import test_inference as inference
from tests.speech_assets.test_inference import HOUR, House, checks, mixed, said

house = inference.house  # the fixture
TIMED = ("normalized_recordings", "speech_segments", "recognized_segments")


def numbers(result: Any, asset: str) -> dict[str, Any]:
    """The metadata of an asset that plots: numbers, and null where an hour cannot tell."""
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items() if not isinstance(value.value, str)}


def test_an_hour_is_measured_by_the_same_names_full_or_empty(house: House, tmp_path: Path) -> None:
    truth = tmp_path / "truth.jsonl"
    rows = [
        {"name": "de/sure.wav", "text": "vier sechs", "domain": "calls"},
        {"name": "again.wav", "text": "one two three", "domain": "calls"},
    ]
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mixed(house)
    told = house.changed(truth=str(truth))
    result = told.transcribe()
    assert result.success
    full, empty = numbers(result, "hour_measures"), numbers(told.transcribe("2026-11-26-08"), "hour_measures")
    assert set(full) - set(empty) == {"wer/domain/calls"}
    assert {name for name in empty if not isinstance(empty[name], float)} == {
        *("mean_confidence", "wer/en", "wer/de", "wer_of_corrected/en", "wer_of_corrected/de")
    }
    assert (full["arrived"], full["published"], full["asked_about"]) == (7.0, 3.0, 1.0)
    assert full["failed_share"] == pytest.approx(2 / 6)
    assert full["failed_share/truncated"] == full["failed_share/not-audio"] == pytest.approx(1 / 6)
    assert (full["wer/de"], full["wer/en"], full["wer/domain/calls"]) == (0.5, 0.0, 0.2)
    assert set(StageTimes(house.workspace.objects).of(HOUR)) == {*TIMED, "spoken_language", "speaker_turns"}
    for asset in TIMED:
        shown = numbers(result, asset)
        assert 0 < shown["seconds_p50"] <= shown["seconds_p95"] <= shown["seconds_p99"]
        assert shown["audio_hours_a_second"] > 0
    digests = told.digests()
    first = house.workspace.objects.read(f"stage_times/{HOUR}.json").data
    assert told.transcribe().success
    assert told.digests() == digests
    assert house.workspace.objects.read(f"stage_times/{HOUR}.json").data != first


def test_an_hour_that_fails_is_told_to_people_and_stops_nothing(house: House, server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.resources import Workspace

    house.upload(a_wav=said("one"), b_wav=b"<html>", c_wav=b"", d_wav=sound_bytes(np.zeros(16_000, np.float32)))
    house.receive()
    settings = house.workspace.settings.model_copy(update={"alerts": AlertsSettings(webhook_url=f"{server.url}/hook")})
    house.workspace = Workspace(settings)
    assert checks(house.changed(alert_failed=0.5).transcribe())["failing_share"] is True
    assert not server.received
    result = house.changed(alert_failed=0.49).transcribe()
    assert result.success
    assert checks(result)["failing_share"] is False
    ((path, told),) = server.received
    assert (path, told["title"]) == ("/hook", f"hour_measures failing for {HOUR}")
    assert told["reason"] == "2 of 4 recordings cannot be used, over 0.49"


def test_a_truth_file_that_is_none_fails_the_measures_alone_and_is_named(house: House, tmp_path: Path) -> None:
    house.upload(a_wav=said("one"))
    house.receive()
    result = house.changed(truth=str(tmp_path / "none.jsonl")).transcribe()
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "hour_measures"
    assert "none.jsonl cannot be read" in failure.step_failure_data.user_failure_data.description
    assert len(house.hour.published()) == 1
