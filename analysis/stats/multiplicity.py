"""Several tests at once: adjusted p-values, and the stars that may be printed."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted so that the family-wise error rate is held (Holm 1979), in input order.

    None or NaN marks an undefined test: it does not count towards the family and comes back as
    None. Raises ValueError for a p-value outside [0, 1].
    """
    defined = [
        (p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p)
    ]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(defined)):
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{index}] is {p}; a p-value lies between 0 and 1")
        largest = max(largest, min(1.0, (len(defined) - rank) * float(p)))
        adjusted[index] = largest
    return adjusted


def holm_levels(p_values: Sequence[float | None], alpha: float) -> list[float | None]:
    """The level at which `holm` decided each test: alpha / (tests not yet rejected), input order.

    A test is rejected when its p is under its level. Those not rejected share the level at which
    the procedure stopped, so that an interval at 1 - level leaves 0 out exactly where Holm rejects.
    None where a test is undefined.
    """
    adjusted = holm(p_values)
    ranked = sorted(
        (p, index)
        for index, p in enumerate(p_values)
        if p is not None and adjusted[index] is not None
    )
    rejected = sum(p is not None and p < alpha for p in adjusted)
    levels: list[float | None] = [None] * len(p_values)
    for rank, (_, index) in enumerate(ranked):
        levels[index] = alpha / (len(ranked) - min(rank, rejected))
    return levels


def stars(p: float | None) -> str:
    """'***' under 0.001, '**' under 0.01, '*' under 0.05, else ''. Give it an adjusted p."""
    if p is None:
        return ""
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))
