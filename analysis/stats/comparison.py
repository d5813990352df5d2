"""Two groups of results: are they different, equivalent, or can these seeds not say?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import special

from analysis.stats import power
from analysis.stats.estimate import Estimate, PooledVariance, satterthwaite
from analysis.stats.samples import Interval, Sample, Values, check_alpha, clean
from analysis.stats.verdicts import SMALL, Verdict, judge, verdict


@dataclass(frozen=True)
class TTest:
    """A t statistic, its degrees of freedom and its two-sided p; None where undefined."""

    t_stat: float | None = None
    df: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Group a against group b; every undefined number is None. See `compare`.

    test: 'welch'; 'lent-variance' when the variance of a group of one draw is that of other sets'
        replicates; or None. lent: which groups that are, 'a', 'b' or 'ab'.
    n_a, n_b: observations. n_dropped_a, n_dropped_b: NaN left out.
    t_stat, df, p_value: the primary test. student: the pooled-variance test, beside 'welch' only.
    sd: the pooled standard deviation. cohens_d, cohens_d_ci95, hedges_g: diff in units of it.
    diff, diff_ci95, diff_ci90, margin: in the units of the data; diff = mean(a) - mean(b).
    tost_p_value: p of the two one-sided tests of |true difference| >= margin.
    mde80_diff: smallest difference that the test finds with 80 % power, in the units of the data,
        if its standard error is the observed one; mde80: the same over the pooled standard
        deviation. At alpha, and after `holm_family` at its first step, alpha / tests.
    p_adjusted, tost_p_adjusted, ci, ci_level, equivalence_ci, equivalence_ci_level: set by
        `holm_family`, as in `Judgement`: the adjusted p-values and the intervals that decided.
    verdict, reason: see `verdict`; reason says why undefined, or qualifies 'different'.
    """

    test: Literal["welch", "lent-variance"] | None
    n_a: int
    n_b: int
    n_dropped_a: int
    n_dropped_b: int
    alpha: float
    margin: float
    diff: float | None
    verdict: Verdict
    reason: str | None
    lent: str | None = None
    std_error: float | None = None
    t_stat: float | None = None
    df: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    student: TTest = TTest()
    sd: float | None = None
    cohens_d: float | None = None
    cohens_d_ci95: Interval | None = None
    hedges_g: float | None = None
    diff_ci95: Interval | None = None
    diff_ci90: Interval | None = None
    ci: Interval | None = None
    ci_level: float | None = None
    tost_p_value: float | None = None
    tost_p_adjusted: float | None = None
    equivalence_ci: Interval | None = None
    equivalence_ci_level: float | None = None
    mde80: float | None = None
    mde80_diff: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The difference for `judge`."""
        if self.diff is None or self.std_error is None or self.df is None:
            return None
        return Estimate(self.diff, self.std_error, self.df)


@dataclass(frozen=True)
class _Arm:
    """A group's mean of n draws; variance of one draw, known with so many degrees of freedom."""

    mean: float
    n: int
    variance: float
    df: int


def compare(
    a: Values,
    b: Values,
    *,
    margin: float,
    alpha: float = 0.05,
    noise: PooledVariance | None = None,
) -> Comparison:
    """Test whether two groups of runs differ, and whether they are equal within `margin`.

    a, b: shapes [n_a], [n_b], one value an independent observation: a seed (replicates averaged),
    or a replicate of a method's one set, and the result then speaks about that set. What is one
    observation the caller says; equal values are so many draws. NaN or None is dropped.
    margin: the largest difference that does not matter, > 0, in the units of the data.
    alpha: two-sided level of the test, of the equivalence test and of mde80.
    noise: variance of one draw in the same units, from `pooled_variance`.

    Welch's test (1947), Student's beside it. A group of one draw has no variance of its own: with
    `noise` it is lent that one, without it there is no test. Two groups without any spread: no
    test either.

    Equivalence: two one-sided tests (Schuirmann 1987). Limits of d: noncentral t (Steiger &
    Fouladi 1997). Hedges' g: the exact gamma factor (Hedges 1981).

    Raises ValueError for a margin or alpha out of range and for infinite values.
    """
    check_alpha(alpha)
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be a positive number in the units of the data; got {margin}")
    sample_a, sample_b = clean(a, "a"), clean(b, "b")
    arms = _arm(sample_a, noise), _arm(sample_b, noise)
    lent = "".join(k for k, x in zip("ab", (sample_a, sample_b), strict=True) if noise and x.n == 1)
    untested = Comparison(
        test=None,
        n_a=sample_a.n,
        n_b=sample_b.n,
        n_dropped_a=sample_a.n_dropped,
        n_dropped_b=sample_b.n_dropped,
        alpha=float(alpha),
        margin=float(margin),
        diff=sample_a.mean - sample_b.mean if sample_a.n and sample_b.n else None,
        verdict="undefined",
        reason=_why_undefined(sample_a, sample_b, noise),
    )
    if untested.reason is not None or arms[0] is None or arms[1] is None:
        return untested
    return _tested(replace(untested, lent=lent or None), arms[0], arms[1])


