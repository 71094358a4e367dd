"""A replica over HTTP: right answers, typed refusals, and no failed request while bundles change."""

import hashlib
import io
import os
import re
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from deployment.release.document import LanguageRelease, Route
from deployment.release.folder import DOCUMENT
from deployment.release.reports import BUNDLE_HEADER
from deployment.release.rollout import RolloutFailed, roll_out
from deployment.release.turns import Turn
from speech.audio.decode import write_flac_chunks
from speech.transcript import Segment, Transcript, Word
from tests.sounds import sound_bytes
from tests.toy_bundle import tones
from tests.toy_registry import approve

PROBLEM = "application/problem+json"


def _golden(tier, language: str = "en") -> list[Path]:
    words = {"en": ["one", "two", "three"], "de": ["eins", "zwei"]}[language]
    path = tier.home / f"golden-{language}.flac"
    write_flac_chunks([tones(words, language)], path)
    return [path]


def _problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["code"] == code
    assert body["status"] == status
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert body["detail"]
    return body


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answer_names_words_model_and_bundle(shared_tier, speech_of):
    tier, url = shared_tier
    audio = speech_of("one", "two", "three")
    answer = httpx.post(
        f"{url}/v1/transcribe", params={"language": "en"}, content=audio, headers={"X-Request-Id": "call-7"}
    )
    assert answer.status_code == 200, answer.text
    body = answer.json()
    digest = tier.folder.read().languages["en"].routes[0].digest
    assert body["text"] == "one two three"
    assert body["model"] == {"name": "soundstage-en", "version": "1", "digest": digest}
    assert body["source_digest"] == hashlib.sha256(audio).hexdigest()
    assert body["request_id"] == answer.headers["X-Request-Id"] == "call-7"
    assert answer.headers[BUNDLE_HEADER] == digest
    assert answer.headers["X-Soundstage-Model"] == "soundstage-en"
    assert answer.headers["X-Soundstage-Version"] == "1"
    transcript = Transcript.from_json(body)
    assert [word.text for word in transcript.words] == ["one", "two", "three"]
    assert 0.5 < body["confidence"] <= 1.0
    assert transcript.models["bundle"] == digest


def test_form_upload_equals_raw_upload(shared_tier, speech_of):
    _, url = shared_tier
    audio = speech_of("zwei", "drei", language="de")
    raw = httpx.post(f"{url}/v1/transcribe?language=de", content=audio).json()
    form = httpx.post(
        f"{url}/v1/transcribe", data={"language": "de", "format": "json"}, files={"file": ("a.wav", audio)}
    ).json()
    assert form["text"] == raw["text"] == "zwei drei"
    assert form["source_digest"] == raw["source_digest"]


@pytest.mark.parametrize("words", [["one", "two"], []], ids=["speech", "silence"])
def test_every_answer_is_as_the_interface_describes_it(shared_tier, speech_of, words):
    """What programs are generated from and what they then receive is one thing, in every field."""
    from jsonschema import Draft202012Validator

    _, url = shared_tier
    interface = httpx.get(f"{url}/openapi.json").json()
    audio = speech_of(*words) if words else sound_bytes(np.zeros(32_000, np.float32))
    transcribe = ("post", "/v1/transcribe", "application/json")
    answers = [
        (*transcribe, httpx.post(f"{url}/v1/transcribe", params={"language": "en"}, content=audio)),
        ("post", "/v1/transcribe", PROBLEM, httpx.post(f"{url}/v1/transcribe", params={"language": "fr"}, content=b"")),
        *(
            ("get", path, "application/json", httpx.get(url + path))
            for path in ("/healthz", "/readyz", "/v1/models", "/v1/release")
        ),
    ]
    for method, path, media_type, answer in answers:
        said = interface["paths"][path][method]["responses"][str(answer.status_code)]["content"]
        schema = said.get(media_type, {}).get("schema") or said["application/json"]["schema"]
        Draft202012Validator({**schema, "components": interface["components"]}).validate(answer.json())
    described = interface["components"]["schemas"]
    for kind, computed in ((Transcript, {"text", "request_id", "model"}), (Segment, {"text"}), (Word, set())):
        schema = described["TranscriptAnswer" if kind is Transcript else kind.__name__]
        assert set(schema["properties"]) == set(schema["required"]) == {*kind.__dataclass_fields__, *computed}


