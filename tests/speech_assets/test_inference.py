"""An hour of uploads through the real graph, heard by toy champions: where each recording goes, and when hours run."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from deployment.batch.arrivals import arrivals_of, hours_with_arrivals, receive
from speech.language import LanguageSettings
from speech.vad import VadSettings
from tests.sounds import sound_bytes
from tests.toy_bundle import tones
from tests.toy_labels import write_toy_labels
from tests.toy_registry import register_versions

NOW = datetime(2026, 11, 26, 9, 30, tzinfo=UTC)
HOUR = "2026-11-26-09"
LOUD, QUIET = 0.3, 0.06  # sure and unsure for a toy bundle


@dataclass
class House:
    """A deployment with champions, and its folder of uploads."""

    workspace: Any
    instance: Any
    champions: dict[str, str]
    keys: list[str | None] = field(default_factory=list)  # of the runs asked for last

    def changed(self, **inference: Any) -> "House":
        """The same house with other settings of `[inference]`."""
        from speech_assets.defs.resources import Workspace

        settings = self.workspace.settings
        table = settings.inference.model_copy(update=inference)
        return House(Workspace(settings.model_copy(update={"inference": table})), self.instance, self.champions)

    def upload(self, **files: bytes) -> None:
        folder = self.workspace.settings.inference.folder(None)
        for name, data in files.items():
            path = folder / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (NOW.timestamp() - 60,) * 2)

    def receive(self, now: datetime = NOW) -> None:
        settings = self.workspace.settings
        receive(settings.inference.folder(None), self.workspace.objects, settings.languages, now=now)

    def transcribe(self, hour: str = HOUR) -> Any:
        from speech_assets.definitions import build

        job = build(self.workspace.settings).resolve_job_def("transcribe_hour")
        return job.execute_in_process(partition_key=hour, instance=self.instance, raise_on_error=False)

    def take_corrections(self) -> Any:
        from speech_assets.definitions import build

        job = build(self.workspace.settings).resolve_job_def("take_corrections")
        return job.execute_in_process(partition_key=HOUR, instance=self.instance, raise_on_error=False)

    def answer(self, task: Any, text: str, who: str = "Ada") -> None:
        from deployment.review.answers import Answers

        Answers(self.workspace.objects, 0.0).add(HOUR, task, who, "text", text)

    def forget_decisions(self, prefix: str) -> None:
        for item in list(self.workspace.objects.list(prefix)):
            Path(self.workspace.settings.home, item.key).unlink()

    @property
    def hour(self) -> Any:
        return self.workspace.hour(HOUR)

    def digests(self) -> dict[str, str]:
        from speech_assets.chain import INFERENCE

        return {asset: self.hour.output(asset).digest for asset in INFERENCE}

    def asked(self, at: datetime, name: str = "hourly_transcription") -> tuple[list[str], str]:
        """What a schedule asks for at a moment: hours, or why none."""
        import dagster as dg

        from speech_assets.definitions import build

        repository = build(self.workspace.settings).get_repository_def()
        schedule = repository.get_schedule_def(name)
        context = dg.build_schedule_context(
            self.instance,
            scheduled_execution_time=at,
            resources={"workspace": self.workspace},
            repository_def=repository,
        )
        said = schedule.evaluate_tick(context)
        self.keys = [request.run_key for request in said.run_requests or ()]
        return [request.partition_key for request in said.run_requests or ()], said.skip_message or ""


@pytest.fixture
def house(deployment, tmp_path: Path, empty_registry: Callable[[Path], None]) -> Iterator[House]:  # type: ignore[no-untyped-def]
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.defs.resources import Workspace

    home = tmp_path / "home"
    home.mkdir()
    empty_registry(home)
    settings = Settings.load()
    changed = {
        "home": str(home),
        "promotion": settings.promotion.model_copy(update={"approvers": ("Ada",), "require_better": False}),
        "gates": type(settings.gates)(),
        "inference": settings.inference.model_copy(
            update={
                "uploads": str(tmp_path / "uploads"),
                "first_hour": "2026-11-26-00",
                "vad": VadSettings(threshold=0.02, release=0.002),  # tones are hardly speech
                "loudness": "off",  # by which a toy bundle is sure
            }
        ),
    }
    workspace = Workspace(settings.model_copy(update=changed))
    champions = {}
    for language in ("en", "de"):
        champions[language] = register_versions(workspace, {}, language=language)["1"]
        workspace.promotions().approve(language, f"soundstage-{language}", "1", "Ada", "good")
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        yield House(workspace, instance, champions)


def said(*words: str, language: str = "en", amplitude: float = LOUD) -> bytes:
    silence = np.zeros(16_000, np.float32)
    return sound_bytes(np.concatenate([silence, tones(words, language, amplitude), silence]))


def checks(result: Any) -> dict[str, bool]:
    return {check.check_name: check.passed for check in result.get_asset_check_evaluations()}


def mixed(house: House) -> None:
    house.upload(
        en__sure_wav=said("one", "two", "three"),
        de__sure_wav=said("vier", "fünf", language="de"),
        en__unsure_wav=said("six", "seven", amplitude=QUIET),
        silence_wav=sound_bytes(np.zeros(32_000, np.float32)),
        broken_wav=said("one")[:4_000],
        page_mp3=b"<html>502 Bad Gateway</html>",
        again_wav=said("one", "two", "three"),
    )
    house.receive()


def test_each_recording_of_an_hour_goes_where_it_belongs(house: House) -> None:
    from deployment.batch.branch import FORMS

    mixed(house)
    result = house.transcribe()
    assert result.success
    names = {row.id: row.name for row in house.hour.recordings()}
    public = house.hour.published()
    texts = {names[transcript.id.removesuffix("-1")]: transcript.text for transcript in public}
    again = texts.pop("again.wav")  # the first by name has the bytes, and `en/sure.wav` is the same recording
    assert again == "one two three"
    assert texts == {"de/sure.wav": "vier fünf", "silence.wav": ""}
    tasks = house.hour.tasks()
    assert {names[task.transcript.removesuffix("-1")] for task in tasks} == {"en/unsure.wav"}
    assert {word.text for task in tasks for word in task.words} <= {"six", "seven"}
    assert {letter.name: letter.code for letter in house.hour.dead_letters()} == {
        "broken.wav": "truncated",
        "page.mp3": "not-audio",
    }
    assert checks(result) == {
        "every_recording_accounted_for": True,
        "later_versions_hold": True,
        "mean_confidence": True,
        "failing_share": False,
        "each_transcript_went_one_way": True,
    }
    output = house.hour.output("published_transcripts")
    assert all(output.read(f"{form}/{public[0].id}.{form}") for form in FORMS if public[0].words)
    assert {t.model_digests["recognition"] for t in public if t.language == "de"} == {house.champions["de"]}
    assert Path(house.workspace.objects.located(tasks[0].clip)).read_bytes().startswith(b"fLaC")


def test_a_call_is_transcribed_by_channel_and_asked_about_by_channel(house: House) -> None:
    """A clip of the wrong channel would have people hear the other person."""
    loud, soft, pause = tones(["one", "two"]), tones(["three", "two"], amplitude=QUIET), np.zeros(24_000, np.float32)
    quiet = np.zeros(max(len(loud), len(soft)), np.float32)
    left = np.concatenate([pause, loud, pause, quiet[: len(soft)], pause])
    right = np.concatenate([pause, quiet[: len(loud)], pause, soft, pause])
    house.upload(en__call_wav=sound_bytes(np.stack([left, right], axis=1)))
    house.receive()
    assert house.changed(publish_confidence=1.0).transcribe().success
    (recording,) = house.hour.recordings()
    assert [sound.channel for sound in recording.sounds] == [0, 1]
    (transcript,) = house.hour.transcripts()
    assert [segment.speaker for segment in transcript.segments] == ["speaker_0", "speaker_1"]
    clips = {task.channel: house.workspace.objects.located(task.clip) for task in house.hour.tasks()}
    peaks = {channel: np.abs(soundfile.read(clip)[0]).max() for channel, clip in clips.items()}
    assert peaks == {0: pytest.approx(LOUD, rel=0.05), 1: pytest.approx(QUIET, rel=0.05)}


def test_an_hour_gives_the_same_bytes_however_many_work_on_it(house: House) -> None:
    mixed(house)
    assert house.changed(workers=1).transcribe().success
    one = house.digests()
    assert house.changed(workers=4).transcribe().success
    assert house.digests() == one


def test_a_worker_that_is_killed_changes_nothing(house: House) -> None:
    mixed(house)
    assert house.transcribe().success
    undisturbed = house.digests()
    killed: list[int] = []
    over = threading.Event()

    def kill_one() -> None:
        while not killed and not over.wait(0.005):
            for child in map(int, Path(f"/proc/{forkserver()}/task/{forkserver()}/children").read_text().split()):
                if not killed and "forkserver" in Path(f"/proc/{child}/cmdline").read_text():
                    os.kill(child, signal.SIGKILL)
                    killed.append(child)

    killer = threading.Thread(target=kill_one)
    killer.start()
    assert house.transcribe().success
    over.set()
    killer.join()
    assert killed
    assert house.digests() == undisturbed


def forkserver() -> int:
    """The process that this one has its workers from."""
    from multiprocessing import forkserver as started

    return int(started._forkserver._forkserver_pid)  # type: ignore[attr-defined]


def test_a_sure_recording_of_the_control_sample_is_published_and_asked_about(house: House) -> None:
    from deployment.batch.settings import ReviewSettings

    house.upload(en__sure_wav=said("one", "two", "three"))
    house.receive()
    everything = house.changed(review=ReviewSettings(control_share=1.0))
    result = everything.transcribe()
    assert result.success
    assert all(checks(result).values())
    (public,) = house.hour.published()
    first = house.hour.tasks()
    assert {(task.transcript, task.why) for task in first} == {(public.id, "control")}
    assert everything.transcribe().success
    assert house.hour.tasks() == first, "no second question about what was asked"


def test_what_people_answer_takes_its_place_in_transcripts_and_supersedes(house: House) -> None:
    from deployment.batch.branch import FORMS

    house.upload(en__unsure_wav=said("six", "seven", amplitude=QUIET), en__other_wav=said("two", amplitude=QUIET))
    house.receive()
    assert house.transcribe().success
    assert house.asked(NOW, "corrections")[0] == []
    tasks = house.hour.tasks()
    first = [task for task in tasks if task.transcript == tasks[0].transcript]
    for task in first:
        house.answer(task, "six eleven")
    assert house.asked(NOW, "corrections")[0] == [HOUR]
    result = house.take_corrections()
    assert result.success
    assert checks(result) == {"no_answer_lost": True}
    assert house.asked(NOW, "corrections")[0] == []
    (made,) = house.hour.reviewed()
    before = next(each for each in house.hour.transcripts() if each.source_digest == made.source_digest)
    assert (made.version, made.supersedes, made.text) == (2, before.id, " ".join(["six eleven"] * len(first)))
    assert {word.confidence for word in made.words} == {1.0}
    output = house.hour.output("reviewed_transcripts")
    assert all(output.read(f"{form}/{made.id}.{form}") for form in FORMS if form != "rttm")
    assert house.take_corrections().success
    assert house.hour.output("reviewed_transcripts").digest == output.digest, "the same answers, the same bytes"
    house.answer(first[0], "sick")  # Ada thinks again
    assert house.take_corrections().success
    (later,) = house.hour.reviewed()
    assert (later.version, later.supersedes) == (3, made.id)
    for task in tasks:
        if task.transcript != tasks[0].transcript:
            house.answer(task, "too")
    assert house.take_corrections().success
    assert len(house.hour.reviewed()) == 2
    assert later in house.hour.reviewed()


def test_an_hour_in_which_nothing_arrived_is_whole(house: House) -> None:
    from speech_assets.chain import INFERENCE

    result = house.transcribe("2026-11-26-08")
    assert result.success
    assert all(checks(result).values())
    assert len(result.get_asset_materialization_events()) == len(INFERENCE)


def test_a_recording_whose_language_has_no_champion_is_heard_by_the_usual_one_and_says_so(house: House) -> None:
    house.upload(de__call_wav=said("one", "two"))
    house.receive()
    house.forget_decisions("ledger/de")
    assert house.transcribe().success
    (transcript,) = house.hour.transcripts()
    assert (transcript.language, transcript.degraded) == ("en", ("language", "speakers"))


def test_a_champion_that_may_not_be_used_has_no_other_in_its_place(house: House) -> None:
    """German recordings must not be written down in English because a file is damaged."""
    house.upload(de__call_wav=said("eins", language="de"), en__call_wav=said("one"))
    house.receive()
    digest = house.champions["de"]
    Path(house.workspace.settings.home, "bundles", digest, "network.onnx").write_bytes(b"damaged")
    result = house.transcribe()
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "recognized_segments"
    assert digest in failure.step_failure_data.user_failure_data.description
    assert not house.workspace.store.exists("transcripts", HOUR)


def test_without_any_champion_the_run_says_whom_to_ask(house: House) -> None:
    house.upload(call_wav=said("one"))
    house.receive()
    house.forget_decisions("ledger")
    result = house.transcribe()
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "recognized_segments"
    assert "no language has a champion" in failure.step_failure_data.user_failure_data.description
    assert sum(event.is_step_up_for_retry for event in result.all_events) == 0


def test_an_unsure_hour_is_told_to_people_and_stops_nothing(house: House, server: Any) -> None:
    from deployment.settings import AlertsSettings
    from speech_assets.defs.resources import Workspace

    house.upload(call_wav=said("six", "seven", amplitude=QUIET))
    house.receive()
    settings = house.workspace.settings.model_copy(update={"alerts": AlertsSettings(webhook_url=f"{server.url}/hook")})
    house.workspace = Workspace(settings)
    result = house.changed(alert_confidence=0.99).transcribe()
    assert result.success
    assert checks(result)["mean_confidence"] is False
    ((path, told),) = server.received
    assert (path, told["partition"], told["title"]) == ("/hook", HOUR, f"transcripts unsure for {HOUR}")


def test_the_schedule_asks_for_hours_that_have_ended_late_recordings_too(house: House) -> None:
    end = NOW.replace(hour=10, minute=0)
    hours, why = house.asked(end)
    assert (hours, bool(why)) == ([], True)
    house.upload(a_wav=said("one"))
    house.receive()
    assert house.asked(NOW)[0] == []  # the hour goes on
    assert house.asked(end)[0] == [HOUR]
    assert house.transcribe().success
    assert house.asked(end)[0] == []
    house.upload(b_wav=said("two"))
    house.receive(NOW + timedelta(minutes=20))
    assert house.asked(end)[0] == [HOUR]
    assert house.transcribe().success
    assert house.asked(end)[0] == []


def test_an_hour_that_failed_is_asked_for_again_and_one_under_way_is_not(house: House) -> None:
    """A run key counts for ever: with the recordings alone in it, an hour that failed once would never be made."""
    import dagster as dg

    from speech_assets.definitions import build

    end = NOW.replace(hour=10, minute=0)
    house.upload(a_wav=said("one"))
    house.receive()
    assert house.asked(end)[0] == [HOUR]
    first = house.keys
    ledger = {item.key: house.workspace.objects.read(item.key).data for item in house.workspace.objects.list("ledger")}
    house.forget_decisions("ledger")
    assert not house.transcribe().success
    assert house.asked(end)[0] == [HOUR]
    assert house.keys != first
    job = build(house.workspace.settings).resolve_job_def("transcribe_hour")
    under_way = house.instance.create_run_for_job(
        job, status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": HOUR}
    )
    assert house.asked(end)[0] == []
    house.instance.report_run_failed(under_way)
    for key, data in ledger.items():
        house.workspace.objects.put(key, data)
    assert house.asked(end)[0] == [HOUR]
    assert house.transcribe().success
    assert house.asked(end)[0] == []


def test_personal_data_is_in_nothing_that_is_published_or_asked_about(house: House) -> None:
    pause = np.zeros(24_000, np.float32)

    def call(amplitude: float) -> bytes:
        groups = ("six", "two one two", "five six seven", "one three four nine")  # a number said with pauses
        sound = [pause]
        for group in groups:
            sound += [tones(group.split(), "en", amplitude), pause]
        return sound_bytes(np.concatenate(sound))

    house.upload(en__sure_wav=call(LOUD), en__unsure_wav=call(QUIET))
    house.receive()
    tones_are_speech = VadSettings(threshold=0.002, release=0.0002)
    assert house.changed(redact=("PHONE",), vad=tones_are_speech).transcribe().success
    (public,) = house.hour.published()
    assert public.text == "six [PHONE] [PHONE] [PHONE]"
    tasks = house.hour.tasks()
    assert {task.text for task in tasks} == {"six", "[PHONE]"}
    for asset in ("transcripts", "published_transcripts", "review_tasks"):
        every = Path(house.hour.output(asset).path).rglob("*")
        files = [path for path in every if path.is_file() and path.suffix != ".flac"]
        assert files
        assert not [path for path in files if b"seven" in path.read_bytes() or b'"567"' in path.read_bytes()]
    for task in tasks:
        clip, _ = soundfile.read(house.workspace.objects.located(task.clip))
        assert clip.any() == (task.text == "six")


def test_intents_are_told_by_the_model_in_use_and_derived_again_by_it(house: House) -> None:
    from deployment.batch.verify import verify
    from deployment.registry.intent_champions import name_intent_champion, put_intent_model
    from evaluation.intents import IntentGateSettings, judge, save_intent_verdict
    from speech.corpus.intents import LabelledSentence
    from speech.understanding.intents import IntentModel, Linear

    weights = np.array([[9.0, 0.0], [0.0, 1.0]], np.float32)
    model = IntentModel("en", Linear(("w three",), ("count", "unknown"), weights), None, 1.0, 0.5)
    kept = [LabelledSentence((word, *"ab"), "count", ("",) * 3, word) for word in ("three", "four")]
    kept += [LabelledSentence((word,), "unknown", ("",), word) for word in "xy"]
    gates = IntentGateSettings(accuracy=0.5, noisy_accuracy=0.4, calibration=1.0, ways=2, unknown_ways=2)
    digest = put_intent_model(house.workspace.objects, model)
    save_intent_verdict(judge(model, digest, kept, gates), house.workspace.objects)
    house.upload(en__a_wav=said("one", "two", "three"), en__b_wav=said("one", "two"))
    house.receive()
    assert house.transcribe().success
    assert all(segment.intent is None for made in house.hour.transcripts() for segment in made.segments)
    name_intent_champion(house.workspace.store, "en", digest)
    assert house.transcribe().success
    told = {made.text: made for made in house.hour.transcripts()}
    (segment,) = told["one two three"].segments
    assert segment.intent is not None
    assert segment.intent.name == "count"
    assert told["one two"].segments[0].intent is None
    assert told["one two three"].model_digests["intents.en"] == digest
    for made in told.values():
        assert verify(made, house.workspace.objects).outcome == "equal"


def test_uploads_are_received_by_a_job(house: House) -> None:
    from speech_assets.definitions import build

    house.upload(a_wav=said("one"))
    job = build(house.workspace.settings).resolve_job_def("receive_uploads")
    for _ in range(2):
        assert job.execute_in_process(instance=house.instance).success
    (hour,) = hours_with_arrivals(house.workspace.objects)
    assert [arrival.name for arrival in arrivals_of(house.workspace.objects, hour)] == ["a.wav"]


def test_a_dead_letter_that_is_put_back_is_transcribed_or_says_how_often_it_failed(house: House) -> None:
    from speech_assets.definitions import build

    house.upload(broken_wav=said("one")[:4_000])
    house.receive()
    assert house.transcribe().success
    (letter,) = house.hour.dead_letters()
    job = build(house.workspace.settings).resolve_job_def("requeue")
    for ids, succeeds in ((["0000"], False), ([letter.id[:12]], True), ([letter.id[:12]], True)):
        config = {"ops": {"put_back": {"config": {"ids": ids}}}}
        assert job.execute_in_process(config, instance=house.instance, raise_on_error=False).success == succeeds
    (hour,) = [hour for hour in hours_with_arrivals(house.workspace.objects) if hour != HOUR]
    result = house.transcribe(hour)
    assert result.success
    assert checks(result)["every_recording_accounted_for"]
    (again,) = house.workspace.hour(hour).dead_letters()
    assert (again.id, again.code, again.tries) == (letter.id, letter.code, 2)
    assert house.asked(NOW.replace(hour=10, minute=0))[0] == []  # the hour of before is whole


def test_every_foreign_file_is_published_asked_about_or_a_dead_letter_with_its_reason(house: House) -> None:
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: no foreign files here")
    found = [path for path in Path(root, "formats").rglob("*") if path.is_file()]
    house.upload(**{f"f{place}": path.read_bytes() for place, path in enumerate(found)})
    house.receive()
    result = house.transcribe()
    assert result.success
    assert checks(result)["every_recording_accounted_for"]
    assert checks(result)["each_transcript_went_one_way"]
    assert len(house.hour.arrivals()) == len(found) > 100
    assert not [letter for letter in house.hour.dead_letters() if letter.code == "crashed" or not letter.reason]


def spoken_language_model(house: House) -> str:
    """Take a toy language model into use, which tells German by how dense its tones are; returns its digest."""
    from deployment.registry.label_champions import name_label_champion
    from deployment.registry.shelf import Shelf
    from evaluation.gates import GateResult
    from evaluation.labels import REQUIRED, LabelVerdict, save_label_verdict

    store = house.workspace.store
    with tempfile.TemporaryDirectory() as folder:
        bundle = Shelf(store.objects).put_labels(
            write_toy_labels(Path(folder) / "bundle", between=-0.63, sharpness=150.0)
        )
    gates = tuple(GateResult(name, 1.0, 1.0, True, "Good.") for name in REQUIRED["language"])
    save_label_verdict(LabelVerdict("language", bundle.digest, bundle.name, True, gates), store.objects)
    name_label_champion(store, bundle)
    return bundle.digest


ENGLISH = tones(["one", "two", "three"] * 4, "en", word_s=0.16, gap_s=0.34)
GERMAN = tones(["eins", "zwei", "drei"] * 8, "de", word_s=0.16, gap_s=0.06)
PAUSE = np.zeros(16_000, np.float32)


def test_each_part_of_a_recording_is_heard_by_the_champion_of_its_language(house: House) -> None:
    """A call that goes on in German is not written down in English."""
    from deployment.batch.verify import verify

    digest = spoken_language_model(house)
    house.upload(call_wav=sound_bytes(np.concatenate([PAUSE, ENGLISH, PAUSE, GERMAN, PAUSE])))
    house.receive()
    assert house.transcribe().success
    (languages,) = house.hour.languages()
    assert list(dict.fromkeys(part.spoken.language for part in languages.parts)) == ["en", "de"]
    assert languages.parts == tuple(sorted(languages.parts, key=lambda part: part.stretch.start_s))
    assert languages.spoken.confidence > 0.6
    (transcript,) = house.hour.transcripts()
    main, other = ("en", "de") if transcript.language == "en" else ("de", "en")
    heard = {segment.language or main: {word.text for word in segment.words} for segment in transcript.segments}
    assert heard.keys() == {"en", "de"}
    assert heard["en"] <= {"one", "two", "three"}
    assert heard["de"] <= {"eins", "zwei", "drei"}
    assert all(heard.values())
    assert transcript.model_digests == {
        "recognition": house.champions[main],
        f"recognition.{other}": house.champions[other],
        "spoken_language": digest,
    }
    assert verify(transcript, house.workspace.objects).outcome == "equal"
    assert transcript.language_confidence == languages.spoken.confidence
    assert {segment.language for segment in transcript.segments} == {None, other}
    assert transcript.degraded == ("speakers",)


def test_what_a_folder_says_wins_unless_a_setting_says_otherwise(house: House) -> None:
    spoken_language_model(house)
    house.upload(en__call_wav=sound_bytes(np.concatenate([PAUSE, GERMAN, PAUSE])))
    house.receive()
    assert house.transcribe().success
    (transcript,) = house.hour.transcripts()
    assert (transcript.language, transcript.language_confidence) == ("en", None)
    over = LanguageSettings(over_uploads=True)
    assert house.changed(spoken_language=over).transcribe().success
    (transcript,) = house.hour.transcripts()
    assert transcript.language == "de"
    assert transcript.language_confidence > 0.6


def test_an_unknown_language_is_heard_by_the_usual_champion_and_said_to_be(house: House) -> None:
    spoken_language_model(house)
    sure = LanguageSettings(threshold=1.0)  # nothing is sure enough
    house.upload(call_wav=sound_bytes(np.concatenate([PAUSE, ENGLISH, PAUSE])))
    house.receive()
    assert house.changed(spoken_language=sure).transcribe().success
    (transcript,) = house.hour.transcripts()
    assert (transcript.language, transcript.degraded) == ("en", ("language", "speakers"))
    assert {segment.language for segment in transcript.segments} == {None}
    assert house.hour.languages()[0].spoken.language == "unknown"


def test_a_language_model_that_may_not_be_used_stops_the_hour_and_names_its_asset(house: House) -> None:
    """A damaged model would send recordings to the wrong champions without a word."""
    digest = spoken_language_model(house)
    house.upload(call_wav=said("one"))
    house.receive()
    Path(house.workspace.settings.home, "bundles", digest, "network.onnx").write_bytes(b"damaged")
    result = house.transcribe()
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert failure.step_key == "spoken_language"
    assert "`language_id_model`" in failure.step_failure_data.user_failure_data.description


def test_languages_are_told_alike_however_many_work_on_an_hour(house: House) -> None:
    spoken_language_model(house)
    for name, sounds in {"a": [ENGLISH], "b": [GERMAN], "c": [GERMAN, PAUSE, ENGLISH], "d": []}.items():
        house.upload(**{f"{name}_wav": sound_bytes(np.concatenate([PAUSE, *sounds, PAUSE]))})
    house.receive()
    assert house.changed(workers=1).transcribe().success
    one = house.digests()
    assert house.changed(workers=4).transcribe().success
    assert house.digests() == one
