"""Two models on the same items, each right or wrong: McNemar's test of paired proportions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from analysis.stats.samples import Interval


@dataclass(frozen=True)
class PairedItems:
    """Model a against model b on the same items.

    only_a, only_b: items that one of them alone got right; the others do not tell them apart.
    diff, diff_ci95: accuracy of a minus that of b, both as shares. p_value: None without an item
    that tells them apart.
    """

    n_items: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    diff: float
    diff_ci95: Interval
    p_value: float | None


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> PairedItems:
    """Test whether two models are right equally often on the same items.

    correct_a, correct_b: shape [items], 0 or 1. The p-value is the exact two-sided binomial one for
    any number of items (McNemar 1947; conditional on the items that differ), the interval the
    Laplace-adjusted Wald one with z = 1.96 (Bonett & Price 2012).

    It speaks about these two checkpoints: what other calibration seeds would give is not in it.
    Raises ValueError for shapes that differ, no items, and values that are neither 0 nor 1.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"both must have one shape [items], not empty; got {a.shape}, {b.shape}")
    if not np.isin([a, b], (0, 1)).all():
        raise ValueError("every item must be 0 (wrong) or 1 (right)")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    differ = only_a + only_b
    p_value = stats.binomtest(only_a, differ).pvalue if differ else None
    return PairedItems(
        n_items=a.size,
        accuracy_a=float(a.mean()),
        accuracy_b=float(b.mean()),
        only_a=only_a,
        only_b=only_b,
        diff=(only_a - only_b) / a.size,
        diff_ci95=_interval(only_a, only_b, a.size),
        p_value=None if p_value is None else float(p_value),
    )


def _interval(only_a: int, only_b: int, items: int) -> Interval:
    p, q = (only_a + 1) / (items + 2), (only_b + 1) / (items + 2)
    half = float(special.ndtri(0.975)) * math.sqrt((p + q - (p - q) ** 2) / (items + 2))
    return max(-1.0, p - q - half), min(1.0, p - q + half)
