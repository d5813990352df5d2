"""How often whole suites are wrong, in seconds; `benchmarks/error_rates.py` takes minutes."""

import importlib.util
import math
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[4] / "benchmarks" / "error_rates.py"
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


@pytest.mark.parametrize(("windows", "seeds", "least"), [(16, 5, 92), (16, 30, 92), (64, 10, 93.5)])
def test_the_headline_interval_holds_on_other_text(rates, windows, seeds, least):
    got = rates.fixed(windows, seeds, "normal", SUITES)
    assert least - room(95) <= got["coverage_percent"] <= 97 + room(95)
    assert got["coverage_of_seeds_alone_percent"] < 85 < got["coverage_percent"]
    assert got["false_different_percent"] <= 5 + room(5)
    assert got["false_equivalent_percent"] <= 5 + room(5)


def test_without_the_text_more_seeds_make_it_worse(rates):
    few, many = (rates.fixed(16, n, "normal", SUITES) for n in (5, 30))
    name = "coverage_of_seeds_alone_percent"
    assert 55 < few[name] < 75
    assert 20 < many[name] < 40


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
