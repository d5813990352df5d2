"""How often the words are wrong: simulation with known truth."""

import math

import numpy as np
import pytest

from analysis.stats.comparison import compare, compare_spread
from analysis.stats.power import detectable
from analysis.stats.samples import pooled_variance

ROUNDS = 1200
MARGIN = 0.05


def band(rate, rounds=ROUNDS):
    """Three binomial standard errors around a rate."""
    half = 3 * math.sqrt(rate * (1 - rate) / rounds)
    return rate - half, rate + half


def simulate(seed, n_a=5, n_b=5, true_diff=0.0, sd_a=0.05, sd_b=0.05, rounds=ROUNDS):
    """Comparisons of normal groups."""
    rng = np.random.default_rng(seed)
    a = 20 + true_diff + sd_a * rng.normal(size=(rounds, n_a))
    b = 20 + sd_b * rng.normal(size=(rounds, n_b))
    return [compare(x, y, margin=MARGIN) for x, y in zip(a, b, strict=True)]


def rate(results, word):
    return np.mean([r.verdict == word for r in results])


@pytest.mark.parametrize(
    "design",
    [
        {"sd_a": 0.05},
        {"sd_a": 0.005, "sd_b": 0.005},  # tight enough to be equivalent as well
        {"sd_a": 0.15},
        {"n_a": 8, "n_b": 5, "sd_a": 0.1},
    ],
    ids=["equal", "tight", "unequal spread", "unequal n"],
)
def test_under_the_null_different_is_said_in_5_percent(design):
    low, high = band(0.05)
    assert low <= rate(simulate(20, **design), "different") <= high


@pytest.mark.parametrize("sd", [0.005, 0.03, 0.1])
def test_at_twice_the_margin_equivalent_is_rarely_said(sd):
    results = simulate(21, true_diff=2 * MARGIN, rounds=700, sd_a=sd, sd_b=sd)
    assert rate(results, "equivalent") < 0.05


def test_at_the_margin_the_equivalence_test_errs_in_5_percent():
    results = simulate(22, true_diff=MARGIN, sd_a=0.01, sd_b=0.01)
    low, high = band(0.05)
    assert low <= np.mean([r.tost_p_value < 0.05 for r in results]) <= high
    assert rate(results, "equivalent") <= high


def test_equivalence_can_be_shown():
    assert rate(simulate(23, sd_a=0.01, sd_b=0.01, rounds=300), "equivalent") > 0.9


def test_intervals_cover_the_truth():
    true_diff, (low, high) = 0.06, band(0.95)
    results = simulate(24, true_diff=true_diff)
    d = true_diff / 0.05
    assert low <= np.mean([r.cohens_d_ci95[0] <= d <= r.cohens_d_ci95[1] for r in results]) <= high
    covered = np.mean([r.diff_ci95[0] <= true_diff <= r.diff_ci95[1] for r in results])
    assert low <= covered <= high
    low, high = band(0.90)
    covered = np.mean([r.diff_ci90[0] <= true_diff <= r.diff_ci90[1] for r in results])
    assert low <= covered <= high


def test_the_detectable_effect_is_detected_in_80_percent():
    low, high = band(0.8)
    paired = simulate(25, true_diff=detectable(8) * math.sqrt(2 / 5) * 0.05)
    assert low <= np.mean([r.student.p_value < 0.05 for r in paired]) <= high


def test_a_draw_that_is_lent_its_noise_errs_in_5_percent():
    """One set drawn once against five seeds, with the arithmetic of three other sets."""
    rng, (low, high), wrong = np.random.default_rng(26), band(0.05), 0
    for _ in range(ROUNDS):
        noise = pooled_variance(0.05 * rng.normal(size=(3, 4)))
        a, b = 20 + 0.05 * rng.normal(size=5), 20 + 0.05 * rng.normal(size=1)
        wrong += compare(a, b, margin=MARGIN, noise=noise).verdict == "different"
    assert low <= wrong / ROUNDS <= high


@pytest.mark.parametrize("n", [5, 12])
def test_equal_spread_is_rarely_called_unequal(n):
    rng = np.random.default_rng(27)
    groups = np.exp(3 + 0.01 * rng.normal(size=(ROUNDS, 2, n)))
    p = [compare_spread(a, b).p_value for a, b in groups]
    assert np.mean(np.less(p, 0.05)) <= band(0.05)[1]
