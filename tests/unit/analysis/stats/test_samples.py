"""What counts as an observation."""

import numpy as np
import pandas as pd
import pytest

from analysis.stats.samples import clean, describe, percent_change, percent_interval

NAN, INF = float("nan"), float("inf")


def test_equal_results_are_so_many_without_an_interval():
    got = describe([5.83] * 3)  # numpy's std of these is 1.1e-15
    assert got.n == 3
    assert (got.mean, got.std, got.cv_percent, got.ci95) == (5.83, 0.0, 0.0, None)


@pytest.mark.parametrize(("jitter", "constant"), [(0.9e-9, True), (1.1e-9, False)])
def test_constant_means_a_range_within_1e_9_of_the_mean(jitter, constant):
    assert clean([-7.0, -7.0 * (1 + jitter)]).constant is constant


@pytest.mark.parametrize("missing", [[None, 5.0, 6.0], [NAN, 5.0, 6.0], pd.Series([5.0, NAN, 6.0])])
def test_missing_runs_are_dropped_and_counted(missing):
    got = describe(missing)
    assert (got.n, got.n_dropped, got.mean) == (2, 1, 5.5)


@pytest.mark.parametrize("empty", [[], [None, NAN]])
def test_nothing_left_is_null_throughout(empty):
    got = describe(empty)
    assert (got.n, got.n_dropped) == (0, len(empty))
    assert [got.mean, got.std, got.cv_percent, got.min, got.max, got.ci95] == [None] * 6


def test_one_run_has_a_mean_and_no_spread():
    got = describe([5.7])
    assert (got.n, got.mean, got.min, got.max) == (1, 5.7, 5.7, 5.7)
    assert [got.std, got.cv_percent, got.ci95] == [None] * 3


def test_cv_of_negative_mean_is_positive_and_of_zero_mean_undefined():
    assert describe([-4.0, -6.0]).cv_percent == pytest.approx(100 * np.sqrt(2) / 5)
    assert describe([-1.0, 1.0]).cv_percent is None


@pytest.mark.parametrize("diverged", [INF, -INF, 1.797e308])
def test_a_diverged_run_is_refused(diverged):
    with pytest.raises(ValueError, match=r"x holds .*diverged run"):
        describe([5.0, diverged])


@pytest.mark.parametrize(
    ("bad", "message"), [([[5.0, 6.0]], r"shape \(1, 2\)"), (["five"], "numbers"), (5.0, "shape")]
)
def test_anything_but_a_list_of_numbers_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        describe(bad)


def test_percent_change():
    assert percent_change(np.log(1.02)) == pytest.approx(2)
    assert percent_change(1000) is None
    assert percent_interval(np.log(0.5), 0) == pytest.approx((-50, 0))
    assert percent_interval(0, 1000) is None
