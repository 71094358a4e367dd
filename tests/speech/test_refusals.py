"""Rows that are refused for one mistake are one sentence, and no other is lost in it."""

import pytest

from speech.corpus.refusals import grouped, summary


def test_reasons_that_differ_in_names_and_numbers_only_are_one() -> None:
    missing = [f"there is no audio file /data/my calls/it's {n}.wav: set audio_root" for n in range(2_500)]
    assert summary(missing) == (
        "2,500 rows: there is no audio file; the first is /data/my calls/it's 0.wav: set audio_root"
    )
    assert grouped(["there is no speaker"] * 3 + ["there is no date"] * 4) == [
        (4, "there is no date"),
        (3, "there is no speaker"),
    ]


@pytest.mark.parametrize(
    ("reasons", "said"),
    [
        (["there is no speaker"], "1 row: there is no speaker"),
        (["there is no speaker"] * 2, "2 rows: there is no speaker"),
        (["id 'a' comes twice", "id 'b' comes twice"], "2 rows, of which the first: id 'a' comes twice"),
        (["start '1:2' is not a number"] * 3, "3 rows, of which the first: start '1:2' is not a number"),
        (["a", "b", "c", "c", "d"], "2 rows: c; 1 row: a; 2 more for 2 other reasons"),
    ],
)
def test_what_is_said_of_a_group(reasons: list[str], said: str) -> None:
    assert summary(reasons) == said
