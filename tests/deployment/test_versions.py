"""Versions of a transcript: one more only where something else is said, and people's words are never overwritten."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from deployment.batch.lookup import Unknown, recording_called, version_called, versions_of
from deployment.batch.versions import InForce, Versions, change_of, corrected, described, in_force, shown
from speech.quality import Quality
from speech.store.objects import Objects, StoreError
from speech.transcript import Segment, Transcript, Word

HOUR = "2026-11-26-09"
DIGEST = "ab" * 32
RECORDING = DIGEST[:32]


def said(text: str, confidence: float = 0.9, model: str = "en-1", **changes: object) -> Transcript:
    words = tuple(Word(word, 0.5 * n, 0.5 * n + 0.4, confidence) for n, word in enumerate(text.split()))
    made = Transcript(
        language="en",
        confidence=confidence if words else 0.0,
        duration_s=10.0,
        source_key=f"originals/{DIGEST}",
        source_digest=DIGEST,
        models={"recognition": model},
        model_digests={"recognition": model},
        code_version="1.0",
        segments=(Segment(words, 0.0, 5.0),) if words else (),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_same_again_is_no_version_whoever_says_it(objects: Objects) -> None:
    """Another model that says the same, a later code: the transcript that is there says all there is to say."""
    versions = Versions(objects)
    (first,) = versions.kept(said("one two"), HOUR)
    assert (first.transcript.id, first.transcript.version, first.transcript.supersedes) == (f"{RECORDING}-1", 1, None)
    louder = Quality(10.0, -20.0000001, -3.0, 30.0, 0.0, 0.1, 8_000.0)  # as another machine sums
    for again in (
        said("one two"),
        said("one two", model="en-2"),
        said("one two", code_version="1.1"),
        said("one two", quality=louder),
    ):
        assert versions.kept(again, HOUR) == (first,)


def test_what_says_something_else_supersedes_and_the_former_is_kept(objects: Objects) -> None:
    versions = Versions(objects)
    versions.kept(said("one two three"), HOUR)
    first, second = versions.kept(said("one too three four", 0.95, "en-2"), HOUR)
    assert (second.transcript.id, second.transcript.supersedes) == (f"{RECORDING}-2", first.transcript.id)
    assert versions.of(RECORDING) == (first, second)
    assert in_force((first, second)) == shown((first, second)) == second
    change = change_of((first, second))
    assert change is not None
    assert (change.words_added, change.words_removed, change.words_replaced, change.wer) == (1, 0, 1, 0.6667)
    assert change.edits == ("two > too", "- > four")
    assert (change.models_before["recognition"], change.models_after["recognition"]) == ("en-1", "en-2")
    assert change_of((first,)) is None


def test_a_model_that_comes_back_is_a_version_after_the_others(objects: Objects) -> None:
    versions = Versions(objects)
    for text in ("one", "two", "one"):
        versions.kept(said(text), HOUR)
    assert [version.transcript.text for version in versions.of(RECORDING)] == ["one", "two", "one"]


def test_words_that_came_to_none_have_no_rate(objects: Objects) -> None:
    versions = Versions(objects)
    versions.kept(said(""), HOUR)
    change = change_of(versions.kept(said("one two"), HOUR))
    assert change is not None
    assert (change.words_added, change.wer) == (2, None)
    gone = change_of(versions.kept(said(""), HOUR))
    assert gone is not None
    assert (gone.words_removed, gone.wer) == (2, 1.0)


@pytest.mark.parametrize(
    ("before", "after", "collapsed"),
    [
        ("a b c d", "a b", False),
        ("a b c d", "a", True),
        ("a b c d", "", True),
        ("a b c", "", False),
        ("a b c d", "e f g h", False),
    ],
)
def test_a_version_that_lost_most_words_is_told(objects: Objects, before: str, after: str, collapsed: bool) -> None:
    """A transcript that a worse model replaces by next to nothing is what users of others lost unnoticed."""
    Versions(objects).kept(said(before), HOUR)
    change = change_of(Versions(objects).kept(said(after), HOUR))
    assert change is not None
    assert change.collapsed is collapsed


def test_a_change_shows_no_word_where_personal_data_is_taken_out(objects: Objects) -> None:
    """The version before may be of a time when it was not."""
    Versions(objects).kept(said("call 5550100"), HOUR)
    change = change_of(Versions(objects).kept(said("call [PHONE]", settings={"redact": ["PHONE_NUMBER"]}), HOUR))
    assert change is not None
    assert (change.words_replaced, change.edits) == (1, ())


def test_numbers_that_are_only_written_otherwise_are_no_edits(objects: Objects) -> None:
    versions = Versions(objects)
    versions.kept(said("room forty two"), HOUR)
    change = change_of(versions.kept(said("room 42"), HOUR))
    assert change is not None
    assert (change.wer, change.edits) == (0.0, ())


def test_what_people_wrote_stays_in_force_and_later_models_wait_beside_it(objects: Objects) -> None:
    versions = Versions(objects)
    (first,) = versions.kept(said("one two"), HOUR)
    written = replace(first.transcript, segments=said("won too").segments)
    corrected_one = versions.kept(written, HOUR, by="Ada")[-1]
    assert corrected_one.transcript.supersedes == first.transcript.id
    every = versions.kept(said("one to", model="en-2"), HOUR)
    third = every[-1]
    assert (third.transcript.id, third.transcript.supersedes) == (f"{RECORDING}-3", first.transcript.id)
    assert in_force(every) == corrected_one
    assert corrected(every) == shown(every) == first, "what people are asked about stays what they answered"
    change = change_of(every)
    assert change is not None
    assert change.waits
    row = InForce.of(every, "en/call.wav", sure=False)
    assert (row.transcript, row.by, row.published, row.waits) == (f"{RECORDING}-2", "Ada", True, f"{RECORDING}-3")
    assert versions.kept(said("one to", model="en-2"), HOUR) == every


def test_a_second_correction_supersedes_the_first_and_the_same_one_is_none(objects: Objects) -> None:
    versions = Versions(objects)
    (first,) = versions.kept(said("one"), HOUR)
    second = versions.kept(replace(first.transcript, confidence=1.0), HOUR, by="Ada")[-1]
    assert versions.kept(replace(first.transcript, confidence=1.0), HOUR, by="Ada")[-1] == second
    third = versions.kept(replace(first.transcript, confidence=0.99), HOUR, by="Bo")[-1]
    assert third.transcript.supersedes == second.transcript.id
    every = versions.of(RECORDING)
    assert in_force(every) == third
    assert corrected(every) == first
    assert InForce.of(every, "a.wav", sure=True).waits is None


def test_runs_at_once_that_say_the_same_keep_one_version(objects: Objects) -> None:
    made = [said("one two") for _ in range(6)]
    kept: list[str] = []
    work = [
        threading.Thread(target=lambda one=one: kept.append(str(Versions(objects).kept(one, HOUR)))) for one in made
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(kept) == 6
    assert len(set(kept)) == 1
    assert len(Versions(objects).of(RECORDING)) == 1


def test_runs_at_once_that_differ_are_both_kept(objects: Objects) -> None:
    texts = [f"one {word}" for word in ("two", "three", "four", "five")]
    work = [threading.Thread(target=Versions(objects).kept, args=(said(text), HOUR)) for text in texts]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    every = Versions(objects).of(RECORDING)
    assert sorted(version.transcript.text for version in every) == sorted(texts)
    assert [version.transcript.version for version in every] == [1, 2, 3, 4]


def test_a_version_that_cannot_be_read_is_named(tmp_path: Path, objects: Objects) -> None:
    Versions(objects).kept(said("one"), HOUR)
    objects.put_if_absent(f"versions/{RECORDING}/00000002.json", b"{}")
    with pytest.raises(StoreError, match=r"00000002\.json cannot be read \(line 1: hour: Field required\): restore it"):
        Versions(objects).of(RECORDING)


def test_a_transcript_is_found_by_digest_and_id(objects: Objects) -> None:
    Versions(objects).kept(said("one"), HOUR)
    first, second = Versions(objects).kept(said("two"), HOUR)
    for name in (RECORDING, DIGEST):
        assert version_called(name, objects) == second
    assert version_called(f"{RECORDING}-1", objects) == first
    assert versions_of(f"{RECORDING}-1", objects) == (first, second)
    for unknown in (f"{RECORDING}-3", "cd" * 32):
        with pytest.raises(Unknown, match="has 2 versions|has no transcript"):
            version_called(unknown, objects)
    with pytest.raises(Unknown, match=r"no upload called 'en/call\.wav' has arrived in 0 hours"):
        recording_called("en/call.wav", objects)


def test_people_read_which_version_counts_and_what_it_changed(objects: Objects) -> None:
    versions = Versions(objects)
    versions.kept(said("one two"), HOUR)
    every = versions.kept(said("one too", 0.95, "en-2"), HOUR)
    assert described(every).splitlines() == [
        f"{RECORDING}-1: en, 2 words, confidence 0.9000, by en-1, hour {HOUR}",
        f"{RECORDING}-2 (in force): en, 2 words, confidence 0.9500, by en-2, hour {HOUR}",
        f"  against {RECORDING}-1: 0 words added, 0 removed, 1 replaced (WER 50.00%): two > too",
    ]
