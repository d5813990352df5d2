"""The interval over seeds and text: its formula by hand, its properties, where it is undefined."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import toeplitz

from analysis.stats import PooledVariance, compare_on_text, pooled_variance
from analysis.stats.text import edge_factor, upper_factor


def rows(rng, n, windows, seed=0.01, window=0.02, noise=0.01, tokens=512.0):
    """NLL sums [n, windows] of a method: its seeds, its windows and seed x window noise."""
    effect = seed * rng.normal(size=(n, 1)) + window * rng.normal(size=windows)
    return (3.5 + effect + noise * rng.normal(size=(n, windows))) * tokens


@pytest.mark.parametrize(("n_a", "n_b", "stretches"), [(5, 5, 8), (3, 7, 4), (2, 30, 16)])
def test_the_formula_by_hand(n_a, n_b, stretches):
    """Equal stretches: every term is a mean square of a two-way table, computed another way."""
    rng = np.random.default_rng(n_a)
    a, b = rows(rng, n_a, 64), rows(rng, n_b, 64)
    got = compare_on_text(a, b, np.full(64, 512.0), stretches=stretches)
    table = [x.reshape(len(x), stretches, -1).mean(axis=2) / 512 for x in (a, b)]
    seed, shared, df = [], [], []
    for x in table:
        cells = x - x.mean(axis=0) - x.mean(axis=1)[:, None] + x.mean()
        square = np.sum(cells**2) / (len(x) - 1) / (stretches - 1)
        seed.append(stats.sem(x.mean(axis=1)) ** 2)
        shared.append(square / len(x) / stretches)
        df.append(len(x) - 1)
    text = stats.sem(table[0].mean(axis=0) - table[1].mean(axis=0)) ** 2
    assert got.seed_variance == pytest.approx(sum(seed))
    assert got.text_variance == pytest.approx(text)
    assert got.overlap_variance == pytest.approx(sum(shared))
    variance = sum(seed) + text - sum(shared)
    assert variance > max(sum(seed), text)
    assert got.std_error**2 == pytest.approx(variance)
    terms = [*zip(seed, df, strict=True), (text, stretches - 1)]
    terms += [(s, k * (stretches - 1)) for s, k in zip(shared, df, strict=True)]
    assert got.df == pytest.approx(variance**2 / sum(v**2 / k for v, k in terms))
    assert got.ci == pytest.approx(stats.t.interval(0.95, got.df, got.log_ratio, got.std_error))
    assert got.log_ratio == pytest.approx((a.mean() - b.mean()) / 512)
    assert got.percent_ci == pytest.approx(tuple(100 * np.expm1(got.ci)))
    assert got.p_value == pytest.approx(2 * stats.t.sf(abs(got.log_ratio / got.std_error), got.df))


def test_at_least_each_of_the_first_two_terms():
    rng = np.random.default_rng(0)
    floors = set()
    for seed, window in ((0.03, 0.0), (0.0, 0.03)):
        for _ in range(60):
            a, b = (rows(rng, 3, 16, seed, window, noise=0.05) for _ in range(2))
            got = compare_on_text(a, b, np.full(16, 512.0), stretches=16)
            summed = got.seed_variance + got.text_variance - got.overlap_variance
            least = max(got.seed_variance, got.text_variance)
            assert got.std_error**2 == pytest.approx(max(summed, least))
            if summed < least:
                floors.add("seed" if least == got.seed_variance else "text")
                if least == got.text_variance:
                    assert got.df == pytest.approx(15)
    assert floors == {"seed", "text"}


def test_without_differences_between_windows_it_is_welch():
    """Only the level of a row varies: the interval is Welch's on the log perplexities."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(100, 600, size=20).astype(float)
    level_a, level_b = 3.5 + 0.01 * rng.normal(size=5), 3.51 + 0.03 * rng.normal(size=8)
    got = compare_on_text(level_a[:, None] * tokens, level_b[:, None] * tokens, tokens)
    welch = stats.ttest_ind(level_a, level_b, equal_var=False)
    assert (got.df, got.p_value) == pytest.approx((welch.df, welch.pvalue))
    assert got.ci == pytest.approx(tuple(welch.confidence_interval()))


