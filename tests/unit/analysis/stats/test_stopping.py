"""What a suite that ends when it is settled is said to take."""

from __future__ import annotations

import pytest

from analysis.stats.sequential import expected_share

LOOKS = (5, 10, 15, 20, 25, 30)


@pytest.mark.parametrize(("effect", "seeds"), [(0.75, 22.8), (1.0, 18.3), (1.5, 12.3), (2.0, 9.6)])
def test_seeds_of_one_comparison_are_those_of_an_independent_simulation(
    effect: float, seeds: float
) -> None:
    """References: mean seeds by another program of the same rule, to a few per cent."""
    assert 30 * expected_share(2, LOOKS, effect) == pytest.approx(seeds, rel=0.05)


def test_where_nothing_differs_nearly_all_seeds_are_done() -> None:
    assert 0.95 < expected_share(2, LOOKS, 0.0) < 1.0


def test_a_larger_difference_takes_fewer_cells_and_more_comparisons_take_more() -> None:
    shares = [expected_share(2, LOOKS, effect) for effect in (0.0, 0.5, 1.0, 2.0, 4.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == pytest.approx(5 / 30, abs=0.01)
    assert expected_share(2, LOOKS, 1.0) < expected_share(4, LOOKS, 1.0)


def test_one_look_is_a_fixed_suite() -> None:
    assert expected_share(3, (30,), 2.0) == 1.0


def test_one_method_compares_with_nothing() -> None:
    with pytest.raises(ValueError, match=r"methods.* 1"):
        expected_share(1, LOOKS, 1.0)
