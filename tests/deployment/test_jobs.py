"""Jobs: the same key is the same job, where one stands is what its hour holds, and whoever is first ends it."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deployment.batch.arrivals import arrivals_of, hours_with_arrivals
from deployment.batch.arrivals.receipts import arrival_of
from deployment.batch.hour import ARRIVALS, DEAD_LETTERS, RECORDINGS, TRANSCRIPTS, Hour
from deployment.batch.jobs import WAITING, Job, Jobs
from deployment.batch.notices import TRIES, deliver
from deployment.batch.progress import STAGES
from deployment.batch.settings import InferenceSettings, JobSettings
from deployment.batch.stages.items import DeadLetter
from deployment.batch.versions import Versions
from deployment.serving.problems import Problem
from speech.plain import to_lines
from speech.store.objects import Objects
from speech.store.outputs import DataStore
from speech.transcript import Segment, Transcript, Word

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
HOUR = "2026-11-26-09"
SECRET = "whsec_" + "c" * 32
LOCAL_WEBHOOKS = {"webhook_http": True, "webhook_private": True}
LANGUAGES = ("en", "de")


@pytest.fixture
def jobs(home: Objects) -> Jobs:
    settings = InferenceSettings.model_validate(
        {"jobs": {"webhook_secret": SECRET, "webhook_http": True, "webhook_private": True}}
    )
    return Jobs(home, settings, LANGUAGES)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return sound(tmp_path)


def sound(folder: Path, data: bytes = b"sound") -> Path:
    path = folder / "given"
    path.write_bytes(data)
    return path


def given(jobs: Jobs, recording: Path, key: str | None = None, now: datetime = NOW, **how: Any) -> Job:
    asked = {"name": "call.wav", "language": "en", "webhook": None, **how}
    return jobs.submit(recording, **asked, key=key, now=now)[0]


def pass_through(jobs: Jobs, hour: str, count: int, published: bool = True) -> None:
    """Publish the first stages' outputs of an hour, as a run does."""
    arrivals = arrivals_of(jobs.objects, hour)
    store = Hour(DataStore(jobs.objects), hour)
    lines = to_lines(arrivals)
    ids = b"".join(json.dumps({"id": arrival.recording}).encode() + b"\n" for arrival in arrivals)
    made = [transcript_of(arrival.digest) for arrival in arrivals]
    said = to_lines(made)
    if count > 4:
        Versions(jobs.objects).kept_each(made, hour)
    for _, asset, manifest in STAGES[:count]:
        files = {manifest: lines if manifest == ARRIVALS else said if manifest == TRANSCRIPTS else ids}
        if manifest == RECORDINGS:
            files[DEAD_LETTERS] = b""
        if asset == "published_transcripts":
            files[TRANSCRIPTS] = said if published else b""
        store.publish(asset, files)


def transcript_of(digest: str) -> Transcript:
    segment = Segment((Word("hello", 0.0, 0.5, 0.9),), 0.0, 0.5)
    return Transcript(
        id=f"{digest[:32]}-1", language="en", confidence=0.9, duration_s=1.0, source_digest=digest, segments=(segment,)
    )


def test_a_job_goes_from_stage_to_stage_to_its_transcript(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording)
    assert (jobs.view(job).status, jobs.view(job).hour) == ("queued", None)
    assert jobs.settle(job, NOW).hour == HOUR
    (arrival,) = arrivals_of(jobs.objects, HOUR)
    assert (arrival.name, arrival.language, arrival.size) == ("call.wav", "en", 5)
    seen = []
    for count in range(len(STAGES) + 1):
        pass_through(jobs, HOUR, count)
        view = jobs.view(job)
        seen.append((view.status, view.stage, view.stages_done))
    names = [stage for stage, _, _ in STAGES]
    running = [("running", stage, done) for done, stage in enumerate(names) if done]
    assert seen == [("queued", None, 0), *running, ("done", None, len(STAGES))]
    assert jobs.transcript(job).text == "hello"
    assert jobs.view(job).published is True


def test_what_people_corrected_is_the_result(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording)
    jobs.settle(job, NOW)
    pass_through(jobs, HOUR, len(STAGES))
    written = jobs.transcript(job)
    segment = Segment((Word("goodbye", 0.0, 0.5, 1.0),), 0.0, 0.5)
    Versions(jobs.objects).kept(replace(written, segments=(segment,)), HOUR, by="Ada")
    assert jobs.transcript(job).text == "goodbye"


