"""compare() against statsmodels and scipy, its properties, and the word it arrives at."""

import dataclasses
import json
import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from analysis.stats.comparison import compare, holm_family
from analysis.stats.power import t_power
from analysis.stats.samples import describe, pooled_variance
from analysis.stats.verdicts import holm, verdict

QUICK = settings(max_examples=100, deadline=None, derandomize=True, database=None)
PERPLEXITY = st.floats(3, 60).map(lambda x: round(x, 3))
GROUP = st.lists(PERPLEXITY, min_size=2, max_size=7)
ANYTHING = st.lists(
    st.none() | st.just(math.nan) | st.floats(-1e100, 1e100) | st.sampled_from([0.0, 1e-99, 5.7]),
    max_size=6,
)
# Fields that change sign, and intervals that turn round, when the groups change places.
ODD = ("diff", "t_stat", "cohens_d", "hedges_g")
TURNED = ("diff_ci95", "diff_ci90", "cohens_d_ci95")
EVEN = ("test", "df", "p_value", "tost_p_value", "mde80", "mde80_diff", "sd", "verdict")


def random_groups(rng):
    n_a, n_b = rng.integers(2, 12, size=2)
    scale = 10.0 ** rng.uniform(-3, 1)
    a = 20 + scale * rng.normal(size=n_a)
    b = 20 + scale * (rng.normal() + rng.uniform(0.2, 5) * rng.normal(size=n_b))
    return a, b, scale * rng.uniform(0.1, 3)


def close(got, expected, rtol=1e-9):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=1e-13)


@pytest.mark.parametrize("seed", range(4))
def test_two_groups_against_statsmodels(seed):
    rng = np.random.default_rng(seed)
    for _ in range(500):
        a, b, margin = random_groups(rng)
        got = compare(a, b, margin=margin)
        oracle = CompareMeans(DescrStatsW(a), DescrStatsW(b))
        close([got.t_stat, got.p_value, got.df], oracle.ttest_ind(usevar="unequal"))
        student = got.student
        close([student.t_stat, student.p_value, student.df], oracle.ttest_ind())
        close(got.diff_ci95, oracle.tconfint_diff(usevar="unequal"))
        close(got.diff_ci90, oracle.tconfint_diff(0.1, usevar="unequal"))
        close(got.tost_p_value, oracle.ttost_ind(-margin, margin, usevar="unequal")[0])
        scale, df = math.sqrt(1 / a.size + 1 / b.size), a.size + b.size - 2
        close(got.cohens_d, student.t_stat * scale)
        limits = special.nctdtrinc(df, [0.975, 0.025], student.t_stat) * scale
        np.testing.assert_allclose(got.cohens_d_ci95, limits, rtol=1e-5, atol=1e-6)


def test_a_group_without_spread_adds_no_error():
    rng = np.random.default_rng(10)
    for _ in range(500):
        a, b, margin = random_groups(rng)
        value, oracle = float(b[0]), DescrStatsW(a)
        got = compare(a, np.full(b.size, value), margin=margin)
        assert (got.test, got.n_b) == ("welch", b.size)
        close([got.t_stat, got.p_value, got.df], oracle.ttest_mean(value))
        close(got.diff_ci95, np.subtract(oracle.tconfint_mean(), value), rtol=1e-8)
        close(got.tost_p_value, oracle.ttost_mean(value - margin, value + margin)[0])
        close(describe(a).ci95, oracle.tconfint_mean())


def test_one_draw_is_of_unknown_noise_unless_others_lend_theirs():
    rng = np.random.default_rng(12)
    for _ in range(100):
        a, b, margin = random_groups(rng)
        alone = compare(a, b[:1], margin=margin)
        assert (alone.verdict, alone.reason) == (
            "undefined",
            "b has n = 1: one draw of unknown noise",
        )
        noise = pooled_variance([rng.normal(size=3), rng.normal(size=4), [5.0]])
        got = compare(a, b[:1], margin=margin, noise=noise)
        assert (got.test, got.lent, got.n_b, noise.df) == ("lent-variance", "b", 1, 5)
        terms = np.array([a.var(ddof=1) / a.size, noise.variance])
        df = terms.sum() ** 2 / np.sum(terms**2 / [a.size - 1, 5])
        close(got.std_error, math.sqrt(terms.sum()))
        close(got.df, df)
        close(got.p_value, 2 * special.stdtr(df, -abs(a.mean() - b[0]) / got.std_error))
        both = compare(a[:1], b[:1], margin=margin, noise=noise)
        assert (both.lent, both.df) == ("ab", pytest.approx(5 * 2))
        assert compare(a, b, margin=margin, noise=noise) == compare(a, b, margin=margin)


