"""Tests that hold when results are looked at more than once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from scipy import interpolate, optimize, special

from analysis.stats.samples import (
    Estimate,
    FloatArray,
    Interval,
    Sample,
    Values,
    check_alpha,
    clean,
)
from analysis.stats.verdicts import Judgement, claims, with_intervals

Spending = Callable[[float, float], float]
"""(alpha of one side, share of the information) -> alpha spent so far; all of it at share 1."""

# Beyond so many standard deviations there is nothing to integrate, and no level to spend.
FAR = 8.5


def hwang_shih_decani(alpha: float, t: float, gamma: float = -2.0) -> float:
    """Return alpha (1 - exp(-gamma t)) / (1 - exp(-gamma)): Hwang, Shih & DeCani (1990)."""
    return alpha * math.expm1(-gamma * t) / math.expm1(-gamma)


def nominal_levels(
    looks: Sequence[int],
    maximum: int,
    *,
    alpha: float = 0.05,
    sides: int = 2,
    spending: Spending = hwang_shih_decani,
) -> list[float]:
    """Return the level at which to test at each look, so that all looks together err in alpha.

    looks: seeds at each look, rising to at most the declared `maximum`; unplanned looks may be
    among them, if the results did not call for them. Information is n / maximum. sides: of the
    p-value; each spends alpha / sides.

    The boundaries come from recursive integration over the correlated normal statistics (Armitage,
    McPherson & Rowe 1969; Jennison & Turnbull 2000, chapter 19); a t-test is compared with them by
    its p-value (section 11.5). Two-sided, a run that has crossed one boundary no longer crosses
    the other. Raises ValueError for looks, sides or alpha out of range.
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
        low = -z * root if sides == 2 else -FAR * root
        points, density = _advance(points, density, step, low, z * root)
        spent, before = spent + target, t
    return tuple(levels)


def _advance(
    points: FloatArray, density: FloatArray, step: float, low: float, high: float
) -> tuple[FloatArray, FloatArray]:
    """Return nodes on (low, high) and the weighted density there of a score that goes on.

    points, density: of the score before, drift included; step: standard deviation of its increment.
    """
    rule, weights = _rule(2 + int((high - low) / step / 8))
    nodes = low + (high - low) / 2 * (rule + 1)
    kernel = np.exp(-(((nodes[:, None] - points) / step) ** 2) / 2)
    weights = (high - low) / 2 * weights / (step * math.sqrt(2 * math.pi))
    return nodes, weights * (kernel @ density)


@lru_cache(maxsize=64)
def _rule(size: int) -> tuple[FloatArray, FloatArray]:
    """Return Gauss-Legendre nodes and weights on (-1, 1): 32 per 8 deviations of a step."""
    nodes, weights = np.polynomial.legendre.leggauss(32 * min(size, 64))
    return nodes, weights


def _boundary(
    points: FloatArray, density: FloatArray, step: float, root: float, target: float
) -> float:
    """Return the z that the statistic first passes here with probability `target`."""

    def excess(z: float) -> float:
        return float(np.dot(density, special.ndtr((points - z * root) / step))) - target

    if target <= 0 or excess(FAR) >= 0:
        return FAR
    return float(optimize.brentq(excess, -FAR, FAR, xtol=1e-12))


@dataclass(frozen=True)
class Look:
    """One comparison at one look: seeds of the smaller group, and the difference then."""

    n: int
    estimate: Estimate


@dataclass(frozen=True)
class LookJudgement(Judgement):
    """A comparison after its looks so far; see `judge_looks`.

    n, p_value, tost_p_value: seeds and p-values of the last look. p_adjusted, tost_p_adjusted: over
    looks and family. decided_at: seeds of the look that settled it; None if none did. ci,
    equivalence_ci: repeated intervals of that look, else of the last one.
    """

    n: int = 0
    decided_at: int | None = None


