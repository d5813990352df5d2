"""Seeds to plan for: against statsmodels, by simulation, and where none would do."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestIndPower

from analysis.stats.power import (
    DOCUMENTED,
    Design,
    prospect,
    seeds_for_difference,
    seeds_for_equivalence,
)
from analysis.stats.samples import Estimate
from analysis.stats.text import compare_on_text
from analysis.stats.verdicts import standings


@pytest.mark.parametrize("family", [1, 2, 6])
@pytest.mark.parametrize("difference", [0.4, 1.0, 2.0])
def test_seeds_for_a_difference_against_statsmodels(difference, family):
    n = seeds_for_difference(difference, Design(1.0, 1.0, family=family))
    enough, one_less = (
        TTestIndPower().power(difference, k, 0.05 / family, ratio=1) for k in (n, n - 1)
    )
    assert one_less < 0.8 <= enough


@pytest.mark.parametrize("sd_b", [1.0, 2.5])
def test_seeds_give_what_they_promise(sd_b):
    """By simulation of the rule: Welch's test and two one-sided tests at alpha / 2."""
    design, rng, rounds = Design(1.0, sd_b, family=2), np.random.default_rng(0), 20_000
    for true, plan in ((1.0, seeds_for_difference), (0.0, seeds_for_equivalence)):
        n = plan(1.0, design)
        a, b = true + rng.normal(size=(rounds, n)), sd_b * rng.normal(size=(rounds, n))
        va, vb = a.var(axis=1, ddof=1) / n, b.var(axis=1, ddof=1) / n
        error, df = np.sqrt(va + vb), (va + vb) ** 2 / (va**2 + vb**2) * (n - 1)
        diff = a.mean(axis=1) - b.mean(axis=1)
        if true:
            shown = 2 * stats.t.sf(np.abs(diff) / error, df) < 0.025
        else:
            shown = stats.t.cdf((np.abs(diff) - 1.0) / error, df) < 0.025
        assert 0.78 < np.mean(shown) < 0.85


def test_the_text_sets_a_limit_that_no_seeds_pass():
    assert seeds_for_difference(1.0, Design(1.0, 1.0)) == 17
    some = seeds_for_difference(1.0, Design(1.0, 1.0, text_error=0.2, text_df=7))
    assert 17 < some < 100
    assert seeds_for_difference(1.0, Design(1.0, 1.0, text_error=0.5, text_df=7)) is None
    assert seeds_for_equivalence(1.0, Design(1.0, 1.0, text_error=0.5, text_df=7)) is None


def test_at_least_two_seeds_and_no_more_than_an_experiment():
    assert seeds_for_difference(1e9, Design(1.0, 1.0)) == 2
    assert seeds_for_difference(1e-6, Design(1.0, 1.0)) is None


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_wrong_questions_are_refused(bad):
    with pytest.raises(ValueError, match=r"^difference"):
        seeds_for_difference(bad, Design(1.0, 1.0))
    with pytest.raises(ValueError, match=r"^margin"):
        seeds_for_equivalence(bad, Design(1.0, 1.0))
    if bad != 0:
        with pytest.raises(ValueError, match=r"^standard deviations"):
            Design(1.0, bad)
    with pytest.raises(ValueError, match="not all 0"):
        Design(0.0, 0.0)
    with pytest.raises(ValueError, match=r"^family"):
        Design(1.0, 1.0, family=0)


@pytest.mark.parametrize(("seeds", "windows"), [(3, 16), (5, 16), (10, 64)])
def test_what_a_suite_can_find_is_what_simulated_ones_find(seeds, windows):
    """Power and bound of the functions that judge real suites, with the documented noise."""
    noise, found = DOCUMENTED, prospect(3, seeds, windows)
    rng, tokens, rounds = np.random.default_rng(6), np.full(windows, 512.0), 400
    shown, bounds = 0, []
    for _ in range(rounds):
        rows = 3.6 + noise.seed / 100 * rng.normal(size=(3, seeds, 1))
        of_text = np.hypot(noise.window, noise.document) / 100
        rows = rows + of_text * rng.normal(size=(3, 1, windows))
        pairs = {}
        for a, b in ((0, 1), (0, 2), (1, 2)):
            pairs[a, b] = compare_on_text(rows[a] * tokens, rows[b] * tokens, tokens).estimate
        e = pairs[0, 1]
        moved = Estimate(e.difference + found.difference / 100, e.std_error, e.df)
        shown += moved.p_value < 0.025

        def limits(a, b, level, pairs=pairs):
            if (a, b) in pairs:
                return pairs[a, b].interval(level)
            low, high = pairs[b, a].interval(level)
            return -high, -low

        bounds += [s.at_most for s in standings([0, 1, 2], limits)]
    assert shown / rounds == pytest.approx(0.8, abs=0.09)
    assert np.median(bounds) * 100 == pytest.approx(found.bound, rel=0.15)


@pytest.mark.parametrize("change", [{"methods": 1}, {"seeds": 1}, {"windows": 7}, {"alpha": 0.6}])
def test_a_suite_that_cannot_compare_has_no_prospect(change):
    (name,) = change
    with pytest.raises(ValueError, match=name):
        prospect(**{"methods": 3, "seeds": 5, "windows": 16, **change})