def test_a_replica_takes_jobs_for_later(shared_tier, speech_of):
    """It waits in the data store for whoever makes its hour: the replica that took it may go."""
    tier, url = shared_tier
    audio, key = speech_of("one", "two"), {"Idempotency-Key": "call-7"}
    answer = httpx.post(f"{url}/v1/jobs", params={"language": "en"}, content=audio, headers=key)
    assert answer.status_code == 202, answer.text
    again = httpx.post(f"{url}/v1/jobs", params={"language": "en"}, files={"file": ("a.wav", audio)}, headers=key)
    assert again.json() == answer.json()
    assert httpx.get(url + answer.headers["location"]).json()["status"] == "queued"
    _problem(httpx.get(f"{url}{answer.headers['location']}/result"), 409, "job-not-done")
    refused = httpx.post(f"{url}/v1/jobs", json={"uri": "file:///etc/passwd"})
    assert "inference.jobs" in _problem(refused, 403, "uri-not-allowed")["detail"]
    assert tier.objects.read(f"originals/{hashlib.sha256(audio).hexdigest()}").data == audio
    assert httpx.delete(url + answer.headers["location"]).json()["status"] == "cancelled"


def test_a_part_without_a_file_name_is_a_recording(shared_tier, speech_of):
    """Hand-written clients leave it out; the part is named `file`, which says enough."""
    _, url = shared_tier
    audio = speech_of("one", "two")
    body = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + audio + b"\r\n--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = httpx.post(f"{url}/v1/transcribe?language=en", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "one two"
    other = body.replace(b'name="file"', b'name="audio"')
    refused = httpx.post(f"{url}/v1/transcribe?language=en", content=other, headers=headers)
    assert "Send one recording as the part 'file'" in _problem(refused, 400, "bad-form")["detail"]


@pytest.mark.parametrize(
    ("params", "accept", "media_type", "start"),
    [
        ({"format": "srt"}, "*/*", "application/x-subrip", "1\n00:00:00,"),
        ({"format": "vtt"}, "application/json", "text/vtt", "WEBVTT\n"),
        ({}, "text/vtt", "text/vtt", "WEBVTT\n"),
        ({}, "application/json;q=0.5, application/x-subrip", "application/x-subrip", "1\n"),
        ({}, "text/html, */*;q=0.1", "application/json", "{"),
        ({}, "text/html", "application/json", "{"),
    ],
)
def test_format_is_chosen_by_parameter_or_accept_header(shared_tier, speech_of, params, accept, media_type, start):
    _, url = shared_tier
    answer = httpx.post(
        f"{url}/v1/transcribe",
        params={"language": "en", **params},
        content=speech_of("one"),
        headers={"Accept": accept},
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] == media_type
    assert answer.text.startswith(start)


@pytest.mark.parametrize("tag", ["EN", "en-US", "en_GB", "en-Latn-GB", "EN-x-call"])
def test_a_language_tag_counts_by_its_first_part(shared_tier, speech_of, tag):
    _, url = shared_tier
    for sent in ({"params": {"language": tag}}, {"data": {"language": tag}}):
        answer = httpx.post(f"{url}/v1/transcribe", files={"file": ("a.wav", speech_of("one"))}, **sent)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["language"], answer.json()["text"]) == ("en", "one")


@pytest.mark.parametrize("tag", ["english", "eng", "e", "en-", "-en", "en--US", "en US", "en\n", "en-abcdefghi", "*"])
def test_what_is_no_tag_of_a_served_language_is_refused(shared_tier, speech_of, tag):
    _, url = shared_tier
    answer = httpx.post(f"{url}/v1/transcribe", params={"language": tag}, content=speech_of("one"))
    assert _problem(answer, 404, "unknown-language")["served"] == ["de", "en"]


