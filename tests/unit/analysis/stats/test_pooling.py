"""The average over models against statsmodels' meta-analysis."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.meta_analysis import combine_effects

from analysis.stats.pooling import log_difference, pool_models


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # statsmodels, tau2 < 0
def test_against_statsmodels():
    rng = np.random.default_rng(0)
    seen = {"homogeneous": 0, "floor": 0, "wider": 0}
    for _ in range(500):
        k = int(rng.integers(2, 9))
        error = rng.uniform(0.002, 0.02, size=k)
        y = -0.01 + rng.choice([0.0, 0.02]) * rng.normal(size=k) + error * rng.normal(size=k)
        got = pool_models(y, error)
        oracle = combine_effects(y, error**2, method_re="dl", use_t=True)
        if oracle.tau2 <= 0:  # statsmodels goes on with a negative variance; its fixed effect is 0
            seen["homogeneous"] += 1
            assert got.tau == 0
            mean, plain = oracle.mean_effect_fe, oracle.sd_eff_w_fe
            scaled = plain * math.sqrt(oracle.q / (k - 1))
            interval = oracle.conf_int()[0]
        else:
            assert got.tau == pytest.approx(math.sqrt(oracle.tau2), rel=1e-9)
            mean, plain = oracle.mean_effect_re, oracle.sd_eff_w_re
            scaled = oracle.sd_eff_w_re_hksj
            seen["floor" if scaled < plain else "wider"] += 1
            interval = oracle.conf_int()[3 if scaled >= plain else 1]
        assert got.log_ratio == pytest.approx(mean, rel=1e-9)
        assert got.std_error == pytest.approx(max(plain, scaled), rel=1e-9)
        assert got.log_ratio_ci95 == pytest.approx(tuple(interval), rel=1e-9)
    assert min(seen.values()) > 30


def test_the_estimate_is_marked_exploratory_and_read_in_percent():
    got = pool_models([-0.01, -0.03, 0.005], [0.01, 0.012, 0.02])
    assert got.exploratory is True
    assert (got.n_models, got.df) == (3, 2)
    assert got.percent == pytest.approx(100 * (math.exp(got.log_ratio) - 1))
    expected = [100 * (math.exp(x) - 1) for x in got.log_ratio_ci95]
    assert got.percent_ci95 == pytest.approx(expected)
    json.dumps(dataclasses.asdict(got), allow_nan=False)


def test_models_that_agree_by_luck_do_not_shrink_the_interval():
    got = pool_models([-0.01, -0.01, -0.01], [0.02, 0.02, 0.02])
    assert got.tau == 0
    assert got.std_error == pytest.approx(0.02 / math.sqrt(3))


def test_the_sign_turns_with_the_direction():
    y, error = [-0.02, 0.03, 0.01, -0.05], [0.01, 0.02, 0.01, 0.015]
    forward, back = pool_models(y, error), pool_models([-x for x in y], error)
    assert forward.log_ratio == pytest.approx(-back.log_ratio)
    assert (forward.std_error, forward.tau) == pytest.approx((back.std_error, back.tau))


@pytest.mark.parametrize(("tau", "k"), [(0.0, 4), (0.02, 4), (0.05, 8)])
def test_interval_covers_the_truth_in_95_percent_or_more(tau, k):
    rng = np.random.default_rng(1)
    hits, rounds = 0, 800
    for _ in range(rounds):
        error = rng.uniform(0.005, 0.02, size=k)
        low, high = pool_models(
            0.01 + tau * rng.normal(size=k) + error * rng.normal(size=k), error
        ).log_ratio_ci95
        hits += low <= 0.01 <= high
    assert hits / rounds > 0.95 - 3 * math.sqrt(0.05 * 0.95 / rounds)


@pytest.mark.parametrize("k", [0, 1])
def test_one_model_is_no_average(k):
    got = dataclasses.asdict(pool_models([0.01] * k, [0.02] * k))
    assert "needs 2" in got["reason"]
    assert {f for f, v in got.items() if v is not None} == {"n_models", "reason", "exploratory"}


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([0.1, 0.2], [0.1], "one shape"),
        ([0.1, 0.2], [0.1, 0.0], "std_errors above 0"),
        ([0.1, math.nan], [0.1, 0.1], "finite"),
        ([0.1, 0.2], [0.1, math.inf], "finite|above 0"),
    ],
)
def test_bad_input_is_refused(y, error, message):
    with pytest.raises(ValueError, match=message):
        pool_models(y, error)


def test_difference_of_logs():
    a, b = [5.62, 5.70, None, 5.82], [5.64, 5.73, 5.96]
    logs = np.log([5.62, 5.70, 5.82]), np.log(b)
    expected = stats.ttest_ind(*logs, equal_var=False)
    estimate, error = log_difference(a, b)
    assert estimate == pytest.approx(logs[0].mean() - logs[1].mean())
    assert estimate / error == pytest.approx(expected.statistic, rel=1e-9)


def test_difference_to_a_deterministic_method_has_the_error_of_the_other():
    a = [5.62, 5.70, 5.82]
    expected = stats.sem(np.log(a))
    for repeats in (2, 5):
        assert log_difference(a, [5.83] * repeats)[1] == pytest.approx(expected)
        assert log_difference([5.83] * repeats, a)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("a", "b"), [([5.7] * 5, [5.8] * 5), ([5.7], [5.6, 5.8]), ([], [5.7, 5.8])]
)
def test_difference_of_logs_without_an_error_is_none(a, b):
    assert log_difference(a, b) is None


def test_logs_need_positive_values():
    with pytest.raises(ValueError, match=r"^b .*-1"):
        log_difference([5.0, 6.0], [5.0, -1.0])