def judge_looks(
    histories: Sequence[Sequence[Look]],
    margins: Sequence[float],
    maximum: int,
    *,
    alpha: float = 0.05,
) -> list[LookJudgement]:
    """Judge a family after several looks, in input order.

    histories: the looks at each comparison so far, at rising n; one without a look is undefined.
    margins: as for `judge`. maximum: the declared number of seeds a method.

    Each look is tested at its nominal level (`nominal_levels`), for a difference two-sided, for
    equivalence by two tests at the one-sided levels. Over the family: the group-sequential Holm
    procedure (Maurer & Bretz 2013), in which a settled comparison hands its alpha to the others,
    for past looks as well. As the spending is a share of alpha, that is Holm's procedure on the
    smallest alpha at which a comparison would have been rejected by now.

    Verdicts: 'different' and 'equivalent' are final, even if later looks differ; 'open' while seeds
    are left, 'inconclusive' at the maximum. Raises ValueError for looks or alpha out of range.
    """
    check_alpha(alpha)
    both = zip(histories, margins, strict=True)
    p = [[look.estimate.p_value for look in looks] for looks in histories]
    tost = [[look.estimate.tost_p_value(margin) for look in looks] for looks, margin in both]
    ns = [tuple(look.n for look in looks) for looks in histories]
    overall = [sequential_p(x, n, maximum, sides=2) for x, n in zip(p, ns, strict=True)]
    tost_overall = [sequential_p(x, n, maximum, sides=1) for x, n in zip(tost, ns, strict=True)]
    found = []
    for k, claim in enumerate(claims(overall, tost_overall, alpha)):
        if claim is None:
            found.append(LookJudgement("undefined", "no look with a standard error"))
            continue
        base, level, tost_level = claim
        n, looks = ns[k], histories[k]
        levels = nominal_levels(n, maximum, alpha=level)
        tost_levels = nominal_levels(n, maximum, alpha=tost_level, sides=1)
        passed = {
            "different": [x < own for x, own in zip(p[k], levels, strict=True)],
            "equivalent": [x < own for x, own in zip(tost[k], tost_levels, strict=True)],
        }.get(base.verdict, [])
        at = passed.index(True) if True in passed else -1
        known = LookJudgement(
            verdict="open" if base.verdict == "inconclusive" and n[-1] < maximum else base.verdict,
            reason=base.reason,
            p_value=p[k][-1],
            p_adjusted=base.p_adjusted,
            tost_p_value=tost[k][-1],
            tost_p_adjusted=base.tost_p_adjusted,
            n=n[-1],
            decided_at=n[at] if True in passed else None,
        )
        found.append(with_intervals(known, looks[at].estimate, levels[at], tost_levels[at]))
    return found


def sequential_p(
    p_values: Sequence[float], looks: Sequence[int], maximum: int, *, sides: int = 2
) -> float | None:
    """Return the smallest alpha at which the looks so far would have rejected; None without a look.

    p_values: shape [looks], the p-value of each look by itself. The result is valid for any number
    of looks. By interpolation of `nominal_levels` in alpha, exact to about 6 digits, at least 1e-9.
    """
    if not looks:
        return None
    smallest = 1.0
    for p, alpha_of in zip(p_values, _curves(tuple(looks), maximum, sides), strict=True):
        low, high = np.exp(alpha_of.x[[0, -1]])
        if p < high:
            smallest = min(smallest, float(np.exp(alpha_of(math.log(max(p, low))))))
    return smallest


@lru_cache(maxsize=256)
def _curves(
    looks: tuple[int, ...], maximum: int, sides: int
) -> list[interpolate.PchipInterpolator]:
    """Return, for each look, log of its nominal level -> log of the alpha that gives it."""
    alphas = np.concatenate([np.geomspace(1e-9, 1e-3, 40), np.geomspace(1.2e-3, 0.99, 80)])
    levels = np.array([nominal_levels(looks, maximum, alpha=float(a), sides=sides) for a in alphas])
    return [
        interpolate.PchipInterpolator(np.log(x[x < 1]), np.log(alphas[x < 1])) for x in levels.T
    ]


DRAWS = 4000


def expected_share(
    methods: int, looks: Sequence[int], effect: float, *, alpha: float = 0.05
) -> float:
    """Estimate the mean share of its cells that a suite with until=settled does.

    One method is compared with each other one and differs from all of them by `effect` standard
    deviations of a seed. looks: numbers of seeds, the last the declared maximum. By simulation with
    a fixed seed, each comparison by a t-test at its share of alpha, and none shown equivalent: Holm
    and equivalences end a suite earlier. Raises ValueError for fewer than 2 methods.
    """
    if methods < 2:
        raise ValueError(f"a comparison needs at least 2 methods; got {methods}")
    others = methods - 1
    levels = nominal_levels(looks, looks[-1], alpha=alpha / others)
    values = np.random.default_rng(0).normal(size=(DRAWS, methods, looks[-1]))
    values[:, 0] += effect
    used = np.full((DRAWS, methods), float(looks[-1]))
    still_open = np.ones((DRAWS, others), dtype=bool)
    for n, level in zip(looks, levels, strict=True):
        first = values[:, :, :n]
        means, variances = first.mean(axis=2), first.var(axis=2, ddof=1)
        errors = np.sqrt((variances[:, :1] + variances[:, 1:]) / n)
        p = 2 * special.stdtr(2 * n - 2, -np.abs(means[:, :1] - means[:, 1:]) / errors)
        crossed = still_open & (p < level)
        still_open &= ~crossed
        used[:, 1:][crossed] = n
        ended = crossed.any(axis=1) & ~still_open.any(axis=1)
        used[ended, 0] = n
    return float(used.mean() / looks[-1])