def test_pauses_become_segments(shared_tier, speech_of):
    _, url = shared_tier
    body = httpx.post(f"{url}/v1/transcribe?language=en", content=speech_of("one", "two", gap_s=1.5)).json()
    assert [segment["text"] for segment in body["segments"]] == ["one", "two"]


def test_silence_is_an_empty_transcript(shared_tier):
    _, url = shared_tier
    audio = sound_bytes(np.zeros(32_000, np.float32))
    body = httpx.post(f"{url}/v1/transcribe?language=en", content=audio).json()
    assert (body["text"], body["segments"], body["confidence"]) == ("", [], 0.0)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refusals_are_typed(shared_tier, speech_of):
    """A program can act on each; none of them is a 500."""
    _, url = shared_tier
    path, audio = f"{url}/v1/transcribe", speech_of("one")
    post = httpx.post
    assert _problem(post(path, content=audio), 400, "language-required")["served"] == ["de", "en"]
    assert _problem(post(f"{path}?language=fr", content=audio), 404, "unknown-language")["served"] == ["de", "en"]
    _problem(post(f"{path}?language=auto", content=audio), 404, "unknown-language")
    _problem(post(f"{path}?language=en&format=docx", content=audio), 400, "unknown-format")
    _problem(post(f"{path}?language=en", content=b""), 422, "empty")
    reason = _problem(post(f"{path}?language=en", content=b"<html>no</html>" * 9), 422, "not-audio")["reason"]
    assert reason
    _problem(post(f"{path}?language=en", content=audio[: len(audio) // 2]), 422, "truncated")
    _problem(post(f"{path}?language=en", data={"note": "no file"}, files={"note": (None, b"x")}), 400, "no-recording")
    broken = {"Content-Type": "multipart/form-data; boundary=x"}
    _problem(post(f"{path}?language=en", content=b"no form", headers=broken), 400, "bad-form")
    _problem(
        post(f"{path}?language=en", content=b"y", headers={"Content-Type": "multipart/form-data"}), 400, "bad-form"
    )
    _problem(post(f"{path}?language=en", content=audio, headers={BUNDLE_HEADER: "f" * 64}), 404, "bundle-not-loaded")
    long = sound_bytes(np.zeros(16_000 * 41, np.float32))
    _problem(post(f"{path}?language=en", content=long), 422, "too-long")
    _problem(httpx.get(path), 405, "method-not-allowed")
    _problem(httpx.get(f"{url}/v2"), 404, "not-found")
    body = _problem(post(f"{path}?language=en", content=bytes(5_000_000)), 413, "too-large")
    assert body["max_bytes"] == 4_000_000

    def pieces():
        yield from (bytes(100_000) for _ in range(50))

    _problem(post(f"{path}?language=en", content=pieces()), 413, "too-large")
    with pytest.raises(AssertionError):
        _problem(post(f"{path}?language=en", content=audio), 500, "internal")


@pytest.mark.parametrize("given", ["x" * 65, "a b", "<script>", ""])
def test_unusable_request_ids_are_replaced(shared_tier, given):
    _, url = shared_tier
    answer = httpx.get(f"{url}/healthz", headers={"X-Request-Id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_every_file_is_answered_or_refused_but_never_a_server_error(shared_tier):
    """143 files, a good part broken on purpose: each gets a transcript or a typed 4xx, and the replica lives on."""
    real = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not real:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: it names the folder that holds formats/")
    _, url = shared_tier
    outcomes: Counter[str] = Counter()
    with httpx.Client(timeout=60) as client:
        for path in sorted(p for p in (Path(real) / "formats").rglob("*") if p.is_file()):
            answer = client.post(
                f"{url}/v1/transcribe", data={"language": "en"}, files={"file": (path.name, path.read_bytes())}
            )
            if answer.status_code == 200:
                outcomes["200"] += 1
            else:
                assert 400 <= answer.status_code < 500, (path, answer.text)
                assert answer.headers["content-type"] == PROBLEM
                outcomes[answer.json()["code"]] += 1
        assert client.get(f"{url}/readyz").status_code == 200
    assert outcomes["200"] > 20, outcomes


# --- operation --------------------------------------------------------------------------------------------------------


def test_operation_endpoints_say_what_runs(shared_tier, speech_of):
    _, url = shared_tier
    httpx.post(f"{url}/v1/transcribe?language=en", content=speech_of("one"))
    httpx.post(f"{url}/v1/transcribe?language=en", content=b"")
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
    assert httpx.get(f"{url}/readyz").json() == {"ready": True, "languages": ["de", "en"], "reason": ""}
    models = {m["language"]: m for m in httpx.get(f"{url}/v1/models").json()}
    assert models["en"]["share"] == 1.0
    answer = httpx.get(f"{url}/v1/release").json()
    digest = answer["wanted"]["languages"]["en"]["routes"][0]["digest"]
    assert answer["running"]["languages"]["en"]["active"] == {digest: 1.0}
    text = httpx.get(f"{url}/metrics").text
    bundle = f'soundstage_bundle_info{{digest="{digest}",language="en",model="soundstage-en",version="1"}} 1.0'
    for line in (
        bundle,
        'soundstage_requests_total{language="en",route="/v1/transcribe",status="200"}',
        'soundstage_requests_total{language="en",route="/v1/transcribe",status="422"}',
        'soundstage_errors_total{code="empty"}',
        'soundstage_audio_seconds_total{language="en"}',
        'soundstage_real_time_factor_bucket{language="en"',
        'soundstage_request_seconds_bucket{le="0.01",route="/v1/transcribe"}',
        "soundstage_requests_in_flight 1.0",
    ):
        assert line in text
    schema = httpx.get(f"{url}/openapi.json").json()
    operation = schema["paths"]["/v1/transcribe"]["post"]
    assert {"200", "400", "404", "413", "422", "503"} <= set(operation["responses"])
    assert "multipart/form-data" in operation["requestBody"]["content"]


def test_the_page_of_the_interface_needs_no_internet(shared_tier):
    """It is opened in server rooms: whatever it loads comes from this server."""
    _, url = shared_tier
    page = httpx.get(f"{url}/docs")
    assert page.status_code == 200
    named = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page.text)
    assert len(named) >= 3, "its script, its style and the description of the interface"
    assert not re.search(r"https?://|[\"']//", page.text)
    for place in named:
        answer = httpx.get(f"{url}{place}")
        assert answer.status_code == 200, place
        assert answer.content
    assert "SwaggerUIBundle" in httpx.get(url + next(place for place in named if place.endswith(".js"))).text
    _problem(httpx.get(f"{url}/redoc"), 404, "not-found")


def test_server_without_a_release_says_what_to_do_then_follows_the_first(tier, speech_of):
    url = tier.start("a")
    _problem(httpx.post(f"{url}/v1/transcribe", content=speech_of("one")), 503, "no-model")
    answer = httpx.get(f"{url}/readyz")
    assert answer.status_code == 503
    assert "nothing is released" in answer.json()["reason"]
    assert httpx.get(f"{url}/healthz").status_code == 200
    bundle = tier.bundle("en-1")
    result = roll_out(tier.folder, "en", bundle.digest, _golden(tier), model="soundstage-en", version="1")
    assert (result.changed, result.replicas, result.previous) == (True, ("a",), ())
    assert [probe.text for probe in result.probes] == ["one two three"]
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).json()["text"] == "one"  # the only language


def test_busy_replica_refuses_at_once_and_recovers(tier, speech_of):
    """A bounded queue: what cannot be served soon is told so, with when to come back."""
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a", "--workers", "1", "--queue-limit", "1")
    audio = sound_bytes(tones(["one"] * 1200))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{url}/v1/transcribe", content=audio, timeout=60), range(8)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}, statuses
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.headers["Retry-After"] == "2"
    _problem(refused, 503, "busy")
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).status_code == 200


def test_clients_that_send_nothing_do_not_keep_others_out(tier, speech_of):
    """Headers cost nothing to send: whoever sends only those must not hold a place for good."""
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a", "--upload-idle-s", "1", "--max-bytes", "1000000")
    host, port = url.removeprefix("http://").split(":")

    def silent(length: int) -> socket.socket:
        client = socket.create_connection((host, int(port)), timeout=30)
        client.sendall(f"POST /v1/transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        return client

    stalled = [silent(1_000) for _ in range(64)]
    assert all(b" 408 " in client.recv(100) for client in stalled)
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).status_code == 200
    assert b" 413 " in silent(10**14).recv(100)


def test_clients_that_send_a_byte_now_and_then_do_not_keep_others_out(tier, speech_of):
    """Never idle for long, and never done: a pace is owed, which a slow line keeps."""
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a", "--upload-idle-s", "2")
    host, port = url.removeprefix("http://").split(":")
    clients = [socket.create_connection((host, int(port)), timeout=30) for _ in range(64)]
    for client in clients:
        client.sendall(b"POST /v1/transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(3):
        time.sleep(0.5)
        for client in clients:
            client.sendall(b"x")
    began = time.monotonic()
    for client in clients:
        with client, client.makefile("rb") as answer:
            assert b" 408 " in answer.readline()
            assert b"slower than" in answer.read()
    assert time.monotonic() - began < 1.8, "before the last byte is idle for long"
    audio = speech_of(*["one"] * 4)

    def slowly():
        for start in range(0, len(audio), 4_000):
            yield audio[start : start + 4_000]
            time.sleep(0.4)

    assert len(audio) > 24_000, "takes longer than the allowance"
    assert httpx.post(f"{url}/v1/transcribe", content=slowly()).json()["text"] == "one one one one"


def test_client_that_goes_away_frees_its_worker(tier, speech_of):
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a", "--workers", "1")
    host, port = url.removeprefix("http://").split(":")
    audio = sound_bytes(np.zeros(16_000 * 3600, np.float32))
    head = f"POST /v1/transcribe HTTP/1.1\r\nHost: x\r\nContent-Length: {len(audio)}\r\n\r\n".encode()
    half = socket.create_connection((host, int(port)))
    half.sendall(head + audio[:100_000])
    half.close()  # in the middle of the upload
    whole = socket.create_connection((host, int(port)))
    whole.sendall(head + audio)
    whole.close()  # in the middle of the work
    began = time.monotonic()
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one"), timeout=60).status_code == 200
    assert time.monotonic() - began < 20
    deadline = time.monotonic() + 10
    while 'errors_total{code="client-gone"} 2.0' not in (text := httpx.get(f"{url}/metrics").text):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert "soundstage_requests_in_flight 1.0" in text


def test_termination_finishes_what_has_begun(tier):
    """A replica that is replaced answers the requests it has taken, then leaves and takes its report with it."""
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a")
    audio = sound_bytes(tones(["one"] * 1200))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{url}/v1/transcribe", content=audio, timeout=60)
        deadline = time.monotonic() + 10
        while "in_flight 2.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < deadline
        assert tier.stop("a") in (0, -signal.SIGTERM)
        assert asked.result().json()["text"].split() == ["one"] * 1200
    assert tier.folder.reports() == ()


# --- releases ---------------------------------------------------------------------------------------------------------


class Load:
    """Steady requests from several clients; keeps every answer's status, text and bundle."""

    def __init__(self, urls: list[str], audio: bytes) -> None:
        self.answers: list[tuple[int, str, str]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(urls[i % len(urls)], audio)) for i in range(2 * len(urls))
        ]

    def _run(self, url: str, audio: bytes) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(f"{url}/v1/transcribe?language=en", content=audio)
                    text = answer.json().get("text", answer.text)
                    self.answers.append((answer.status_code, text, answer.headers.get(BUNDLE_HEADER, "")))
                except httpx.HTTPError as error:
                    self.answers.append((0, repr(error), ""))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_no_request_fails_while_bundles_are_switched_under_load(tier, speech_of):
    """Two replicas, steady traffic, three releases: only 200s, each with the text of the bundle it names."""
    first = tier.bundle("en-1")
    second = tier.bundle("en-2", confuse=[("one", "two")])
    tier.serve(first)
    urls = [tier.start("a"), tier.start("b")]
    golden = _golden(tier)
    with Load(urls, speech_of("one", "three")) as load:
        for bundle in (second, first, second):
            result = roll_out(tier.folder, "en", bundle.digest, golden)
            assert result.replicas == ("a", "b")
            assert result.transitions[-1].state == "drained"
            time.sleep(0.3)
    expected = {first.digest: "one three", second.digest: "two three"}
    assert {status for status, _, _ in load.answers} == {200}, [a for a in load.answers if a[0] != 200][:3]
    assert all(text == expected[digest] for _, text, digest in load.answers)
    assert {digest for _, _, digest in load.answers} == {first.digest, second.digest}
    assert len(load.answers) > 50
    for name in "ab":
        report = tier.wait(name, lambda report: not report.languages["en"].draining)
        assert set(report.languages["en"].loaded) == {first.digest, second.digest}, "the former one stays on standby"
        assert dict(report.languages["en"].active) == {second.digest: 1.0}


def test_bundle_that_cannot_be_served_leaves_everything_as_it_was(tier, speech_of):
    """Every way a release can go wrong: former document, former answers, reason in the history."""
    good = tier.bundle("en-1")
    tier.serve(good)
    url = tier.start("a")
    golden = _golden(tier)
    before = tier.folder.read().languages
    other = tier.bundle("en-2", confuse=[("one", "two")])
    german = tier.bundle("de-1", "de")
    tampered = tier.bundle("en-3")
    with (tampered.path / "network.onnx").open("ab") as file:
        file.write(b"x")
    mistaken = Path(shutil.copytree(other.path, other.path.with_name("f" * 64)))
    silent = tier.home / "silent.flac"
    write_flac_chunks([np.zeros(16_000, np.float32)], silent)
    attempts = [
        (mistaken.name, golden, "expected"),
        (tampered.digest, golden, "differs from its sha256"),
        (german.digest, golden, "for 'de'"),
        ("e" * 64, golden, "there is no bundle at .*/bundles/eee"),
        (other.digest, [], "without golden recordings"),
        (other.digest, [silent], "hears nothing"),
        (other.digest, [tier.home / "no.wav"], "golden recording"),
    ]
    for digest, recordings, reason in attempts:
        with pytest.raises(RolloutFailed, match=reason):
            roll_out(tier.folder, "en", digest, recordings, timeout_s=10)
        assert tier.folder.read().languages == before
        assert tier.folder.history("en")[-1].state == "refused"
    with pytest.raises(RolloutFailed, match=r"took|could not be probed"):
        roll_out(tier.folder, "en", other.digest, golden, timeout_s=10, latency_limit_s=1e-6)
    after = tier.folder.read().languages["en"]
    assert (after.routes, after.state) == (before["en"].routes, "returned")
    assert tier.folder.history("en")[-1].state == "returned"
    tier.wait("a", lambda report: report.languages["en"].loaded == (good.digest,))
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).json()["text"] == "one"


def test_replica_that_cannot_load_stops_the_release_and_serves_on(tier, speech_of):
    """A bundle was removed from the data store: replicas refuse, traffic stays."""
    good, other = tier.bundle("en-1"), tier.bundle("en-2", confuse=[("one", "two")])
    tier.serve(good)
    url = tier.start("a")
    shutil.rmtree(other.path)
    tier.folder.set_language("en", LanguageRelease((Route(other.digest, 1.0),)))
    report = tier.wait("a", lambda report: other.digest in report.languages["en"].errors)
    assert dict(report.languages["en"].active) == {good.digest: 1.0}
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).json()["text"] == "one"
    assert f"bundles/{other.digest}" in httpx.get(f"{url}/readyz").json()["reason"]
    (tier.home / DOCUMENT).write_text("{")
    time.sleep(1.5)
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).json()["text"] == "one"
    assert "cannot be followed" in httpx.get(f"{url}/readyz").json()["reason"]


