"""Holm's adjustment and the stars that follow from it."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from analysis.stats.verdicts import holm, stars

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def random_family(rng):
    p = rng.uniform(size=rng.integers(1, 12)) ** 3
    p[rng.uniform(size=p.size) < 0.2] = p[0]  # ties
    return p


def test_against_statsmodels():
    rng = np.random.default_rng(0)
    for _ in range(10):  # statsmodels takes 50 ms each
        p = random_family(rng)
        np.testing.assert_allclose(holm(list(p)), multipletests(p, method="holm")[1], rtol=1e-12)


def test_against_the_closed_form():
    """The largest, over all p_j <= p_i, of p_j times the number of p-values not under p_j."""
    rng = np.random.default_rng(1)
    for _ in range(1000):
        p = random_family(rng)
        steps = p * (p >= p[:, None]).sum(axis=1)
        expected = np.minimum(1, [steps[p <= x].max() for x in p])
        np.testing.assert_allclose(holm(list(p)), expected, rtol=1e-12)


@QUICK
@given(st.lists(st.none() | st.just(math.nan) | st.floats(0, 1), max_size=8))
def test_undefined_tests_do_not_count(p):
    defined = [x for x in p if x is not None and not math.isnan(x)]
    adjusted = holm(p)
    assert [x for x in adjusted if x is not None] == holm(defined)
    assert len(adjusted) == len(p)
    assert all(q >= x for x, q in zip(defined, holm(defined), strict=True))
    assert all(q <= 1 for q in holm(defined))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_p_value_out_of_range_is_refused(p):
    with pytest.raises(ValueError, match=r"p_values\[1\]"):
        holm([0.5, p])


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (None, ""),
        (1.0, ""),
        (0.05, ""),
        (0.049, "*"),
        (0.01, "*"),
        (0.0099, "**"),
        (0.001, "**"),
        (0.00099, "***"),
        (0.0, "***"),
    ],
)
def test_stars(p, expected):
    assert stars(p) == expected