def test_an_unsure_transcript_is_a_result_that_is_not_published(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording)
    jobs.settle(job, NOW)
    pass_through(jobs, HOUR, len(STAGES), published=False)
    assert (jobs.view(job).status, jobs.view(job).published) == ("done", False)
    assert jobs.transcript(job).text == "hello"


def test_a_job_whose_recording_cannot_be_used_has_failed_with_the_reason(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording)
    jobs.settle(job, NOW)
    pass_through(jobs, HOUR, 1)
    (arrival,) = arrivals_of(jobs.objects, HOUR)
    letter = DeadLetter(id=arrival.recording, name="call.wav", code="truncated", reason="it ends too early")
    Hour(DataStore(jobs.objects), HOUR).publish(
        "normalized_recordings", {RECORDINGS: b"", DEAD_LETTERS: to_lines([letter])}
    )
    view = jobs.settle(job, NOW)
    assert (view.status, view.code, view.reason) == ("failed", "truncated", "it ends too early")
    with pytest.raises(Problem, match="it ends too early"):
        jobs.transcript(job)
    assert list(jobs.waiting()) == []


def test_the_same_key_is_the_same_job_and_another_request_under_it_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    first = given(jobs, sound(tmp_path), "key")
    again, replayed = jobs.submit(sound(tmp_path), "other.wav", "en", None, "key", NOW + timedelta(hours=1))
    assert (again, replayed) == (first, True)
    assert given(jobs, sound(tmp_path), "another key").id != first.id
    for changed in ({"language": "de"}, {"webhook": "http://127.0.0.1/"}):
        with pytest.raises(Problem) as refused:
            given(jobs, sound(tmp_path), "key", **changed)
        assert (refused.value.status, refused.value.code) == (409, "idempotency-conflict")
    with pytest.raises(Problem):
        given(jobs, sound(tmp_path, b"other sound"), "key")
    assert len(list(jobs.waiting())) == 2


