"""A family judged: both kinds of claim adjusted, and the intervals that decided."""

import dataclasses
import json

import numpy as np
import pytest

from analysis.stats import Estimate, holm, judge
from analysis.stats.verdicts import holm_levels


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
    with pytest.raises(ValueError, match="margins must be above 0; got 0"):
        judge([None], [0.0])
