"""The interval over seeds and text: its formula by hand, its properties, where it is undefined."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats
from scipy.linalg import toeplitz

from analysis.stats.samples import PooledVariance, pooled_variance
from analysis.stats.text import compare_on_text, edge_factor


def rows(rng, n, windows, seed=0.01, window=0.02, noise=0.01, tokens=512.0):
    """NLL sums [n, windows] of a method: its seeds, its windows and seed x window noise."""
    effect = seed * rng.normal(size=(n, 1)) + window * rng.normal(size=windows)
    return (3.5 + effect + noise * rng.normal(size=(n, windows))) * tokens


@pytest.mark.parametrize(("n_a", "n_b", "parts"), [(5, 5, 32), (4, 7, 16), (4, 30, 64)])
def test_the_formula_by_hand(n_a, n_b, parts):
    """Equal documents: each term is computed another way, from a two-way table."""
    rng = np.random.default_rng(n_a)
    a, b = rows(rng, n_a, 64, 0.003, 0.02), rows(rng, n_b, 64, 0.003, 0.02)
    labels = np.arange(64) * parts // 64
    got = compare_on_text(a, b, np.full(64, 512.0), documents=labels)
    table = [x.reshape(len(x), parts, -1).mean(axis=2) / 512 for x in (a, b)]

    def succession(means):
        halves = np.diff(means) ** 2 / 2
        own = [np.mean(halves[max(0, g - 1) : g + 1]) for g in range(parts)]
        return np.mean(own) / parts

    seed, shared, df = [], [], []
    for x in table:
        seed.append(stats.sem(x.mean(axis=1)) ** 2)
        noise = sum(succession(row) for row in x - x.mean(axis=0)) / (len(x) - 1)
        shared.append(noise / len(x))
        df.append(len(x) - 1)
    text = succession(table[0].mean(axis=0) - table[1].mean(axis=0))
    assert got.unit == "documents"
    assert got.seed_variance == pytest.approx(sum(seed))
    assert got.text_variance == pytest.approx(text)
    assert got.overlap_variance == pytest.approx(sum(shared))
    variance = sum(seed) + text - sum(shared)
    assert variance > max(sum(seed), text)
    assert got.std_error**2 == pytest.approx(variance)
    assert got.text_df == pytest.approx(2 * (parts - 1) / 3, rel=0.03)
    terms = [*zip(seed, df, strict=True), (text, got.text_df)]
    terms += [(s, k * got.text_df) for s, k in zip(shared, df, strict=True)]
    assert got.df == pytest.approx(variance**2 / sum(v**2 / k for v, k in terms))
    assert got.ci == pytest.approx(stats.t.interval(0.95, got.df, got.log_ratio, got.std_error))
    assert got.log_ratio == pytest.approx((a.mean() - b.mean()) / 512)
    assert got.percent_ci == pytest.approx(tuple(100 * np.expm1(got.ci)))
    assert got.p_value == pytest.approx(2 * stats.t.sf(abs(got.log_ratio / got.std_error), got.df))


def test_what_goes_with_the_period_is_noise_for_eras_alone():
    """A fixed step from era to era: a fact about this mix, noise where eras are drawn anew."""
    rng, tokens = np.random.default_rng(0), np.full(64, 512.0)
    a, b = rows(rng, 10, 64), rows(rng, 10, 64)
    step = np.repeat(np.linspace(-0.03, 0.03, 8), 8) * 512
    plain, mix = compare_on_text(a, b, tokens), compare_on_text(a + step, b, tokens)
    eras = compare_on_text(a + step, b, tokens, text="eras")
    assert mix.std_error == pytest.approx(plain.std_error, rel=0.1)
    assert eras.std_error > 1.7 * mix.std_error
    assert eras.log_ratio == pytest.approx(mix.log_ratio)
    assert (mix.unit, eras.unit) == ("windows", "stretches")


def test_windows_of_one_document_are_one_part():
    """Windows that are alike within documents: without labels the error is too small."""
    rng, tokens = np.random.default_rng(1), np.full(64, 512.0)
    labels = np.repeat(np.arange(16), 4)
    shared = 0.03 * rng.normal(size=16)[labels] * 512
    a, b = rows(rng, 10, 64, window=0.003) + shared, rows(rng, 10, 64, window=0.003)
    alone = compare_on_text(a, b, tokens)
    together = compare_on_text(a, b, tokens, documents=labels)
    assert together.std_error > 1.3 * alone.std_error
    names = np.array([f"speech {k}" for k in range(16)])[labels]
    assert compare_on_text(a, b, tokens, documents=names) == together
    two = compare_on_text(a, b, tokens, documents=labels > 7)
    assert (two.unit, two.n_parts) == ("windows", 64)


@pytest.mark.parametrize(("n_a", "n_b"), [(2, 2), (2, 10), (3, 30)])
def test_few_seeds_that_dominate_give_no_more_degrees_of_freedom_than_welch(n_a, n_b):
    rng, tokens = np.random.default_rng(2), np.full(64, 512.0)
    for text in ("mix", "eras"):
        for _ in range(50):
            a, b = rows(rng, n_a, 64, seed=0.02), rows(rng, n_b, 64)
            got = compare_on_text(a, b, tokens, text=text)
            levels = [x.sum(axis=1) / tokens.sum() for x in (a, b)]
            welch = stats.ttest_ind(*levels, equal_var=False)
            if got.seed_variance >= got.text_variance - got.overlap_variance:
                assert got.df <= welch.df * (1 + 1e-9)
                half = (got.ci[1] - got.ci[0]) / 2
                own = welch.confidence_interval()
                assert half >= (own.high - own.low) / 2 * (1 - 1e-9)


def test_a_trend_along_the_text_is_found():
    rng, tokens = np.random.default_rng(3), np.full(16, 512.0)
    a, b = rows(rng, 5, 16, window=0.005), rows(rng, 5, 16, window=0.005)
    slope = np.linspace(0.04, -0.06, 16) * 512
    trend = compare_on_text(a + slope, b, tokens).trend
    delta = (a + slope).mean(axis=0) - b.mean(axis=0)
    expected = stats.spearmanr(np.arange(16), delta)
    assert (trend.rho, trend.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert trend.p_value < 0.01
    assert trend.first_percent == pytest.approx(100 * np.expm1(delta[:4].sum() / 4 / 512))
    assert trend.last_percent < 0 < trend.first_percent


def test_at_least_each_of_the_first_two_terms():
    rng = np.random.default_rng(0)
    floors = set()
    for seed, window in ((0.03, 0.0), (0.0, 0.03)):
        for _ in range(60):
            a, b = (rows(rng, 3, 16, seed, window, noise=0.05) for _ in range(2))
            got = compare_on_text(a, b, np.full(16, 512.0))
            summed = got.seed_variance + got.text_variance - got.overlap_variance
            least = max(got.seed_variance, got.text_variance)
            assert got.std_error**2 == pytest.approx(max(summed, least))
            if summed < least:
                floors.add("seed" if least == got.seed_variance else "text")
                if least == got.text_variance:
                    assert got.df == pytest.approx(got.text_df)
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
    """A window cut in two, both halves in its document, changes nothing."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(100, 600, size=12).astype(float)
    a, b = (rows(rng, 4, 12, tokens=tokens) for _ in range(2))
    whole = compare_on_text(a, b, tokens)
    cut = [np.repeat(x, 2, axis=-1) / 2 for x in (a, b, tokens)]
    halves = compare_on_text(*cut, documents=np.repeat(np.arange(12), 2))
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


