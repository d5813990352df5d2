"""McNemar's test against statsmodels, and its interval against the definition by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar as reference

from analysis.stats.comparison import mcnemar


def items(both, only_a, only_b, neither):
    """Return right and wrong of two models, item by item, from the four counts."""
    a = [1] * both + [1] * only_a + [0] * only_b + [0] * neither
    b = [1] * both + [0] * only_a + [1] * only_b + [0] * neither
    return a, b


@given(st.tuples(*[st.integers(0, 60)] * 4).filter(lambda c: c[1] + c[2] > 0))
def test_p_is_that_of_statsmodels(counts):
    both, only_a, only_b, neither = counts
    found = mcnemar(*items(*counts))
    expected = reference([[both, only_a], [only_b, neither]], exact=True).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.diff == pytest.approx(found.accuracy_a - found.accuracy_b)
    assert found.diff_ci95[0] <= found.diff <= found.diff_ci95[1]


def test_many_items():
    found = mcnemar(*items(9000, 700, 600, 5000))
    expected = reference([[9000, 700], [600, 5000]], exact=True).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)
    large = reference([[9000, 700], [600, 5000]], exact=False).pvalue
    assert found.p_value == pytest.approx(large, rel=0.05)


def test_models_that_answer_alike_cannot_be_told_apart():
    found = mcnemar([1, 0, 1], [1, 0, 1])
    assert found.p_value is None
    assert (found.diff, found.only_a, found.only_b) == (0, 0, 0)


def test_swapping_the_models_turns_the_sign():
    a, b = items(100, 30, 12, 58)
    one, other = mcnemar(a, b), mcnemar(b, a)
    assert one.diff == -other.diff
    assert one.p_value == other.p_value
    assert one.diff_ci95 == pytest.approx((-other.diff_ci95[1], -other.diff_ci95[0]))


def test_the_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    shares = (0.5, 0.12, 0.06, 0.32)
    counts = rng.multinomial(200, shares, size=2000)
    limits = [mcnemar(*items(*row)).diff_ci95 for row in counts]
    covered = np.mean([low <= 0.06 <= high for low, high in limits])
    assert covered == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [([1, 0], [1], "one shape"), ([], [], "not empty"), ([0.5, 1], [1, 1], "0 .wrong. or 1")],
)
def test_what_is_no_pair_of_answers_is_refused(a, b, message):
    with pytest.raises(ValueError, match=message):
        mcnemar(a, b)