@pytest.mark.parametrize("step", ["originals", "jobs/keys", "jobs/waiting", "jobs/records"])
def test_a_kill_while_a_job_is_made_leaves_one_job_for_its_key(
    jobs: Jobs, recording: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    from tests.deployment.test_arrivals import killed_at

    with monkeypatch.context() as patch:
        for writes in ("put_if_absent", "upload"):
            patch.setattr(jobs.objects, writes, killed_at(step, getattr(jobs.objects, writes)))
        with pytest.raises(KeyboardInterrupt):
            given(jobs, recording, "key")
    made = given(jobs, recording, "key")
    assert [job.id for job in jobs.waiting()] == [made.id]
    jobs.settle(made, NOW)
    assert len(arrivals_of(jobs.objects, HOUR)) == 1


def test_a_job_that_ended_does_not_wait_again_when_its_key_comes_once_more(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording, "key")
    jobs.cancel(job, NOW)
    jobs.settle(job, NOW)
    assert given(jobs, recording, "key") == job
    assert list(jobs.waiting()) == []


def test_jobs_of_the_same_bytes_share_one_transcript(jobs: Jobs, recording: Path) -> None:
    first, second = given(jobs, recording), given(jobs, recording)
    jobs.settle(first, NOW)
    later = NOW + timedelta(hours=2)
    assert jobs.settle(second, later).hour == HOUR  # whose recording is transcribed
    pass_through(jobs, HOUR, len(STAGES))
    assert jobs.transcript(second) == jobs.transcript(first)
    assert jobs.settle(second, later).status == "done"


def test_a_job_that_is_cancelled_before_it_is_received_is_never_transcribed(jobs: Jobs, recording: Path) -> None:
    job = given(jobs, recording)
    assert jobs.cancel(job, NOW).status == "cancelled"
    assert jobs.settle(job, NOW).status == "cancelled"
    assert hours_with_arrivals(jobs.objects) == ()
    assert list(jobs.waiting()) == []
    assert jobs.cancel(job, NOW + timedelta(minutes=1)).status == "cancelled"
    with pytest.raises(Problem, match="is cancelled"):
        jobs.transcript(job)


def test_what_is_done_cannot_be_cancelled_and_what_is_cancelled_stays_so(jobs: Jobs, recording: Path) -> None:
    done, cancelled = given(jobs, recording), given(jobs, recording)
    for job in (done, cancelled):
        jobs.settle(job, NOW)
    jobs.cancel(cancelled, NOW)
    pass_through(jobs, HOUR, len(STAGES))
    assert jobs.settle(cancelled, NOW).status == "cancelled"
    with pytest.raises(Problem) as refused:
        jobs.cancel(done, NOW)
    assert (refused.value.status, refused.value.code) == (409, "job-ended")
    assert jobs.settle(done, NOW).status == "done"


def test_jobs_are_listed_the_newest_first_in_pages_and_by_status(jobs: Jobs, recording: Path) -> None:
    made = [given(jobs, recording, now=NOW + timedelta(seconds=second)).id for second in range(5)]
    jobs.cancel(jobs.job(made[1]), NOW)
    first, following = jobs.page(None, 3, None)
    second, end = jobs.page(None, 3, following)
    assert [view.id for view in (*first, *second)] == made[::-1]
    assert end is None
    cancelled, _ = jobs.page("cancelled", 3, None)
    assert [view.id for view in cancelled] == [made[1]]
    assert jobs.page(None, 5, None)[1] is None


def test_a_client_that_lost_the_answer_finds_its_job_though_its_maker_was_killed(
    jobs: Jobs, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two records a job waits and is not listed yet: whoever looks after it lists it."""
    from tests.deployment.test_arrivals import killed_at

    with monkeypatch.context() as patch:
        patch.setattr(jobs.objects, "put_if_absent", killed_at("jobs/records", jobs.objects.put_if_absent))
        with pytest.raises(KeyboardInterrupt):
            given(jobs, recording)
    assert len(list(jobs.objects.list(WAITING))) == 1
    (job,) = jobs.waiting()
    assert jobs.job(job.id) == job


@pytest.mark.parametrize("name", ["../records", "x" * 300, "", "20261126T093000000000-ä", "a/b", "no-such"])
def test_an_id_that_is_none_is_no_job(jobs: Jobs, name: str) -> None:
    with pytest.raises(Problem) as refused:
        jobs.job(name)
    assert (refused.value.status, refused.value.code) == (404, "unknown-job")


@pytest.mark.parametrize(
    ("language", "webhook", "key", "code"),
    [
        ("fr", None, None, "unknown-language"),
        ("../en", None, None, "unknown-language"),
        (None, "ftp://127.0.0.1/", None, "webhook-refused"),
        (None, "file:///etc/passwd", None, "webhook-refused"),
        (None, None, "", "bad-idempotency-key"),
        (None, None, "k" * 256, "bad-idempotency-key"),
        (None, None, "a\nb", "bad-idempotency-key"),
    ],
)
def test_what_cannot_be_a_job_is_refused_at_once(
    jobs: Jobs, language: str | None, webhook: str | None, key: str | None, code: str
) -> None:
    with pytest.raises(Problem) as refused:
        jobs.check(language, webhook, key)
    assert refused.value.code == code


def test_a_webhook_needs_a_secret_to_sign_with(home: Objects) -> None:
    with pytest.raises(Problem, match="webhook_secret"):
        Jobs(home, InferenceSettings(), LANGUAGES).check(None, "https://example.org/", None)


def test_a_longer_tag_is_its_language(jobs: Jobs) -> None:
    assert jobs.check("de-CH", None, None) == "de"


@pytest.mark.parametrize("name", ["C:\\calls\\a.wav", "../../a.wav", "/a.wav", "a.wav"])
def test_a_recording_is_called_by_its_last_name(jobs: Jobs, recording: Path, name: str) -> None:
    assert given(jobs, recording, name=name).name == "a.wav"


# --- recordings in S3 -------------------------------------------------------------------------------------------------


class Calls:
    """A bucket below whose `in` jobs may name recordings."""

    def __init__(self, aws: Callable[[str], Any], home: Objects) -> None:
        self.s3 = aws("s3")
        self.bucket = f"calls-{random.getrandbits(48)}"
        self.s3.create_bucket(Bucket=self.bucket)
        settings = InferenceSettings(jobs=JobSettings(sources=(f"s3://{self.bucket}/in",)))
        self.jobs, self.told = Jobs(home, settings, LANGUAGES), []  # type: ignore[var-annotated]

    def put(self, key: str, data: bytes = b"sound") -> str:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        return f"s3://{self.bucket}/{key}"

    def job(self, uri: str, key: str | None = None) -> Job:
        return self.jobs.submit(self.jobs.found(uri), "call.wav", "de", None, key, NOW)[0]


@pytest.fixture
def calls(aws: Callable[[str], Any], home: Objects) -> Calls:
    return Calls(aws, home)


def test_a_recording_that_is_named_is_fetched(calls: Calls) -> None:
    uri = calls.put("in/a b+ü.wav")
    job = calls.job(uri, "key")
    assert calls.job(uri, "key") == job
    assert calls.jobs.view(job).uri == uri
    assert [arrival.language for arrival in calls.jobs.fetch(NOW, calls.told.append)] == ["de"]
    assert calls.jobs.fetch(NOW, calls.told.append) == []
    arrival = arrival_of(job.upload, calls.jobs.objects)
    assert arrival is not None
    assert calls.jobs.objects.read(arrival.key).data == b"sound"
    assert calls.jobs.settle(job, NOW).hour == HOUR


def test_a_recording_that_went_before_it_was_fetched_fails_its_job(calls: Calls) -> None:
    job, other = calls.job(calls.put("in/a.wav")), calls.job(calls.put("in/b.wav"))
    calls.s3.delete_object(Bucket=calls.bucket, Key="in/a.wav")
    calls.jobs.fetch(NOW, calls.told.append)
    assert (calls.jobs.view(job).status, calls.jobs.view(job).code) == ("failed", "source-gone")
    assert calls.jobs.settle(other, NOW).hour == HOUR
    assert "was removed or replaced" in calls.told[0]


def test_a_job_that_is_cancelled_is_not_fetched(calls: Calls) -> None:
    job = calls.job(calls.put("in/a.wav"))
    calls.jobs.cancel(job, NOW)
    assert calls.jobs.fetch(NOW, calls.told.append) == []


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "s3:/BUCKET/in/a.wav",
        "s3://BUCKET/inner/a.wav",
        "s3://BUCKET/out/a.wav",
        "s3://BUCKET/in",
        "s3://BUCKET/in/",
        "s3://BUCKET/in/../out/a.wav",
        "s3://BUCKET/in//a.wav",
        "s3://other/in/a.wav",
        "s3://BUCKET@other/in/a.wav",
        "S3://BUCKET/in/a.wav",
        "s3://",
        "",
    ],
)
def test_only_what_lies_below_the_allowed_places_may_be_named(calls: Calls, uri: str) -> None:
    calls.put("out/a.wav")
    with pytest.raises(Problem) as refused:
        calls.jobs.found(uri.replace("BUCKET", calls.bucket))
    assert (refused.value.status, refused.value.code) == (403, "uri-not-allowed")


def test_nothing_may_be_named_where_no_place_is_allowed(home: Objects) -> None:
    with pytest.raises(Problem, match="inference.jobs"):
        Jobs(home, InferenceSettings(), LANGUAGES).found("s3://bucket/a.wav")


def test_nothing_at_a_uri_is_said_at_once(calls: Calls) -> None:
    with pytest.raises(Problem) as refused:
        calls.jobs.found(f"s3://{calls.bucket}/in/none.wav")
    assert refused.value.code == "no-object"


def test_a_job_and_its_notice_go_their_way_in_a_folder_and_in_s3(objects: Objects, recording: Path) -> None:
    settings = InferenceSettings.model_validate(
        {"jobs": {"webhook_secret": SECRET, "webhook_http": True, "webhook_private": True}}
    )
    jobs = Jobs(objects, settings, LANGUAGES)
    nobody = "http://127.0.0.1:9/"
    job = given(jobs, recording, "key", webhook=nobody)
    assert given(jobs, recording, "key", webhook=nobody) == job
    jobs.settle(job, NOW)
    jobs.delay(HOUR, "the run failed")
    assert jobs.view(job).delayed == "the run failed"
    jobs.delay(HOUR, None)
    pass_through(jobs, HOUR, len(STAGES))
    assert jobs.settle(job, NOW).status == "done"
    assert jobs.transcript(job).text == "hello"
    assert [view.status for view in jobs.page(None, 10, None)[0]] == ["done"]
    assert list(jobs.waiting()) == []
    looks = [deliver(objects, settings, NOW + timedelta(days=day)) for day in range(TRIES + 1)]
    assert [len(look.later) for look in looks] == [1] * (TRIES - 1) + [0, 0]
    assert [len(look.dead) for look in looks] == [0] * (TRIES - 1) + [1, 0]
