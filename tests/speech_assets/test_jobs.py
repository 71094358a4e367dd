"""A job through the real graph: given over HTTP, asked for by the sensor, transcribed with its hour, and told of."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from deployment.batch.jobs import Jobs
from tests.speech_assets.test_inference import House, house, said  # noqa: F401

SECRET = "whsec_" + "c" * 32


@pytest.fixture
def jobs(house: House, server: Any) -> House:  # noqa: F811
    from pydantic import SecretStr

    from deployment.batch.settings import JobSettings

    return house.changed(jobs=JobSettings(webhook_secret=SecretStr(SECRET), webhook_http=True, webhook_private=True))


def given(house: House, data: bytes, **how: Any) -> Any:  # noqa: F811
    """A job, as a client gives it."""
    from fastapi.testclient import TestClient

    from deployment.serving.core import ServingOptions
    from deployment.serving.http import create_app

    http = TestClient(create_app(ServingOptions(house.workspace.objects), house.workspace.jobs))
    answer = http.post("/v1/jobs", params=how, content=data)
    assert answer.status_code == 202, answer.text
    return house.workspace.jobs.job(answer.json()["id"])


def tick(house: House, cursor: str | None = None) -> Any:  # noqa: F811
    import dagster as dg

    from speech_assets.definitions import build

    repository = build(house.workspace.settings).get_repository_def()
    context = dg.build_sensor_context(
        house.instance, cursor=cursor, resources={"workspace": house.workspace}, repository_def=repository
    )
    return repository.get_sensor_def("waiting_jobs").evaluate_tick(context)


def test_a_job_is_transcribed_and_its_giver_told_with_nobody_launching_anything(jobs: House, server: Any) -> None:
    job = given(jobs, said("one", "two"), language="en", webhook=f"{server.url}/hook")
    broken = given(jobs, b"<html>502 Bad Gateway</html>", language="en", webhook=f"{server.url}/hook")
    (asked,) = tick(jobs).run_requests
    assert (asked.job_name, asked.partition_key) == ("transcribe_hour", f"{datetime.now(UTC):%Y-%m-%d-%H}")
    assert tick(jobs).run_requests[0].run_key == asked.run_key  # asked for once
    assert server.received == []
    assert jobs.transcribe(asked.partition_key).success
    after = tick(jobs)
    assert after.run_requests == []
    assert "2 notices sent" in after.skip_message
    told = {body["data"]["id"]: body for _, body in server.received}
    assert told[job.id]["type"] == "job.done"
    assert jobs.workspace.jobs.transcript(job).text == "one two"
    assert (told[broken.id]["type"], told[broken.id]["data"]["code"]) == ("job.failed", "not-audio")
    assert "0 jobs wait, 0 notices" in tick(jobs).skip_message


def test_jobs_that_come_meanwhile_share_the_next_run(jobs: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import dagster as dg

    from speech_assets.definitions import build
    from speech_assets.defs.inference import arrivals

    given(jobs, said("one"), language="en")
    (first,) = tick(jobs).run_requests
    job = build(jobs.workspace.settings).resolve_job_def("transcribe_hour")
    tags = {"dagster/partition": first.partition_key}
    run = jobs.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, tags=tags)
    given(jobs, said("two"), language="en")
    assert f"{first.partition_key} is being made" in tick(jobs).skip_message
    jobs.instance.report_run_canceled(run)
    monkeypatch.setattr(arrivals, "AFTER_FAILURE_S", 0.0)
    (second,) = tick(jobs).run_requests
    assert second.run_key != first.run_key


def test_a_job_whose_hour_failed_says_why_until_it_is_made(jobs: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would else ask for ever without a word."""
    from speech_assets.defs.inference import arrivals

    job = given(jobs, said("one"), language="en")
    (asked,) = tick(jobs).run_requests
    ledger = {item.key: jobs.workspace.objects.read(item.key).data for item in jobs.workspace.objects.list("ledger")}
    jobs.forget_decisions("ledger")
    assert not jobs.transcribe(asked.partition_key).success
    assert "tried again later" in tick(jobs).skip_message
    assert "no language has a champion" in jobs.workspace.jobs.view(job).delayed
    monkeypatch.setattr(arrivals, "AFTER_FAILURE_S", 0.0)
    (again,) = tick(jobs).run_requests
    assert again.run_key != asked.run_key
    for key, data in ledger.items():
        jobs.workspace.objects.put(key, data)
    assert jobs.transcribe(again.partition_key).success
    tick(jobs)
    assert (jobs.workspace.jobs.view(job).status, jobs.workspace.jobs.view(job).delayed) == ("done", None)


def test_a_job_that_names_its_recording_is_fetched_by_a_run(jobs: House, aws: Any) -> None:
    from speech_assets.definitions import build

    aws("s3").create_bucket(Bucket="named")
    aws("s3").put_object(Bucket="named", Key="calls/a.wav", Body=said("one"))
    asked = jobs.workspace.settings.inference.jobs
    named = jobs.changed(jobs=asked.model_copy(update={"sources": ("s3://named/calls",)}))
    work = named.workspace.jobs
    job, _ = work.submit(work.found("s3://named/calls/a.wav"), "a.wav", "en", None, None, datetime.now(UTC))
    (fetch,) = tick(named).run_requests
    assert fetch.job_name == "receive_uploads"
    receiving = build(named.workspace.settings).resolve_job_def("receive_uploads")
    assert receiving.execute_in_process(fetch.run_config, instance=named.instance).success
    (asked,) = tick(named).run_requests
    assert asked.job_name == "transcribe_hour"
    assert named.transcribe(asked.partition_key).success
    tick(named)
    assert work.view(job).status == "done"


def test_a_tick_that_has_no_more_time_leaves_the_others_to_the_next(
    jobs: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from speech_assets.defs.inference import jobs as sensor

    made = [given(jobs, bytes([number])).id for number in range(3)]
    seconds = iter(range(0, 1_000, 10))  # a job takes ten
    monkeypatch.setattr(sensor, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    settle, seen = Jobs.settle, []
    monkeypatch.setattr(Jobs, "settle", lambda self, job, now: seen.append(job.id) or settle(self, job, now))
    cursor = None
    for _ in range(3):
        cursor = tick(jobs, cursor).cursor
    assert seen == made
