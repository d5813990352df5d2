"""Looking more than once: how much of alpha each look may spend, and the level that leaves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import optimize, special

from analysis.stats.samples import FloatArray

Spending = Callable[[float, float], float]
"""(alpha of one side, share of the information) -> alpha spent so far; all of it at share 1."""

# Beyond so many standard deviations there is nothing to integrate, and no level to spend.
FAR = 8.5


def hwang_shih_decani(alpha: float, t: float, gamma: float = -2.0) -> float:
    """alpha (1 - exp(-gamma t)) / (1 - exp(-gamma)): Hwang, Shih & DeCani (1990)."""
    return alpha * math.expm1(-gamma * t) / math.expm1(-gamma)


def obrien_fleming(alpha: float, t: float) -> float:
    """2 - 2 Phi(z(alpha / 2) / sqrt(t)): like O'Brien & Fleming's test (Lan & DeMets 1983)."""
    return float(2 * special.ndtr(special.ndtri(alpha / 2) / math.sqrt(t)))


def pocock(alpha: float, t: float) -> float:
    """alpha log(1 + (e - 1) t): like Pocock's test (Lan & DeMets 1983)."""
    return alpha * math.log1p(math.expm1(1) * t)


def nominal_levels(
    looks: Sequence[int],
    maximum: int,
    *,
    alpha: float = 0.05,
    sides: int = 2,
    spending: Spending = hwang_shih_decani,
) -> list[float]:
    """The level at which to test at each look, so that all looks together err in alpha.

    looks: seeds at each look, rising, the last at most `maximum`, the declared one; looks that were
    not planned may be among them, so long as the results did not call for them. Information is
    n / maximum. sides: 2 for a two-sided p-value at alpha in all, 1 for a one-sided one at alpha,
    such as each half of two one-sided tests.

    Each side spends alpha / sides. The boundaries come from recursive integration over the
    correlated normal statistics (Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000,
    chapter 19); a t-test is compared with them by its p-value (Jennison & Turnbull 2000, section
    11.5). Two-sided, a run that has crossed one boundary no longer crosses the other.
    Raises ValueError for looks, sides or alpha out of range.
    """
    if not looks or min(looks) < 1 or any(b <= a for a, b in pairwise(looks)):
        raise ValueError(f"looks must rise from at least 1; got {list(looks)}")
    if looks[-1] > maximum:
        raise ValueError(f"looks go to {looks[-1]}, beyond the declared maximum of {maximum}")
    if sides not in (1, 2):
        raise ValueError(f"sides must be 1 or 2; got {sides}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1; got {alpha!r}")
    return list(_levels(tuple(looks), maximum, float(alpha), sides, spending))


@lru_cache(maxsize=4096)
def _levels(
    looks: tuple[int, ...], maximum: int, alpha: float, sides: int, spending: Spending
) -> tuple[float, ...]:
    times = [n / maximum for n in looks]
    spent, before, levels = 0.0, 0.0, []
    # Of the score, before the first look.
    points: FloatArray = np.zeros(1)
    density: FloatArray = np.ones(1)
    for t in times:
        target = spending(alpha / sides, t) - spent
        step, root = math.sqrt(t - before), math.sqrt(t)
        z = _boundary(points, density, step, root, target)
        levels.append(float(min(1.0, sides * special.ndtr(-z))))
        high = z * root
        low = -high if sides == 2 else -FAR * root
        rule, weights = _rule(2 + int((high - low) / step / 8))
        nodes = low + (high - low) / 2 * (rule + 1)
        kernel = np.exp(-(((nodes[:, None] - points) / step) ** 2) / 2)
        weights = (high - low) / 2 * weights / (step * math.sqrt(2 * math.pi))
        points, density = nodes, weights * (kernel @ density)
        spent, before = spent + target, t
    return tuple(levels)


@lru_cache(maxsize=64)
def _rule(size: int) -> tuple[FloatArray, FloatArray]:
    """Gauss-Legendre nodes and weights on (-1, 1): 32 for every 8 standard deviations of a step."""
    nodes, weights = np.polynomial.legendre.leggauss(32 * min(size, 64))
    return nodes, weights


def _boundary(
    points: FloatArray, density: FloatArray, step: float, root: float, target: float
) -> float:
    """The z that the statistic first passes here with probability `target`."""

    def excess(z: float) -> float:
        return float(np.dot(density, special.ndtr((points - z * root) / step))) - target

    if target <= 0 or excess(FAR) >= 0:
        return FAR
    return float(optimize.brentq(excess, -FAR, FAR, xtol=1e-12))