def test_a_bundle_that_nobody_approved_is_not_served_whatever_the_document_says(tier, speech_of):
    """Somebody writes a bundle into the document by hand: never decided about, or approved with a failed verdict."""
    good = tier.bundle("en-1")
    never = tier.bundle("en-2", approved=False, confuse=[("one", "two")])
    failed = tier.bundle("en-3", approved=False, confuse=[("one", "three")])
    approve(tier.objects, failed, wer=0.5)
    tier.serve(good)
    url = tier.start("a")
    tier.wait("a", lambda report: good.digest in report.languages["en"].active)
    for other, sentence in ((never, "nobody approved it"), (failed, "did not pass gate wer")):
        tier.serve(other)
        tier.wait("a", lambda report, digest=other.digest: digest in report.languages["en"].errors)
        running = httpx.get(f"{url}/v1/release").json()["running"]["languages"]["en"]
        assert sentence in running["errors"][other.digest]
        assert running["active"] == {good.digest: 1.0}
        ready = httpx.get(f"{url}/readyz")
        assert ready.status_code == 200
        assert sentence in ready.json()["reason"]
        assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).json()["text"] == "one"
        asked = httpx.post(f"{url}/v1/transcribe", content=speech_of("one"), headers={BUNDLE_HEADER: other.digest})
        _problem(asked, 404, "bundle-not-loaded")


