"""Retraining: many reasons, one run; nothing starts by itself until someone switches it on."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest


@pytest.fixture
def asking(deployment, tmp_path) -> Iterator[object]:  # type: ignore[no-untyped-def]
    """The schedules and sensors over an empty data store and an instance of their own."""
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.defs.resources import Workspace

    settings = Settings.load().model_copy(update={"home": str(tmp_path), "languages": ("en",)})
    workspace = Workspace(settings)

    class Asking:
        quarter = workspace.grid.latest_closed_quarter()
        partition = f"en|{workspace.grid.latest_closed_quarter()}"

        def __init__(self, instance: dg.DagsterInstance) -> None:
            self.instance = instance
            self.workspace = workspace
            self.repository = definitions.get_repository_def()

        def schedules(self, at: datetime) -> None:
            for name in ("quarter_closed", "late_recordings"):
                schedule = self.repository.get_schedule_def(name)
                context = dg.build_schedule_context(
                    instance=self.instance, scheduled_execution_time=at, resources={"workspace": workspace}
                )
                assert not schedule.evaluate_tick(context).run_requests, "a schedule only asks"

        def reading(self, wer: float, measured_at: datetime) -> None:
            content = {"wer": wer, "limit": 0.15, "measured_at": measured_at.isoformat()}
            folder = tmp_path / "production_quality"
            folder.mkdir(exist_ok=True)
            (folder / "en.json").write_text(json.dumps(content))
            self._tick("falling_quality")

        def starts(self, **changed: object) -> list[dg.RunRequest]:
            return self._tick("retraining", **changed)

        def _tick(self, sensor: str, **changed: object) -> list[dg.RunRequest]:
            used = Workspace(settings.model_copy(update=changed)) if changed else workspace
            context = dg.build_sensor_context(
                instance=self.instance, resources={"workspace": used}, definitions=definitions
            )
            return list(self.repository.get_sensor_def(sensor).evaluate_tick(context).run_requests or ())

        def run(self, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED) -> dg.DagsterRun:
            job = definitions.resolve_job_def("retrain")
            return self.instance.create_run_for_job(job, status=status, tags={"dagster/partition": self.partition})

    from speech_assets.definitions import build

    definitions = build(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Asking(instance)


def test_two_schedules_and_a_sensor_are_one_run(asking) -> None:  # type: ignore[no-untyped-def]
    now = datetime.now(UTC)
    asking.schedules(now)
    asking.reading(0.21, now)
    (first,) = asking.starts()
    (again,) = asking.starts()
    assert first.partition_key == asking.partition
    assert first.run_key == again.run_key, "Dagster drops a second start with the same key"
    assert {"quarter", "late", "production"} <= set(first.tags["soundstage/retraining"].replace(";", " ").split())


def test_nothing_is_started_while_a_run_is_under_way_nor_after_it(asking) -> None:  # type: ignore[no-untyped-def]
    import dagster as dg

    now = datetime.now(UTC)
    asking.schedules(now)
    run = asking.run()
    asking.reading(0.21, now - timedelta(minutes=5))
    assert asking.starts() == []
    asking.instance.report_run_failed(run)  # a refused gate, say: the same inputs would be refused again
    assert asking.instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE
    assert asking.starts() == []


def test_a_later_reading_asks_again(asking) -> None:  # type: ignore[no-untyped-def]
    import dagster as dg

    now = datetime.now(UTC)
    asking.reading(0.21, now - timedelta(hours=1))
    (first,) = asking.starts()
    asking.run(dg.DagsterRunStatus.SUCCESS)
    asking.reading(0.22, now - timedelta(minutes=1))
    assert asking.starts() == [], "it measured the model before this one"
    asking.reading(0.22, now + timedelta(days=1))
    (second,) = asking.starts()
    assert second.run_key != first.run_key


def test_a_reading_from_the_future_asks_once(asking) -> None:  # type: ignore[no-untyped-def]
    """The end of a day that is still running, or a wrong year, must not train one model after the other."""
    import dagster as dg

    asking.reading(0.3, datetime.now(UTC) + timedelta(days=300))
    assert len(asking.starts()) == 1
    asking.run(dg.DagsterRunStatus.SUCCESS)
    assert asking.starts() == []


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"reason": "no zone", "asked_at": "2026-01-01T00:00:00"}', b"\xff"])
def test_a_request_that_is_none_stops_no_other(asking, content: bytes) -> None:  # type: ignore[no-untyped-def]
    asking.schedules(datetime.now(UTC))
    folder = Path(asking.workspace.store.home, "retraining", asking.quarter, "en")
    (folder / "a-broken.json").write_bytes(content)
    assert len(asking.starts()) == 1


def test_a_run_that_is_to_be_started_again_is_under_way(asking) -> None:  # type: ignore[no-untyped-def]
    """A second run beside the retry of a lost one would train the same model twice."""
    run = asking.run()
    asking.instance.add_run_tags(run.run_id, {"dagster/will_retry": "true", "dagster/did_retry": "false"})
    asking.instance.report_run_failed(run)
    asking.reading(0.3, datetime.now(UTC) + timedelta(hours=1))
    assert asking.instance.get_run_by_id(run.run_id).is_complete_and_waiting_to_retry
    assert asking.starts() == []


@pytest.mark.parametrize(
    "content", ["{", '{"wer": 0.3}', '{"wer": 0.3, "limit": 0.1, "measured_at": "2026-01-01T00:00:00"}']
)
def test_a_reading_that_cannot_be_read_asks_for_nothing(asking, content: str) -> None:  # type: ignore[no-untyped-def]
    asking.reading(0.1, datetime.now(UTC))
    Path(asking.workspace.store.home, "production_quality", "en.json").write_text(content)

    asking._tick("falling_quality")
    assert asking.starts() == []


def test_a_reading_within_its_limit_asks_for_nothing(asking) -> None:  # type: ignore[no-untyped-def]
    asking.reading(0.15, datetime.now(UTC))
    assert asking.starts() == []


def test_a_changed_recipe_or_base_asks_where_the_settings_say_so(asking) -> None:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import RetrainingSettings
    from speech_assets.defs.models import recipe_version

    watched, training = RetrainingSettings(on_change=True), asking.workspace.settings.training

    def made_with(recipe: str, base: str) -> None:
        tags = {"dagster/code_version": recipe, "dagster/input_data_version/base_model": base}
        asking.instance.report_runless_asset_event(
            dg.AssetMaterialization("finetuned_model", partition=asking.partition, tags=tags)
        )

    assert asking.starts(retraining=watched) == [], "there is no model yet whose recipe could have changed"
    asking.instance.report_runless_asset_event(
        dg.AssetMaterialization("base_model", partition="en", tags={"dagster/data_version": "base-1"})
    )
    now = recipe_version(training.finetune_recipe, training)
    made_with(now, "base-1")
    assert asking.starts(retraining=watched) == []
    made_with("an older recipe", "base-1")
    assert asking.starts() == [], "off by default"
    (request,) = asking.starts(retraining=watched)
    assert "recipe" in request.tags["soundstage/retraining"]
    made_with(now, "base-0")
    (request,) = asking.starts(retraining=watched)
    assert "base model" in request.tags["soundstage/retraining"]
    asking.run(dg.DagsterRunStatus.FAILURE)
    assert asking.starts(retraining=watched) == [], "a run that failed for good is not started again for that change"


def test_starting_is_off_until_someone_switches_it_on(deployment) -> None:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build

    repository = build(Settings.load()).get_repository_def()
    assert repository.get_sensor_def("retraining").default_status is dg.DefaultSensorStatus.STOPPED
    for schedule in ("quarter_closed", "late_recordings"):
        assert repository.get_schedule_def(schedule).default_status is dg.DefaultScheduleStatus.RUNNING
    conditions = {spec.key.to_user_string() for spec in repository.asset_graph.asset_nodes if spec.automation_condition}
    assert "base_model" not in conditions, "nor does automation train"
