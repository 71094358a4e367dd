"""What people wrote joins the corpus as every source does: once, in its quarter and language, and never frozen."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deployment.review.answers import Answers
from deployment.review.learnt import learnt
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import SOURCE_DIGEST, Sorted, rows_of
from speech.store.outputs import DataStore
from tests.deployment.review_hours import HOUR, transcript, write_hour

ANSWERED = datetime(2024, 5, 2, 12, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def answered(home: Path, *texts: str, language: str = "en") -> Answers:
    """Three recordings, each with a task that Ada answered in the second quarter of 2024 as `texts` say."""
    said = [transcript(number, f"word number {number}", language=language) for number in range(len(texts))]
    answers = Answers(DataStore(home).objects, 0.0)
    tasks = {task.source_digest: task for task in write_hour(home, said)}
    for each, text in zip(said, texts, strict=True):
        answers.add(HOUR, tasks[each.source_digest], "Ada", "text", text, at=ANSWERED)
    return answers


def test_what_people_wrote_is_a_row_of_its_language_and_quarter_with_its_own_audio(home: Path) -> None:
    answers = answered(home, "the first word", "", "the third word")
    rows = list(learnt(answers, "2024-04", "en"))
    assert [row.text for row in rows if row.text] == [row.text for row in rows]
    assert {row.text for row in rows} == {"the first word", "the third word"}
    assert not list(learnt(answers, "2024-07", "en"))
    assert not list(learnt(answers, "2024-04", "de"))
    (first,) = [row for row in rows if row.text == "the first word"]
    assert (first.split, first.offset_s, first.duration_s) == ("train", 0.25, 1.5)
    assert answers.objects.read(first.audio.removeprefix("store://")).data.startswith(b"fLaC")
    assert len({row.speaker for row in rows}) == 2


def test_who_thinks_again_changes_the_row_and_adds_none_even_in_another_quarter(home: Path) -> None:
    answers = answered(home, "the first word")
    (task,) = [given[0].task for given in answers.of_hour(HOUR).values()]
    (before,) = learnt(answers, "2024-04", "en")
    answers.add(HOUR, task, "Ada", "text", "the first words", at=ANSWERED.replace(month=8))
    (after,) = learnt(answers, "2024-04", "en")
    assert after == replace(before, text="the first words")
    assert not list(learnt(answers, "2024-07", "en"))
    answers.add(HOUR, task, "Ada", "unusable", reason="noise", at=ANSWERED.replace(month=9))
    assert not list(learnt(answers, "2024-04", "en"))


def test_nothing_of_the_frozen_benchmark_is_learnt(home: Path) -> None:
    answers = answered(home, "the first word", "the second word")
    first, second = (transcript(number, "x").source_digest for number in range(2))
    assert [row.text for row in learnt(answers, "2024-04", "en", recordings={first})] == ["the second word"]
    assert not list(learnt(answers, "2024-04", "en", recordings={first, second}))
    known = replace(transcript(5, "hello"), segments=(replace(transcript(5, "hello").segments[0], speaker="spk-1"),))
    (task,) = write_hour(home, [known], "2026-11-26-10")
    answers.add("2026-11-26-10", task, "Ada", "text", "hello there", at=ANSWERED)
    assert len(list(learnt(answers, "2024-04", "en"))) == 3
    assert len(list(learnt(answers, "2024-04", "en", speakers={"spk-1"}))) == 2


@pytest.fixture
def graph(home: Path, tmp_path: Path, no_settings: None) -> Iterator[Any]:
    """Materialises a partition's corpus of reviewed rows alone."""
    import dagster as dg

    from deployment.settings import Settings
    from speech.corpus.sources import Source
    from speech_assets.definitions import build

    settings = Settings(home=home, languages=("en",), sources=(Source(kind="reviewed"),))
    job = build(settings).resolve_implicit_global_asset_job_def()
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:

        def materialize(*assets: str) -> list[Utterance]:
            job.execute_in_process(
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                partition_key="en|2024-04",
                instance=instance,
                raise_on_error=False,
            )
            return list(rows_of(DataStore(home).current(assets[-1], "2024-04", "en")))

        yield materialize


def test_a_quarters_utterances_hold_each_corrected_segment_once_and_learn_it(home: Path, graph: Any) -> None:
    answers = answered(home, *(f"what {word} said" for word in ("ada", "ben", "cleo", "dora", "emil", "fay")))
    corpus = ("recordings", "normalized_audio", "utterances")
    rows = graph(*corpus)
    assert len(rows) == 6
    assert {row.split for row in rows} == {"train"}, "a test set of hard segments would tell of the choice"
    assert {round(row.duration_s, 3) for row in rows} == {1.5}
    task = next(iter(answers.of_hour(HOUR).values()))[0].task
    answers.add(HOUR, task, "Ada", "text", "what nobody said")
    again = graph(*corpus)
    assert len(again) == 6
    (changed,) = {row.text for row in again} - {row.text for row in rows}
    assert changed == "what nobody said"
    store = DataStore(home)
    (frozen,) = [row for row in again if row.text == changed]
    with store.replace("benchmark_set", "en") as staging:
        attributes = {SOURCE_DIGEST: task.source_digest}
        Sorted((replace(frozen, attributes=attributes),), ()).write(staging.path)
    assert [row.text for row in graph("recordings") if row.text == changed] == []
    assert len(graph("recordings")) == 5


def test_audio_that_is_gone_costs_its_row_alone(home: Path, graph: Any) -> None:
    answered(home, "what ada said", "what ben said")
    next(iter((home / "review" / "audio").glob("*.flac"))).unlink()
    assert len(graph("recordings")) == 2
    assert len(graph("recordings", "normalized_audio")) == 1