def test_a_replica_that_restarts_after_the_verdict_was_deleted_refuses(tier, speech_of):
    """What serves goes on; who loads it again asks again, and serves it once the verdict is back."""
    good = tier.bundle("en-1")
    tier.serve(good)
    url = tier.start("a")
    verdict = tier.home / "verdicts" / f"{good.digest}.json"
    content = verdict.read_bytes()
    verdict.unlink()
    time.sleep(1.0)
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("one")).status_code == 200
    tier.stop("a")
    url = tier.start("a")
    body = _problem(httpx.post(f"{url}/v1/transcribe", content=speech_of("one")), 503, "no-model")
    assert "has no verdict" in body["detail"]
    verdict.write_bytes(content)
    tier.wait("a", lambda report: good.digest in report.languages["en"].active)


def test_removing_the_document_takes_no_language_down_and_the_next_release_writes_its_own_again(tier, speech_of):
    """Its folder is cleaned up by mistake, or a share is mounted anew: no customer may notice."""
    english, german = tier.bundle("en-1"), tier.bundle("de-1", "de")
    tier.serve(english, german)
    url = tier.start("a")
    tier.wait("a", lambda report: set(report.languages) == {"en", "de"})
    before = tier.folder.read()
    for path in (tier.home / DOCUMENT).parent.glob("release.json*"):
        path.unlink()
    time.sleep(1.5)
    assert "is missing" in httpx.get(f"{url}/readyz").json()["reason"]
    for language, word in (("en", "one"), ("de", "eins")):
        audio = speech_of(word, language=language)
        assert httpx.post(f"{url}/v1/transcribe?language={language}", content=audio).json()["text"] == word
    second = tier.bundle("en-2", confuse=[("one", "two")])
    result = roll_out(tier.folder, "en", second.digest, _golden(tier), version="2")
    assert result.previous == (english.digest,)
    report = tier.wait("a", lambda report: not report.error)
    assert dict(report.languages["de"].active) == {german.digest: 1.0}
    assert dict(report.languages["en"].active) == {second.digest: 1.0}
    after = tier.folder.read()
    assert set(after.languages) == {"en"}, "German goes on as its replicas run it, and is written by its own release"
    assert after.revision > before.revision