@dataclass(frozen=True)
class Anytime:
    """Group a against group b, valid at any time of looking; see `anytime`. None is undefined.

    n: pairs that were used; n_a, n_b: observations. diff: mean difference of the pairs. e_value:
    without a difference it ever reaches 1 / alpha with a chance of at most alpha. p_value:
    min(1, 1 / e_value). ci: for all times at once; None while it is the whole line.
    """

    n_a: int
    n_b: int
    alpha: float
    reason: str | None
    n: int = 0
    diff: float | None = None
    e_value: float | None = None
    p_value: float | None = None
    ci: Interval | None = None


def anytime(a: Values, b: Values, *, alpha: float = 0.05) -> Anytime:
    """Test a difference of means so that seeds may be added until it looks good.

    a, b: shapes [n_a], [n_b], in the order in which they came; NaN or None is dropped. The n-th
    value of a is paired with the n-th of b; values without a partner wait for one.

    The e-value is the Bayes factor of the t-test of the pairs' differences with the right-Haar
    prior 1 / sigma and a standard normal prior of d, the difference in standard deviations of one
    seed (Gönen, Johnson, Lu & Westfall 2005). It keeps its level under optional stopping, for every
    mean and sigma (Hendriksen, de Heide & Grünwald 2021). Differences of pairs have one variance
    for any spreads of the groups, and adding seeds to one group changes nothing; a test of two
    groups with one variance fails in 8 to 20 % there. It assumes normal results.

    Undefined, with a reason: fewer than 2 pairs, and differences without spread.
    """
    check_alpha(alpha)
    x, y = clean(a, "a"), clean(b, "b")
    n = min(x.n, y.n)
    known = Anytime(x.n, y.n, float(alpha), None, n)
    if n < 2:
        return replace(known, reason="needs two seeds of each group")
    pairs = Sample(x.values[:n] - y.values[:n], 0)
    diff, variance, df = pairs.mean, pairs.variance, n - 1
    if variance == 0:
        return replace(known, reason="the differences have no spread", diff=diff)
    t_squared = diff**2 * n / variance
    wider = 1 + n / 2
    log_e = n / 2 * (math.log1p(t_squared / df) - math.log1p(t_squared / df / wider))
    log_e -= math.log(wider) / 2
    # The differences that are not refuted: solved for t at e = 1 / alpha.
    most = math.exp((math.log(wider) / 2 - math.log(alpha)) * 2 / n)
    ci = None
    if most < wider:
        half = math.sqrt(df * (most - 1) / (1 - most / wider) * variance / n)
        ci = (diff - half, diff + half)
    e_value = math.exp(min(log_e, 700.0))
    return replace(known, diff=diff, e_value=e_value, p_value=min(1.0, 1 / e_value), ci=ci)


def median_unbiased(z: float, looks: Sequence[int], maximum: int, levels: Sequence[float]) -> float:
    """Return the factor that makes the estimate of a test that ended early median-unbiased.

    z: the statistic of the last of `looks`, at which the test ended. levels: nominal, two-sided.
    Results are ordered by stage (Tsiatis, Rosner & Mehta 1984): an earlier crossing is more
    extreme, and at one look a larger z. The estimate is the drift under which a result at least as
    extreme has a probability of one half. At the first look it is the plain estimate.
    """
    if len(looks) == 1 or z == 0:
        return 1.0
    z = abs(z)
    bounds = [float(-special.ndtri(min(level, 1 - 1e-12) / 2)) for level in levels]
    times = [n / maximum for n in looks]

    def excess(drift: float) -> float:
        """Return P(at least as extreme upwards) - 1/2 for Z_k of mean drift * sqrt(t_k)."""
        points: FloatArray = np.zeros(1)
        density: FloatArray = np.ones(1)
        before = above = 0.0
        for k, t in enumerate(times):
            step, root = math.sqrt(t - before), math.sqrt(t)
            mean = points + drift * (t - before)
            limit = z if k == len(times) - 1 else bounds[k]
            above += float(np.dot(density, special.ndtr((mean - limit * root) / step)))
            points, density = _advance(mean, density, step, -bounds[k] * root, bounds[k] * root)
            before = t
        return above - 0.5

    plain = z / math.sqrt(times[-1])
    found = optimize.brentq(excess, -plain - 10, plain + 10, xtol=1e-8)
    return float(found) / plain
