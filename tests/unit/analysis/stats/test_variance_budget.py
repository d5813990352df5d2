"""The variance budget: known truth comes back, and what more of each source leaves."""

import dataclasses
import json

import numpy as np
import pytest

from analysis.stats.budget import variance_budget
from analysis.stats.text import compare_on_text

SOURCES = ("seed", "arithmetic", "method_window")


def method(rng, sets, replicates, windows, truth, tokens):
    """Arrays [replicates, windows], one a set, of a method with its own windows."""
    seed, arithmetic, window, noise = truth
    profile = 3.5 + window * rng.normal(size=windows)
    found = []
    for _ in range(sets):
        level = seed * rng.normal() + arithmetic * rng.normal(size=(replicates, 1))
        shaped = profile + level + noise * rng.normal(size=(replicates, windows))
        found.append(shaped * tokens)
    return found


def test_known_truth_comes_back():
    rng = np.random.default_rng(0)
    tokens = rng.integers(200, 600, size=200).astype(float)
    truth = (0.010, 0.006, 0.03, 0.02)
    methods = {name: method(rng, 60, 3, 200, truth, tokens) for name in "abcdef"}
    got = variance_budget(methods, tokens)
    assert (got.n_methods, got.n_sets, got.n_draws, got.n_windows) == (6, 360, 1080, 200)
    # Seed x window noise averages over 200 windows into the arithmetic: 0.02 / sqrt(200).
    assert got.arithmetic.percent == pytest.approx(100 * np.hypot(0.006, 0.0015), rel=0.05)
    assert got.seed.percent == pytest.approx(1.0, rel=0.1)
    assert got.method_window.percent == pytest.approx(3.05, rel=0.1)
    assert got.arithmetic.df == 720
    assert got.seed.df == 354


def test_shares_are_those_of_the_interval():
    """Two methods of one design: the budget's error is that of `compare_on_text`, without floor."""
    rng = np.random.default_rng(1)
    tokens = np.full(64, 512.0)
    truth = (0.010, 0.006, 0.03, 0.002)
    methods = {name: method(rng, 6, 2, 64, truth, tokens) for name in "ab"}
    labels = np.repeat(np.arange(16), 4)
    got = variance_budget(methods, tokens, documents=labels)
    a, b = (np.stack([rows.mean(axis=0) for rows in methods[name]]) for name in "ab")
    error = compare_on_text(a, b, tokens, documents=labels).std_error
    assert got.std_error_percent == pytest.approx(100 * np.expm1(error), rel=1e-9)
    assert sum(getattr(got, name).share for name in SOURCES) == pytest.approx(1)
    assert got.window.share == 0


def test_what_is_left_is_the_rest_of_the_variance():
    rng = np.random.default_rng(2)
    tokens = np.full(64, 512.0)
    methods = {name: method(rng, 6, 2, 64, (0.02, 0.006, 0.003, 0.001), tokens) for name in "ab"}
    got = variance_budget(methods, tokens)
    error = np.log1p(got.std_error_percent / 100)
    text = got.method_window.share * error**2
    assert np.log1p(got.seed.left_percent / 100) ** 2 == pytest.approx(text)
    assert 0 < got.seed.left_percent < got.arithmetic.left_percent < got.std_error_percent


def test_more_windows_of_the_same_documents_halve_the_part_within_documents_alone():
    """Differences between documents are not known better from more windows of the same ones."""
    rng = np.random.default_rng(5)
    tokens, labels = np.full(256, 512.0), np.repeat(np.arange(64), 4)
    alike = {}
    for name in "ab":
        document = 0.05 * rng.normal(size=64)[labels] * 512
        sets = method(rng, 8, 1, 256, (0.002, 0.0, 0.005, 0.001), tokens)
        alike[name] = [rows + document for rows in sets]
    got = variance_budget(alike, tokens, documents=labels, available=2560)
    assert got.method_window.share > 0.9
    assert 0.9 * got.std_error_percent < got.method_window.left_percent <= got.at_best_percent
    white = {n: method(rng, 8, 1, 256, (0.001, 0.0, 0.05, 0.001), tokens) for n in "ab"}
    got = variance_budget(white, tokens, documents=labels, available=2560)
    assert got.method_window.left_percent < got.at_best_percent < 0.5 * got.std_error_percent
    unlabelled = variance_budget(white, tokens)
    assert unlabelled.at_best_percent is None
    assert "windows" in unlabelled.method_window.reason


def test_a_method_of_one_set_is_judged_by_its_replicates():
    rng = np.random.default_rng(3)
    tokens = np.full(64, 512.0)
    truth = (0.01, 0.006, 0.01, 0.001)
    several = method(rng, 8, 1, 64, truth, tokens)
    got = variance_budget({"a": several, "b": method(rng, 1, 5, 64, truth, tokens)}, tokens)
    assert (got.arithmetic.df, got.seed.df) == (4, 7)
    assert got.seed.share < 0.9


@pytest.mark.parametrize(
    ("design", "unknown"),
    [
        ([(5, 1), (5, 1)], {"arithmetic": "no set was quantized twice"}),
        ([(1, 3), (1, 2)], {"seed": "no method has two sets"}),
        ([(5, 2)], {"method_window": "needs two methods"}),
    ],
)
def test_what_was_not_varied_is_unknown(design, unknown):
    rng = np.random.default_rng(4)
    tokens = np.full(16, 512.0)
    truth = (0.01, 0.006, 0.01, 0.001)
    methods = {str(i): method(rng, *d, 16, truth, tokens) for i, d in enumerate(design)}
    got = variance_budget(methods, tokens)
    for name in SOURCES:
        source = getattr(got, name)
        if name in unknown:
            assert unknown[name] in source.reason
            assert source.share is None
        if name != "method_window":
            assert (source.percent is None) == (name in unknown)
    if "arithmetic" in unknown:
        assert "the arithmetic is in here" in got.seed.reason
    json.dumps(dataclasses.asdict(got), allow_nan=False)


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        variance_budget({}, [1.0])
    with pytest.raises(ValueError, match=r"methods\['a'\] must have shape \[n, 2\]"):
        variance_budget({"a": [np.ones((1, 3))]}, [1.0, 1.0])
