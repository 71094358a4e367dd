"""Rates with known answers, intervals that cover, comparisons that see real differences and no others."""

import datetime as dt
import math
from dataclasses import replace

import numpy as np
import pytest

from evaluation.scoring import (
    Contestant,
    Evaluation,
    EvaluationError,
    Progress,
    Scored,
    align,
    evaluate,
    insertions_on_nonspeech,
    nonspeech_probes,
    paired_difference,
    score,
    slice_order,
    slice_scores,
    slices_of,
    word_outcomes,
)
from speech.audio import Waveform, encode_flac
from speech.bundle import ModelBundle
from speech.conditioning import Quality
from speech.manifest import Utterance
from speech.recognition import Recognizer
from speech.transcript import Word
from tests.toy_bundle import tones, write_toy_bundle


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
    found = slice_scores(KNOWN, "en")
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


def test_a_real_difference_is_found_where_separate_intervals_overlap():
    """Two points of WER on hard speakers: pairing shows it, comparing two intervals would not."""
    generator = np.random.default_rng(5)
    better = population(generator, 20, 20, 0.15)
    poorer = worse(better, 0.02, generator)
    assert score(better, "en").wer_interval.high > score(poorer, "en").wer_interval.low
    difference = paired_difference(better, poorer, "en")
    assert difference.high < 0
    assert difference.probability_of_improvement > 0.99
    assert paired_difference(poorer, better, "en").low > 0


def test_equal_models_are_rarely_called_different():
    """Both make other mistakes at the same rate: the interval of the difference must hold zero."""
    generator = np.random.default_rng(11)
    alarms = 0
    for _ in range(60):
        base = population(generator, 15, 6, 0.08)
        left, right = worse(base, 0.08, generator), worse(base, 0.08, generator)
        difference = paired_difference(left, right, "en", bootstrap=300)
        alarms += not difference.low <= 0 <= difference.high
    assert alarms <= 6


def test_a_model_does_not_differ_from_itself():
    items = population(np.random.default_rng(2), 6, 5, 0.2)
    difference = paired_difference(items, items, "en")
    assert (difference.estimate, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_models_scored_on_different_utterances_are_not_compared():
    with pytest.raises(EvaluationError, match="different utterances"):
        paired_difference(KNOWN, KNOWN[:2], "en")
    with pytest.raises(EvaluationError, match="two references"):
        paired_difference(KNOWN, [replace(KNOWN[0], reference="other"), *KNOWN[1:]], "en")


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


def test_probes_without_speech_are_the_same_every_time_and_never_clip():
    first, again = dict(nonspeech_probes()), dict(nonspeech_probes())
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.abs(samples).max() <= 1.0 and samples.dtype == np.float32 for samples in first.values())
    loudness = 20 * np.log10(np.sqrt(np.mean(first["pink noise at -40 dBFS"] ** 2)))
    assert loudness == pytest.approx(-40, abs=0.5)


def test_words_made_up_on_noise_are_counted_per_minute():
    """One word on each probe of ten seconds is six a minute; silence alone gives less."""
    assert insertions_on_nonspeech(lambda samples: "uh", "en").words_per_minute == pytest.approx(6.0)
    loud = insertions_on_nonspeech(lambda samples: "uh huh" if np.abs(samples).max() > 0 else "", "en")
    assert loud.by_probe["silence"] == 0.0
    assert loud.words_per_minute == pytest.approx(12 * 12 / 13)


@pytest.fixture(scope="module")
def tone_corpus(tmp_path_factory):
    """Recordings that a toy bundle hears exactly, one reference that is wrong, and one file that is not audio."""
    folder = tmp_path_factory.mktemp("tones")
    bundle = write_toy_bundle(folder / "bundle")
    rows = []
    for number, words in enumerate((["one", "two"], ["three"], ["four", "five", "six"], ["seven", "eight"])):
        samples = tones(words)
        path = folder / f"{number}.flac"
        encode_flac(Waveform(samples), path)
        rows.append(
            utterance(
                f"u{number}",
                audio=str(path),
                text=" ".join(words),
                duration_s=len(samples) / 16_000,
                speaker=f"s{number % 2}",
            )
        )
    rows[3] = replace(rows[3], text="seven nine")
    broken = folder / "broken.flac"
    broken.write_bytes(b"not audio at all")
    return bundle, rows, utterance("broken", audio=str(broken))


