"""What of a spread comes from which calibration set was drawn, and what from its arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.stats.samples import Interval


@dataclass(frozen=True)
class Components:
    """Standard deviations of one draw, in the unit of the values; see `components`.

    sets: between sets, without their arithmetic; replicates: between replicates of a set.
    """

    n_sets: int
    n_replicates: int
    sets: float
    sets_ci95: Interval
    replicates: float
    replicates_ci95: Interval


def components(values: ArrayLike) -> Components:
    """Estimate both standard deviations of a balanced one-way random model by analysis of variance.

    values: shape [sets, replicates], both at least 2. Where sets differ by less than replicates
    let expect, `sets` is 0. Intervals: chi-squared for replicates; for sets that of Tukey (1951)
    and Williams (1962), which covers at least as often as it says (Burdick & Graybill 1992, ch. 3).
    Both take draws to be normal. Raises ValueError for another shape, for values that are not
    finite, and where the replicates of every set are equal.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 2 or min(x.shape) < 2 or not np.isfinite(x).all():
        raise ValueError(f"values have shape {x.shape}: need finite numbers [sets, replicates]")
    n, r = x.shape
    between, within = n - 1, n * (r - 1)
    mean_square = r * float(x.mean(axis=1).var(ddof=1))
    noise = float(x.var(axis=1, ddof=1).mean())
    if noise == 0:
        raise ValueError("the replicates of every set are equal: no arithmetic to tell apart")
    ratio = mean_square / noise

    def sets(tail: float) -> float:
        excess = max(0.0, 1 - stats.f.ppf(tail, between, within) / ratio) if ratio else 0.0
        return math.sqrt(between * mean_square * excess / (r * stats.chi2.ppf(tail, between)))

    low, high = (math.sqrt(within * noise / stats.chi2.ppf(p, within)) for p in (0.975, 0.025))
    return Components(
        n_sets=n,
        n_replicates=r,
        sets=math.sqrt(max(0.0, mean_square - noise) / r),
        sets_ci95=(sets(0.975), sets(0.025)),
        replicates=math.sqrt(noise),
        replicates_ci95=(low, high),
    )
