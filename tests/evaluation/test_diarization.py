"""DER and cpWER: what counts as an error, by hand."""

import pytest

from evaluation.diarization import Diarized, cpwer, diarization_error, diarization_errors, turns_of_rttm
from speech.diarization import Turn

REFERENCE = (Turn(0.0, 10.0, "ada"), Turn(10.0, 20.0, "bob"))


def of(*hypothesis: Turn, reference: tuple[Turn, ...] = REFERENCE) -> list[Diarized]:
    return [Diarized(20.0, reference, hypothesis)]


def test_names_do_not_count_and_who_is_taken_for_another_does() -> None:
    right = of(Turn(0.0, 10.0, "x"), Turn(10.0, 20.0, "y"))
    assert diarization_error(right, 0.0, overlap=True).rate == 0.0
    one = diarization_error(of(Turn(0.0, 20.0, "x")), 0.0, overlap=True)
    assert (one.confused_s, one.spoken_s, one.rate) == pytest.approx((10.0, 20.0, 0.5))


def test_what_is_missed_and_what_nobody_said_count_apart() -> None:
    found = diarization_error(of(Turn(0.0, 9.0, "x"), Turn(10.0, 20.0, "y")), 0.0, overlap=True)
    assert (found.missed_s, found.false_alarm_s, found.confused_s) == pytest.approx((1.0, 0.0, 0.0))
    quiet = (Turn(0.0, 10.0, "ada"),)
    found = diarization_error(of(Turn(0.0, 12.0, "x"), reference=quiet), 0.0, overlap=True)
    assert (found.false_alarm_s, found.rate) == pytest.approx((2.0, 0.2))


def test_nists_collar_is_a_quarter_of_a_second_on_either_side() -> None:
    """pyannote.metrics calls the whole width collar: 0.25 there forgives half of what NIST does."""
    late = of(Turn(0.0, 10.2, "x"), Turn(10.2, 20.0, "y"))
    assert diarization_error(late, 0.25, overlap=True).rate == 0.0
    assert diarization_error(late, 0.0, overlap=True).confused_s == pytest.approx(0.2)
    later = of(Turn(0.0, 10.4, "x"), Turn(10.4, 20.0, "y"))
    assert diarization_error(later, 0.25, overlap=True).confused_s == pytest.approx(0.15)


def test_overlap_counts_only_where_it_is_asked_for() -> None:
    talked_over = (Turn(0.0, 10.0, "ada"), Turn(8.0, 20.0, "bob"))
    one_at_a_time = of(Turn(0.0, 10.0, "x"), Turn(10.0, 20.0, "y"), reference=talked_over)
    assert diarization_error(one_at_a_time, 0.0, overlap=False).rate == 0.0
    assert diarization_error(one_at_a_time, 0.0, overlap=True).missed_s == pytest.approx(2.0)
    told = [(error.collar_s, error.overlap) for error in diarization_errors(one_at_a_time)]
    assert told == [(0.25, False), (0.25, True), (0.0, False), (0.0, True)]


def test_words_of_another_are_two_errors_in_cpwer() -> None:
    reference = {"ada": "good morning everybody", "bob": "hello"}
    assert cpwer(reference, {"s1": "hello", "s0": "good morning everybody"}) == (0, 4)
    assert cpwer(reference, {"s0": "good morning", "s1": "everybody hello"}) == (2, 4)
    assert cpwer(reference, {"s0": "good morning everybody hello"}) == (2, 4)
    assert cpwer(reference, {}) == (4, 4)
    assert cpwer({}, {"s0": "thank you"}) == (2, 0)


def test_a_line_that_is_no_turn_is_named() -> None:
    text = ";; a remark\nSPKR-INFO r 1 <NA> <NA> <NA> unknown ada <NA>\nSPEAKER r 1 1.5 2.0 <NA> <NA> ada <NA> <NA>\n"
    assert turns_of_rttm(text) == [Turn(1.5, 3.5, "ada")]
    with pytest.raises(ValueError, match="line 1 is no speaker's turn"):
        turns_of_rttm("SPEAKER r 1 soon 2.0")
