"""Two groups of results: are they different, equivalent, or can these seeds not say?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypedDict

import numpy as np
from scipy import special

from analysis.stats import power
from analysis.stats.multiplicity import holm
from analysis.stats.samples import Interval, Sample, Values, check_alpha, clean, finite, t_quantile

Verdict = Literal["different", "equivalent", "inconclusive", "undefined"]


class _Judgement(TypedDict):
    verdict: Verdict
    reason: str | None


@dataclass(frozen=True)
class TTest:
    """A t statistic, its degrees of freedom and its two-sided p; None where undefined."""

    t_stat: float | None = None
    df: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Group a against group b; every undefined number is None. See `compare`.

    test: 'welch', or 'one-sample' when one group is constant, or None.
    n_a, n_b: independent observations; equal results of a deterministic method are one.
    n_dropped_a, n_dropped_b: NaN left out.
    t_stat, df, p_value: the primary test. p_adjusted: set by `holm_family`.
    student: the pooled-variance test, beside 'welch' only.
    cohens_d, cohens_d_ci95, hedges_g: diff in standard deviations (pooled; of the group with
        spread for 'one-sample').
    diff, diff_ci95, diff_ci90, margin: in the units of the data; diff = mean(a) - mean(b).
    tost_p_value: p of the two one-sided tests of |true difference| >= margin.
    mde80: smallest |d| that these n find with 80 % power at alpha; mde80_diff: the same in the
        units of the data, with the observed standard deviation.
    n_for_80: seeds a group (of the group with spread) for the observed d; None if d is near 0.
    verdict, reason: see `verdict`; reason says why undefined, or qualifies 'different'.
    """

    test: Literal["welch", "one-sample"] | None
    n_a: int
    n_b: int
    n_dropped_a: int
    n_dropped_b: int
    alpha: float
    margin: float
    diff: float | None
    verdict: Verdict
    reason: str | None
    t_stat: float | None = None
    df: float | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    student: TTest = TTest()
    cohens_d: float | None = None
    cohens_d_ci95: Interval | None = None
    hedges_g: float | None = None
    diff_ci95: Interval | None = None
    diff_ci90: Interval | None = None
    tost_p_value: float | None = None
    mde80: float | None = None
    mde80_diff: float | None = None
    n_for_80: int | None = None


@dataclass(frozen=True)
class _Design:
    """What differs between the two tests: error and df of the difference, unit of the effect."""

    test: Literal["welch", "one-sample"]
    standard_error: float
    df: float
    sd: float  # unit of Cohen's d
    sd_df: int
    scale: float  # standard error of d when the true effect is 0
    mde80: float


def compare(a: Values, b: Values, *, margin: float, alpha: float = 0.05) -> Comparison:
    """Test whether two groups of runs differ, and whether they are equal within `margin`.

    a, b: shapes [n_a], [n_b], one value a run; NaN or None marks a missing run and is dropped.
    margin: the largest difference that does not matter, > 0, in the units of the data.
    alpha: two-sided level of the test, of the equivalence test and of mde80.

    Both groups spread: Welch's test (1947), Student's beside it. One group constant (range within
    1e-9 of its mean): a one-sample t-test of the other against that value, since repeating a
    deterministic method adds no information. Two constants, or fewer than 2 runs: no test. A
    method known to be deterministic and run once is given as that value twice.

    Equivalence: two one-sided tests (Schuirmann 1987). Limits of d: noncentral t (Steiger &
    Fouladi 1997). Hedges' g: the exact gamma factor (Hedges 1981).

    Raises ValueError for a margin or alpha out of range and for infinite values.
    """
    check_alpha(alpha)
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be a positive number in the units of the data; got {margin}")
    sample_a, sample_b = clean(a, "a"), clean(b, "b")
    diff = sample_a.mean - sample_b.mean if sample_a.n and sample_b.n else None
    reason = _why_undefined(sample_a, sample_b)
    untested = Comparison(
        test=None,
        n_a=sample_a.n_independent,
        n_b=sample_b.n_independent,
        n_dropped_a=sample_a.n_dropped,
        n_dropped_b=sample_b.n_dropped,
        alpha=float(alpha),
        margin=float(margin),
        diff=diff,
        verdict="undefined",
        reason=reason,
    )
    if diff is None or reason is not None:
        return untested
    return _tested(untested, diff, _design(sample_a, sample_b, alpha))


def verdict(p_value: float | None, tost_p_value: float | None, alpha: float = 0.05) -> Verdict:
    """The word for a comparison, from its two p-values at level `alpha`.

    'different' if p_value < alpha; else 'equivalent' if tost_p_value < alpha; else
    'inconclusive'; 'undefined' if either is None. Both can hold at once, for a difference that is
    real and smaller than the margin. 'different' then wins: a shown difference is not called
    equality, its rate under the null stays alpha, and its smallness is read from diff_ci90.

    For a family of comparisons p_value is the adjusted one: see `holm_family`.
    """
    if p_value is None or tost_p_value is None:
        return "undefined"
    if p_value < alpha:
        return "different"
    return "equivalent" if tost_p_value < alpha else "inconclusive"


