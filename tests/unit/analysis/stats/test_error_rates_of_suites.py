"""How often whole suites are wrong, in seconds; `studies/error_rates.py` takes minutes."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[4] / "studies" / "error_rates.py"
SUITES = 400


@pytest.fixture(scope="module")
def rates():
    spec = importlib.util.spec_from_file_location("error_rates", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def room(percent, draws=SUITES):
    """Three binomial standard errors, in points."""
    return 3 * math.sqrt(percent * (100 - percent) / draws)


@pytest.mark.parametrize("truth", ["fixed eras", "fixed eras and documents", "unequal tokens"])
@pytest.mark.parametrize(("windows", "seeds"), [(16, 5), (64, 10)])
def test_the_headline_interval_holds_for_other_documents_of_the_mix(rates, truth, windows, seeds):
    got = rates.fixed(truth, windows, seeds, SUITES)
    assert 93 - room(95) <= got["mix_coverage"] <= 97 + room(95)
    assert got["mix_half_width_percent"] < 0.7 * got["eras_half_width_percent"]
    assert got["coverage_of_seeds_alone"] < got["mix_coverage"]
    assert got["false_different"] <= 5 + room(5)
    assert got["false_equivalent"] <= 5 + room(5)


def test_eras_drawn_anew_are_held_by_the_interval_over_eras(rates):
    got = rates.fixed("eras drawn anew", 64, 10, SUITES)
    assert 93 - room(95) <= got["eras_coverage"] <= 97 + room(95)
    assert got["mix_coverage"] < got["eras_coverage"]


def test_windows_of_one_process_are_more_alike_the_closer_they_lie(rates):
    rng = np.random.default_rng(0)
    draw = rates.noises(rng)["normal"]
    text = rates.profiles(rates.TRUTHS["process without documents"], draw, 400)
    for windows, known in ((16, 0.44), (64, 0.81), (166, 0.92), (466, 0.97)):
        x = text[:, np.arange(windows) * 466 // windows] / rates.PROCESS * math.sqrt(2)
        assert np.mean(x[:, 1:] * x[:, :-1]) == pytest.approx(known, abs=0.08)


@pytest.mark.parametrize(("comparisons", "ratio"), [(1, 1.0), (2, 2.0)])
def test_looking_six_times_errs_as_often_as_looking_once(rates, comparisons, ratio):
    same = rates.settled(comparisons, 0.0, ratio, 0.01, "normal", SUITES)
    assert same["any_different_percent"] <= 5 + room(5)
    at_margin = rates.settled(comparisons, 1.2, ratio, 1.2, "normal", SUITES)
    assert at_margin["any_equivalent_percent"] <= 5 + room(5)


def test_seeds_are_saved_where_methods_differ(rates):
    got = rates.settled(1, 1.5, 1.0, 0.01, "normal", SUITES)
    assert got["power_percent"] > 97
    assert got["mean_seeds"] == pytest.approx(12.3, abs=1)


def test_the_bounds_on_the_best_method_hold(rates):
    got = rates.best("fixed eras and documents", (0.0, 0.05, 0.05), 16, 5, 200)
    assert got["at_most_holds"] >= 95 - room(95, 200)
    assert got["at_least_holds"] >= 95 - room(95, 200)


@pytest.mark.parametrize(("n_a", "n_b", "ratio"), [(2, 2, 1.0), (3, 30, 4.0)])
def test_intervals_from_few_seeds_hold(rates, n_a, n_b, ratio):
    assert rates.few(n_a, n_b, ratio, 64, SUITES)["mix_coverage"] >= 95 - room(95)
