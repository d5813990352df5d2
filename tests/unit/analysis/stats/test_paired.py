"""The paired comparison of two models against statsmodels' cluster covariance."""

import dataclasses
import json
import math

import numpy as np
import pytest
import statsmodels.api as sm

from analysis.stats import paired_windows


def windows(rng, n_clusters=30, noise=0.05, effect=0.02):
    """Windows of unequal length in clusters of unequal size that share a part of the difference."""
    cluster = np.repeat(np.arange(n_clusters), rng.integers(1, 8, size=n_clusters))
    tokens = rng.integers(50, 512, size=cluster.size).astype(float)
    b = tokens * rng.uniform(2, 4, size=cluster.size)
    shared = noise * rng.normal(size=n_clusters)[cluster]
    a = b + tokens * (effect + shared + noise * rng.normal(size=cluster.size))
    return a, b, tokens, cluster


def test_against_statsmodels():
    """Weighted least squares on a constant, cluster covariance with its G/(G - 1) correction."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b, tokens, cluster = windows(rng, n_clusters=int(rng.integers(2, 40)))
        got = paired_windows(a, b, tokens, cluster)
        fit = sm.WLS((a - b) / tokens, np.ones_like(a), weights=tokens).fit(
            cov_type="cluster", cov_kwds={"groups": cluster}, use_t=True
        )
        assert got.diff_nll == pytest.approx(fit.params[0], rel=1e-9)
        assert got.diff_nll_se == pytest.approx(fit.bse[0], rel=1e-9)
        assert got.diff_nll_ci95 == pytest.approx(tuple(fit.conf_int()[0]), rel=1e-8)
        assert got.df == got.n_clusters - 1 == np.unique(cluster).size - 1


def test_percent_is_the_ratio_of_the_two_perplexities():
    a, b, tokens, cluster = windows(np.random.default_rng(1))
    got = paired_windows(a, b, tokens, cluster)
    ratio = np.exp(a.sum() / tokens.sum()) / np.exp(b.sum() / tokens.sum())
    assert got.ppl_percent == pytest.approx(100 * (ratio - 1), rel=1e-9)
    expected = [100 * (math.exp(x) - 1) for x in got.diff_nll_ci95]
    assert got.ppl_percent_ci95 == pytest.approx(expected, rel=1e-9)
    assert (got.n_windows, got.n_tokens) == (a.size, tokens.sum())


def test_swapping_the_models_turns_the_answer_round():
    a, b, tokens, cluster = windows(np.random.default_rng(2))
    forward, back = paired_windows(a, b, tokens, cluster), paired_windows(b, a, tokens, cluster)
    assert forward.diff_nll == pytest.approx(-back.diff_nll)
    assert forward.diff_nll_se == pytest.approx(back.diff_nll_se)


def test_order_of_windows_and_names_of_clusters_do_not_matter():
    rng = np.random.default_rng(3)
    a, b, tokens, cluster = windows(rng)
    order = rng.permutation(a.size)
    names = np.array([f"speech-{c * 7 % 31}" for c in cluster])
    plain = dataclasses.asdict(paired_windows(a, b, tokens, cluster))
    mixed = dataclasses.asdict(paired_windows(a[order], b[order], tokens[order], names[order]))
    for field, value in plain.items():
        assert mixed[field] == (pytest.approx(value) if value is not None else None)


def test_windows_that_move_together_widen_the_error():
    a, b, tokens, cluster = windows(np.random.default_rng(4))
    apart = paired_windows(a, b, tokens, np.arange(a.size))
    assert paired_windows(a, b, tokens, cluster).diff_nll_se > 1.2 * apart.diff_nll_se


def test_pairing_is_far_tighter_than_two_perplexities():
    a, b, tokens, cluster = windows(np.random.default_rng(5), noise=0.01)
    alone = paired_windows(a, np.zeros_like(a), tokens, cluster)
    assert paired_windows(a, b, tokens, cluster).diff_nll_se < alone.diff_nll_se / 5


def test_interval_covers_the_truth_in_95_percent():
    rng = np.random.default_rng(6)
    effect, hits, rounds = 0.02, 0, 1000
    for _ in range(rounds):
        got = paired_windows(*windows(rng, n_clusters=60, effect=effect))
        low, high = got.diff_nll_ci95
        hits += low <= effect <= high
    # unequal clusters cost about a percent, as the docstring warns
    assert 0.925 < hits / rounds < 0.97


@pytest.mark.parametrize("offset", [0.0, 0.25])
def test_the_same_difference_everywhere_has_no_error(offset):
    _, b, tokens, cluster = windows(np.random.default_rng(7))
    got = paired_windows(b + offset * tokens, b, tokens, cluster)
    assert got.diff_nll == pytest.approx(offset)
    assert "same in every cluster" in got.reason
    assert [got.diff_nll_se, got.diff_nll_ci95, got.ppl_percent_ci95, got.df] == [None] * 4


def test_one_cluster_has_no_error():
    got = paired_windows([10.0, 12.0], [9.0, 12.0], [4, 4], ["x", "x"])
    assert got.diff_nll == pytest.approx(1 / 8)
    assert got.diff_nll_se is None
    assert "one cluster" in got.reason


def test_a_broken_model_still_gives_valid_json():
    got = paired_windows([1e6, 2e6, 9e6], [10.0, 11.0, 12.0], [4, 4, 4], [0, 1, 2])
    assert got.ppl_percent is None
    assert got.ppl_percent_ci95 is None
    json.dumps(dataclasses.asdict(got), allow_nan=False)


GOOD = {"nll_a": [9.0, 8.0], "nll_b": [9.0, 7.0], "tokens": [4, 4], "clusters": [0, 1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nll_b": [9.0]}, r"'nll_b': \(1,\)"),
        ({"clusters": [0, 1, 2]}, r"'clusters': \(3,\)"),
        ({key: [] for key in GOOD}, "not empty"),
        ({key: [value] for key, value in GOOD.items()}, "one shape"),
        ({"tokens": [4, 0]}, r"tokens\[1\] is 0; .*tokens above 0"),
        ({"nll_a": [9.0, -8.0]}, r"nll_a\[1\] is -8; .*NLL sums of at least 0"),
        ({"nll_b": [math.nan, 1.0]}, r"nll_b\[0\] is nan"),
        ({"nll_a": [9.0, math.inf]}, r"nll_a\[1\] is inf"),
    ],
)
def test_bad_input_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        paired_windows(**{**GOOD, **change})
