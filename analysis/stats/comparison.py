"""Compare two groups: means and spreads over seeds, answers on the same items."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from analysis.stats.power import Design, detectable, noncentrality_interval, seeds_for_difference
from analysis.stats.samples import (
    Estimate,
    FloatArray,
    Interval,
    PooledVariance,
    Sample,
    Values,
    check_alpha,
    clean,
    logarithms,
    satterthwaite,
)
from analysis.stats.verdicts import Judgement, judge, verdict


@dataclass(frozen=True)
class TTest:
    """A t statistic, its degrees of freedom and its two-sided p; None where undefined."""

    t_stat: float | None = None
    df: float | None = None
    p_value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison(Judgement):
    """Group a against group b; every undefined number is None. See `compare`.

    test: 'welch'; 'lent-variance' when the variance of a group of one draw is that of other sets'
        replicates; or None. lent: which groups that are, 'a', 'b' or 'ab'.
    n_a, n_b: observations. n_dropped_a, n_dropped_b: NaN left out. student: the pooled-variance
        test, only with 'welch'.
    sd: the pooled standard deviation. cohens_d, cohens_d_ci95, hedges_g: diff in units of it.
    diff, diff_ci95, diff_ci90, margin: in the units of the data; diff = mean(a) - mean(b).
    mde80_diff: smallest difference that the test finds with 80 % power, in the units of the data,
        if its standard error is the observed one; mde80: the same over the pooled standard
        deviation. At alpha, and after `holm_family` at its first step, alpha / tests.
    p_adjusted, tost_p_adjusted, ci, equivalence_ci and their levels: set by `holm_family`.
    """

    test: Literal["welch", "lent-variance"] | None = None
    n_a: int
    n_b: int
    n_dropped_a: int
    n_dropped_b: int
    alpha: float
    margin: float
    diff: float | None
    lent: str | None = None
    std_error: float | None = None
    t_stat: float | None = None
    df: float | None = None
    student: TTest = TTest()
    sd: float | None = None
    cohens_d: float | None = None
    cohens_d_ci95: Interval | None = None
    hedges_g: float | None = None
    diff_ci95: Interval | None = None
    diff_ci90: Interval | None = None
    mde80: float | None = None
    mde80_diff: float | None = None

    @property
    def estimate(self) -> Estimate | None:
        """Return the difference for `judge`."""
        if self.diff is None or self.std_error is None or self.df is None:
            return None
        return Estimate(self.diff, self.std_error, self.df)


def compare(
    a: Values,
    b: Values,
    *,
    margin: float,
    alpha: float = 0.05,
    noise: PooledVariance | None = None,
) -> Comparison:
    """Test whether two groups of runs differ, and whether they are equal within `margin`.

    a, b: shapes [n_a], [n_b], one value per independent observation: a seed (replicates averaged),
    or a replicate of a method's one set; the result then holds for that set. Equal values count as
    separate draws. NaN or None is dropped.
    margin: the largest difference that does not matter, > 0, in the units of the data.
    alpha: two-sided level of the test, of the equivalence test and of mde80.
    noise: variance of one draw, from `pooled_variance`, for a group of one draw, which has none of
    its own. There is no test without it, or for two groups without spread.

    Welch's test (1947). Equivalence: two one-sided tests (Schuirmann 1987). Limits of d:
    noncentral t (Steiger & Fouladi 1997). Hedges' g: the exact gamma factor (Hedges 1981).
    Raises ValueError for a margin or alpha out of range and for infinite values.
    """
    check_alpha(alpha)
    if not 0 < margin < math.inf:
        raise ValueError(f"margin must be a positive number in the units of the data; got {margin}")
    sample_a, sample_b = clean(a, "a"), clean(b, "b")
    untested = Comparison(
        verdict="undefined",
        reason=_why_undefined(sample_a, sample_b, noise),
        n_a=sample_a.n,
        n_b=sample_b.n,
        n_dropped_a=sample_a.n_dropped,
        n_dropped_b=sample_b.n_dropped,
        alpha=float(alpha),
        margin=float(margin),
        diff=sample_a.mean - sample_b.mean if sample_a.n and sample_b.n else None,
    )
    return untested if untested.reason else _tested(untested, sample_a, sample_b, noise)


def holm_family(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Judge the comparisons of one family together by `judge`; undefined ones are left out.

    Raises ValueError for comparisons at different alpha.
    """
    tests, alphas = sum(c.estimate is not None for c in comparisons), {c.alpha for c in comparisons}
    if len(alphas) > 1:
        raise ValueError(f"the comparisons of a family need one alpha; got {sorted(alphas)}")
    alpha = max(alphas, default=0.05)
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


