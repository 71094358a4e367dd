"""The canary's judgement: what sends a version back, what does not, and figures that add up over replicas."""

import json
import random

import pytest

from deployment.release.canary import Canary, Figures, Summary
from speech.plain import from_plain, to_plain

CANARY = Canary(requests=50, max_error_rate=0.02, max_latency_ratio=1.5, max_empty_share=0.1)


def figures(*seconds: float, errors: int = 0, empty: int = 0) -> Figures:
    total = Figures()
    for number, took in enumerate(seconds):
        total = total.counting(took, empty=number < empty)
    for _ in range(errors):
        total = total.counting(None)
    return total


def test_figures_of_replicas_add_up_and_a_stretch_is_a_difference():
    chance = random.Random(3)
    one = figures(*(chance.uniform(0.001, 2) for _ in range(40)), errors=2, empty=3)
    other = figures(*(chance.uniform(0.001, 2) for _ in range(60)), errors=1, empty=5)
    both = one + other
    assert (both.requests, both.errors, both.empty, both.answers) == (103, 3, 8, 100)
    assert both - one == other
    assert both - both == Figures()
    assert from_plain(Figures, json.loads(json.dumps(to_plain(both)))) == both


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95, 1.0])
def test_quantiles_are_right_to_a_bucket(share):
    chance = random.Random(5)
    seconds = sorted(chance.lognormvariate(-3, 1) for _ in range(500))
    exact = seconds[max(0, round(share * len(seconds)) - 1)]
    assert exact <= figures(*seconds).quantile(share) <= exact * 2**0.25 * 1.001


def test_nothing_answered_has_no_quantile_and_no_shares():
    assert Figures().quantile(0.5) is None
    assert Figures().summary() is None
    assert Figures().counting(None).summary() == Summary(requests=1, errors=1, empty_share=0.0, p50_s=None, p95_s=None)


def test_an_equal_version_stays():
    old = figures(*[0.1] * 400, errors=1, empty=20)
    assert CANARY.fault(figures(*[0.1] * 49, errors=1, empty=2), old, over=True) is None
    assert CANARY.fault(Figures(), old) is None


def test_errors_send_back_once_they_exceed_what_the_whole_trial_allows():
    """One unlucky request at the beginning does not decide; two of fifty do, at once."""
    old = figures(*[0.1] * 90)
    assert CANARY.fault(figures(0.1, errors=1), old) is None
    assert "failed on 2 of 3 requests" in CANARY.fault(figures(0.1, errors=2), old)
    assert "failed on 1 of 10" in CANARY.fault(figures(*[0.1] * 9, errors=1), old, over=True)


def test_empty_transcripts_are_held_against_the_old_versions():
    """Customers who send silence get empty transcripts from every version."""
    silent_customers = figures(*[0.1] * 100, empty=60)
    assert CANARY.fault(figures(*[0.1] * 50, empty=33), silent_customers, over=True) is None
    assert "heard nothing in 40 of 50" in CANARY.fault(figures(*[0.1] * 50, empty=40), silent_customers, over=True)
    assert CANARY.fault(figures(*[0.1] * 3, empty=3), figures(*[0.1] * 9), over=True) is None, "three prove nothing"


def test_a_slow_version_goes_back_and_noise_does_not():
    old = figures(*[0.1] * 200)
    assert "take 215 ms (median)" in CANARY.fault(figures(*[0.2] * 10), old)
    assert CANARY.fault(figures(*[0.2] * 9), old, over=True) is None
    assert CANARY.fault(figures(*[0.01] * 40), figures(*[0.002] * 40), over=True) is None, "milliseconds are noise"
    tail = figures(*[0.1] * 90, *[1.0] * 10)
    assert "95th percentile" in CANARY.fault(tail, old, over=True)
    assert CANARY.fault(figures(*[0.1] * 45, *[1.0] * 5), old, over=True) is None, "a tail of five is luck"
