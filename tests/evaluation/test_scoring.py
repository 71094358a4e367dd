"""Rates with known answers, intervals that cover, comparisons that see real differences and no others."""

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.results import Scored
from evaluation.scoring import (
    align,
    count_edits,
    paired_difference,
    score,
    slice_order,
    slice_scores,
    slices_of,
    word_outcomes,
    words_of,
    words_said,
)
from speech.corpus.manifest import Utterance
from speech.quality import Quality
from speech.text import readings
from speech.transcript import Word


def scored(identity, reference, hypothesis, speaker="s1", **slices):
    return Scored(identity, reference, hypothesis, 0.9, 3.6, speaker, slices.get("domain", "d"), slices)


KNOWN = [
    scored("a", "the cat sat", "the cat sat", "s1", domain="reading"),
    # on a mat please: one substitution (the -> a), one insertion (please)
    scored("b", "on the mat", "on a mat please", "s2", domain="reading"),
    # one deletion
    scored("c", "good morning", "good", "s2", domain="calls"),
]


def test_word_error_rate_equals_the_hand_count():
    """8 reference words, 1 substitution + 1 deletion + 1 insertion."""
    found = score(KNOWN, "en")
    assert (found.words, found.substitutions, found.deletions, found.insertions) == (8, 1, 1, 1)
    assert found.wer == pytest.approx(3 / 8)
    assert (found.utterances, found.speakers) == (3, 2)
    assert found.hours == pytest.approx(3 * 3.6 / 3600)


def test_character_error_rate_equals_the_hand_count():
    """Spaces count: 'kitten' -> 'sitting' is 3 edits of 6; 'a b' -> 'ab' is 1 of 3."""
    found = score([scored("a", "kitten", "sitting"), scored("b", "a b", "ab")], "en")
    assert found.cer == pytest.approx((3 + 1) / (6 + 3))


def test_spelling_conventions_are_no_errors():
    assert score([scored("a", "Forty-two dollars, please!", "forty two dollars please")], "en").wer == 0.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language"),
    [
        ("in 1984", "in nineteen eighty four", "en"),
        ("in 1984", "in one nine eight four", "en"),
        ("it was $12.50 in 2005", "it was twelve dollars and fifty cents in twenty oh five", "en"),
        ("in one oh five", "in 105", "en"),  # a model may write digits, too
        ("im Jahr 2024", "im jahr zwanzigvierundzwanzig", "de"),
    ],
)
def test_each_right_reading_of_a_number_is_no_error(reference, hypothesis, language):
    """The transcript says which number, and only the audio which words."""
    assert score([scored("a", reference, hypothesis)], language).wer == 0.0
    assert {edit.kind for edit in align(reference, hypothesis, language)} == {"equal"}


def test_a_wrong_word_beside_a_number_costs_one_edit_in_every_reading():
    for said in ("nineteen eighty four", "one nine eight four"):
        found = score([scored("a", "born in 1984 in york", f"born on {said} in york")], "en")
        assert (found.substitutions, found.deletions, found.insertions) == (1, 0, 0)


def test_a_wrong_number_is_an_error_in_every_reading():
    assert score([scored("a", "in 1984", "in nineteen eighty five")], "en").substitutions == 1


def test_of_equally_wrong_readings_the_commonest_counts():
    assert words_said("in 1984", ["in", "x", "y", "z"], "en") == words_of("in 1984", "en")
    assert words_said("in 2005", [], "en") == ["in", "two", "thousand", "five"]  # fewest words, so fewest deletions


