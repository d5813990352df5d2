"""Verdicts in a family of comparisons: different, equivalent or neither, after Holm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal, TypeVar

from analysis.stats.samples import Estimate, Interval, check_alpha


def holm_steps(p_values: Sequence[float | None], alpha: float) -> list[tuple[float, float] | None]:
    """Return each test's p-value after Holm (1979), and the level at which it was decided.

    The level is alpha / (tests not yet rejected). A test is rejected when its p is under its level.
    Those not rejected share the level at which the procedure stopped, so that an interval at
    1 - level leaves 0 out exactly where Holm rejects. None or NaN marks an undefined test: it does
    not count towards the family and comes back as None. Raises ValueError outside [0, 1].
    """
    ranked = sorted(
        (p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p)
    )
    adjusted: list[float] = []
    for rank, (p, index) in enumerate(ranked):
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{index}] is {p}; a p-value lies between 0 and 1")
        adjusted.append(max([*adjusted[-1:], min(1.0, (len(ranked) - rank) * float(p))]))
    rejected = sum(p < alpha for p in adjusted)
    steps: list[tuple[float, float] | None] = [None] * len(p_values)
    for rank, (_, index) in enumerate(ranked):
        steps[index] = adjusted[rank], alpha / (len(ranked) - min(rank, rejected))
    return steps


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust p-values so that the family-wise error rate is held, as `holm_steps`."""
    return [step and step[0] for step in holm_steps(p_values, 0.05)]


def holm_levels(p_values: Sequence[float | None], alpha: float) -> list[float | None]:
    """Return the level at which `holm` decided each test, as `holm_steps`."""
    return [step and step[1] for step in holm_steps(p_values, alpha)]


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
    margin. Each kind is adjusted by Holm in its own family. ci: the interval that decided, at
    confidence 1 - alpha of Holm's step, so that it leaves 0 out exactly where 'different' is said.
    equivalence_ci: at 1 - 2 alpha of its step, within the margins exactly where that is shown.
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


def verdict(p_value: float, tost_p_value: float, alpha: float = 0.05) -> tuple[Verdict, str | None]:
    """Return the word for a comparison, from its two p-values at level `alpha`, and its reason.

    'different' if p_value < alpha; else 'equivalent' if tost_p_value < alpha; else 'inconclusive'.
    Both can hold at once, for a difference that is real and smaller than the margin. 'different'
    then wins: a shown difference is not called equality, its rate under the null stays alpha, and
    its smallness is read from its interval. The reason says so.

    For a family of comparisons both p-values are the adjusted ones: see `judge`.
    """
    if p_value < alpha:
        return "different", SMALL if tost_p_value < alpha else None
    return "equivalent" if tost_p_value < alpha else "inconclusive", None


Claim = tuple[Judgement, float, float]
"""A judgement without intervals, and the levels of Holm's steps for either kind of claim."""


def claims(
    p: Sequence[float | None], tost: Sequence[float | None], alpha: float
) -> list[Claim | None]:
    """Judge a family by its p-values of no difference and of one as large as the margin."""
    found: list[Claim | None] = []
    steps = zip(holm_steps(p, alpha), holm_steps(tost, alpha), strict=True)
    for own, tost_own, (step, tost_step) in zip(p, tost, steps, strict=True):
        if step is None or tost_step is None:
            found.append(None)
            continue
        word, reason = verdict(step[0], tost_step[0], alpha)
        known = Judgement(word, reason, own, step[0], tost_own, tost_step[0])
        found.append((known, step[1], tost_step[1]))
    return found


J = TypeVar("J", bound=Judgement)


def with_intervals(known: J, estimate: Estimate, level: float, tost_level: float) -> J:
    """Return `known` with the intervals of a difference and of equivalence at these levels."""
    return replace(
        known,
        ci=estimate.interval(level),
        ci_level=1 - level,
        equivalence_ci=estimate.interval(2 * tost_level),
        equivalence_ci_level=1 - 2 * tost_level,
    )


def judge(
    estimates: Sequence[Estimate | None], margins: Sequence[float], *, alpha: float = 0.05
) -> list[Judgement]:
    """Judge the differences of one family, in input order; None is an undefined one.

    margins: shape [estimates], the largest difference that does not matter, > 0, in the unit of its
    estimate: log1p(percent / 100) for a log ratio. alpha: family-wise level of either kind of
    claim. Some interval excludes 0 wrongly in alpha of families; all together they hold the truth
    less often than 1 - alpha. Raises ValueError for a margin or alpha out of range.
    """
    check_alpha(alpha)
    for margin in margins:
        if not margin > 0:
            raise ValueError(f"margins must be above 0; got {margin}")
    p = [None if e is None else e.p_value for e in estimates]
    pairs = zip(estimates, margins, strict=True)
    tost = [None if e is None else e.tost_p_value(margin) for e, margin in pairs]
    return [
        Judgement("undefined", "no standard error")
        if estimate is None or claim is None
        else with_intervals(claim[0], estimate, *claim[1:])
        for estimate, claim in zip(estimates, claims(p, tost, alpha), strict=True)
    ]


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
    pairs = list(permutations(compared, 2))
    upper = {(a, b): found[1] for a, b in pairs if (found := interval(a, b, 2 * each))}
    lower = {(a, b): found[0] for a, b in pairs if (found := interval(a, b, each))}
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
