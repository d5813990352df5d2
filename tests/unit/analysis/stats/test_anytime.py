"""The e-process: its Bayes factor by integration, its interval, and optional stopping."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from analysis.stats import anytime


@pytest.mark.parametrize(("n_a", "n_b", "effect"), [(5, 5, 1.0), (3, 9, 0.5), (1, 2, 2.0)])
def test_the_e_value_is_the_ratio_of_densities_of_t(n_a, n_b, effect):
    """Gönen et al.: noncentral t over d ~ N(0, effect**2), over central t."""
    rng = np.random.default_rng(n_a)
    a, b = 1 + rng.normal(size=n_a), rng.normal(size=n_b)
    df, size = n_a + n_b - 2, n_a * n_b / (n_a + n_b)
    squares = np.sum((a - a.mean()) ** 2) + np.sum((b - b.mean()) ** 2)
    t = (a.mean() - b.mean()) * math.sqrt(size * df / squares)

    def density(d):
        return stats.nct.pdf(t, df, d * math.sqrt(size)) * stats.norm.pdf(d, scale=effect)

    above = integrate.quad(density, -8 * effect, 8 * effect, limit=200)[0]
    got = anytime(a, b, effect=effect)
    assert got.e_value == pytest.approx(above / stats.t.pdf(t, df), rel=1e-6)
    assert got.p_value == pytest.approx(min(1, 1 / got.e_value))


@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_the_interval_holds_what_is_not_refuted(alpha):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12), 0.4 + rng.normal(size=9)
    got = anytime(a, b, alpha=alpha)
    for limit in got.ci:
        assert anytime(a - limit, b, alpha=alpha).e_value == pytest.approx(1 / alpha)
    assert anytime(a[:2], b[:1], alpha=alpha).ci is None


def test_who_looks_after_every_seed_errs_in_5_percent_at_most():
    rng = np.random.default_rng(3)
    rounds, most = 4000, 60
    a, b = rng.normal(size=(2, rounds, most))
    n = np.arange(2, most + 1)
    sums = [np.cumsum(x, axis=1)[:, 1:] for x in (a, b)]
    squares = sum(
        np.cumsum(x**2, axis=1)[:, 1:] - s**2 / n for x, s in zip((a, b), sums, strict=True)
    )
    df, size = 2 * n - 2, n / 2
    t2 = ((sums[0] - sums[1]) / n) ** 2 * size * df / squares
    log_e = (df + 1) / 2 * (np.log1p(t2 / df) - np.log1p(t2 / df / (1 + size)))
    log_e -= np.log1p(size) / 2
    assert np.exp(log_e[0, -1]) == pytest.approx(anytime(a[0], b[0]).e_value)  # the formula's own
    refuted = np.mean(np.max(log_e, axis=1) > math.log(20))
    naive = np.mean(np.any(2 * stats.t.sf(np.sqrt(t2), df) < 0.05, axis=1))
    assert refuted <= 0.05
    assert naive > 0.2


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [([5.0], [6.0], "three in all"), ([5.0, 5.0], [6.0], "any spread"), ([], [6.0, 7.0], "three")],
)
def test_undefined_is_null_with_a_reason(a, b, said):
    got = anytime(a, b)
    assert said in got.reason
    assert got.e_value is None
    json.dumps(dataclasses.asdict(got), allow_nan=False)


def test_overwhelming_evidence_stays_finite():
    a, b = np.linspace(0, 1e-6, 400), 1 + np.linspace(0, 1e-6, 400)
    json.dumps(dataclasses.asdict(anytime(a, b)), allow_nan=False)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="effect must be a positive number"):
        anytime([1.0, 2.0], [1.0, 2.0], effect=0)
    with pytest.raises(ValueError, match="alpha"):
        anytime([1.0, 2.0], [1.0, 2.0], alpha=1)
