"""The noncentral t distribution and what is planned with it."""

import math

import numpy as np
import pytest
from scipy import special, stats
from statsmodels.stats.power import TTestIndPower, TTestPower

from analysis.stats.power import (
    detectable,
    equivalence_power,
    noncentral_t_cdf,
    noncentrality_interval,
    t_power,
)

# P(T <= t) by integration with 25 digits (mpmath): (t, df, nc, probability).
PRECISE = [
    (0.0, 4, -0.7, 0.758036347776927),
    (1.1, 8, 0.6, 0.6734426995475695),
    (-2.3, 1, 1.5, 0.009914871249066355),
    (2.776, 4, 3.0, 0.3806222701078512),
    (4.1, 3, 4.0, 0.43336206795197046),
    (13.1, 8, 11.0, 0.6807055020248328),
    (-37.0, 30, -30.0, 0.08135794941642639),
    (500.0, 4, 400.0, 0.6339237923140008),
    (100000.0, 2, 80000.0, 0.5272924240578127),
]


@pytest.mark.parametrize(("t", "df", "nc", "expected"), PRECISE)
def test_distribution_against_25_digits(t, df, nc, expected):
    assert noncentral_t_cdf(t, df, nc) == pytest.approx(expected, rel=0, abs=1e-13)


def test_distribution_against_boost():
    compared = 0
    for df in (1, 2, 4, 8, 30, 200):
        for t in (-6.0, -1.0, 0.0, 0.4, 2.3, 5.0, 12.0):
            for nc in (-4.0, 0.0, 0.7, 3.0, 9.0):
                expected = stats.nct.cdf(t, df, nc)
                if np.isfinite(expected):  # scipy gives NaN in a few far tails
                    compared += 1
                    assert noncentral_t_cdf(t, df, nc) == pytest.approx(expected, rel=0, abs=1e-11)
    assert compared > 190


def test_distribution_without_noncentrality_is_students():
    t = np.linspace(-40, 40, 41)
    for df in (1, 3.7, 58):
        got = [noncentral_t_cdf(x, df, 0.0) for x in t]
        np.testing.assert_allclose(got, special.stdtr(df, t), rtol=0, atol=1e-9)


@pytest.mark.parametrize("df", [1, 4, 8])
@pytest.mark.parametrize("t", [1e3, 1e6, -1e9])
def test_huge_t_follows_the_chi_distribution(t, df):
    """With Z negligible T is nc / S, so the limits are t times quantiles of S."""
    chi = np.sqrt(stats.chi2.ppf([0.025, 0.975], df) / df)
    expected = sorted(t * chi)
    np.testing.assert_allclose(noncentrality_interval(t, df), expected, rtol=1e-4)


@pytest.mark.parametrize("df", [1, 2, 8, 40])
@pytest.mark.parametrize("t", [0.0, 0.3, -1.7, 6.0, 25.0])
def test_limits_have_their_tail_probabilities(t, df):
    low, high = noncentrality_interval(t, df, level=0.9)
    assert noncentral_t_cdf(t, df, low) == pytest.approx(0.95, abs=1e-10)
    assert noncentral_t_cdf(t, df, high) == pytest.approx(0.05, abs=1e-10)


def test_power_against_statsmodels():
    for n_a, n_b in ((2, 2), (5, 5), (5, 3), (12, 40)):
        for d in (0.0, 0.3, -0.8, 2.0):
            for alpha in (0.05, 0.01):
                got = t_power(d, n_a + n_b - 2, math.sqrt(1 / n_a + 1 / n_b), alpha)
                expected = TTestIndPower().power(d, n_a, alpha, ratio=n_b / n_a)
                assert got == pytest.approx(expected, abs=1e-9)
    for n in (2, 5, 30):
        got = t_power(0.7, n - 1, 1 / math.sqrt(n))
        assert got == pytest.approx(TTestPower().power(0.7, n, 0.05), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize(("n_a", "n_b"), [(2, 2), (5, 5), (5, 3), (3, 30)])
def test_detectable_effect_is_found_with_80_percent(n_a, n_b, alpha):
    df, scale = n_a + n_b - 2, math.sqrt(1 / n_a + 1 / n_b)
    d = detectable(df, alpha) * scale
    assert t_power(d, df, scale, alpha) == pytest.approx(0.8, abs=1e-10)
    assert t_power(detectable(df, alpha), df, 1.0, alpha) == pytest.approx(0.8, abs=1e-10)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("df", [3.3, 8, 40])
@pytest.mark.parametrize("margin", [1.0, 3.5, 6.0])
def test_power_of_equivalence_by_simulation(margin, df, alpha):
    rng = np.random.default_rng(0)
    z, s = rng.normal(size=200_000), np.sqrt(rng.chisquare(df, size=200_000) / df)
    shown = np.mean(np.abs(z) < margin - stats.t.ppf(1 - alpha, df) * s)
    assert equivalence_power(margin, df, alpha) == pytest.approx(shown, abs=0.006)


def test_wrong_questions_are_refused():
    with pytest.raises(ValueError, match="alpha"):
        t_power(0.5, 8, 0.6, alpha=1.0)