def test_probe_asks_a_bundle_that_gets_no_traffic(tier, speech_of):
    good, other = tier.bundle("en-1"), tier.bundle("en-2", confuse=[("one", "two")])
    tier.serve(good)
    url = tier.start("a")
    routes = tier.folder.read().languages["en"].routes
    probe = Route(other.digest, 0.0)
    tier.folder.set_language("en", LanguageRelease((*routes, probe), "probe", routes))
    tier.wait("a", lambda report: other.digest in report.languages["en"].loaded)
    audio = speech_of("one")
    asked = httpx.post(f"{url}/v1/transcribe", content=audio, headers={BUNDLE_HEADER: other.digest}).json()
    assert (asked["text"], asked["model"]["digest"]) == ("two", other.digest)
    assert {httpx.post(f"{url}/v1/transcribe", content=audio).json()["text"] for _ in range(10)} == {"one"}


def test_release_without_replicas_is_refused_or_left_for_a_later_server(tier, speech_of):
    bundle = tier.bundle("en-1")
    golden = _golden(tier)
    with pytest.raises(RolloutFailed, match="no replica of the serving tier is alive"):
        roll_out(tier.folder, "en", bundle.digest, golden)
    assert tier.folder.read().languages == {}
    result = roll_out(tier.folder, "en", bundle.digest, golden, allow_no_replica=True)
    assert (result.changed, result.replicas, result.probes) == (True, (), ())
    url = tier.start("a")
    assert httpx.post(f"{url}/v1/transcribe", content=speech_of("two")).json()["text"] == "two"
    again = roll_out(tier.folder, "en", bundle.digest, golden)
    assert (again.changed, again.replicas) == (False, ("a",))