def test_hedges_g_has_no_bias():
    rng = np.random.default_rng(11)
    draws = rng.normal(size=(1500, 2, 3)) + np.array([[[1.5], [0.0]]])
    g = [compare(a, b, margin=1.0).hedges_g for a, b in draws]
    error = np.std(g) / math.sqrt(len(g))
    assert abs(np.mean(g) - 1.5) < 3 * error < 0.12


@QUICK
@given(GROUP, GROUP, st.floats(0.01, 10))
def test_swapping_the_groups_turns_the_answer_round(a, b, margin):
    forward, back = compare(a, b, margin=margin), compare(b, a, margin=margin)
    for field in ODD:
        value, mirrored = getattr(forward, field), getattr(back, field)
        assert (value is None) == (mirrored is None)
        assert value is None or value == pytest.approx(-mirrored, rel=1e-9, abs=1e-12)
    for field in TURNED:
        if getattr(forward, field) is not None:
            low, high = getattr(back, field)
            assert getattr(forward, field) == pytest.approx((-high, -low), rel=1e-8, abs=1e-8)
    for field in EVEN:
        value, mirrored = getattr(forward, field), getattr(back, field)
        assert value == (pytest.approx(mirrored) if isinstance(value, float) else mirrored)


@QUICK
@given(GROUP, GROUP, st.floats(0.01, 10), st.integers(-20, 20))
def test_units_do_not_matter(a, b, margin, exponent):
    factor = 2.0**exponent
    plain = compare(a, b, margin=margin)
    scaled = compare(np.multiply(a, factor), np.multiply(b, factor), margin=margin * factor)
    assert scaled.verdict == plain.verdict
    assert scaled.diff == plain.diff * factor
    for field in ("p_value", "tost_p_value", "cohens_d", "hedges_g", "mde80"):
        assert getattr(scaled, field) == getattr(plain, field)
    if plain.diff_ci95 is not None:
        assert scaled.diff_ci95 == tuple(factor * x for x in plain.diff_ci95)
        assert scaled.mde80_diff == plain.mde80_diff * factor


@QUICK
@given(GROUP, GROUP, st.floats(0.01, 10), st.integers(-64, 64))
def test_a_shift_of_both_groups_changes_nothing(a, b, margin, shift):
    plain = compare(a, b, margin=margin)
    shifted = compare(np.add(a, shift), np.add(b, shift), margin=margin)
    assert shifted.test == plain.test
    for field in ("diff", "p_value", "tost_p_value", "cohens_d"):
        expected = getattr(plain, field)
        if expected is None:
            assert getattr(shifted, field) is None
        else:
            assert getattr(shifted, field) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@settings(QUICK, max_examples=400)
@given(ANYTHING, ANYTHING, st.floats(1e-3, 1e3))
def test_the_answer_is_always_valid_json(a, b, margin):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = compare(a, b, margin=margin)
        text = json.dumps(
            [dataclasses.asdict(got), dataclasses.asdict(describe(a))], allow_nan=False
        )
    assert json.loads(text)[0]["verdict"] == got.verdict
    assert (got.verdict == "undefined") == (got.p_value is None) == (got.test is None)
    assert got.verdict != "undefined" or got.reason


