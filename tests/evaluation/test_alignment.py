"""Transcripts that moved are found by lengths or by listening; good ones are not, however many there are."""

import datetime as dt
import random

import numpy as np
import pytest

from evaluation.corpus.alignment import MOVES, Lengths, evidence_limit, highest_run
from evaluation.corpus.chance import by_speaker, effective_rows, share
from evaluation.corpus.drift import known_share, stability
from evaluation.corpus.listening import misplaced
from speech.corpus.manifest import Utterance

RATE = 1e-4


def corpus(rows, seed, *, speakers=40, pause=0.3, turns=True):
    """Lengths of texts and speech whose pace differs from speaker to speaker and, by a fifth, from row to row."""
    chance = np.random.default_rng(seed)
    characters = np.round(chance.gamma(4, 10, rows)) + 3
    speaker = np.arange(rows) % speakers if turns else np.arange(rows) * speakers // rows
    pace = chance.normal(2.5, 0.3, speakers)[speaker] + 0.2 * chance.standard_t(4, rows)
    return characters, characters / np.exp(pace) + pause, speaker.tolist()


def moved(values, start, count, by=1):
    out = values.copy()
    out[start : start + count] = np.roll(values[start : start + count], by)
    return out


@pytest.mark.parametrize("rows", [1_000, 10_000, 100_000])
@pytest.mark.parametrize("turns", [True, False])
def test_good_rows_are_not_found_moved_whatever_their_number(rows, turns):
    for seed in range(200_000 // rows if rows < 100_000 else 2):
        characters, speech_s, speakers = corpus(rows, seed, turns=turns)
        lengths = Lengths(characters, speech_s, speakers)
        assert not lengths.moved(RATE).found
        relation = lengths.relation(RATE)
        assert not relation.untold
        assert relation.value > relation.limit


def test_good_rows_that_are_listed_by_their_length_are_found_moved_at_no_more_than_the_stated_rate():
    """Many manifests are sorted by duration: there a neighbour's transcript fits nearly as well as the own one."""
    found = 0
    for seed in range(40):
        characters, speech_s, speakers = corpus(10_000, seed, speakers=200)
        order = np.argsort(speech_s)
        found += Lengths(characters[order], speech_s[order], np.take(speakers, order).tolist()).moved(0.05).found
    assert found <= 4


def test_moved_rows_are_found_among_such_as_are_listed_by_their_length_too():
    characters, speech_s, speakers = corpus(10_000, 0, speakers=200)
    order = np.argsort(speech_s)
    texts = moved(characters[order], 4_000, 2_000)
    assert Lengths(texts, speech_s[order], np.take(speakers, order).tolist()).moved(RATE).found


@pytest.mark.parametrize("move", MOVES)
def test_a_delivery_that_moved_is_found_where_it_is(move):
    characters, speech_s, speakers = corpus(5_000, 1)
    found = Lengths(moved(characters, 2_000, 250, by=move), speech_s, speakers).moved(RATE)
    assert found.found
    assert found.move == move
    assert abs(found.start - 2_000) < 20
    assert abs(found.stop - 2_250) < 20


@pytest.mark.parametrize("part", [0.5, 0.9, 1.0])
def test_transcripts_most_of_which_moved_are_found_though_the_curve_is_theirs(part):
    characters, speech_s, speakers = corpus(2_000, 2)
    assert Lengths(moved(characters, 0, int(2_000 * part)), speech_s, speakers).moved(RATE).found


def test_shuffled_transcripts_fail_the_correlation():
    characters, speech_s, speakers = corpus(2_000, 3)
    relation = Lengths(np.random.default_rng(0).permutation(characters), speech_s, speakers).relation(RATE)
    assert not relation.untold
    assert relation.value < relation.limit


def test_as_many_moved_rows_as_are_said_to_be_needed_are_found():
    characters, speech_s, speakers = corpus(4_000, 4)
    need = int(Lengths(characters, speech_s, speakers).moved(RATE).judgement.finds.split()[3])
    starts = range(100, 3_700, 90)
    found = [Lengths(moved(characters, at, round(1.5 * need)), speech_s, speakers).moved(RATE).found for at in starts]
    assert np.mean(found) >= 0.9


@pytest.mark.parametrize(
    ("characters", "speech_s"),
    [
        (np.full(500, 8.0), np.random.default_rng(0).uniform(0.6, 0.9, 500)),  # one command
        (np.random.default_rng(0).uniform(10, 90, 500).round(), np.full(500, 5.0)),  # clips cut to one length
        (np.array([10.0, 40.0] * 10), np.array([1.0, 3.0] * 10)),  # hardly any row
        (np.zeros(0), np.zeros(0)),
    ],
)
def test_where_lengths_cannot_tell_they_say_so(characters, speech_s):
    lengths = Lengths(characters, speech_s, ["s"] * len(characters))
    assert lengths.moved(RATE).judgement.untold
    assert lengths.relation(RATE).untold
    assert not lengths.moved(RATE).found


def test_the_same_rows_give_the_same_finding():
    rows = corpus(1_000, 5)
    assert Lengths(*rows).moved(RATE) == Lengths(*rows).moved(RATE)


def test_evidence_of_chance_exceeds_its_limit_at_no_more_than_the_stated_rate():
    """The bound itself, at a rate that can be counted."""
    chance = np.random.default_rng(6)
    draws = chance.normal(-0.5, 1.0, (1_000, 500))  # a log likelihood ratio: its exponential has mean 1
    limit = evidence_limit(draws.ravel(), 500, 0.1)
    assert limit == pytest.approx(np.log(500 / 0.1), rel=0.03)
    assert np.mean([highest_run(row)[0] > limit for row in draws]) <= 0.1


def test_a_share_at_its_limit_is_let_through_at_any_size_and_a_larger_one_is_not():
    chance = np.random.default_rng(7)
    for rows in (100, 10_000, 1_000_000):
        for found in chance.binomial(rows, 0.01, 200) / rows:
            judged = share(found, rows, 0.01, RATE)
            assert judged.value <= judged.limit
        assert judged.limit == pytest.approx(0.01, abs=0.6 / rows**0.5)
        assert share(0.01 + 0.7 / rows**0.5, rows, 0.01, RATE).value > judged.limit


def test_rows_of_one_speaker_that_are_alike_count_once():
    speakers = np.repeat(np.arange(50), 20)
    alike = by_speaker(speakers, np.repeat(np.arange(50) % 2, 20), 2)
    mixed = by_speaker(speakers, np.random.default_rng(0).integers(2, size=1_000), 2)
    assert effective_rows(alike) == pytest.approx(50, rel=0.05)
    assert effective_rows(mixed) > 700
    assert effective_rows(alike[:1]) == 20, "one kind says nothing about how alike rows are"


def test_quarters_drawn_alike_do_not_drift_at_any_size_and_others_do():
    """Speakers differ, so a thousand rows of ten speakers say little, and so they are asked for little."""
    chance = np.random.default_rng(8)
    kinds = chance.dirichlet(np.ones(9), 60)

    def quarter(speakers, rows, of=kinds):
        return np.stack([chance.multinomial(rows, of[who]) for who in chance.integers(60, size=speakers)])

    for speakers, rows in ((10, 100), (100, 100), (2_000, 500)):
        for _ in range(100):
            now, before = quarter(speakers, rows), quarter(speakers, rows)
            worth = effective_rows(now), effective_rows(before)
            judged = stability(now.sum(axis=0).tolist(), before.sum(axis=0).tolist(), worth, 0.25, RATE)
            assert judged.untold or judged.value <= judged.limit
    other = quarter(2_000, 500, kinds[:, ::-1] ** 3 / (kinds[:, ::-1] ** 3).sum(axis=1, keepdims=True))
    worth = effective_rows(other), effective_rows(before)
    judged = stability(other.sum(axis=0).tolist(), before.sum(axis=0).tolist(), worth, 0.01, RATE)
    assert judged.value > judged.limit


def test_a_small_earlier_quarter_is_not_expected_to_know_every_word():
    """Its own speakers know 60 % of each other's words: 55 % in the next quarter is no drift, 10 % is."""
    worth = (5_000.0, 500.0)
    assert (judged := known_share(0.55, 0.60, worth, 0.7, RATE)).value >= judged.limit
    assert (judged := known_share(0.10, 0.60, worth, 0.7, RATE)).value < judged.limit


# ------------------------------------------------------------------------------------------------------- listening


def spoken(rows=600, seed=9):
    """Rows of random words, and what a model that mishears every fourth word made of them."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randint(3, 8))) for _ in range(400)]
    texts = [" ".join(chance.choices(words, k=4)) for _ in range(rows)]
    found = [
        Utterance(f"u{n:04}", "x.flac", 2.0, text, f"s{n % 20}", "en", "x", dt.date(2024, 5, 1))
        for n, text in enumerate(texts)
    ]
    heard = {
        row.id: " ".join(chance.choice(words) if chance.random() < 0.25 else word for word in row.text.split())
        for row in found
    }
    return found, heard


def test_listening_finds_a_moved_delivery_of_equally_long_utterances():
    from dataclasses import replace

    rows, heard = spoken()
    assert not misplaced(rows, heard, "en", RATE).found
    texts = [row.text for row in rows]
    texts[200:260] = [texts[259], *texts[200:259]]
    spoiled = [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]
    some = {row.id: heard[row.id] for row in rows[::3]}  # a third of the rows is enough
    found = misplaced(spoiled, some, "en", RATE)
    assert found.found
    assert "u0200" <= found.neighbours[0] <= found.neighbours[-1] < "u0260"
    assert found.neighbours[0] in found.explanation


def test_a_model_that_hears_nothing_right_accuses_nobody():
    rows, heard = spoken()
    foreign = dict(zip(heard, reversed(list(heard.values())), strict=True))
    for wrong in (foreign, dict.fromkeys(heard, "the same for all"), dict.fromkeys(heard, "")):
        assert not misplaced(rows, wrong, "en", RATE).found


def test_order_of_delivery_is_what_the_source_listed():
    from evaluation.corpus.expectations import in_delivered_order
    from speech.corpus.normalize import DELIVERED

    rows = [
        Utterance(name, "x.flac", 2.0, "hello", "s", "en", "x", dt.date(2024, 5, 1), attributes={DELIVERED: place})
        for name, place in (("a", "10"), ("b", "9"), ("c", "0"))
    ]
    assert [row.id for row in in_delivered_order(rows)] == ["c", "b", "a"]