def run(bundle, sets, champion=None, progress=None):
    contestant = Contestant(bundle.name, bundle.digest, Recognizer(bundle), dict(bundle.parity))
    return evaluate(
        contestant,
        sets,
        lambda row: row.audio,
        language="en",
        partition="2024-04|en",
        champion=champion,
        dataset_digests={"quarter": "0" * 64},
        bootstrap=100,
        progress=progress,
    )


def test_an_evaluation_transcribes_each_utterance_once_and_counts_what_it_cannot_read(tone_corpus):
    """In = scored + unreadable; one wrong reference word of eight gives 12.5 %."""
    bundle, rows, broken = tone_corpus
    seen: list[Progress] = []
    found = run(bundle, {"quarter": [*rows, broken]}, progress=seen.append)
    quarter = found.sets["quarter"]
    assert [row.id for row in quarter.rows] == [row.id for row in rows]
    assert quarter.score.wer == pytest.approx(1 / 8)
    assert [unread.id for unread in quarter.unreadable] == ["broken"]
    assert quarter.unreadable[0].reason
    assert quarter.reliability.words == 8
    assert seen[-1].done == seen[-1].total == 5
    assert found.rtfx > 0


def test_an_evaluation_survives_writing_and_reading_and_has_a_stable_digest(tone_corpus, tmp_path):
    """The speed of the machine is not part of what was found out about the model."""
    bundle, rows, _ = tone_corpus
    found = run(bundle, {"quarter": rows})
    assert Evaluation.load(found.save(tmp_path / "evaluation.json")) == found
    assert run(bundle, {"quarter": rows}).digest == found.digest
    assert replace(found, rtfx=1.0).digest == found.digest
    assert replace(found, language="de").digest != found.digest


def test_the_champion_is_scored_on_the_same_utterances(tone_corpus):
    bundle, rows, _ = tone_corpus
    other = Contestant("champion", "f" * 64, Recognizer(ModelBundle.load(bundle.path)))
    found = run(bundle, {"benchmark": rows}, champion=other)
    rival = found.sets["benchmark"].champion
    assert [row.id for row in rival.rows] == [row.id for row in rows]
    assert rival.difference.estimate == 0.0
    assert found.champion_digest == "f" * 64


def test_segments_of_one_long_file_are_cut_out_of_it(tone_corpus, tmp_path):
    bundle, _, _ = tone_corpus
    first, second = tones(["one", "two"]), tones(["five"])
    path = tmp_path / "long.flac"
    encode_flac(Waveform(np.concatenate([first, second])), path)
    cut = len(first) / 16_000
    rows = [
        utterance("a", audio=str(path), text="one two", duration_s=cut),
        utterance("b", audio=str(path), text="five", duration_s=len(second) / 16_000, offset_s=cut),
        utterance("c", audio=str(path), text="nothing", duration_s=1.0, offset_s=500.0),
    ]
    quarter = run(bundle, {"quarter": rows}).sets["quarter"]
    assert [row.hypothesis for row in quarter.rows] == ["one two", "five"]
    assert [unread.id for unread in quarter.unreadable] == ["c"]


def test_another_schema_or_a_torn_file_is_an_error_that_says_so(tone_corpus, tmp_path):
    bundle, rows, _ = tone_corpus
    content = run(bundle, {"quarter": rows}).to_dict()
    with pytest.raises(EvaluationError, match="schema version 0"):
        Evaluation.from_dict({**content, "schema_version": 0})
    with pytest.raises(EvaluationError, match="sets"):
        Evaluation.from_dict({**content, "sets": 3})
    torn = tmp_path / "torn.json"
    torn.write_text("{")
    with pytest.raises(EvaluationError, match="not JSON"):
        Evaluation.load(torn)
    with pytest.raises(EvaluationError, match="no evaluation"):
        Evaluation.load(tmp_path / "absent.json")
