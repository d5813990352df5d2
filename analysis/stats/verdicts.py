"""Verdicts in a family of comparisons: different, equivalent or neither, after Holm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.stats.samples import Estimate, Interval, check_alpha


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that the family-wise error rate is held (Holm 1979), in input order.

    None or NaN marks an undefined test: it does not count towards the family and comes back as
    None. Raises ValueError for a p-value outside [0, 1].
    """
    defined = [
        (p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p)
    ]
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(defined)):
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{index}] is {p}; a p-value lies between 0 and 1")
        largest = max(largest, min(1.0, (len(defined) - rank) * float(p)))
        adjusted[index] = largest
    return adjusted


def holm_levels(p_values: Sequence[float | None], alpha: float) -> list[float | None]:
    """Return the level at which `holm` decided each test: alpha / (tests not yet rejected).

    A test is rejected when its p is under its level. Those not rejected share the level at which
    the procedure stopped, so that an interval at 1 - level leaves 0 out exactly where Holm rejects.
    None where a test is undefined.
    """
    adjusted = holm(p_values)
    ranked = sorted(
        (p, index)
        for index, p in enumerate(p_values)
        if p is not None and adjusted[index] is not None
    )
    rejected = sum(p is not None and p < alpha for p in adjusted)
    levels: list[float | None] = [None] * len(p_values)
    for rank, (_, index) in enumerate(ranked):
        levels[index] = alpha / (len(ranked) - min(rank, rejected))
    return levels


def stars(p: float | None) -> str:
    """Return '***' for an adjusted p under 0.001, '**' under 0.01, '*' under 0.05, else ''."""
    if p is None:
        return ""
    return "*" * sum(p < level for level in (0.05, 0.01, 0.001))


Verdict = Literal["different", "equivalent", "open", "inconclusive", "undefined"]
"""'open' is for `judge_looks`: not settled, and seeds are left."""
SMALL = "a difference is shown, and shown to be smaller than the margin"


@dataclass(frozen=True)
class Judgement:
    """What a family says about one difference. Every number is None where it is undefined.

    p_value, p_adjusted: of no difference; tost_p_value, tost_p_adjusted: of one as large as the
    margin. Each kind is adjusted by Holm in its own family.
    ci, ci_level: the interval that decided, at confidence ci_level: 1 - alpha of Holm's step, so
    that it leaves 0 out exactly where 'different' is said. equivalence_ci, equivalence_ci_level:
    the same for equivalence, 1 - 2 alpha of its step: within the margins exactly where it is shown.
    """

    verdict: Verdict
    reason: str | None
    p_value: float | None = None
    p_adjusted: float | None = None
    tost_p_value: float | None = None
    tost_p_adjusted: float | None = None
    ci: Interval | None = None
    ci_level: float | None = None
    equivalence_ci: Interval | None = None
    equivalence_ci_level: float | None = None


def verdict(p_value: float | None, tost_p_value: float | None, alpha: float = 0.05) -> Verdict:
    """Return the word for a comparison, from its two p-values at level `alpha`.

    'different' if p_value < alpha; else 'equivalent' if tost_p_value < alpha; else
    'inconclusive'; 'undefined' if either is None. Both can hold at once, for a difference that is
    real and smaller than the margin. 'different' then wins: a shown difference is not called
    equality, its rate under the null stays alpha, and its smallness is read from its interval.

    For a family of comparisons both p-values are the adjusted ones: see `judge`.
    """
    if p_value is None or tost_p_value is None:
        return "undefined"
    if p_value < alpha:
        return "different"
    return "equivalent" if tost_p_value < alpha else "inconclusive"