@pytest.mark.parametrize(("windows", "stretches"), [(8, 4), (63, 4), (64, 8), (166, 8)])
def test_eras_are_contiguous_stretches(windows, stretches):
    """Their variance by hand: that of a ratio over stretches, times the edge factor."""
    rng = np.random.default_rng(4)
    a, b, tokens = rows(rng, 3, windows), rows(rng, 3, windows), np.full(windows, 512.0)
    got = compare_on_text(a, b, tokens, text="eras")
    assert (got.n_windows, got.n_parts) == (windows, stretches)
    labels = np.arange(windows) * stretches // windows
    delta = a.mean(axis=0) - b.mean(axis=0)
    sums, sizes = (np.bincount(labels, weights=x) for x in (delta, tokens))
    residual = sums - sums.sum() / sizes.sum() * sizes
    expected = stretches / (stretches - 1) * np.sum(residual**2) / sizes.sum() ** 2
    assert got.text_variance == pytest.approx(expected * got.edge_factor)
    assert got.edge_factor == pytest.approx(edge_factor(delta / tokens, stretches))
    assert got.text_df == stretches - 1


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


def test_a_single_draw_needs_lent_noise():
    rng = np.random.default_rng(6)
    a, b, tokens = rows(rng, 1, 16), rows(rng, 5, 16), np.full(16, 512.0)
    alone = compare_on_text(a, b, tokens)
    assert alone.reason == "a has one row: one draw of unknown noise"
    assert alone.percent is not None
    known = {k for k, v in dataclasses.asdict(alone).items() if v is None}
    assert {"std_error", "df", "p_value", "ci", "percent_ci", "seed_variance"} <= known
    noise = PooledVariance(0.006**2, 12)
    lent = compare_on_text(a, b, tokens, noise=noise)
    level = b.sum(axis=1) / tokens.sum()
    assert lent.lent == "a"
    assert lent.seed_variance == pytest.approx(0.006**2 + level.var(ddof=1) / 5)
    assert compare_on_text(a, a * 1.01, tokens, noise=noise).lent == "ab"
    assert compare_on_text(b, b * 1.01, tokens, noise=noise).lent is None


@pytest.mark.parametrize("windows", [1, 3, 4, 7])
def test_fewer_than_8_windows_are_undefined_with_a_reason(windows):
    rng = np.random.default_rng(7)
    a, b = rows(rng, 3, windows), rows(rng, 3, windows)
    got = compare_on_text(a, b, np.full(windows, 512.0))
    assert f"{windows} windows" in got.reason
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
        ({"text": "era"}, "text must be 'mix' or 'eras'; got 'era'"),
        ({"documents": np.zeros(7)}, "documents must label 8 windows"),
        ({"alpha": 1.0}, "alpha"),
    ],
)
def test_wrong_arrays_are_refused(change, said):
    good = {"nll_a": np.ones((2, 8)), "nll_b": np.ones((3, 8)), "tokens": np.ones(8)}
    with pytest.raises(ValueError, match=said):
        compare_on_text(**(good | change))


def test_noise_is_pooled_over_sets_drawn_more_than_once():
    got = pooled_variance([[1.0, 2.0, 3.0], [5.0], [4.0, 8.0]])
    assert got == PooledVariance((2 * 1.0 + 1 * 8.0) / 3, 3)
    assert pooled_variance([[1.0], [2.0]]) is None
    assert pooled_variance([[1.0, 1.0]]) is None