def holm_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons of one family, each with p_adjusted and the verdict that follows from it.

    The p-values are adjusted by `holm`, undefined tests left out. That can turn 'different' into
    'equivalent' or 'inconclusive', never the reverse. The equivalence tests are not adjusted: each
    is a claim about one pair, at its own alpha.
    """
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        replace(c, p_adjusted=p, **_judged(p, c.tost_p_value, c.alpha)) if p is not None else c
        for c, p in zip(comparisons, adjusted, strict=True)
    ]


def _why_undefined(a: Sample, b: Sample) -> str | None:
    few = [
        f"{name} has n = {sample.n} after dropping {sample.n_dropped} missing"
        for name, sample in (("a", a), ("b", b))
        if sample.n < 2
    ]
    if few:
        return f"{' and '.join(few)}: a test needs at least 2 runs a group"
    if a.constant and b.constant:
        return (
            "both groups are constant, one observation each however often they were run: "
            "the difference is what these runs gave, and no test applies to it"
        )
    return None


def _design(a: Sample, b: Sample, alpha: float) -> _Design:
    if a.constant or b.constant:
        spread = b if a.constant else a
        sd, scale = math.sqrt(spread.variance), 1 / math.sqrt(spread.n)
        df = spread.n - 1
        return _Design(
            "one-sample", sd * scale, df, sd, df, scale, power.mde80(spread.n, alpha=alpha)
        )
    error_a, error_b = a.variance / a.n, b.variance / b.n
    share = error_a / (error_a + error_b)
    # Satterthwaite's df, written with shares so that fourth powers of tiny numbers cannot underflow
    df_welch = 1 / (share**2 / (a.n - 1) + (1 - share) ** 2 / (b.n - 1))
    df = a.n + b.n - 2
    return _Design(
        "welch",
        math.sqrt(error_a + error_b),
        df_welch,
        math.sqrt(((a.n - 1) * a.variance + (b.n - 1) * b.variance) / df),
        df,
        math.sqrt(1 / a.n + 1 / b.n),
        power.mde80(a.n, b.n, alpha),
    )


def _tested(untested: Comparison, diff: float, design: _Design) -> Comparison:
    """`untested` with every number that the design defines."""
    error, df, alpha = design.standard_error, design.df, untested.alpha
    primary = _t_test(diff, error, df)
    tost_p = float(special.stdtr(df, (abs(diff) - untested.margin) / error))
    d = diff / design.sd
    d_low, d_high = power.noncentrality_interval(d / design.scale, design.sd_df)
    seeds = power.n_for_80(d, 2 if design.test == "welch" else 1, alpha)
    return replace(
        untested,
        test=design.test,
        t_stat=primary.t_stat,
        df=df,
        p_value=primary.p_value,
        student=_student(diff, design),
        cohens_d=d,
        cohens_d_ci95=(d_low * design.scale, d_high * design.scale),
        hedges_g=_hedges_g(d, design.sd_df),
        diff_ci95=_interval(diff, error, df, 0.95),
        diff_ci90=_interval(diff, error, df, 0.90),
        tost_p_value=tost_p,
        mde80=design.mde80,
        mde80_diff=design.mde80 * design.sd,
        n_for_80=None if seeds is None else math.ceil(seeds),
        **_judged(primary.p_value, tost_p, alpha),
    )


def _t_test(diff: float, standard_error: float, df: float) -> TTest:
    t_stat = diff / standard_error
    return TTest(t_stat, df, float(2 * special.stdtr(df, -abs(t_stat))))


def _student(diff: float, design: _Design) -> TTest:
    """The pooled test; none beside a constant group, whose repeats would count as free df."""
    if design.test == "one-sample":
        return TTest()
    return _t_test(diff, design.sd * design.scale, design.sd_df)


def _interval(diff: float, standard_error: float, df: float, level: float) -> Interval:
    half = t_quantile((1 + level) / 2, df) * standard_error
    return diff - half, diff + half


def _hedges_g(d: float, df: int) -> float | None:
    """d without its small-sample bias: J = gamma(df/2) / (sqrt(df/2) gamma((df - 1)/2))."""
    if df < 2:  # the mean of d does not exist, so no factor can correct it
        return None
    log_ratio = special.gammaln(df / 2) - special.gammaln((df - 1) / 2)
    return finite(d * np.exp(log_ratio) / math.sqrt(df / 2))


def _judged(p_value: float | None, tost_p: float | None, alpha: float) -> _Judgement:
    outcome = verdict(p_value, tost_p, alpha)
    small = outcome == "different" and tost_p is not None and tost_p < alpha
    reason = "a difference is shown, and shown to be smaller than the margin" if small else None
    return {"verdict": outcome, "reason": reason}
