"""The e-process: its Bayes factor by integration, its interval, and optional stopping."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from analysis.stats.sequential import anytime


@pytest.mark.parametrize(("n_a", "n_b"), [(5, 5), (3, 9), (4, 2)])
def test_the_e_value_is_the_ratio_of_densities_of_t(n_a, n_b):
    """Gönen et al., of the pairs' differences: noncentral t over the prior of d, over central t."""
    rng = np.random.default_rng(n_a)
    a, b = 1 + rng.normal(size=n_a), rng.normal(size=n_b)
    n = min(n_a, n_b)
    t = stats.ttest_1samp(a[:n] - b[:n], 0).statistic
    scale = 1 / math.sqrt(2)  # of the difference, whose standard deviation is sqrt(2) seeds

    def density(d):
        return stats.nct.pdf(t, n - 1, d * math.sqrt(n)) * stats.norm.pdf(d, scale=scale)

    above = integrate.quad(density, -8 * scale, 8 * scale, limit=200)[0]
    got = anytime(a, b)
    assert got.e_value == pytest.approx(above / stats.t.pdf(t, n - 1), rel=1e-6)
    assert got.p_value == pytest.approx(min(1, 1 / got.e_value))
    assert (got.n, got.n_a, got.n_b) == (n, n_a, n_b)


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_interval_holds_what_is_not_refuted(alpha):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), 0.4 + rng.normal(size=12)
    got = anytime(a, b, alpha=alpha)
    for limit in got.ci:
        assert anytime(a - limit, b, alpha=alpha).e_value == pytest.approx(1 / alpha)
    assert anytime(a[:2], b[:2], alpha=alpha).ci is None


def first_refuted(a, b):
    """Share of rows in which any look at the pairs so far has an e-value of 20."""
    d = a - b
    n = np.arange(2, d.shape[1] + 1)
    sums = np.cumsum(d, axis=1)[:, 1:]
    squares = np.cumsum(d**2, axis=1)[:, 1:] - sums**2 / n
    t2 = sums**2 / n / (squares / (n - 1))
    log_e = n / 2 * (np.log1p(t2 / (n - 1)) - np.log1p(t2 / (n - 1) / (1 + n / 2)))
    log_e -= np.log1p(n / 2) / 2
    last = anytime(a[0], b[0]).e_value
    assert np.exp(log_e[0, -1]) == pytest.approx(last)  # the formula's own
    return np.mean(np.max(log_e, axis=1) > math.log(20)), t2, n


@pytest.mark.parametrize("ratio", [1.0, 3.0, 10.0])
def test_who_looks_after_every_seed_errs_in_5_percent_at_most(ratio):
    """Whatever the spreads: a test that takes both groups to have one variance errs in 16 %."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 4000, 60))
    refuted, t2, n = first_refuted(a, ratio * b)
    naive = np.mean(np.any(2 * stats.t.sf(np.sqrt(t2), n - 1) < 0.05, axis=1))
    assert refuted <= 0.05
    assert naive > 0.2


def test_who_interrupts_a_suite_at_a_good_moment_errs_in_5_percent_at_most():
    """He watches 3 to 15 seeds, breaks off at Welch's first p < 0.05, and reports these seeds."""
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 1000, 15))
    p = np.stack([stats.ttest_ind(a[:, :n], b[:, :n], axis=1).pvalue for n in range(3, 16)])
    stopped = np.where((p < 0.05).any(axis=0), np.argmax(p < 0.05, axis=0), len(p) - 1) + 3
    wrong = [anytime(x[:n], y[:n]).p_value < 0.05 for x, y, n in zip(a, b, stopped, strict=True)]
    assert np.mean((p < 0.05).any(axis=0)) > 0.14
    assert np.mean(wrong) <= 0.05


def test_seeds_of_one_group_alone_change_nothing():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=30), rng.normal(size=5)
    found = [anytime(a[:n], b) for n in (5, 10, 30)]
    assert len({one.e_value for one in found}) == 1
    assert [one.n_a for one in found] == [5, 10, 30]


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([5.0], [6.0, 7.0], "two seeds"), ([5.0, 5.0], [6.0, 6.0], "no spread"), ([], [6.0], "two")],
)
def test_undefined_is_null_with_a_reason(a, b, said):
    got = anytime(a, b)
    assert said in got.reason
    assert got.e_value is None
    json.dumps(dataclasses.asdict(got), allow_nan=False)


def test_overwhelming_evidence_stays_finite():
    a, b = np.linspace(0, 1e-6, 400), 1 + np.linspace(0, 1e-6, 400)
    json.dumps(dataclasses.asdict(anytime(a, b)), allow_nan=False)


def test_a_wrong_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        anytime([1.0, 2.0], [1.0, 2.0], alpha=1)
