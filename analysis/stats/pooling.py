"""One method against another across several models: random effects on log perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.stats.samples import (
    FloatArray,
    Interval,
    Values,
    clean,
    logarithms,
    percent_change,
    percent_interval,
    t_quantile,
)


@dataclass(frozen=True)
class PooledModels:
    """The average effect over models; None where undefined. Always exploratory.

    n_models: how many; df: n_models - 1. log_ratio, std_error, log_ratio_ci95: mean difference
    of log perplexity. percent, percent_ci95: the same as a change of perplexity in %.
    tau: standard deviation of the true effect between models, on the log scale.
    """

    n_models: int
    reason: str | None
    exploratory: bool = True
    df: int | None = None
    log_ratio: float | None = None
    std_error: float | None = None
    log_ratio_ci95: Interval | None = None
    percent: float | None = None
    percent_ci95: Interval | None = None
    tau: float | None = None


def log_difference(a: Values, b: Values) -> tuple[float, float] | None:
    """Return mean(log a) - mean(log b) and its standard error (unequal variances).

    a, b: shapes [n_a], [n_b], positive; NaN or None is dropped. A constant group is a known value
    and adds no error. None with fewer than 2 runs in a group, or with two constant groups.
    Raises ValueError for values that are not positive or not finite.
    """
    samples = clean(a, "a"), clean(b, "b")
    if min(sample.n for sample in samples) < 2 or all(sample.constant for sample in samples):
        return None
    logs = [logarithms(sample, name) for sample, name in zip(samples, "ab", strict=True)]
    variance = sum(float(np.var(x, ddof=1)) / x.size for x in logs)
    return float(logs[0].mean() - logs[1].mean()), math.sqrt(variance)


def pool_models(log_ratios: Sequence[float], std_errors: Sequence[float]) -> PooledModels:
    """Average the effect of a method over models by a random-effects meta-analysis.

    log_ratios, std_errors: shape [models], each model's difference of log perplexity and its
    standard error, as from `log_difference`; errors > 0.

    Variance between models: DerSimonian & Laird (1986). With Paule & Mandel's, the interval's scale
    would be 1 by construction. Interval: Hartung & Knapp (2001), Sidik & Jonkman (2002), t with
    models - 1 degrees of freedom, its scale never under 1, so that a few models that agree by luck
    cannot give a narrower interval than their own errors allow (Knapp & Hartung 2003). Undefined
    for fewer than two models. Raises ValueError for shapes and values out of range.
    """
    y, error = np.asarray(log_ratios, np.float64), np.asarray(std_errors, np.float64)
    if y.ndim != 1 or y.shape != error.shape:
        raise ValueError(f"both must have one shape [models]; got {y.shape} and {error.shape}")
    if not (np.isfinite(y).all() and np.isfinite(error).all() and (error > 0).all()):
        raise ValueError(
            f"log_ratios must be finite and std_errors above 0; got {y.tolist()}, {error.tolist()}"
        )
    if y.size < 2:
        return PooledModels(int(y.size), f"{y.size} model(s): an average over models needs 2")
    df, weight = int(y.size) - 1, 1 / error**2
    excess = _weighted(y, error**2)[1] - df
    tau2 = max(0.0, excess / float(weight.sum() - (weight**2).sum() / weight.sum()))
    mean, q = _weighted(y, error**2 + tau2)
    scale = max(1.0, q / df)
    pooled_error = math.sqrt(scale / float(np.sum(1 / (error**2 + tau2))))
    half = t_quantile(0.975, df) * pooled_error
    return PooledModels(
        n_models=int(y.size),
        reason=None,
        df=df,
        log_ratio=mean,
        std_error=pooled_error,
        log_ratio_ci95=(mean - half, mean + half),
        percent=percent_change(mean),
        percent_ci95=percent_interval(mean - half, mean + half),
        tau=math.sqrt(tau2),
    )


def _weighted(y: FloatArray, variance: FloatArray) -> tuple[float, float]:
    """Return the inverse-variance mean, and Cochran's Q around it."""
    mean = float(np.average(y, weights=1 / variance))
    return mean, float(np.sum((y - mean) ** 2 / variance))
