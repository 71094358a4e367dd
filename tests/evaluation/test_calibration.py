"""Confidence must mean the share of words that are right, however few words there were to learn it from."""

import math

import numpy as np
import pytest

from evaluation.calibration import calibrate, reliability


def sample(words, seed=0, curve=lambda sure: sure**3):
    """Words of a model that is too sure: right with probability curve(confidence)."""
    generator = np.random.default_rng(seed)
    sure = generator.beta(5, 2, words)
    return sure, generator.random(words) < curve(sure)


def test_calibration_error_equals_the_hand_count():
    """Half the words at 0.95 and all wrong, half at 0.05 and all wrong: (0.95 + 0.05) / 2."""
    found = reliability([0.95, 0.05], [False, False])
    assert found.expected_calibration_error == pytest.approx(0.5)
    assert [group.words for group in found.bins] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert math.isnan(found.bins[4].accuracy)


def test_a_confidence_of_one_falls_into_the_last_bin():
    assert reliability([1.0], [True]).bins[-1].words == 1


def test_no_words_have_no_calibration_error():
    """Zero would read as perfect."""
    assert math.isnan(reliability([], []).expected_calibration_error)


@pytest.mark.parametrize(("words", "method", "limit"), [(5_000, "isotonic", 0.03), (400, "platt", 0.08)])
def test_an_overconfident_model_is_put_right_on_words_it_was_not_fitted_on(words, method, limit):
    sure, right = sample(words)
    fit = calibrate(sure, right)
    assert fit.method == method
    fresh, truth = sample(20_000, seed=9)
    before, after = (
        reliability(confidences, truth).expected_calibration_error
        for confidences in (fresh, fit.calibration.apply(fresh))
    )
    assert after < min(limit, before / 2)


@pytest.mark.parametrize("words", [5_000, 400])
def test_surer_words_never_become_less_probable(words):
    sure, right = sample(words)
    mapped = calibrate(sure, right).calibration.apply(np.linspace(0, 1, 500))
    assert np.all(np.diff(mapped) >= 0)
    assert np.all((mapped > 0) & (mapped < 1))


def test_few_words_give_their_common_share_and_say_so():
    fit = calibrate([0.9] * 30, [True] * 24 + [False] * 6)
    assert fit.method == "constant"
    assert fit.calibration.probabilities == (25 / 32,)
    assert "30 words" in fit.note


def test_without_words_nothing_is_sure():
    """An even chance publishes nothing unseen at a threshold of 0.8."""
    fit = calibrate([], [])
    assert fit.calibration.apply(np.array([0.99]))[0] == 0.5
    assert fit.words == 0


def test_confidence_that_points_the_wrong_way_is_not_believed():
    sure, right = sample(500, curve=lambda sure: 1 - sure)
    assert len(set(calibrate(sure, right).calibration.probabilities)) == 1


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("words", [300, 3_000])
def test_a_model_always_right_or_always_wrong_stays_finite(words, right):
    mapped = calibrate(np.linspace(0.1, 0.9, words), [right] * words).calibration.apply(np.array([0.2, 0.8]))
    assert np.all(np.isfinite(mapped))
    assert np.all(mapped > 0.9) if right else np.all(mapped < 0.1)


def test_equal_confidences_get_one_probability():
    fit = calibrate([0.7] * 2_000, [True] * 1_000 + [False] * 1_000)
    assert fit.calibration.apply(np.array([0.7]))[0] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("bad", [[0.5, math.nan], [0.5, 1.5], [0.5]])
def test_what_is_no_confidence_is_refused(bad):
    with pytest.raises(ValueError, match="confidence"):
        calibrate(bad, [True, False])