def _tested(untested: Comparison, a: Sample, b: Sample, noise: PooledVariance | None) -> Comparison:
    """Return `untested` with every number that two known variances define."""
    lent = "".join(name for name, x in zip("ab", (a, b), strict=True) if noise and x.n == 1)
    # The variance of one draw, and the degrees of freedom that it is known with.
    (var_a, df_a), (var_b, df_b) = (
        noise if noise and x.n == 1 else (x.variance, x.n - 1) for x in (a, b)
    )
    diff, alpha = a.mean - b.mean, untested.alpha
    terms = [(var_a / a.n, df_a), (var_b / b.n, df_b)]
    estimate = Estimate(diff, math.sqrt(terms[0][0] + terms[1][0]), satterthwaite(terms))
    pooled_df, scale = df_a + df_b, math.sqrt(1 / a.n + 1 / b.n)
    sd = math.sqrt((df_a * var_a + df_b * var_b) / pooled_df)
    d = diff / sd
    d_low, d_high = noncentrality_interval(d / scale, pooled_df)
    # Hedges' exact factor: gamma(df / 2) / (sqrt(df / 2) gamma((df - 1) / 2)).
    log_factor = special.gammaln(pooled_df / 2) - special.gammaln((pooled_df - 1) / 2)
    student = Estimate(diff, sd * scale, pooled_df)
    tost_p = estimate.tost_p_value(untested.margin)
    word, reason = verdict(estimate.p_value, tost_p, alpha)
    known = replace(
        untested,
        test="lent-variance" if lent else "welch",
        lent=lent or None,
        std_error=estimate.std_error,
        t_stat=estimate.t_stat,
        df=estimate.df,
        p_value=estimate.p_value,
        student=TTest() if lent else TTest(student.t_stat, pooled_df, student.p_value),
        sd=sd,
        cohens_d=d,
        cohens_d_ci95=(d_low * scale, d_high * scale),
        hedges_g=float(d * np.exp(log_factor) / math.sqrt(pooled_df / 2)),
        diff_ci95=estimate.interval(0.05),
        diff_ci90=estimate.interval(0.10),
        tost_p_value=tost_p,
        verdict=word,
        reason=reason,
    )
    return _at_level(known, alpha)


def _at_level(known: Comparison, level: float) -> Comparison:
    """Return `known` with the difference that its test can find at `level`."""
    estimate = known.estimate
    if estimate is None or known.sd is None:
        return known
    size = detectable(estimate.df, level) * estimate.std_error
    return replace(known, mde80=size / known.sd, mde80_diff=size)


@dataclass(frozen=True)
class SpreadComparison:
    """Spread of a against spread of b; every undefined number is None. See `compare_spread`.

    n_a, n_b: observations. f_stat, df (1 and n_a + n_b - 2), p_value: the test.
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
    Interval of the ratio: Bonett (2006), for log values of any shape that both groups share; None
    under 5 runs a group. It may exclude 1 where the test does not reject. The test decides.

    Undefined, with a reason: a constant group, n < 3 (the two distances from a median are equal by
    construction), and no variation of those distances. Raises ValueError for values that are not
    positive or not finite.
    """
    check_alpha(alpha)
    sample_a, sample_b = clean(a, "a"), clean(b, "b")
    n_a, n_b = sample_a.n, sample_b.n
    for name, sample in (("a", sample_a), ("b", sample_b)):
        if sample.n < 3:
            few = f"{name} has n = {sample.n}: a comparison of spread needs at least 3 runs a group"
            return SpreadComparison(None, n_a, n_b, few)
        if sample.constant:
            same = f"{name} is constant: there is no spread to compare"
            return SpreadComparison(None, n_a, n_b, same)
    log_a, log_b = logarithms(sample_a, "a"), logarithms(sample_b, "b")
    f_stat = _brown_forsythe(log_a, log_b)
    if f_stat is None:
        reason = "the distances from the median are equal within each group: no F statistic"
        return SpreadComparison(None, n_a, n_b, reason)
    df, (sd_a, sd_b) = (1, n_a + n_b - 2), (float(np.std(x, ddof=1)) for x in (log_a, log_b))
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
        sd_ratio_ci95=_ratio_interval(log_a, log_b),
        n_for_halving=seeds_to_find_halving(alpha),
    )


def seeds_to_find_halving(alpha: float = 0.05) -> int:
    """Return the seeds per group that find one standard deviation half the other, power 80 %.

    Normal theory for the distances from a known centre: they are half-normal with mean
    sigma sqrt(2/pi) and variance sigma**2 (1 - 2/pi), and the test is a t-test between them. In
    simulation the Brown–Forsythe test needs the same number (24 at alpha 0.05, 36 at 0.01).
    """
    mean_gap = math.sqrt(2 / math.pi)
    sd = math.sqrt((1 - 2 / math.pi) * (2**2 + 1**2) / 2)
    seeds = seeds_for_difference(mean_gap / sd, Design(1, 1, alpha=alpha))
    assert seeds is not None  # the effect is a constant, about 0.84
    return seeds