def test_the_closest_of_all_combinations_is_found():
    """A hundred million combinations are searched as exactly as two."""
    import itertools

    import jiwer

    reference = "in 2005 there were 105 books and later in 1984 about 350"
    pieces = readings(reference, "en")
    generator = np.random.default_rng(0)
    every = [" ".join(chosen) for chosen in itertools.product(*pieces)]
    for _ in range(10):
        words = every[generator.integers(len(every))].split()
        heard = [word for word in words if generator.random() > 0.2]
        found = words_said(reference, heard, "en")
        edits = [jiwer.process_words(text, " ".join(heard)) for text in {*every[:: max(1, len(every) // 50)]}]
        least = min(edit.substitutions + edit.deletions + edit.insertions for edit in edits)
        best = jiwer.process_words(" ".join(found), " ".join(heard))
        assert best.substitutions + best.deletions + best.insertions <= min(least, len(words) - len(heard))
        assert " ".join(found) in every
    many = "; ".join(["1984 and then some more words"] * 8)
    assert words_said(many, words_of(many, "en"), "en") == words_of(many, "en")


def test_words_on_an_empty_reference_are_insertions_without_dividing_by_zero():
    """Noise transcribed as speech must cost, though it has no reference word to divide by."""
    found = score([scored("a", "one two three four", "one two three four"), scored("b", "", "uh huh")], "en")
    assert found.insertions == 2
    assert found.wer == pytest.approx(2 / 4)
    assert found.empty_references == 1


@pytest.mark.parametrize("items", [[], [scored("a", "", "uh")], [scored("a", "", "")]])
def test_a_set_without_reference_words_has_no_rate(items):
    """0 would pass every gate; NaN passes none."""
    found = score(items, "en")
    assert math.isnan(found.wer)
    assert math.isnan(found.wer_interval.high)


def test_languages_without_spaces_count_characters_as_words():
    found = score([scored("a", "今日は晴れ", "今日は雨")], "ja")
    assert found.words == 5
    assert found.wer == pytest.approx(2 / 5)


def test_slices_hold_exactly_their_utterances():
    found = slice_scores(KNOWN, count_edits(KNOWN, "en"))
    assert set(found) == {"domain=calls", "domain=reading"}
    assert found["domain=calls"].wer == pytest.approx(1 / 2)
    assert found["domain=reading"].wer == pytest.approx(2 / 6)


def test_alignment_reads_in_order_with_every_word_once():
    edits = align("on the mat", "on a mat please", "en")
    assert [(edit.kind, edit.reference, edit.hypothesis) for edit in edits] == [
        ("equal", "on", "on"),
        ("substitute", "the", "a"),
        ("equal", "mat", "mat"),
        ("insert", "", "please"),
    ]


def test_word_outcomes_pair_each_confidence_with_its_own_word():
    words = [Word(text, 0, 1, confidence) for text, confidence in (("on", 0.9), ("a", 0.4), ("42", 0.8))]
    assert word_outcomes("on the forty two", words, "en") == [(0.9, True), (0.4, False), (0.8, True)]


def population(generator, speakers, utterances, base, spread=0.6):
    """Utterances of ten words whose error rate differs by speaker."""
    items = []
    for speaker in range(speakers):
        rate = np.clip(base * np.exp(generator.normal(0, spread) - spread**2 / 2), 0, 0.9)
        for number in range(utterances):
            wrong = generator.random(10) < rate
            hypothesis = " ".join("x" if miss else "w" for miss in wrong)
            items.append(scored(f"{speaker}-{number}", " ".join("w" * 10), hypothesis, f"s{speaker}"))
    return items


def test_intervals_cover_the_true_rate_as_often_as_they_say():
    """Speakers differ, so an interval over utterances would be far too sure; this one keeps its promise."""
    generator = np.random.default_rng(7)
    trials, truth, covered, naive = 200, 0.15, 0, 0
    for _ in range(trials):
        items = population(generator, 12, 8, truth)
        interval = score(items, "en", bootstrap=300).wer_interval
        covered += interval.low <= truth <= interval.high
        alone = [replace(item, speaker=item.id) for item in items]
        interval = score(alone, "en", bootstrap=300).wer_interval
        naive += interval.low <= truth <= interval.high
    assert 0.90 <= covered / trials <= 0.99
    assert naive / trials < 0.80


def test_the_same_seed_gives_the_same_interval():
    items = population(np.random.default_rng(1), 6, 5, 0.2)
    assert score(items, "en", seed=3) == score(items, "en", seed=3)


def worse(items, share, generator):
    """The same utterances with some right words made wrong."""
    changed = []
    for item in items:
        words = ["x" if word == "w" and generator.random() < share else word for word in item.hypothesis.split()]
        changed.append(replace(item, hypothesis=" ".join(words)))
    return changed


def difference(candidate, champion, **options):
    return paired_difference(count_edits(candidate, "en"), count_edits(champion, "en"), **options)


def test_a_real_difference_is_found_where_separate_intervals_overlap():
    """Two points of WER on hard speakers: pairing shows it, comparing two intervals would not."""
    generator = np.random.default_rng(5)
    better = population(generator, 20, 20, 0.15)
    poorer = worse(better, 0.02, generator)
    assert score(better, "en").wer_interval.high > score(poorer, "en").wer_interval.low
    found = difference(better, poorer)
    assert found.high < 0
    assert found.probability_of_improvement > 0.99
    assert difference(poorer, better).low > 0


def test_equal_models_are_rarely_called_different():
    """Both make other mistakes at the same rate: the interval of the difference must hold zero."""
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(60):
        base = population(generator, 15, 6, 0.08)
        left, right = worse(base, 0.08, generator), worse(base, 0.08, generator)
        found = difference(left, right, bootstrap=300)
        alarms += not found.low <= 0 <= found.high
    assert alarms <= 6


def test_a_model_does_not_differ_from_itself():
    items = population(np.random.default_rng(2), 6, 5, 0.2)
    found = difference(items, items)
    assert (found.estimate, found.low, found.high) == (0.0, 0.0, 0.0)


def test_bands_of_a_dimension_sort_by_size():
    names = ["duration=15 s and over", "duration=2 to 5 s", "duration=under 2 s", "duration=5 to 15 s"]
    assert sorted(names, key=slice_order) == [names[2], names[1], names[3], names[0]]


def utterance(identity, **changes):
    given = {
        "audio": f"{identity}.flac",
        "duration_s": 3.0,
        "text": "one two",
        "speaker": "s1",
        "language": "en",
        "domain": "calls",
        "recorded_at": dt.date(2024, 5, 1),
        "digest": identity,
    }
    return Utterance(id=identity, **{**given, **changes})


def test_unknown_attributes_make_no_slice():
    """A guessed gender would put errors on the wrong people."""
    assert slices_of(utterance("a")) == {"domain": "calls", "duration": "2 to 5 s"}
    quality = Quality(3.0, -20.0, -3.0, 8.0, 0.0, 0.1, 3_900.0)
    known = slices_of(utterance("a", attributes={"gender": "female", "age": "34"}, quality=quality))
    assert known["gender"] == "female"
    assert "34" not in known["age_band"]
    assert (known["snr"], known["bandwidth"]) == ("under 10 dB", "telephone")
