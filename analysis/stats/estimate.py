"""A difference with its standard error: the p-values and the intervals that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scipy import special

from analysis.stats.samples import Interval, Values, clean, t_quantile


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
        """Two-sided p of no difference."""
        return float(2 * special.stdtr(self.df, -abs(self.t_stat)))

    def tost_p_value(self, margin: float) -> float:
        """P of |true difference| >= margin, by two one-sided tests (Schuirmann 1987)."""
        return float(special.stdtr(self.df, (abs(self.difference) - margin) / self.std_error))

    def interval(self, alpha: float) -> Interval:
        """Two-sided limits at confidence 1 - alpha."""
        half = t_quantile(1 - alpha / 2, self.df) * self.std_error
        return self.difference - half, self.difference + half


@dataclass(frozen=True)
class PooledVariance:
    """Variance of one draw, pooled over n_sets sets that were drawn more than once; df > 0."""

    variance: float
    df: int
    n_sets: int


def pooled_variance(replicates: Iterable[Values]) -> PooledVariance | None:
    """Arithmetic variance from sets that were quantized several times, each around its own mean.

    replicates: an array [R] a set, in any unit; sets drawn once are passed over. None when none was
    drawn twice, or when the replicates of every set are equal. That one variance holds for all sets
    is an assumption; who lends it to a set drawn once says so.
    """
    samples = [clean(values, "replicates") for values in replicates]
    known = [sample for sample in samples if sample.n > 1]
    df = sum(sample.n - 1 for sample in known)
    total = sum((sample.n - 1) * sample.variance for sample in known)
    return PooledVariance(total / df, df, len(known)) if total > 0 else None


def satterthwaite(terms: Iterable[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of variances (term, df), at most one sign of them negative.

    Written with shares of the sum, so that fourth powers of tiny numbers cannot underflow.
    """
    known = [(term, df) for term, df in terms if term]
    total = sum(term for term, _ in known)
    return float(1 / sum((term / total) ** 2 / df for term, df in known))