def _brown_forsythe(x: FloatArray, y: FloatArray) -> float | None:
    """Return the F statistic between distances from the medians; None if they do not vary."""
    distances = [np.abs(group - np.median(group)) for group in (x, y)]
    everything = np.concatenate(distances)
    within = sum(float(np.sum((z - z.mean()) ** 2)) for z in distances)
    between = sum(z.size * float(z.mean() - everything.mean()) ** 2 for z in distances)
    if within <= 1e-18 * float(np.sum(everything**2)):
        return None
    return float(between / within * (everything.size - 2))


def _ratio_interval(x: FloatArray, y: FloatArray, alpha: float = 0.05) -> Interval | None:
    """Return limits of sd(x) / sd(y) for a shape that both share (Bonett 2006); None under 5 runs.

    log(variance ratio) +- z * error, with the error from a kurtosis pooled about trimmed means. The
    groups are brought to one scale by the ratio in question, each limit by itself.
    """
    n = np.array([x.size, y.size])
    if n.min() < 5:
        return None
    z = float(special.ndtri(1 - alpha / 2))
    fourth = [float(np.sum((g - _trimmed_mean(g)) ** 4)) for g in (x, y)]
    squares = [float(np.sum((g - g.mean()) ** 2)) for g in (x, y)]
    log_ratio = math.log(squares[0] / (n[0] - 1) / (squares[1] / (n[1] - 1)))
    log_ratio += math.log(n[0] / (n[0] - z) / (n[1] / (n[1] - z)))

    def limit(sign: int) -> float:
        ratio = 1.0
        for _ in range(100):
            scaled = squares[0] + ratio**2 * squares[1]
            kurtosis = n.sum() * (fourth[0] + ratio**4 * fourth[1]) / scaled**2
            error = math.sqrt(float(np.sum((kurtosis - (n - 3) / n) / (n - 1))))
            before, ratio = ratio, math.exp((log_ratio + sign * z * error) / 2)
            if abs(ratio / before - 1) < 1e-12:
                break
        return ratio

    return limit(-1), limit(1)


def _trimmed_mean(values: FloatArray) -> float:
    """Return the mean without the share 1 / (2 sqrt(n - 4)) of the values at either end."""
    cut = int(1 / (2 * math.sqrt(values.size - 4)) * values.size)
    return float(np.sort(values)[cut : values.size - cut].mean())


@dataclass(frozen=True)
class PairedItems:
    """Model a against model b on the same items.

    only_a, only_b: items that one of them alone got right. diff, diff_ci95: accuracy of a minus
    that of b, both as shares. p_value: None where no item tells them apart.
    """

    n_items: int
    accuracy_a: float
    accuracy_b: float
    only_a: int
    only_b: int
    diff: float
    diff_ci95: Interval
    p_value: float | None


def mcnemar(correct_a: ArrayLike, correct_b: ArrayLike) -> PairedItems:
    """Test whether two models are right equally often on the same items.

    correct_a, correct_b: shape [items], 0 or 1. The p-value is the exact two-sided binomial one for
    any number of items (McNemar 1947; conditional on the items that differ), the interval the
    Laplace-adjusted Wald one with z = 1.96 (Bonett & Price 2012).

    The result holds for these two checkpoints, not for other calibration seeds.
    Raises ValueError for shapes that differ, no items, and values that are neither 0 nor 1.
    """
    a, b = np.asarray(correct_a, dtype=np.float64), np.asarray(correct_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise ValueError(f"both must have one shape [items], not empty; got {a.shape}, {b.shape}")
    if not np.isin([a, b], (0, 1)).all():
        raise ValueError("every item must be 0 (wrong) or 1 (right)")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    differ = only_a + only_b
    p, q = (only_a + 1) / (a.size + 2), (only_b + 1) / (a.size + 2)
    half = float(special.ndtri(0.975)) * math.sqrt((p + q - (p - q) ** 2) / (a.size + 2))
    return PairedItems(
        n_items=a.size,
        accuracy_a=float(a.mean()),
        accuracy_b=float(b.mean()),
        only_a=only_a,
        only_b=only_b,
        diff=(only_a - only_b) / a.size,
        diff_ci95=(max(-1.0, p - q - half), min(1.0, p - q + half)),
        p_value=float(stats.binomtest(only_a, differ).pvalue) if differ else None,
    )
