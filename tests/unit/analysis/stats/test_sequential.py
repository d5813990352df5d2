"""Judging after several looks: the rule by hand, and what stays settled."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import special, stats

from analysis.stats.samples import Estimate
from analysis.stats.sequential import (
    Look,
    judge_looks,
    median_unbiased,
    nominal_levels,
    sequential_p,
)
from analysis.stats.verdicts import holm, judge

LOOKS = (5, 10, 15, 20, 25, 30)


def at(p, n=10, error=1.0, df=20.0):
    """A look whose two-sided p-value is `p`."""
    return Look(n, Estimate(error * float(stats.t.isf(p / 2, df)), error, df))


def same_sized(ps, error=1.0):
    return [at(p, n, error) for p, n in zip(ps, LOOKS, strict=False)]


@pytest.mark.parametrize("sides", [1, 2])
@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.0125, 0.001])
def test_sequential_p_is_the_alpha_at_which_a_look_just_rejects(alpha, sides):
    levels = nominal_levels(LOOKS, 30, alpha=alpha, sides=sides)
    for k, level in enumerate(levels):
        p = [0.9] * len(levels)
        p[k] = level
        assert sequential_p(p, LOOKS, 30, sides=sides) == pytest.approx(alpha, rel=1e-5)
    assert sequential_p(levels, LOOKS, 30, sides=sides) == pytest.approx(alpha, rel=1e-5)


def test_one_look_at_the_maximum_is_the_fixed_family():
    rng = np.random.default_rng(0)
    estimates = [Estimate(float(d), 1.0, 12.0) for d in 2 * rng.normal(size=5)]
    fixed = judge(estimates, [4.0] * 5)
    looked = judge_looks([[Look(30, e)] for e in estimates], [4.0] * 5, 30)
    assert [x.verdict for x in looked] == [x.verdict for x in fixed]
    for a, b in zip(looked, fixed, strict=True):
        assert a.p_adjusted == pytest.approx(b.p_adjusted, rel=1e-5)
        assert a.tost_p_adjusted == pytest.approx(b.tost_p_adjusted, rel=1e-5)
        assert a.ci == pytest.approx(b.ci, rel=1e-6)


def test_the_group_sequential_holm_procedure_by_hand():
    """Step by step as Maurer & Bretz write it: reject, pass the alpha on, look again."""
    rng = np.random.default_rng(1)
    settled = 0
    for _ in range(40):
        ps = rng.uniform(size=(3, 4)) ** 4
        rejected: set[int] = set()
        while True:
            levels = nominal_levels(LOOKS[:4], 30, alpha=0.05 / max(1, 3 - len(rejected)))
            found = {k for k in range(3) if k not in rejected and np.any(ps[k] < levels)}
            if not found:
                break
            rejected.add(min(found))
        got = judge_looks([same_sized(p, 1e6) for p in ps], [1e-9] * 3, 30)
        assert {k for k in range(3) if got[k].verdict == "different"} == rejected
        adjusted = holm([sequential_p(p, LOOKS[:4], 30) for p in ps])
        assert [x.p_adjusted for x in got] == pytest.approx(adjusted)
        settled += len(rejected)
    assert 20 < settled < 100


def test_settled_stays_settled_and_keeps_the_interval_that_decided():
    (got,) = judge_looks([same_sized([0.5, 0.0001, 0.3])], [0.1], 30)
    assert (got.verdict, got.decided_at, got.n) == ("different", 10, 15)
    levels = nominal_levels(LOOKS[:3], 30)
    assert got.ci_level == pytest.approx(1 - levels[1])
    assert got.ci == pytest.approx(at(0.0001).estimate.interval(levels[1]))
    assert not got.ci[0] <= 0 <= got.ci[1]


def test_equivalence_uses_the_one_sided_levels():
    level = nominal_levels([5], 30, sides=1)[0]
    error, df, margin = 1.0, 8.0, 10.0
    for factor, word in ((0.99, "equivalent"), (1.01, "open")):
        diff = margin + error * float(stats.t.ppf(level * factor, df))
        (got,) = judge_looks([[Look(5, Estimate(diff, error, df))]], [margin], 30)
        if word == "open":
            assert got.tost_p_adjusted > 0.05
        else:
            assert got.tost_p_adjusted < 0.05
        assert (got.equivalence_ci[1] < margin) == (word == "equivalent")


def test_words_at_and_before_the_maximum():
    wide = [Look(n, Estimate(0.5, 1.0, 10.0)) for n in LOOKS]
    for k, n in enumerate(LOOKS):
        (got,) = judge_looks([wide[: k + 1]], [0.1], 30)
        assert got.verdict == ("inconclusive" if n == 30 else "open")
    (none,) = judge_looks([[]], [0.1], 30)
    assert none.verdict == "undefined"
    json.dumps([dataclasses.asdict(x) for x in (got, none)], allow_nan=False)


def test_a_rejection_hands_its_alpha_to_looks_that_were_had():
    """A p that misses alpha / 2 at its look passes when the other comparison is settled later."""
    half, whole = (nominal_levels([5], 30, alpha=a)[0] for a in (0.025, 0.05))
    p = (half + whole) / 2
    alone = judge_looks([[at(p, 5)], [at(0.5, 5)]], [1e-9, 1e-9], 30)
    later = judge_looks([[at(p, 5)], [at(0.5, 5), at(1e-6, 10)]], [1e-9, 1e-9], 30)
    assert [x.verdict for x in alone] == ["open", "open"]
    assert [x.verdict for x in later] == ["different", "different"]


@pytest.mark.parametrize("drift", [0.0, 2.0, 3.5])
def test_the_estimate_of_a_test_that_ended_early_is_median_unbiased(drift):
    """Over suites that end where they cross; the plain estimate lies above in more than half."""
    looks, levels = (10, 20, 30), nominal_levels((10, 20, 30), 30)
    times = np.array(looks) / 30
    steps = np.sqrt(np.diff(times, prepend=0.0))
    rng, above, plain, rounds = np.random.default_rng(5), 0, 0, 1500
    bounds = -special.ndtri(np.array(levels) / 2)
    for score in np.cumsum(steps * rng.normal(size=(rounds, 3)), axis=1) + drift * times:
        z = score / np.sqrt(times)
        k = next((k for k in range(3) if abs(z[k]) > bounds[k]), 2)
        factor = median_unbiased(z[k], looks[: k + 1], 30, levels[: k + 1])
        estimate = z[k] / np.sqrt(times[k])
        above += factor * estimate > drift
        plain += estimate > drift
    assert above / rounds == pytest.approx(0.5, abs=3 * np.sqrt(0.25 / rounds))
    if drift == 3.5:
        assert plain / rounds > 0.55
