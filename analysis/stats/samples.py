"""Groups of results and the differences between them, which every test here uses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

FloatArray = NDArray[np.float64]
Values = Sequence[float | None] | NDArray[np.floating]
Interval = tuple[float, float]

# Relative range under which a group is called constant. Round-off of the mean makes the standard
# deviation of equal numbers about 1e-15 instead of 0, and scipy's t-tests then answer nonsense.
CONSTANT_RTOL = 1e-9
# Squares of anything smaller underflow, squares of anything larger overflow. MLflow returns a
# logged inf as 1.797e308, so a diverged run is caught here as well.
SMALLEST, LARGEST = 1e-100, 1e100


@dataclass(frozen=True)
class Sample:
    """The finite values of a group, NaN dropped; `values` has shape [n]."""

    values: FloatArray
    n_dropped: int

    @property
    def n(self) -> int:
        return int(self.values.size)

    @property
    def mean(self) -> float:
        # Shifted by the first value, so that equal numbers have exactly that number as their mean.
        return float(self.values[0] + np.mean(self.values - self.values[0]))

    @property
    def variance(self) -> float:
        return 0.0 if self.constant else float(np.var(self.values, ddof=1))

    @property
    def constant(self) -> bool:
        """Return True if the values are equal up to round-off, or there is one value."""
        limit = max(CONSTANT_RTOL * abs(self.mean), SMALLEST)
        return bool(np.ptp(self.values) <= limit)


@dataclass(frozen=True)
class Description:
    """A group on its own. Undefined numbers are None.

    n: values used; n_dropped: NaN left out.
    mean, std (ddof 1), min, max: in the units of the data. cv_percent: 100 * std / |mean|.
    ci95: t-interval of the mean; None without spread.
    """

    n: int
    n_dropped: int
    mean: float | None = None
    std: float | None = None
    cv_percent: float | None = None
    min: float | None = None
    max: float | None = None
    ci95: Interval | None = None


def clean(x: Values, name: str = "x") -> Sample:
    """Return the usable values of `x` [n]; None and NaN mean a missing run and are dropped.

    Raises ValueError for anything that is not a one-dimensional list of numbers, and for infinite
    or absurdly large values: a diverged run is a result to report, not one to average.
    """
    try:
        values = np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must hold numbers, NaN or None; got {x!r}") from error
    if values.ndim != 1:
        raise ValueError(f"{name} must have one dimension; got shape {values.shape}")
    kept = values[~np.isnan(values)]
    bad = kept[np.abs(kept) > LARGEST]
    if bad.size:
        raise ValueError(
            f"{name} holds {bad[0]:g}; allowed are NaN (missing) and values within ±{LARGEST:g}. "
            "Leave a diverged run out on purpose and say so."
        )
    return Sample(kept, int(values.size - kept.size))


def logarithms(sample: Sample, name: str) -> FloatArray:
    """Return the logarithms of a sample. Raises ValueError for values that are not positive."""
    if sample.values.min() <= 0:
        raise ValueError(f"{name} holds {sample.values.min():g}; logs need values above 0")
    return np.log(sample.values)


def describe(x: Values) -> Description:
    """Describe a group of results: size, centre and spread.

    x: shape [n], any unit; NaN or None marks a missing run. With n < 2 the spread is None, with
    n = 0 everything is. Raises ValueError for infinite values.
    """
    sample = clean(x)
    known = Description(sample.n, sample.n_dropped)
    if sample.n == 0:
        return known
    mean, values = sample.mean, sample.values
    known = replace(known, mean=mean, min=float(values.min()), max=float(values.max()))
    if sample.n < 2:
        return known
    std = float(np.sqrt(sample.variance))
    half = t_quantile(0.975, sample.n - 1) * std / np.sqrt(sample.n)
    return replace(
        known,
        std=std,
        cv_percent=finite(100 * std / abs(mean)) if mean != 0 else None,
        ci95=None if sample.constant else (float(mean - half), float(mean + half)),
    )


def finite(value: float) -> float | None:
    """Return `value` as a float, or None if it overflowed: JSON has neither NaN nor infinity."""
    return float(value) if np.isfinite(value) else None


def percent_change(log_ratio: float) -> float | None:
    """Return a difference of logs in %: 100 * (exp(log_ratio) - 1); None if it overflows."""
    with np.errstate(over="ignore"):
        return finite(100 * np.expm1(log_ratio))


def percent_interval(low: float, high: float) -> Interval | None:
    """Return limits of a difference of logs in %; None if one overflows."""
    bounds = percent_change(low), percent_change(high)
    return None if bounds[0] is None or bounds[1] is None else (bounds[0], bounds[1])


def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t; `df`, its degrees of freedom, need not be whole."""
    return float(special.stdtrit(df, probability))


def check_alpha(alpha: float) -> None:
    """Raise ValueError unless 0 < alpha < 0.5."""
    if not 0 < alpha < 0.5:
        raise ValueError(f"alpha must lie between 0 and 0.5; got {alpha!r}")


@dataclass(frozen=True)
class Estimate:
    """A difference a - b whose error follows Student's t; std_error and df above 0.

    `Comparison` gives it in the units of the data, `TextComparison` as a log ratio of perplexities.
    """

    difference: float
    std_error: float
    df: float

    @property
    def t_stat(self) -> float:
        return self.difference / self.std_error

    @property
    def p_value(self) -> float:
        """Return the two-sided p of no difference."""
        return float(2 * special.stdtr(self.df, -abs(self.t_stat)))

    def tost_p_value(self, margin: float) -> float:
        """Return p of |true difference| >= margin, by two one-sided tests (Schuirmann 1987)."""
        return float(special.stdtr(self.df, (abs(self.difference) - margin) / self.std_error))

    def interval(self, alpha: float) -> Interval:
        """Return two-sided limits at confidence 1 - alpha."""
        half = t_quantile(1 - alpha / 2, self.df) * self.std_error
        return self.difference - half, self.difference + half


class PooledVariance(NamedTuple):
    """Variance of one draw, pooled over sets that were drawn more than once; df > 0."""

    variance: float
    df: int


def pooled_variance(replicates: Iterable[Values]) -> PooledVariance | None:
    """Pool the arithmetic variance of sets that were quantized several times, each around its mean.

    replicates: an array [R] per set, in any unit; sets drawn once are skipped. None when no set was
    drawn twice, or when the replicates of every set are equal.
    """
    samples = [clean(values, "replicates") for values in replicates]
    known = [sample for sample in samples if sample.n > 1]
    df = sum(sample.n - 1 for sample in known)
    total = sum((sample.n - 1) * sample.variance for sample in known)
    return PooledVariance(total / df, df) if total > 0 else None


def satterthwaite(terms: Iterable[tuple[float, float]]) -> float:
    """Return the degrees of freedom of a sum of variances (term, df), some of them negative.

    Written with shares of the sum, so that fourth powers of tiny numbers cannot underflow.
    """
    known = [(term, df) for term, df in terms if term]
    total = sum(term for term, _ in known)
    return float(1 / sum((term / total) ** 2 / df for term, df in known))
