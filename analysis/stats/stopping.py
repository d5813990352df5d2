"""How many seeds a suite will take that ends when its comparisons are settled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from analysis.stats.spending import nominal_levels

DRAWS = 4000


def expected_share(
    methods: int, looks: Sequence[int], effect: float, *, alpha: float = 0.05
) -> float:
    """The mean share of its cells that such a suite does: about, for planning.

    One method is held against each other one and differs from all of them by `effect` standard
    deviations of a seed. looks: numbers of seeds, the last the declared maximum. By simulation with
    a fixed seed, of normal seeds of one spread, each comparison by a t-test at its share of alpha,
    and none shown equivalent: Holm and equivalences end a suite earlier. Raises ValueError as
    `nominal_levels`, and for fewer than 2 methods.
    """
    if methods < 2:
        raise ValueError(f"a comparison needs at least 2 methods; got {methods}")
    others = methods - 1
    levels = nominal_levels(looks, looks[-1], alpha=alpha / others)
    values = np.random.default_rng(0).normal(size=(DRAWS, methods, looks[-1]))
    values[:, 0] += effect
    used = np.full((DRAWS, methods), float(looks[-1]))
    still_open = np.ones((DRAWS, others), dtype=bool)
    for n, level in zip(looks, levels, strict=True):
        first = values[:, :, :n]
        means, variances = first.mean(axis=2), first.var(axis=2, ddof=1)
        errors = np.sqrt((variances[:, :1] + variances[:, 1:]) / n)
        p = 2 * special.stdtr(2 * n - 2, -np.abs(means[:, :1] - means[:, 1:]) / errors)
        crossed = still_open & (p < level)
        still_open &= ~crossed
        used[:, 1:][crossed] = n
        ended = crossed.any(axis=1) & ~still_open.any(axis=1)
        used[ended, 0] = n
    return float(used.mean() / looks[-1])