def holm_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one family, judged together by `judge`, undefined ones left out.

    Adjusting can turn 'different' into 'equivalent' or 'inconclusive', and 'equivalent' into
    'inconclusive'. Raises ValueError for comparisons at different alpha.
    """
    tests = sum(c.estimate is not None for c in comparisons)
    if tests == 0:
        return list(comparisons)
    alphas = {c.alpha for c in comparisons}
    if len(alphas) > 1:
        raise ValueError(f"the comparisons of a family need one alpha; got {sorted(alphas)}")
    (alpha,) = alphas
    judged = judge([c.estimate for c in comparisons], [c.margin for c in comparisons], alpha=alpha)
    return [
        c if c.estimate is None else _at_level(replace(c, **vars(j)), alpha / tests)
        for c, j in zip(comparisons, judged, strict=True)
    ]


def _why_undefined(a: Sample, b: Sample, noise: PooledVariance | None) -> str | None:
    named = (("a", a), ("b", b))
    empty = [
        f"{name} has n = 0 after dropping {x.n_dropped} missing" for name, x in named if x.n == 0
    ]
    if empty:
        return f"{' and '.join(empty)}: a test needs a run of each group"
    single = [name for name, x in named if x.n == 1]
    if single and noise is None:
        return f"{' and '.join(single)} has n = 1: one draw of unknown noise"
    if a.constant and b.constant and not single:
        return "neither group has any spread: the difference is what these runs gave"
    return None


def _arm(sample: Sample, noise: PooledVariance | None) -> _Arm | None:
    if sample.n > 1:
        return _Arm(sample.mean, sample.n, sample.variance, sample.n - 1)
    if sample.n == 0 or noise is None:
        return None
    return _Arm(sample.mean, 1, noise.variance, noise.df)


def _tested(untested: Comparison, a: _Arm, b: _Arm) -> Comparison:
    """`untested` with every number that two known variances define."""
    diff, alpha = a.mean - b.mean, untested.alpha
    terms = [(a.variance / a.n, a.df), (b.variance / b.n, b.df)]
    estimate = Estimate(diff, math.sqrt(terms[0][0] + terms[1][0]), satterthwaite(terms))
    pooled_df, scale = a.df + b.df, math.sqrt(1 / a.n + 1 / b.n)
    sd = math.sqrt((a.df * a.variance + b.df * b.variance) / pooled_df)
    d = diff / sd
    d_low, d_high = power.noncentrality_interval(d / scale, pooled_df)
    student = Estimate(diff, sd * scale, pooled_df)
    tost_p = estimate.tost_p_value(untested.margin)
    word = verdict(estimate.p_value, tost_p, alpha)
    known = replace(
        untested,
        test="lent-variance" if untested.lent else "welch",
        std_error=estimate.std_error,
        t_stat=estimate.t_stat,
        df=estimate.df,
        p_value=estimate.p_value,
        student=TTest() if untested.lent else TTest(student.t_stat, pooled_df, student.p_value),
        sd=sd,
        cohens_d=d,
        cohens_d_ci95=(d_low * scale, d_high * scale),
        hedges_g=_hedges_g(d, pooled_df),
        diff_ci95=estimate.interval(0.05),
        diff_ci90=estimate.interval(0.10),
        tost_p_value=tost_p,
        verdict=word,
        reason=SMALL if word == "different" and tost_p < alpha else None,
    )
    return _at_level(known, alpha)


def _at_level(known: Comparison, level: float) -> Comparison:
    """`known` with what its test finds at `level`."""
    estimate = known.estimate
    if estimate is None or known.sd is None:
        return known
    size = power.detectable(estimate.df, level) * estimate.std_error
    return replace(known, mde80=size / known.sd, mde80_diff=size)


def _hedges_g(d: float, df: int) -> float:
    """d without its small-sample bias: J = gamma(df/2) / (sqrt(df/2) gamma((df - 1)/2))."""
    log_ratio = special.gammaln(df / 2) - special.gammaln((df - 1) / 2)
    return float(d * np.exp(log_ratio) / math.sqrt(df / 2))
