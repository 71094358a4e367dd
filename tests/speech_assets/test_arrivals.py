"""Uploads through the real graph: what a queue tells of is fetched by a run, and each hour asked for once."""

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployment.aws import client
from deployment.batch.arrivals import arrivals_of, hours_with_arrivals


class Place:
    """A deployment whose uploads come into a bucket with a queue."""

    def __init__(self, workspace: Any, instance: Any) -> None:
        self.workspace, self.instance = workspace, instance
        self.keys: list[str] = []

    def put(self, key: str, data: bytes = b"sound") -> None:
        settings = self.workspace.settings.inference
        bucket = settings.uploads.split("/")[2]
        etag = client("s3").put_object(Bucket=bucket, Key=key, Body=data)["ETag"].strip('"')
        what = {"bucket": {"name": bucket}, "object": {"key": key, "eTag": etag}}
        body = json.dumps({"Records": [{"eventName": "ObjectCreated:Put", "s3": what}]})
        client("sqs").send_message(QueueUrl=settings.queue, MessageBody=body)

    def tick(self) -> Any:
        """What the sensor asks for."""
        import dagster as dg

        from speech_assets.definitions import build

        repository = build(self.workspace.settings).get_repository_def()
        context = dg.build_sensor_context(
            self.instance, resources={"workspace": self.workspace}, repository_def=repository
        )
        said = repository.get_sensor_def("announced_uploads").evaluate_tick(context)
        return said.run_requests[0] if said.run_requests else said.skip_message

    def run(self, request: Any) -> Any:
        from speech_assets.definitions import build

        job = build(self.workspace.settings).resolve_job_def("receive_uploads")
        return job.execute_in_process(request.run_config, instance=self.instance, raise_on_error=False)

    @property
    def received(self) -> list[str]:
        objects = self.workspace.objects
        return sorted(each.name for hour in hours_with_arrivals(objects) for each in arrivals_of(objects, hour))


@pytest.fixture
def place(deployment, aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.batch.arrivals import queue
    from deployment.settings import Settings
    from speech_assets.defs.resources import Workspace

    monkeypatch.setattr(queue, "WAIT_S", 0)  # one server answers here
    name = f"uploads-{random.getrandbits(48)}"
    client("s3").create_bucket(Bucket=name)
    address = client("sqs").create_queue(QueueName=name)["QueueUrl"]
    settings = Settings.load()
    table = settings.inference.model_copy(update={"uploads": f"s3://{name}/in", "queue": address})
    changed = {"home": str(tmp_path / "home"), "inference": table}
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield Place(Workspace(settings.model_copy(update=changed)), instance)


def test_what_the_queue_tells_of_is_fetched_by_a_run_whose_key_names_it(place: Place) -> None:
    assert "nothing waits" in place.tick()
    place.put("in/en/a.wav", b"a")
    asked = place.tick()
    assert place.tick().run_key == asked.run_key  # until somebody fetches it
    assert place.run(asked).success
    assert place.received == ["en/a.wav"]
    assert "nothing waits" in place.tick()
    place.put("in/b.wav", b"b")
    place.put("in/en/a.wav", b"a")
    other = place.tick()
    assert other.run_key != asked.run_key
    assert place.run(other).success
    assert place.received == ["b.wav", "en/a.wav"]


def test_nothing_is_asked_for_while_a_run_fetches_or_shortly_after_one_failed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run key counts for ever: one that failed would never be asked for again; and not every half minute either."""
    import dagster as dg

    from speech_assets.definitions import build
    from speech_assets.defs.inference import arrivals

    place.put("in/a.wav")
    first = place.tick()
    job = build(place.workspace.settings).resolve_job_def("receive_uploads")
    run = place.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    assert "a run is fetching" in place.tick()
    place.instance.report_run_failed(run)
    assert "tried again later" in place.tick()
    monkeypatch.setattr(arrivals, "AFTER_FAILURE_S", 0.0)
    again = place.tick()
    assert again.run_key not in ("", first.run_key)
    assert place.run(again).success
    assert place.received == ["a.wav"]


def test_a_message_that_says_nothing_is_told_and_stops_nothing(place: Place) -> None:
    client("sqs").send_message(QueueUrl=place.workspace.settings.inference.queue, MessageBody="{}")
    place.put("in/a.wav")
    assert place.run(place.tick()).success
    assert place.received == ["a.wav"]


def test_a_bucket_is_listed_by_the_job_when_nobody_tells_of_it(place: Place) -> None:
    import dagster as dg

    place.put("in/a.wav")
    assert place.run(dg.RunRequest(run_config={})).success
    assert place.received == ["a.wav"]


def test_an_hour_has_two_hours_two_retries_and_a_growing_wait() -> None:
    from dagster._core.definitions.dependency import NodeHandle

    from deployment.settings import Settings
    from speech_assets.definitions import build

    job = build(Settings()).resolve_job_def("transcribe_hour")
    assert job.tags["dagster/max_runtime"] == "7200"
    policy = job.get_retry_policy_for_handle(NodeHandle(job.nodes[0].name, None))
    assert policy is not None
    waits = [policy.calculate_delay(attempt) for attempt in (1, 2)]
    assert (policy.max_retries, waits) == (2, [60, 180])


def test_an_hour_in_front_of_the_first_is_told(place: Place) -> None:
    """Recordings that are of no partition would wait for ever without a word."""
    import dagster as dg

    from deployment.batch.arrivals import receive
    from speech_assets.definitions import build

    place.put("in/a.wav")
    receive(
        place.workspace.settings.inference.uploads, place.workspace.objects, (), datetime(2001, 1, 1, 5, tzinfo=UTC)
    )
    repository = build(place.workspace.settings).get_repository_def()
    context = dg.build_schedule_context(
        place.instance,
        scheduled_execution_time=datetime(2026, 11, 26, 10, tzinfo=UTC),
        resources={"workspace": place.workspace},
        repository_def=repository,
    )
    said = repository.get_schedule_def("hourly_transcription").evaluate_tick(context)
    assert not said.run_requests
    assert "2001-01-01-05" in said.skip_message
