"""A second opinion on the looks: AdaStop (Mathieu et al. 2023), a sequential permutation test."""

import numpy as np
import pytest
from scipy import stats

from analysis.stats.samples import Estimate
from analysis.stats.sequential import Look, judge_looks

adastop = pytest.importorskip("adastop", reason="adastop is in the extra `test`")

SEEDS, LOOKS = 5, 6


def ours(a, b):
    """The verdict, and the seeds at which it came."""
    looks = []
    for n in range(SEEDS, SEEDS * LOOKS + 1, SEEDS):
        welch = stats.ttest_ind(a[:n], b[:n], equal_var=False)
        diff = a[:n].mean() - b[:n].mean()
        looks.append(Look(n, Estimate(diff, diff / welch.statistic, welch.df)))
        (got,) = judge_looks([looks], [1e-6], SEEDS * LOOKS)
        if got.verdict != "open":
            break
    return got.verdict == "different", n


def theirs(a, b, seed):
    test = adastop.MultipleAgentsComparator(n=SEEDS, K=LOOKS, B=1000, alpha=0.05, seed=seed)
    for n in range(SEEDS, SEEDS * LOOKS + 1, SEEDS):
        test.partial_compare({"a": a[:n], "b": b[:n]}, verbose=False)
        if test.is_finished:
            break
    return set(test.decisions.values()) <= {"larger", "smaller"}, n


@pytest.mark.parametrize("effect", [0.0, 1.0, 2.5])
def test_the_two_agree(effect):
    rng = np.random.default_rng(0)
    pairs = [(effect + rng.normal(size=30), rng.normal(size=30)) for _ in range(12)]
    first = [ours(a, b) for a, b in pairs]
    second = [theirs(a, b, k) for k, (a, b) in enumerate(pairs)]
    agreed = np.mean([x[0] == y[0] for x, y in zip(first, second, strict=True)])
    assert agreed >= 10 / 12
    assert np.mean([x[0] for x in first]) == pytest.approx(float(effect > 0), abs=0.2)
    if effect > 2:
        seeds = [np.mean([n for _, n in found]) for found in (first, second)]
        assert seeds[0] == pytest.approx(seeds[1], rel=0.5)
        assert max(seeds) < SEEDS * LOOKS / 2
