"""A family judged: both kinds of claim adjusted, and the intervals that decided."""

import dataclasses
import json
from functools import cache

import numpy as np
import pytest
from scipy import stats

from analysis.stats.samples import Estimate
from analysis.stats.verdicts import holm, holm_levels, judge, standings


def family(rng, size):
    return [Estimate(float(d), 1.0, float(rng.uniform(3, 40))) for d in 2 * rng.normal(size=size)]


def test_words_agree_with_the_intervals_that_decided():
    rng, words = np.random.default_rng(0), set()
    for _ in range(300):
        margin = float(rng.uniform(1, 6))
        for got in judge(family(rng, 4), [margin] * 4):
            leaves_out_zero = not got.ci[0] <= 0 <= got.ci[1]
            within = -margin < got.equivalence_ci[0] and got.equivalence_ci[1] < margin
            assert (got.verdict == "different") == leaves_out_zero == (got.p_adjusted < 0.05)
            assert within == (got.tost_p_adjusted < 0.05)
            assert (got.verdict == "equivalent") == (within and not leaves_out_zero)
            words.add(got.verdict)
    assert words == {"different", "equivalent", "inconclusive"}


def test_either_kind_is_adjusted_in_its_own_family():
    estimates, margins = family(np.random.default_rng(1), 5), [3.0, 4.0, 2.0, 5.0, 3.0]
    got = judge(estimates, margins)
    assert [x.p_adjusted for x in got] == holm([e.p_value for e in estimates])
    tost = [e.tost_p_value(m) for e, m in zip(estimates, margins, strict=True)]
    assert [x.tost_p_adjusted for x in got] == holm(tost)


def test_one_comparison_has_95_and_90_percent_intervals():
    (got,) = judge([Estimate(1.0, 1.0, 10.0)], [5.0])
    assert (got.ci_level, got.equivalence_ci_level) == (0.95, 0.9)
    assert got.ci == Estimate(1.0, 1.0, 10.0).interval(0.05)


def test_an_undefined_estimate_is_no_member_of_the_family():
    known = Estimate(3.0, 1.0, 20.0)
    got = judge([None, known], [1.0, 1.0])
    assert (got[0].verdict, got[0].p_adjusted) == ("undefined", None)
    assert got[1] == judge([known], [1.0])[0]
    json.dumps([dataclasses.asdict(x) for x in got], allow_nan=False)


@pytest.mark.parametrize(
    ("p", "levels"),
    [
        ([0.001, 0.02, 0.04], [0.05 / 3, 0.05 / 2, 0.05]),
        ([0.04, 0.001, 0.03], [0.05 / 2, 0.05 / 3, 0.05 / 2]),
        ([0.3, 0.2, None], [0.05 / 2, 0.05 / 2, None]),
        ([None], [None]),
    ],
)
def test_the_level_of_each_step(p, levels):
    assert holm_levels(p, 0.05) == levels


def test_wrong_margins_are_refused():
    with pytest.raises(ValueError, match=r"^margins .*0"):
        judge([None], [0.0])


def limits_of(values, errors, df=np.inf):
    """Limits of a difference of independent means with normal (or t) errors."""

    quantile = cache(lambda level: stats.t.ppf(1 - level / 2, df))

    def interval(a, b, level):
        half = quantile(level) * np.hypot(errors[a], errors[b])
        return values[a] - values[b] - half, values[a] - values[b] + half

    return interval


@pytest.mark.parametrize("truth", [[0.0] * 3, [0.0, 0.0, 2.0, 5.0], [0.0, 0.3, 0.6] * 4])
def test_no_method_is_worse_than_the_best_by_more_than_its_bound_in_95_percent(truth):
    rng, names = np.random.default_rng(0), list(range(len(truth)))
    errors = rng.uniform(0.2, 0.6, len(truth))
    held = least = 0
    rounds = 2000
    for _ in range(rounds):
        found = standings(names, limits_of(truth + errors * rng.normal(size=len(truth)), errors))
        held += all(t <= s.at_most for t, s in zip(truth, found, strict=True))
        least += all(t >= s.at_least for t, s in zip(truth, found, strict=True))
    assert held / rounds >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / rounds)
    assert least / rounds >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / rounds)


def test_the_bounds_of_three_methods_by_hand():
    """One-sided limits at Šidák's level for two comparisons, and two-sided ones for `at_least`."""
    values, errors = {"a": 1.0, "b": 1.5, "c": 9.0}, dict.fromkeys("abc", 0.5)
    each = 1 - 0.95**0.5
    one, two = stats.norm.isf(each) * np.hypot(0.5, 0.5), stats.norm.isf(each / 2) * np.sqrt(0.5)
    a, b, c = standings("abc", limits_of(values, errors))
    assert a.at_most == pytest.approx(max(0, -0.5 + one))
    assert b.at_most == pytest.approx(0.5 + one)
    assert c.at_most == pytest.approx(8.0 + one)
    assert (a.at_least, b.at_least) == (0, 0)
    assert c.at_least == pytest.approx(9 - 1.5 - two)


def test_methods_that_nothing_compares_are_left_out_of_the_best():
    known = limits_of({"a": 1.0, "b": 2.0, "c": 3.0}, dict.fromkeys("abc", 0.5))
    found = standings("abc", lambda a, b, level: None if "c" in (a, b) else known(a, b, level))
    assert [s.at_most is None for s in found] == [False, False, True]
    assert found[:2] == standings("ab", known)
    alone = standings("ab", lambda a, b, level: None)
    assert all(s.at_most is None for s in alone)
