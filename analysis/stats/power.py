"""What a t-test with so many seeds can find: power and detectable effects.

An effect d is a difference of means in standard deviations (Cohen 1988). Under it the t statistic
follows the noncentral t distribution with noncentrality d / scale, where scale is
sqrt(1/n_a + 1/n_b) for two groups and 1/sqrt(n) for one. Power is two-sided, both tails counted.
For two groups it is the power of Student's test: Welch's, at equal spread, has slightly less.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import optimize, special

from analysis.stats.samples import FloatArray, Interval, check_alpha, t_quantile

POWER = 0.8

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def noncentral_t_cdf(t: float, df: float, nc: float) -> float:
    """P(T <= t) for T = (Z + nc) / S with Z standard normal and df * S**2 chi-squared.

    Gauss–Legendre quadrature for df >= 1, absolute error under 1e-13 against 25-digit integration.
    scipy 1.17 will not do for near-deterministic methods, whose t is large: `nctdtr(8, 40, 2.3)`
    is NaN, and `nctdtrinc` errs by 0.4 % at (df 1, t 1e4) and hangs at (df 1, t 1e6).
    """
    if t < 0:
        return 1 - noncentral_t_cdf(-t, df, -nc)
    if t * t <= 2 * df:  # over S: the normal factor is the wider one
        s, weight = _chi_rule(df)
        return float(np.dot(weight, special.ndtr(t * s - nc)))
    if nc < -9:
        return 1.0
    low = max(-nc, -9.0)  # over Z: the chi factor is the wider one
    half = (9.0 - low) / 2
    z = low + half * (_NODES + 1)
    density = half * _WEIGHTS * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    survival = special.gammaincc(df / 2, df * ((z + nc) / t) ** 2 / 2)
    return float(special.ndtr(-nc) + np.dot(density, survival))


@lru_cache(maxsize=256)
def _chi_rule(df: float) -> tuple[FloatArray, FloatArray]:
    """Nodes s and weights, summing to 1, for the distribution of S = sqrt(chi2(df) / df)."""
    low = math.sqrt(2 * special.gammaincinv(df / 2, 1e-18) / df)
    high = math.sqrt(2 * special.gammainccinv(df / 2, 1e-18) / df)
    s = low + (high - low) / 2 * (_NODES + 1)
    # The log density up to a constant, written around its peak so that a large df cancels nothing.
    log_density = df * (np.log(s) - (s - 1) * (s + 1) / 2) - np.log(s)
    weight = _WEIGHTS * np.exp(log_density - log_density.max())
    return s, weight / weight.sum()


def noncentrality_interval(t: float, df: float, level: float = 0.95) -> Interval:
    """Exact limits of the noncentrality behind an observed t (Steiger & Fouladi 1997)."""
    if t < 0:
        low, high = noncentrality_interval(-t, df, level)
        return -high, -low
    # T is at most a few standard deviations of Z away from nc / S.
    top = t * math.sqrt(2 * special.gammainccinv(df / 2, 1e-6) / df) + 10

    def limit(probability: float) -> float:
        return float(
            optimize.brentq(lambda nc: noncentral_t_cdf(t, df, nc) - probability, -10, top)
        )

    return limit((1 + level) / 2), limit((1 - level) / 2)


def t_power(d: float, df: float, scale: float, alpha: float = 0.05) -> float:
    """Chance that a two-sided t-test at `alpha` finds a true effect of d (see the module)."""
    check_alpha(alpha)
    critical = t_quantile(1 - alpha / 2, df)
    nc = d / scale
    return 1 - noncentral_t_cdf(critical, df, nc) + noncentral_t_cdf(-critical, df, nc)


def equivalence_power(margin: float, df: float, alpha: float = 0.05) -> float:
    """Chance that two one-sided t-tests at `alpha` show |difference| < margin, when it is 0.

    margin: in standard errors of the difference. Exact for an error of df degrees of freedom.
    """
    s, weight = _chi_rule(df)
    room = margin - t_quantile(1 - alpha, df) * s
    return float(np.dot(weight, np.where(room > 0, 2 * special.ndtr(room) - 1, 0.0)))


@lru_cache(maxsize=1024)
def detectable(df: float, alpha: float = 0.05) -> float:
    """Difference, in its standard errors, that a two-sided t-test finds with 80 % power."""
    top = 3 * t_quantile(1 - alpha / 2, df) + 5
    return float(optimize.brentq(lambda nc: t_power(nc, df, 1.0, alpha) - POWER, 0, top))


def mde80(n_a: int, n_b: int, alpha: float = 0.05) -> float:
    """Smallest |d| that two groups of equal spread find with 80 % power.

    Raises ValueError when a group has fewer than 2 observations.
    """
    if min(n_a, n_b) < 2:
        raise ValueError(f"a test needs at least 2 observations a group; got {n_a} and {n_b}")
    return detectable(n_a + n_b - 2, alpha) * math.sqrt(1 / n_a + 1 / n_b)
