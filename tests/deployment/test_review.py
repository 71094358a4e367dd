"""Answers and claims: nobody's words are lost or doubled, no two people have the same task, and differences count."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from deployment.batch.branch import ReviewTask
from deployment.batch.settings import InferenceSettings
from deployment.review import desk as desks
from deployment.review.answers import (
    AUDIO,
    AlreadyAnswered,
    Answers,
    NotAnAnswer,
    by_recording,
    disagreement,
    outcome_of,
)
from deployment.review.desk import Desk, NotAllowed, NotAsked
from speech.store.objects import Objects, StoreError, open_objects
from speech.store.outputs import DataStore
from tests.deployment.review_hours import HOUR, PEOPLE, transcript, write_hour


@pytest.fixture
def store(tmp_path: Path) -> Objects:
    return open_objects(tmp_path / "home")


def desk_of(store: Objects, **settings: object) -> Desk:
    asked = {"reviewers": PEOPLE, "double_share": 0.0, **settings}
    return Desk(store, InferenceSettings.model_validate({"review": asked}))


def one_task(store: Objects) -> ReviewTask:
    (task,) = write_hour(Path(store.home), [transcript(1, "turn the light on")])
    return task


def test_an_answer_settles_a_task_and_outlives_its_hour(store: Objects) -> None:
    task = one_task(store)
    outcome = Answers(store, 0.0).add(HOUR, task, "Ada", "text", "turn the  lights on\n")
    assert outcome.settled is not None
    assert (outcome.state, outcome.settled.text) == ("settled", "turn the lights on")
    write_hour(Path(store.home), [])
    (kept,) = Answers(store, 0.0).outcomes(HOUR).values()
    assert kept.settled == outcome.settled
    assert store.read(kept.settled.task.clip.removeprefix("store://")).data.startswith(b"fLaC")
    assert by_recording({"any": kept}) == {task.source_digest: [kept.settled]}


def test_the_same_answer_again_is_one_answer_and_another_is_the_later(store: Objects) -> None:
    """A browser sends again what it has no answer to."""
    task, answers = one_task(store), Answers(store, 0.0)
    first = answers.add(HOUR, task, "Ada", "text", "turn the light on")
    assert answers.add(HOUR, task, "Ada", "text", "turn the light on") == first
    changed = answers.add(HOUR, task, "Ada", "text", "turn the lights on")
    assert changed.settled is not None
    assert changed.settled.text == "turn the lights on"
    assert len(changed.voices) == 1
    assert len(answers.of_hour(HOUR)[task.id]) == 2, "the former is kept"


def test_an_answer_taken_back_is_none(store: Objects) -> None:
    task, answers = one_task(store), Answers(store, 0.0)
    answers.add(HOUR, task, "Ada", "unusable", reason="noise")
    assert answers.add(HOUR, task, "Ada", "withdrawn").state == "open"
    assert answers.add(HOUR, task, "Ben", "withdrawn").state == "open", "there was nothing to take back"
    settled = answers.add(HOUR, task, "Ben", "text", "")
    assert settled.settled is not None
    assert (settled.settled.who, settled.settled.text) == ("Ben", "")


def test_who_is_second_is_told_and_nothing_is_written_over(store: Objects) -> None:
    task = one_task(store)
    answers = [Answers(store, 0.0) for _ in range(6)]
    start, told = threading.Barrier(6), []

    def say(number: int) -> None:
        start.wait()
        try:
            answers[number].add(HOUR, task, f"person {number}", "text", f"words of {number}")
        except AlreadyAnswered as refused:
            told.append(str(refused))

    threads = [threading.Thread(target=say, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kept,) = Answers(store, 0.0).of_hour(HOUR)[task.id]
    assert len(told) == 5
    assert all(kept.who in sentence for sentence in told)


def test_two_who_agree_settle_a_doubled_task_and_a_third_where_they_differ(store: Objects) -> None:
    one, other = write_hour(Path(store.home), [transcript(1, "turn the light on", "stop it")])
    answers = Answers(store, 1.0)
    assert answers.add(HOUR, one, "Ada", "text", "Turn the light on.").state == "second"
    agreed = answers.add(HOUR, one, "Ben", "text", "turn the light on")
    assert agreed.state == "settled"
    answers.add(HOUR, other, "Ada", "text", "stop it now")
    differ = answers.add(HOUR, other, "Ben", "text", "stop it")
    assert (differ.state, differ.awaits("Cleo"), differ.awaits("Ben")) == ("differ", True, False)
    third = answers.add(HOUR, other, "Cleo", "text", "Stop it now!")
    assert third.settled is not None
    assert third.settled.text.lower().startswith("stop it now")
    with pytest.raises(AlreadyAnswered):
        answers.add(HOUR, other, "Dora", "text", "stop")
    assert disagreement([agreed]) == 0
    assert disagreement([agreed, third]) == pytest.approx(1 / 7)
    assert disagreement([]) is None


def test_text_and_unusable_differ_in_all_words(store: Objects) -> None:
    task, answers = one_task(store), Answers(store, 1.0)
    answers.add(HOUR, task, "Ada", "unusable", reason="noise")
    differ = answers.add(HOUR, task, "Ben", "text", "turn the light on")
    assert (differ.state, disagreement([differ])) == ("differ", 1.0)
    settled = answers.add(HOUR, task, "Cleo", "unusable", reason="overlap").settled
    assert settled is not None
    assert settled.kind == "unusable"


def test_a_share_that_is_changed_opens_nothing_that_was_settled(store: Objects) -> None:
    task = one_task(store)
    Answers(store, 0.0).add(HOUR, task, "Ada", "text", "turn the light on")
    assert Answers(store, 1.0).outcome(HOUR, task).state == "settled"


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "abc\u202etxt", "x" * 5_001])
def test_words_that_cannot_be_kept_are_refused_with_the_reason(store: Objects, text: str) -> None:
    task, answers = one_task(store), Answers(store, 0.0)
    with pytest.raises(NotAnAnswer):
        answers.add(HOUR, task, "Ada", "text", text)
    assert answers.of_hour(HOUR) == {}


@pytest.mark.parametrize("text", ["שלום\u200f עולם", "مرحبا", "नमस्ते", "<script>alert(1)</script>", "か゛"])
def test_words_of_any_script_are_kept(store: Objects, text: str) -> None:
    settled = Answers(store, 0.0).add(HOUR, one_task(store), "Ada", "text", text).settled
    assert settled is not None
    assert settled.text == text


def test_answers_that_cannot_be_read_name_their_object(store: Objects) -> None:
    task, answers = one_task(store), Answers(store, 0.0)
    answers.add(HOUR, task, "Ada", "text", "on")
    (kept,) = Path(store.home, "review", "answers").rglob("*.json")
    kept.write_text("{")
    with pytest.raises(StoreError, match="00000001.json"):
        Answers(store, 0.0).of_hour(HOUR)


def test_two_people_never_have_the_same_task(objects: Objects) -> None:
    tasks = write_hour(DataStore(objects), [transcript(number, "one two") for number in range(12)])
    taken: dict[str, list[str]] = {name: [] for name in PEOPLE}
    start = threading.Barrier(len(PEOPLE))

    def work(name: str) -> None:
        desk = desk_of(objects)
        start.wait()
        while (asked := desk.next(name)) is not None:
            taken[name].append(asked.task.id)
            desk.answer(name, asked.task.id, "text", "one two")

    threads = [threading.Thread(target=work, args=(name,)) for name in PEOPLE]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {asked.outcome.state for asked in desk_of(objects).every()} == {"settled"}
    assert sorted(task for tasks_of in taken.values() for task in tasks_of) == sorted(task.id for task in tasks)


def test_a_task_that_somebody_left_goes_to_others_after_a_while(store: Objects) -> None:
    task = one_task(store)
    first = desk_of(store).next("Ada")
    assert first is not None
    assert desk_of(store).next("Ben") is None
    assert desk_of(store).next("Ada") is not None, "who has it may open it again"
    late = desk_of(store, claim_s=0.001).next("Ben")
    assert late is not None
    assert late.task.id == task.id


def test_who_has_a_task_is_told_by_the_clock_of_the_store(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    one_task(store)
    assert desk_of(store).next("Ada") is not None
    monkeypatch.setattr("time.time", lambda: 9e9)
    assert desk_of(store).next("Ben") is None


def test_the_second_person_of_a_doubled_task_is_another(store: Objects) -> None:
    one_task(store)
    desk = desk_of(store, double_share=1.0)
    asked = desk.next("Ada")
    assert asked is not None
    desk.answer("Ada", asked.task.id, "text", "turn the light on")
    assert desk.next("Ada") is None
    assert desk.next("Ben") is not None


@pytest.mark.parametrize("reviewers", [("Ada",), ("Ada", "Ben"), ("Ada", "Ada", "Ben")])
def test_nobody_is_waited_for_where_there_is_no_third_to_ask(store: Objects, reviewers: tuple[str, ...]) -> None:
    one_task(store)
    desk = desk_of(store, double_share=1.0, reviewers=reviewers)
    asked = desk.next("Ada")
    assert asked is not None
    desk.answer("Ada", asked.task.id, "text", "turn the light on")
    (asked,) = desk.every()
    assert asked.outcome.settled is not None


def test_the_oldest_hour_and_the_least_sure_come_first(store: Objects) -> None:
    home = Path(store.home)
    (late,) = write_hour(home, [transcript(1, "late", confidence=0.1)], "2026-11-26-10")
    sure, unsure = write_hour(home, [transcript(2, "sure", confidence=0.7), transcript(3, "unsure", confidence=0.3)])
    assert [asked.task.id for asked in desk_of(store).every()] == [unsure.id, sure.id, late.id]


def test_people_who_are_not_named_may_not_answer(store: Objects) -> None:
    assert desk_of(store).person(" Ada ") == "Ada"
    with pytest.raises(NotAllowed, match="Ada, Ben, Cleo"):
        desk_of(store).person("Eve")
    with pytest.raises(NotAllowed, match="inference.review.reviewers"):
        desk_of(store, reviewers=()).person("Ada")


def test_a_task_of_an_hour_that_was_transcribed_again_is_asked_no_more(
    store: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "FRESH_S", 0.0)
    task, desk = one_task(store), desk_of(store)
    assert desk.clip(task.id).startswith(b"fLaC")
    write_hour(Path(store.home), [replace(transcript(1, "turn"), model_digests={"recognition": "c" * 64})])
    with pytest.raises(NotAsked, match="transcribed again"):
        desk.answer("Ada", task.id, "text", "turn the light on")
    assert not list(store.list(AUDIO))


def test_an_hour_that_cannot_be_read_costs_itself_alone(store: Objects) -> None:
    one_task(store)
    write_hour(Path(store.home), [transcript(2, "two")], "2026-11-26-10")
    Path(store.home, "review_tasks", "2026-11-26-10", "current").write_text("{")
    desk = desk_of(store)
    assert len(desk.every()) == 1
    (problem,) = desk.unreadable
    assert "2026-11-26-10" in problem


def test_nothing_asked_comes_to_nothing() -> None:
    assert outcome_of((), False).state == "open"
