"""What an hour is measured by: numbers that follow from its content, times that enter no digest, and Prometheus."""

import re
import shutil
import subprocess
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from deployment.batch.arrivals import Arrival
from deployment.batch.exposition import exposition
from deployment.batch.hour import ARRIVALS, DEAD_LETTERS, MEASURES, TASKS, TRANSCRIPTS, Hour
from deployment.batch.measures import (
    OTHER,
    PLACE,
    REASONS,
    Errors,
    HourMeasures,
    StageTime,
    StageTimes,
    Truth,
    TruthError,
    measured,
    read_truth,
)
from deployment.batch.stages.items import DeadLetter
from deployment.batch.versions import Versions
from deployment.pages import application
from speech.audio.source import AudioError
from speech.plain import to_lines, to_plain
from speech.store.objects import Objects
from speech.store.outputs import DataStore, to_json
from speech.transcript import Segment, Transcript, Word

HOUR = "2026-11-26-09"
HOSTILE = 'calls"} 1\n# "\\'


def digest_of(number: int) -> str:
    return f"{number:02x}" * 32


def transcript(number: int, text: str, confidence: float = 0.9, language: str = "en") -> Transcript:
    words = tuple(Word(word, float(n), n + 0.5, confidence) for n, word in enumerate(text.split()))
    digest = digest_of(number)
    return Transcript(
        id=f"{digest[:32]}-1",
        language=language,
        confidence=confidence,
        duration_s=60.0,
        source_digest=digest,
        segments=(Segment(words, 0.0, 9.0),),
    )


def arrival(number: int, same_as: str | None = None) -> Arrival:
    return Arrival(
        id=f"a{number}",
        name=f"en/{number}.wav",
        digest=digest_of(number),
        size=1,
        received_at=datetime(2026, 11, 26, 9, tzinfo=UTC),
        language="en",
        same_as=same_as,
    )


def hour_with(objects: Objects, transcripts: list[Transcript], codes: tuple[str, ...] = ()) -> Hour:
    """An hour as its assets leave it."""
    hour = Hour(DataStore(objects), HOUR)
    dead = [DeadLetter(id=f"d{n}", name=f"d{n}.wav", code=code, reason="it is") for n, code in enumerate(codes)]
    arrivals = [arrival(n) for n in range(len(transcripts) + len(codes))]
    hour.publish("incoming_audio", {ARRIVALS: to_lines([*arrivals, replace(arrival(0), id="again", same_as="a0")])})
    hour.publish("normalized_recordings", {DEAD_LETTERS: to_lines(dead)})
    hour.publish("transcripts", {TRANSCRIPTS: to_lines(transcripts)})
    hour.publish("published_transcripts", {TRANSCRIPTS: to_lines(transcripts[:1])})
    hour.publish("review_tasks", {TASKS: b""})
    return hour


def test_an_hour_says_what_became_of_its_recordings(objects: Objects) -> None:
    hour = hour_with(objects, [transcript(0, "one two"), transcript(1, "three", 0.5)], ("empty", "new-code", "empty"))
    found = measured(hour)
    assert (found.arrived, found.published, found.failed, found.same_as_before) == (6, 1, 3, 1)
    assert found.failed_share == 0.6
    assert {reason: count for reason, count in found.failed_by_reason.items() if count} == {"empty": 2, OTHER: 1}
    assert tuple(found.failed_by_reason) == REASONS, "the same names each hour, or they do not plot"
    assert (found.confidence, found.words, found.audio_s) == (0.7, 3, 120.0)
    assert measured(hour) == found


def test_reasons_are_the_codes_of_audio_errors() -> None:
    said = re.findall(r'"([a-z-]+)"', str(AudioError.__doc__))
    assert len(said) > 5
    assert set(said) == set(REASONS) - {"crashed", OTHER}


def test_where_the_truth_is_known_the_error_rate_is(objects: Objects) -> None:
    heard = [
        transcript(0, "one two"),
        transcript(1, "drei", language="de"),
        transcript(2, "four five"),
        transcript(3, "x"),
    ]
    truth = [
        Truth(text="one too", name="en/0.wav", domain="calls"),
        Truth(text="drei", digest=digest_of(1), domain="calls"),
        Truth(text="four", name="en/2.wav"),
        Truth(text="elsewhere", name="en/99.wav", domain="other"),
    ]
    found = measured(hour_with(objects, heard), truth)
    assert found.errors_by_language == {
        "en": Errors(recordings=2, words=3, edits=2),
        "de": Errors(recordings=1, words=1, edits=0),
    }
    assert found.errors_by_domain == {"calls": Errors(recordings=2, words=3, edits=1)}
    assert found.errors_by_language["en"].wer == pytest.approx(2 / 3)
    assert Errors(recordings=1, edits=3).wer is None


