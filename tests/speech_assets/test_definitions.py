"""The code location: cheap to load, and exactly the graph that the house plan promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from speech_assets.chain import INFERENCE, LABEL_MODELS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "nemo", "ray", "mlflow", "great_expectations")

GRAPH = {
    "recordings": [],
    "normalized_audio": ["recordings"],
    "utterances": ["normalized_audio"],
    "training_data": ["utterances"],
    "base_corpus": ["utterances"],
    "benchmark_set": ["base_corpus"],
    "base_model": ["base_corpus", "benchmark_set"],
    "speaker_model": ["base_corpus"],
    "language_id_model": ["base_corpus"],
    "intent_model": [],
    "finetuned_model": ["base_model", "training_data", "utterances"],
    "model_bundle": ["finetuned_model"],
    "evaluation": ["benchmark_set", "model_bundle", "utterances"],
    "verdict": ["evaluation"],
    "registered_model": ["verdict"],
    "champion": ["registered_model"],
    "serving_release": ["champion"],
    "incoming_audio": [],
    "normalized_recordings": ["incoming_audio"],
    "speech_segments": ["normalized_recordings"],
    "speaker_turns": ["normalized_recordings", "speech_segments"],
    "spoken_language": ["normalized_recordings", "speech_segments"],
    "recognized_segments": ["normalized_recordings", "spoken_language"],
    "transcripts": ["incoming_audio", "normalized_recordings", "recognized_segments", "speaker_turns"],
    "published_transcripts": ["incoming_audio", "transcripts"],
    "review_tasks": ["normalized_recordings", "published_transcripts", "transcripts"],
    "hour_measures": [
        "incoming_audio",
        "normalized_recordings",
        "published_transcripts",
        "review_tasks",
        "transcripts",
    ],
    "reviewed_transcripts": ["review_tasks", "transcripts"],
}
BY_HOUR = {*INFERENCE, "reviewed_transcripts"}
MADE_BY = dict.fromkeys(LABEL_MODELS, "label_models")  # functions that make several assets
BY_LANGUAGE = {"intent_model", "benchmark_set", "base_model", "champion", "serving_release"}
JOBS = {
    "promote",
    "rollback",
    "override_gates",
    "reconcile",
    "check_champion",
    "check_serving",
    "retrain",
    "receive_uploads",
    "requeue",
    "transcribe_hour",
    "take_corrections",
}
# What starts by itself, and whether it does without being switched on.
SCHEDULES = {
    "quarter_closed": True,
    "late_recordings": True,
    "watch_champion": True,
    "watch_serving": True,
    "arrivals": False,
    "hourly_transcription": False,
    "corrections": False,
}


def test_loading_the_code_location_is_cheap() -> None:
    """Dagster loads it in every run and every minute: a heavy import here is paid thousands of times a day."""
    code = (
        "import json, sys, time; from speech_assets.definitions import Settings, build; "
        "build(Settings()).get_repository_def(); "
        f"print(json.dumps([time.process_time(), [m for m in {HEAVY!r} if m in sys.modules]]))"
    )
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    cpu_s, heavy = json.loads(out.stdout.splitlines()[-1])
    assert heavy == []
    assert cpu_s <= 5.0


@pytest.fixture
def graph() -> object:
    from deployment.settings import Settings
    from speech_assets.definitions import build

    return build(Settings()).resolve_asset_graph()


def test_the_graph_is_the_one_planned(graph) -> None:  # type: ignore[no-untyped-def]
    found = {
        key.to_user_string(): sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        for key in graph.get_all_asset_keys()
    }
    assert found == GRAPH


def test_partitions_are_quarter_by_language_or_language(graph) -> None:  # type: ignore[no-untyped-def]
    for key in graph.get_all_asset_keys():
        dimensions = getattr(graph.get(key).partitions_def, "partition_dimension_names", None)
        expected = None if key.to_user_string() in BY_LANGUAGE | BY_HOUR | MADE_BY.keys() else ["language", "quarter"]
        assert dimensions == expected, key


def test_every_asset_says_what_it_is_whose_it_is_and_where_its_code_stands(graph) -> None:  # type: ignore[no-untyped-def]
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name != "default", key
        assert node.owners == ["team:speech"], key
        if node.is_materializable:
            [link] = node.metadata["dagster/code_references"].code_references
            made_by = MADE_BY.get(key.to_user_string(), key.to_user_string())
            assert f"def {made_by}(" in "".join(
                Path(link.file_path).read_text().splitlines(keepends=True)[link.line_number - 1 :][:30]
            )


def test_only_people_write_the_champion(graph) -> None:  # type: ignore[no-untyped-def]
    """An asset with a function could be materialised by a backfill, past the approval."""
    import dagster as dg

    assert not graph.get(dg.AssetKey("champion")).is_materializable


def test_the_jobs_ask_for_typed_described_fields() -> None:
    from deployment.settings import Settings
    from speech_assets.definitions import build

    repository = build(Settings()).get_repository_def()
    assert {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")} == JOBS
    from speech_assets.defs.approvals import OverrideConfig, PromotionConfig, ReconcileConfig, RollbackConfig

    for config in (PromotionConfig, RollbackConfig, OverrideConfig, ReconcileConfig):
        assert all(field.description for field in config.model_fields.values())


def test_the_schedules_are_those_that_are_documented() -> None:
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build

    repository = build(Settings()).get_repository_def()
    running = dg.DefaultScheduleStatus.RUNNING
    assert {each.name: each.default_status is running for each in repository.schedule_defs} == SCHEDULES
    table = (ROOT / "docs" / "steering.md").read_text().split("## What starts by itself")[1].split("##")[0]
    assert all(f"schedule `{name}`" in table for name in SCHEDULES)


def test_graphs_of_different_settings_live_in_one_process() -> None:
    """Nothing is read or kept where a module is imported: whoever builds a graph says of which deployment."""
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build
    from training.settings import TrainingSettings

    one = build(Settings(languages=("en",), first_quarter="2024-01")).resolve_asset_graph()
    other = build(Settings(languages=("ko", "ja"), first_quarter="2025-04", training=TrainingSettings(pool="gpu")))
    key = dg.AssetKey("recordings")
    keys = other.resolve_asset_graph().get(key).partitions_def
    assert one.get(key).partitions_def.get_partition_keys() != keys.get_partition_keys()
    assert {key.split("|")[0] for key in keys.get_partition_keys()} <= {"ko", "ja"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"owners": ("bob",)}, "Invalid owner 'bob'"),
        ({"retraining": {"quarter_closed_cron": "nonsense"}}, "'nonsense' for schedule 'quarter_closed'"),
        ({"retraining": {"late_recordings_cron": "60 * * * *"}}, "'60 * * * *' for schedule 'late_recordings'"),
    ],
)
def test_what_dagster_does_not_take_is_an_error_of_the_settings(changes: dict[str, object], said: str) -> None:
    from deployment.settings import Settings, SettingsError
    from speech_assets.definitions import build

    with pytest.raises(SettingsError, match="soundstage.toml") as refused:
        build(Settings(**changes))
    assert said in str(refused.value)


def test_keys_of_partitions_are_those_that_dagster_writes() -> None:
    """They are made and read without Dagster too, by the command line and the demo."""
    from deployment.settings import Settings
    from speech_assets.defs.partitions import Grid
    from speech_assets.partition_keys import partition_of, quarter_and_language_of

    keys = Grid(Settings()).quarter_language.get_partition_keys()
    assert [partition_of(*quarter_and_language_of(key)) for key in keys] == keys
    assert quarter_and_language_of("en|2024-04") == ("2024-04", "en")
    assert quarter_and_language_of("en") == ("", "en")
