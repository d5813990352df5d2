"""The test of steadiness against scipy, and the cases where there is none."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats

from analysis.stats.comparison import _ratio_interval, compare_spread, seeds_to_find_halving


def test_against_scipy():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        a, b = (
            np.exp(2 + rng.uniform(0.01, 0.3) * rng.normal(size=rng.integers(3, 12)))
            for _ in range(2)
        )
        got = compare_spread(a, b)
        expected = stats.levene(np.log(a), np.log(b), center="median")
        np.testing.assert_allclose([got.f_stat, got.p_value], expected, rtol=1e-9)
        assert got.df == (1, a.size + b.size - 2)
        assert got.sd_ratio == pytest.approx(np.std(np.log(a), ddof=1) / np.std(np.log(b), ddof=1))


def test_the_interval_of_a_published_example():
    """The example of `ci.ratio.sd2` in Bonett's own package statpsych."""
    a = [32, 39, 26, 35, 43, 27, 40, 37, 34, 29]
    b = [36, 44, 47, 42, 49, 39, 46, 31, 33, 48]
    low, high = _ratio_interval(np.array(a, float), np.array(b, float))
    assert (low, high) == pytest.approx((0.486279, 1.728396), abs=3e-6)  # stops after ten rounds


SHAPES = {
    "normal": lambda rng, size: rng.normal(size=size),
    "t5": lambda rng, size: rng.standard_t(5, size=size),
    "skewed": lambda rng, size: rng.gamma(4, size=size),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("n_a", "n_b"), [(10, 10), (30, 15)])
def test_the_interval_covers_whatever_the_shape(shape, n_a, n_b):
    rng, rounds, covered, by_f = np.random.default_rng(2), 1500, 0, 0
    for _ in range(rounds):
        a, b = SHAPES[shape](rng, n_a), SHAPES[shape](rng, n_b)
        low, high = _ratio_interval(3 * a, b)
        covered += low <= 3 <= high
        f = np.var(3 * a, ddof=1) / np.var(b, ddof=1) / 9
        by_f += 0.025 <= stats.f.cdf(f, n_a - 1, n_b - 1) <= 0.975
    assert covered / rounds > 0.92
    if shape == "t5":
        assert covered > by_f  # that of the F distribution, which assumes a normal shape


def test_under_five_runs_the_ratio_has_no_interval():
    got = compare_spread([5.0, 6.0, 7.0, 9.0], [5.0, 6.0, 7.0, 8.0, 8.5])
    assert got.sd_ratio is not None
    assert got.sd_ratio_ci95 is None


def test_swapping_the_groups_inverts_the_ratio():
    a, b = [5.62, 5.70, 5.72, 5.74, 5.82, 5.9], [5.64, 5.73, 5.77, 5.96, 5.8]
    forward, back = compare_spread(a, b), compare_spread(b, a)
    assert forward.p_value == pytest.approx(back.p_value)
    assert forward.sd_ratio == pytest.approx(1 / back.sd_ratio)
    low, high = back.sd_ratio_ci95
    assert forward.sd_ratio_ci95 == pytest.approx((1 / high, 1 / low))
    assert (forward.sd_log_a, forward.sd_log_b) == (back.sd_log_b, back.sd_log_a)
    assert (forward.n_a, forward.n_b) == (6, 5)


def test_the_unit_of_perplexity_cancels():
    a, b = np.array([5.62, 5.70, 5.72, 5.74, 5.82]), np.array([5.64, 5.73, 5.77, 5.96])
    scaled, plain = compare_spread(40 * a, b), compare_spread(a, b)
    assert scaled.p_value == pytest.approx(plain.p_value, rel=1e-6)
    assert scaled.sd_ratio == pytest.approx(plain.sd_ratio, rel=1e-9)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([5.7] * 5, [5.6, 5.7, 5.9], "a is constant"),
        ([5.6, 5.7, 5.9], [5.83] * 3, "b is constant"),
        ([5.6, 5.7], [5.6, 5.7, 5.9], "a has n = 2"),
        ([5.6, 5.7, 5.9], [5.6, None, 5.9], "b has n = 2"),
        ([], [5.6, 5.7, 5.9], "a has n = 0"),
        ([4.0, 4.0, 9.0, 9.0], [5.0, 5.0, 20.0, 20.0], "equal within each group"),
    ],
)
def test_undefined_is_null_with_a_reason(a, b, said):
    got = dataclasses.asdict(compare_spread(a, b))
    assert said in got["reason"]
    assert {k for k, v in got.items() if v is not None} == {"n_a", "n_b", "reason"}
    json.dumps(got, allow_nan=False)


@pytest.mark.parametrize("bad", [0.0, -5.0])
def test_values_without_a_logarithm_are_refused(bad):
    with pytest.raises(ValueError, match=r"^b .*\d"):
        compare_spread([5.0, 6.0, 7.0], [5.0, 6.0, bad])


@pytest.mark.parametrize(("alpha", "n"), [(0.05, 24), (0.01, 36)])
def test_seeds_to_find_a_halving(alpha, n):
    """At the planned size the test finds a halving in about 80 % of simulated comparisons."""
    assert seeds_to_find_halving(alpha) == n
    assert compare_spread([5.0, 6.0, 7.0], [5.0, 6.0, 8.0], alpha=alpha).n_for_halving == n
    rng = np.random.default_rng(1)
    a, b = np.exp(0.02 * rng.normal(size=(1500, n))), np.exp(0.01 * rng.normal(size=(1500, n)))
    found = np.mean([compare_spread(x, y).p_value < alpha for x, y in zip(a, b, strict=True)])
    assert abs(found - 0.8) < 3 * math.sqrt(0.8 * 0.2 / 1500) + 0.01