def test_unequal_windows_count_by_their_tokens():
    """A window cut in two, both halves in its stretch, changes nothing."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(100, 600, size=12).astype(float)
    a, b = (rows(rng, 4, 12, tokens=tokens) for _ in range(2))
    whole = compare_on_text(a, b, tokens, stretches=np.arange(12))
    cut = [np.repeat(x, 2, axis=-1) / 2 for x in (a, b, tokens)]
    halves = compare_on_text(*cut, stretches=np.repeat(np.arange(12), 2))
    assert halves.n_windows == 24
    assert halves.std_error == pytest.approx(whole.std_error, rel=1e-12)
    assert halves.df == pytest.approx(whole.df, rel=1e-9)
    assert whole.log_ratio == pytest.approx((a.mean(0) - b.mean(0)).sum() / tokens.sum())


def test_swapping_the_methods_turns_the_answer_round():
    rng = np.random.default_rng(3)
    a, b, tokens = rows(rng, 4, 20), rows(rng, 6, 20), np.full(20, 512.0)
    forward, back = compare_on_text(a, b, tokens), compare_on_text(b, a, tokens)
    assert forward.log_ratio == pytest.approx(-back.log_ratio)
    assert forward.ci == pytest.approx((-back.ci[1], -back.ci[0]))
    assert (forward.p_value, forward.df) == pytest.approx((back.p_value, back.df))


@pytest.mark.parametrize(("windows", "stretches"), [(4, 4), (16, 4), (63, 4), (64, 8), (166, 8)])
def test_contiguous_stretches_by_default(windows, stretches):
    rng = np.random.default_rng(4)
    a, b, tokens = rows(rng, 3, windows), rows(rng, 3, windows), np.full(windows, 512.0)
    got = compare_on_text(a, b, tokens)
    assert (got.n_windows, got.n_stretches) == (windows, stretches)
    given = compare_on_text(a, b, tokens, stretches=stretches)
    labels = np.arange(windows) * stretches // windows
    assert given == compare_on_text(a, b, tokens, stretches=labels * 10)
    assert given.edge_factor == 1
    assert got.text_variance == pytest.approx(given.text_variance * got.edge_factor)


def exact_edge_factor(rho, windows, stretches):
    """What stretches of an autoregression lack, from its covariance matrix."""
    covariance = toeplitz(rho ** np.arange(windows))
    to_stretch = np.kron(np.eye(stretches), np.ones(windows // stretches))
    between = to_stretch @ covariance @ to_stretch.T
    centre = np.eye(stretches) - 1 / stretches
    expected = np.trace(centre @ between) * stretches / (stretches - 1)
    return covariance.sum() / expected


@pytest.mark.parametrize("rho", [0.0, 0.2, 0.44, 0.7])
@pytest.mark.parametrize(("windows", "stretches"), [(16, 4), (64, 8), (160, 8)])
def test_the_edge_factor_is_that_of_an_autoregression(rho, windows, stretches):
    """Its median lies between the true one and that of a correlation a standard error larger."""
    covariance = toeplitz(rho ** np.arange(windows))
    rng = np.random.default_rng(5)
    draws = rng.normal(size=(400, windows)) @ np.linalg.cholesky(covariance).T
    got = np.median([edge_factor(x, stretches) for x in draws])
    larger = min(0.8, rho + 1 / np.sqrt(windows))
    assert exact_edge_factor(rho, windows, stretches) <= 1.05 * got
    assert got <= 1.05 * exact_edge_factor(larger, windows, stretches)


def test_the_degrees_of_freedom_count_the_text_with_its_upper_limit():
    rng = np.random.default_rng(8)
    a, b, tokens = rows(rng, 5, 64), rows(rng, 5, 64), np.full(64, 512.0)
    by_default, given = compare_on_text(a, b, tokens), compare_on_text(a, b, tokens, stretches=8)
    assert upper_factor(8) == pytest.approx(7 / stats.chi2.ppf(0.05, 7))
    assert 7 < by_default.df < given.df


def test_a_single_draw_needs_lent_noise():
    rng = np.random.default_rng(6)
    a, b, tokens = rows(rng, 1, 16), rows(rng, 5, 16), np.full(16, 512.0)
    alone = compare_on_text(a, b, tokens)
    assert alone.reason == "a has one row: one draw of unknown noise"
    assert alone.percent is not None
    known = {k for k, v in dataclasses.asdict(alone).items() if v is None}
    assert {"std_error", "df", "p_value", "ci", "percent_ci", "seed_variance"} <= known
    noise = PooledVariance(0.006**2, 12, 4)
    lent = compare_on_text(a, b, tokens, noise=noise)
    level = b.sum(axis=1) / tokens.sum()
    assert lent.lent == "a"
    assert lent.seed_variance == pytest.approx(0.006**2 + level.var(ddof=1) / 5)
    assert compare_on_text(a, a * 1.01, tokens, noise=noise).lent == "ab"
    assert compare_on_text(b, b * 1.01, tokens, noise=noise).lent is None


@pytest.mark.parametrize(
    ("windows", "stretches", "said"),
    [(3, None, "3 windows"), (16, 1, "one stretch"), (16, np.zeros(16), "one stretch")],
)
def test_undefined_is_null_with_a_reason(windows, stretches, said):
    rng = np.random.default_rng(7)
    a, b = rows(rng, 3, windows), rows(rng, 3, windows)
    got = compare_on_text(a, b, np.full(windows, 512.0), stretches=stretches)
    assert said in got.reason
    assert got.estimate is None
    json.dumps(dataclasses.asdict(got), allow_nan=False)


def test_rows_that_are_all_the_same_have_no_error():
    same = np.tile(np.linspace(1000, 2000, 16), (3, 1))
    got = compare_on_text(same, same, np.full(16, 512.0))
    assert got.log_ratio == 0
    assert "no error can be estimated" in got.reason


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nll_a": np.ones(8)}, r"nll_a must have shape \[n, 8\], n > 0; got \(8,\)"),
        ({"nll_b": np.ones((3, 7))}, r"nll_b must have shape \[n, 8\]"),
        ({"nll_a": np.full((2, 8), np.nan)}, r"nll_a\[0, 0\] is nan"),
        ({"tokens": np.zeros(8)}, r"tokens\[0\] is 0; allowed are numbers above 0"),
        ({"stretches": 9}, "stretches must be 1 to 8, the windows; got 9"),
        ({"stretches": np.zeros(7)}, "stretches must label 8 windows"),
        ({"alpha": 1.0}, "alpha"),
    ],
)
def test_wrong_arrays_are_refused(change, said):
    good = {"nll_a": np.ones((2, 8)), "nll_b": np.ones((3, 8)), "tokens": np.ones(8)}
    with pytest.raises(ValueError, match=said):
        compare_on_text(**(good | change))


def test_noise_is_pooled_over_sets_drawn_more_than_once():
    got = pooled_variance([[1.0, 2.0, 3.0], [5.0], [4.0, 8.0]])
    assert got == PooledVariance((2 * 1.0 + 1 * 8.0) / 3, 3, 2)
    assert pooled_variance([[1.0], [2.0]]) is None
    assert pooled_variance([[1.0, 1.0]]) is None
