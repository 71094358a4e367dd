"""Jobs over HTTP: answers as the interface describes them, typed refusals, and a key that may be sent again."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from deployment.batch.jobs import Jobs
from deployment.batch.progress import STAGES
from deployment.batch.settings import InferenceSettings
from deployment.serving.core import ServingOptions
from deployment.serving.http import create_app
from speech.store.objects import Objects, StoreUnavailable
from tests.deployment.test_jobs import LANGUAGES, LOCAL_WEBHOOKS, NOW, SECRET, Calls, calls, given, pass_through, sound  # noqa: F401

PROBLEM = "application/problem+json"


@pytest.fixture
def jobs(home: Objects) -> Jobs:
    settings = InferenceSettings.model_validate(
        {"jobs": {"webhook_secret": SECRET, "webhook_http": True, "webhook_private": True}}
    )
    return Jobs(home, settings, LANGUAGES)


@pytest.fixture
def http(jobs: Jobs) -> TestClient:
    return TestClient(create_app(ServingOptions(jobs.objects, max_bytes=100_000), jobs))


def problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["code"] == code
    return dict(body)


def test_a_recording_is_taken_and_its_transcript_given_in_every_form(http: TestClient, jobs: Jobs) -> None:
    answer = http.post("/v1/jobs?language=en", content=b"sound")
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    assert answer.json()["status"] == "queued"
    assert place == f"/v1/jobs/{answer.json()['id']}"
    early = problem(http.get(f"{place}/result"), 409, "job-not-done")
    assert "webhook" in early["detail"]
    job = jobs.job(answer.json()["id"])
    jobs.settle(job, NOW)
    pass_through(jobs, "2026-11-26-09", 3)
    running = http.get(place).json()
    assert (running["status"], running["stage"], running["stages_done"]) == ("running", "spoken_language", 3)
    pass_through(jobs, "2026-11-26-09", len(STAGES))
    done = http.get(place).json()
    assert (done["status"], done["result"]) == ("done", f"{place}/result")
    assert http.get(done["result"]).json()["text"] == "hello"
    for form, start in {"srt": "1\n", "vtt": "WEBVTT", "ctm": job.id, "rttm": "SPEAKER", "txt": "hello\n"}.items():
        result = http.get(done["result"], params={"format": form})
        assert result.text.startswith(start), form
    assert http.get(done["result"], headers={"accept": "text/vtt"}).text.startswith("WEBVTT")
    problem(http.get(done["result"], params={"format": "docx"}), 400, "unknown-format")


def test_a_form_equals_a_body_and_keeps_the_name(http: TestClient) -> None:
    form = {"language": "de", "webhook": "http://127.0.0.1:9/"}
    answer = http.post("/v1/jobs", data=form, files={"file": ("a b.wav", b"sound")}, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["name"], answer.json()["language"]) == ("a b.wav", "de")
    query = {"language": "de", "webhook": "http://127.0.0.1:9/"}
    again = http.post("/v1/jobs", params=query, content=b"sound", headers={"Idempotency-Key": "k"})
    assert again.json() == answer.json()
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in answer.headers
    refused = http.post("/v1/jobs", params=query, content=b"other", headers={"Idempotency-Key": "k"})
    assert problem(refused, 409, "idempotency-conflict")["job"] == answer.json()["id"]


def test_a_recording_in_s3_is_named_as_json(calls: Calls) -> None:  # noqa: F811
    http = TestClient(create_app(ServingOptions(calls.jobs.objects), calls.jobs))
    uri = calls.put("in/a.wav")
    answer = http.post("/v1/jobs", json={"uri": uri, "language": "de"})
    assert answer.status_code == 202, answer.text
    assert (answer.json()["uri"], answer.json()["name"]) == (uri, "a.wav")
    for wrong in ("file:///etc/passwd", "http://169.254.169.254/", f"s3://{calls.bucket}/out/a.wav"):
        problem(http.post("/v1/jobs", json={"uri": wrong}), 403, "uri-not-allowed")
    problem(http.post("/v1/jobs", json={"uri": f"{uri}x"}), 422, "no-object")
    for body in (b"{", b"[]", b'{"url": "s3://a/b"}', b"{}", b'{"uri": 1}', b'{"uri": "s3://a/b", "langauge": "de"}'):
        answer = http.post("/v1/jobs", content=body, headers={"content-type": "application/json; charset=utf-8"})
        problem(answer, 422, "bad-parameters")


@pytest.mark.parametrize(
    ("params", "headers", "status", "code"),
    [
        ({"language": "fr"}, {}, 404, "unknown-language"),
        ({"webhook": "ftp://a/"}, {}, 422, "webhook-refused"),
        ({}, {"Idempotency-Key": " "}, 400, "bad-idempotency-key"),
        ({}, {"Idempotency-Key": "k" * 256}, 400, "bad-idempotency-key"),
    ],
)
def test_what_cannot_be_a_job_is_refused(
    http: TestClient, params: dict[str, str], headers: dict[str, str], status: int, code: str
) -> None:
    problem(http.post("/v1/jobs", params=params, content=b"sound", headers=headers), status, code)


def test_nothing_and_too_much_are_refused(http: TestClient, jobs: Jobs) -> None:
    problem(http.post("/v1/jobs", content=b""), 400, "no-recording")
    problem(http.post("/v1/jobs", files={"file": ("a.wav", b"")}), 400, "no-recording")
    problem(http.post("/v1/jobs", content=b"x" * 100_001), 413, "too-large")
    problem(http.post("/v1/jobs", data={"language": "en"}, files={"x": (None, b"y")}), 400, "no-recording")
    assert list(jobs.waiting()) == []


def test_jobs_are_listed_in_pages_and_cancelled(http: TestClient, jobs: Jobs, tmp_path: Path) -> None:
    made = [http.post("/v1/jobs", content=bytes([number])).json()["id"] for number in range(3)]
    assert http.delete(f"/v1/jobs/{made[0]}").json()["status"] == "cancelled"
    page = http.get("/v1/jobs", params={"limit": 2}).json()
    assert [job["id"] for job in page["jobs"]] == made[:0:-1]
    rest = http.get("/v1/jobs", params={"limit": 2, "before": page["next"]}).json()
    assert ([job["id"] for job in rest["jobs"]], rest["next"]) == (made[:1], None)
    assert [job["id"] for job in http.get("/v1/jobs?status=cancelled").json()["jobs"]] == made[:1]
    done = given(jobs, sound(tmp_path, b"another"))
    jobs.settle(done, NOW)
    pass_through(jobs, "2026-11-26-09", len(STAGES))
    problem(http.delete(f"/v1/jobs/{done.id}"), 409, "job-ended")
    for path in ("/v1/jobs/none", "/v1/jobs/none/result", "/v1/jobs/..%2F..%2Fledger"):
        assert http.get(path).status_code == 404
    problem(http.get("/v1/jobs?status=sleeping"), 422, "bad-parameters")
    problem(http.get("/v1/jobs?limit=0"), 422, "bad-parameters")


def test_a_store_that_is_away_is_no_lost_job_and_no_fault(
    http: TestClient, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> Any:
        raise StoreUnavailable("the data store could not be reached")

    with monkeypatch.context() as patch:
        patch.setattr(jobs.objects, "put_if_absent", away)
        answer = http.post("/v1/jobs", content=b"sound", headers={"Idempotency-Key": "k"})
    problem(answer, 503, "store-unreachable")
    assert answer.headers["retry-after"]
    assert http.post("/v1/jobs", content=b"sound", headers={"Idempotency-Key": "k"}).status_code == 202


def test_jobs_are_taken_while_nothing_is_served_and_everybody_is_busy(jobs: Jobs) -> None:
    http = TestClient(create_app(ServingOptions(jobs.objects, workers=1, queue_limit=-1), jobs))
    problem(http.post("/v1/transcribe?language=en", content=b"sound"), 503, "no-model")
    assert http.post("/v1/jobs", content=b"sound").status_code == 202


def test_every_answer_is_as_the_interface_describes_it(http: TestClient) -> None:
    from jsonschema import Draft202012Validator

    interface = http.get("/openapi.json").json()
    made = http.post("/v1/jobs", content=b"sound")
    place = "/v1/jobs/{job}"
    answers = [
        ("post", "/v1/jobs", made),
        ("post", "/v1/jobs", http.post("/v1/jobs?language=fr", content=b"sound")),
        ("get", "/v1/jobs", http.get("/v1/jobs")),
        ("get", place, http.get(made.headers["location"])),
        ("get", place, http.get("/v1/jobs/none")),
        ("delete", place, http.delete(made.headers["location"])),
    ]
    for method, path, answer in answers:
        said = interface["paths"][path][method]["responses"][str(answer.status_code)]["content"]
        schema = said.get("application/json", said.get(PROBLEM))["schema"]
        Draft202012Validator({**schema, "components": interface["components"]}).validate(answer.json())


def test_a_replica_without_jobs_has_no_such_page(home: Objects) -> None:
    http = TestClient(create_app(ServingOptions(home)))
    problem(http.get("/v1/jobs"), 404, "not-found")