def test_later_server_verifies_what_it_finds(tier, speech_of):
    """Between release and start somebody changed a file: the server says so and serves nothing."""
    bundle = tier.bundle("en-1")
    roll_out(tier.folder, "en", bundle.digest, _golden(tier), allow_no_replica=True)
    with (bundle.path / "network.onnx").open("ab") as file:
        file.write(b"x")
    url = tier.start("a")
    body = _problem(httpx.post(f"{url}/v1/transcribe", content=speech_of("one")), 503, "no-model")
    assert "differs from its sha256" in body["detail"]


def test_killed_replica_is_no_part_of_the_next_release(tier):
    """Its report stays behind; nobody listens at its address, and the report does not change any more."""
    tier.serve(tier.bundle("en-1"))
    tier.start("a")
    tier.start("b")
    assert tier.stop("b", signal.SIGKILL) == -signal.SIGKILL
    other = tier.bundle("en-2", confuse=[("one", "two")])
    assert {report.replica for report in tier.folder.reports()} == {"a", "b"}
    result = roll_out(tier.folder, "en", other.digest, _golden(tier), timeout_s=30)
    assert result.replicas == ("a",)


def test_two_releases_at_once_are_refused(tier):
    bundle = tier.bundle("en-1")
    with Turn(tier.objects, "en").taken(0), pytest.raises(RolloutFailed, match="another release of 'en' is under way"):
        roll_out(tier.folder, "en", bundle.digest, _golden(tier), timeout_s=0.5, allow_no_replica=True)


def test_large_recording_is_not_held_in_memory(tier):
    """Half an hour as WAV is 58 MB: the replica's peak grows by a fraction of it as samples would be 115 MB."""
    tier.serve(tier.bundle("en-1"))
    url = tier.start("a", "--workers", "1")
    pid = tier.processes["a"].pid
    httpx.post(f"{url}/v1/transcribe", content=sound_bytes(tones(["one"] * 60)), timeout=60)
    before = _peak_kib(pid)
    buffer = io.BytesIO(sound_bytes(np.tile(tones(["one", "two"] * 30), 57)))
    answer = httpx.post(f"{url}/v1/transcribe", content=buffer, timeout=120)
    assert answer.status_code == 200
    assert answer.json()["duration_s"] > 1700
    assert (_peak_kib(pid) - before) / 1024 < 60


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status).group(1))