def test_missing_runs_are_reported_per_group():
    got = compare([5.0, None, 6.0, math.nan], [5.0, 5.5, None], margin=0.1)
    assert (got.n_a, got.n_dropped_a, got.n_b, got.n_dropped_b) == (2, 2, 2, 1)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([5.0], [5.0, 6.0], "a has n = 1: one draw"),
        ([5.0, 6.0], [None, 5.0], "b has n = 1: one draw"),
        ([5.0], [6.0], "a and b has n = 1"),
        ([], [], "a has n = 0 .* and b has n = 0"),
        ([5.0, 5.0], [6.0, 6.0], "neither group has any spread"),
    ],
)
def test_the_reason_names_the_group(a, b, said):
    got = compare(a, b, margin=0.1)
    assert got.verdict == "undefined"
    assert re.search(said, got.reason)


def test_detectable_effect_follows_alpha_and_the_sizes_of_the_groups():
    a, b = [5.0, 6.0, 7.0, 6.5], [5.0, 6.0]
    loose, strict = (compare(a, b, margin=0.1, alpha=alpha) for alpha in (0.05, 0.01))
    assert loose.mde80 < strict.mde80
    assert loose.mde80 > compare(a, [5.0, 6.0, 5.0, 6.0], margin=0.1).mde80
    assert loose.mde80_diff == pytest.approx(loose.mde80 * loose.diff / loose.cohens_d)
    found = t_power(loose.mde80_diff, loose.df, loose.std_error)
    assert found == pytest.approx(0.8, abs=1e-9)


@pytest.mark.parametrize("margin", [0, -1.0, math.inf, math.nan])
def test_margin_must_be_positive(margin):
    with pytest.raises(ValueError, match=r"^margin"):
        compare([5.0, 6.0], [5.0, 6.0], margin=margin)


@pytest.mark.parametrize("alpha", [0, 0.5, 5, math.nan])
def test_alpha_must_be_a_level(alpha):
    with pytest.raises(ValueError, match=r"^alpha"):
        compare([5.0, 6.0], [5.0, 6.0], margin=1.0, alpha=alpha)


@pytest.mark.parametrize(
    ("p", "tost_p", "word"),
    [
        (0.01, 0.90, "different"),
        (0.01, 0.01, "different"),  # both shown: a difference, and a small one
        (0.30, 0.01, "equivalent"),
        (0.30, 0.30, "inconclusive"),
        (0.05, 0.05, "inconclusive"),
    ],
)
def test_verdict(p, tost_p, word):
    assert verdict(p, tost_p, 0.05)[0] == word


def test_verdict_follows_its_alpha():
    assert verdict(0.03, 0.03, 0.01) == ("inconclusive", None)
    a, b = [5.50, 5.52, 5.49, 5.53, 5.51], [5.53, 5.55, 5.52, 5.56, 5.54]
    assert compare(a, b, margin=0.001).verdict == "different"
    assert compare(a, b, margin=0.001, alpha=0.01).verdict == "inconclusive"


def test_a_difference_smaller_than_the_margin_is_different_and_says_so():
    a, b = [5.500, 5.501, 5.502, 5.503], [5.510, 5.511, 5.512, 5.513]
    wide, narrow = compare(a, b, margin=0.1), compare(a, b, margin=0.01)
    assert (wide.verdict, narrow.verdict) == ("different", "different")
    assert "smaller than the margin" in wide.reason
    assert narrow.reason is None


def test_a_family_is_judged_by_adjusted_p():
    base = np.array([5.50, 5.52, 5.49, 5.53, 5.51])
    single = [compare(base, base + shift, margin=0.1) for shift in (0.025, 0.03, 0.05)]
    single.append(compare([5.6] * 5, [5.7] * 5, margin=0.1))
    family = holm_family(single)
    assert [c.verdict for c in single] == ["different"] * 3 + ["undefined"]
    assert [c.p_adjusted for c in family] == holm([c.p_value for c in single])
    assert [c.p_value for c in family] == [c.p_value for c in single]
    assert [c.verdict for c in family] == ["different"] * 3 + ["undefined"]
    assert family[3] == single[3]

    four = holm_family([*single, *([compare(base, base + 0.001, margin=0.001)] * 3)])
    assert [c.verdict for c in four[:4]] == ["equivalent", "equivalent", "different", "undefined"]
    assert [c.reason for c in four[:2]] == [None, None]
    assert "smaller than the margin" in four[2].reason