def test_what_people_corrected_is_measured_apart(objects: Objects) -> None:
    """People see what models were unsure of: their words say nothing of the others."""
    heard = [transcript(0, "one two"), transcript(1, "three")]
    for one in heard:
        Versions(objects).kept(one, HOUR)
    written = replace(heard[0], segments=transcript(0, "won two").segments)
    Versions(objects).kept(written, HOUR, by="Ada")
    found = measured(hour_with(objects, heard), [Truth(text="three", name="en/1.wav")])
    assert found.reviewed_by_language == {"en": Errors(recordings=1, words=2, edits=1)}
    assert found.errors_by_language == {"en": Errors(recordings=1, words=1, edits=0)}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "one"}', "line 3: neither `name` nor `digest`"),
        ('{"name": "a.wav"}', "line 3: text: Field required"),
        ('{"name": "a.wav", "text": 7}', "line 3: text: "),
        ("[1]", "line 3: "),
        ('{"name": "a.wav", "text": "one", "domain": "\\ud800"}', "line 3: "),
        ("one two", "line 3: "),
    ],
)
def test_truth_that_is_none_names_its_line(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "truth.jsonl"
    file.write_text(f'{{"name": "en/0.wav", "text": "one", "speaker": "ignored"}}\n\n{line}\n')
    with pytest.raises(TruthError, match=re.escape(f"{file}, {said}")):
        read_truth(file)
    with pytest.raises(TruthError, match=r"cannot be read \(No such file or directory\): correct `truth`"):
        read_truth(tmp_path / "none.jsonl")


def test_a_recording_that_comes_in_pieces_is_timed_as_one() -> None:
    time = StageTime.of([("a", 0.5), ("b", 1.0), ("a", 1.5)], elapsed_s=2.0, audio_s=720.0)
    assert (time.recordings, time.work_s, time.p50_s, time.p99_s, time.speed) == (2, 3.0, 1.5, 1.99, 360.0)
    nothing = StageTime.of([], 0.0, 0.0)
    assert (nothing.recordings, nothing.p95_s, nothing.speed) == (0, 0.0, 0.0)


def test_stages_that_end_together_are_all_noted(objects: Objects) -> None:
    time = StageTime.of([("a", 1.0)], 1.0, 60.0)
    work = [threading.Thread(target=StageTimes(objects).note, args=(HOUR, f"stage {n}", time)) for n in range(5)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert StageTimes(objects).of(HOUR) == {f"stage {n}": time for n in range(5)}


def test_damaged_times_are_made_anew_and_stop_nobody(objects: Objects) -> None:
    objects.put_if_absent(f"stage_times/{HOUR}.json", b"[1, 2")
    assert StageTimes(objects).of(HOUR) == {}
    StageTimes(objects).note(HOUR, "speech_segments", StageTime.of([], 0.0, 0.0))
    assert set(StageTimes(objects).of(HOUR)) == {"speech_segments"}


@pytest.fixture
def measured_hours(objects: Objects) -> Objects:
    """A data store with two measured hours."""
    found = HourMeasures(
        arrived=4,
        published=1,
        asked_about=1,
        failed=1,
        same_as_before=1,
        failed_by_reason={reason: int(reason == "empty") for reason in REASONS},
        audio_s=120.0,
        words=7,
        confidence=None,
    )
    later = replace(
        found,
        confidence=0.75,
        errors_by_language={"en": Errors(recordings=1, words=4, edits=1), "de": Errors(recordings=1)},
        errors_by_domain={HOSTILE: Errors(recordings=1, words=2, edits=1)},
    )
    for hour, measures in (("2026-11-26-08", found), (HOUR, later)):
        Hour(DataStore(objects), hour).publish(PLACE, {MEASURES: to_json(to_plain(measures))})
    StageTimes(objects).note(HOUR, "speech_segments", StageTime.of([("a", 0.5), ("b", 1.5)], 2.5, 120.0))
    return objects


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_is_told_of_the_last_hour(measured_hours: Objects) -> None:
    text = exposition(measured_hours).decode()
    found = samples(text)
    assert found["soundstage_batches_measured_total",] == 2
    assert found["soundstage_hour_start_timestamp_seconds",] == datetime(2026, 11, 26, 9, tzinfo=UTC).timestamp()
    assert found["soundstage_hour_recordings", "failed"] == 1
    assert found["soundstage_hour_failed_recordings", "empty"] == 1
    assert found["soundstage_hour_failed_recordings", "truncated"] == 0
    assert found["soundstage_hour_confidence_ratio",] == 0.75
    assert found["soundstage_hour_word_error_ratio", "en"] == 0.25
    assert ("soundstage_hour_word_error_ratio", "de") not in found, "nothing was said: there is no rate"
    assert found["soundstage_hour_domain_word_error_ratio", HOSTILE] == 0.5
    assert found["soundstage_hour_stage_seconds", "0.5", "speech_segments"] == 1.0
    assert found["soundstage_hour_stage_seconds_sum", "speech_segments"] == 2.0
    assert found["soundstage_hour_stage_elapsed_seconds", "speech_segments"] == 2.5


def test_before_the_first_hour_there_is_none(objects: Objects) -> None:
    assert samples(exposition(objects).decode()) == {("soundstage_batches_measured_total",): 0.0}


def test_names_and_units_are_as_prometheus_asks_for(measured_hours: Objects) -> None:
    text = exposition(measured_hours)
    for family in text_string_to_metric_families(text.decode()):
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            assert not re.search(r"_(milliseconds|minutes|hours|percent)\b", sample.name), "base units alone"
    if promtool := shutil.which("promtool"):
        checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False)
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_pages_give_them_and_a_damaged_hour_is_said(measured_hours: Objects) -> None:
    pages = TestClient(application(measured_hours))
    answer = pages.get("/metrics")
    assert (answer.status_code, answer.text) == (200, exposition(measured_hours).decode())
    assert answer.headers["content-type"].startswith("text/plain; version=")
    output = DataStore(measured_hours).current(PLACE, HOUR)
    measured_hours.delete([f"{output.key}/{MEASURES}"])
    answer = pages.get("/metrics")
    assert answer.status_code == 503
    assert PLACE in answer.text
