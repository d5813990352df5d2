"""Is one method steadier than another? Spread compared on the log scale.

The standard deviation of log values is, for small spreads, the coefficient of variation as a
fraction, so a ratio of the two is a ratio of CVs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from analysis.stats import power
from analysis.stats.samples import FloatArray, Interval, Sample, Values, check_alpha, clean


@dataclass(frozen=True)
class SpreadComparison:
    """Spread of a against spread of b; every undefined number is None. See `compare_spread`.

    n_a, n_b: independent observations. f_stat, df (1 and n_a + n_b - 2), p_value: the test.
    sd_log_a, sd_log_b: standard deviations (ddof 1) of the log values, without unit.
    sd_ratio, sd_ratio_ci95: sd_log_a / sd_log_b; under 1 means that a is steadier.
    n_for_halving: seeds a group that would find a ratio of 2 (or 1/2) with 80 % power.
    """

    test: Literal["brown-forsythe"] | None
    n_a: int
    n_b: int
    reason: str | None
    f_stat: float | None = None
    df: tuple[int, int] | None = None
    p_value: float | None = None
    sd_log_a: float | None = None
    sd_log_b: float | None = None
    sd_ratio: float | None = None
    sd_ratio_ci95: Interval | None = None
    n_for_halving: int | None = None


def compare_spread(a: Values, b: Values, *, alpha: float = 0.05) -> SpreadComparison:
    """Test whether two groups of positive results (perplexities) are equally spread.

    a, b: shapes [n_a], [n_b]; NaN or None is dropped. alpha: level that n_for_halving plans for.

    Test: Brown & Forsythe (1974), an F-test on distances from each group's median, of log values.
    It holds its level for skewed data, but at five seeds it is very cautious: it rejects in 0.6 %
    of null cases and finds a halving in 3 %. A large p there says nothing; read n_for_halving.
    Interval of the ratio: from the F distribution, which assumes normal log values and cannot be
    checked at such n; it may exclude 1 where the test does not reject. The test decides.

    Undefined, with a reason: a constant group (one observation, no spread to compare), n < 3 (the
    two distances from a median are equal by construction), and no variation of those distances.
    Raises ValueError for values that are not positive or not finite.
    """
    check_alpha(alpha)
    sample_a, sample_b = clean(a, "a"), clean(b, "b")
    n_a, n_b = sample_a.n_independent, sample_b.n_independent
    reason = _why_undefined("a", sample_a) or _why_undefined("b", sample_b)
    if reason:
        return SpreadComparison(None, n_a, n_b, reason)
    log_a, log_b = _log(sample_a, "a"), _log(sample_b, "b")
    f_stat = _brown_forsythe(log_a, log_b)
    if f_stat is None:
        reason = "the distances from the median are equal within each group: no F statistic"
        return SpreadComparison(None, n_a, n_b, reason)
    df = (1, n_a + n_b - 2)
    sd_a, sd_b = float(np.std(log_a, ddof=1)), float(np.std(log_b, ddof=1))
    return SpreadComparison(
        test="brown-forsythe",
        n_a=n_a,
        n_b=n_b,
        reason=None,
        f_stat=f_stat,
        df=df,
        p_value=float(special.fdtrc(*df, f_stat)),
        sd_log_a=sd_a,
        sd_log_b=sd_b,
        sd_ratio=sd_a / sd_b,
        sd_ratio_ci95=_ratio_interval(sd_a / sd_b, n_a, n_b),
        n_for_halving=seeds_to_find_halving(alpha),
    )


def seeds_to_find_halving(alpha: float = 0.05) -> int:
    """Seeds a group with which the test finds one standard deviation half the other, power 80 %.

    Normal theory for the distances from a known centre: they are half-normal with mean
    sigma sqrt(2/pi) and variance sigma**2 (1 - 2/pi), and the test is a t-test between them. In
    simulation the Brown–Forsythe test needs the same number (24 at alpha 0.05, 36 at 0.01).
    """
    mean_gap = (2 - 1) * math.sqrt(2 / math.pi)
    sd = math.sqrt((1 - 2 / math.pi) * (2**2 + 1**2) / 2)
    seeds = power.n_for_80(mean_gap / sd, groups=2, alpha=alpha)
    assert seeds is not None  # the effect is a constant, about 0.84
    return math.ceil(seeds)


def _why_undefined(name: str, sample: Sample) -> str | None:
    if sample.n < 3:
        return f"{name} has n = {sample.n}: a comparison of spread needs at least 3 runs a group"
    if sample.constant:
        return f"{name} is constant: one observation however often it was run, without a spread"
    return None


def _log(sample: Sample, name: str) -> FloatArray:
    if sample.values.min() <= 0:
        raise ValueError(f"{name} holds {sample.values.min():g}; logs need values above 0")
    return np.log(sample.values)


def _brown_forsythe(x: FloatArray, y: FloatArray) -> float | None:
    """F statistic between the distances from the medians; None when they do not vary."""
    distances = [np.abs(group - np.median(group)) for group in (x, y)]
    everything = np.concatenate(distances)
    within = sum(float(np.sum((z - z.mean()) ** 2)) for z in distances)
    between = sum(z.size * float(z.mean() - everything.mean()) ** 2 for z in distances)
    if within <= 1e-18 * float(np.sum(everything**2)):
        return None
    return float(between / within * (everything.size - 2))


def _ratio_interval(ratio: float, n_a: int, n_b: int) -> Interval:
    """95 % limits of a ratio of standard deviations of two normal samples."""
    low, high = special.fdtri(n_a - 1, n_b - 1, [0.025, 0.975])
    return ratio / math.sqrt(high), ratio / math.sqrt(low)