def judge(
    estimates: Sequence[Estimate | None], margins: Sequence[float], *, alpha: float = 0.05
) -> list[Judgement]:
    """Judge the differences of one family, in input order; None is an undefined one.

    margins: shape [estimates], the largest difference that does not matter, > 0, in the unit of its
    estimate: log1p(percent / 100) for a log ratio. alpha: family-wise level of either kind of
    claim. The intervals are Holm's: each is the one that decided, and that one excludes 0 wrongly
    happens in alpha of families; all together they hold the truth less often than 1 - alpha.
    Raises ValueError for a margin or alpha out of range.
    """
    check_alpha(alpha)
    for margin in margins:
        if not margin > 0:
            raise ValueError(f"margins must be above 0; got {margin}")
    pairs = list(zip(estimates, margins, strict=True))
    p = [None if e is None else e.p_value for e in estimates]
    tost = [None if e is None else e.tost_p_value(margin) for e, margin in pairs]
    p_adjusted, tost_adjusted = holm(p), holm(tost)
    levels, tost_levels = holm_levels(p, alpha), holm_levels(tost, alpha)
    found = []
    for k, estimate in enumerate(estimates):
        level, tost_level = levels[k], tost_levels[k]
        if estimate is None or level is None or tost_level is None:
            found.append(Judgement("undefined", "no standard error"))
            continue
        word = verdict(p_adjusted[k], tost_adjusted[k], alpha)
        found.append(
            Judgement(
                verdict=word,
                reason=SMALL if word == "different" and (tost_adjusted[k] or 0) < alpha else None,
                p_value=p[k],
                p_adjusted=p_adjusted[k],
                tost_p_value=tost[k],
                tost_p_adjusted=tost_adjusted[k],
                ci=estimate.interval(level),
                ci_level=1 - level,
                equivalence_ci=estimate.interval(2 * tost_level),
                equivalence_ci_level=1 - 2 * tost_level,
            )
        )
    return found


@dataclass(frozen=True)
class Standing:
    """How far one of several methods can be from the best of them, in the unit of the estimates.

    at_most: no worse than the best by more than this. at_least: worse than the best by at least
    this; 0 where the method may be the best. None where a comparison is undefined.
    """

    name: str
    at_most: float | None
    at_least: float | None


def standings(
    names: Sequence[str],
    interval: Callable[[str, str, float], Interval | None],
    *,
    alpha: float = 0.05,
) -> list[Standing]:
    """Compare methods with the best of them, in input order.

    interval: (a, b, level) -> two-sided limits of value(a) - value(b) at confidence 1 - level. A
    larger value is worse. Methods whose comparisons are undefined are left out, those with most of
    them first; their numbers are None.

    at_most holds for all methods at once in 1 - alpha of suites: multiple comparisons with the best
    (Hsu 1984), from one-sided limits against each other method. So does at_least, from two-sided
    limits (Edwards & Hsu 1983). The level of one limit is Šidák's for names - 1 comparisons with
    one method, which is on the safe side for estimates that share this method.
    """
    check_alpha(alpha)
    if len(names) < 2:
        raise ValueError(f"names must be two methods or more; got {list(names)}")
    compared = list(names)
    while len(compared) > 1:
        unknown = {
            a: sum(interval(a, b, alpha) is None for b in compared if b != a) for a in compared
        }
        worst = max(compared, key=lambda name: unknown[name])
        if not unknown[worst]:
            break
        compared.remove(worst)
    if len(compared) < 2:
        return [Standing(name, None, None) for name in names]
    each = 1 - (1 - alpha) ** (1 / (len(compared) - 1))
    pairs = [(a, b) for a in compared for b in compared if a != b]
    one_sided = {(a, b): interval(a, b, 2 * each) for a, b in pairs}
    two_sided = {(a, b): interval(a, b, each) for a, b in pairs}
    upper = {pair: found[1] for pair, found in one_sided.items() if found}
    lower = {pair: found[0] for pair, found in two_sided.items() if found}
    others = {name: [other for other in compared if other != name] for name in compared}
    best = [name for name in compared if all(lower[name, other] <= 0 for other in others[name])]
    return [
        Standing(name, None, None)
        if name not in compared
        else Standing(
            name,
            at_most=max(0.0, *(upper[name, other] for other in others[name])),
            at_least=0.0 if name in best else max(0.0, min(lower[name, b] for b in best)),
        )
        for name in names
    ]
