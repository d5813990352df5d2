"""Seeds until it is settled: a family of comparisons, looked at more than once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import interpolate, special

from analysis.stats.estimate import Estimate
from analysis.stats.multiplicity import holm, holm_levels
from analysis.stats.samples import check_alpha
from analysis.stats.spending import nominal_levels
from analysis.stats.verdicts import SMALL, Judgement, verdict

# Under this chance that more seeds settle it, going on is called futile.
FUTILE = 0.05


@dataclass(frozen=True)
class Look:
    """One comparison at one look.

    n: seeds of the smaller group. estimate: the difference then. text_error: the part of its
    standard error that more seeds leave as it is; 0 over seeds alone.
    """

    n: int
    estimate: Estimate
    text_error: float = 0.0


@dataclass(frozen=True)
class LookJudgement(Judgement):
    """A comparison after its looks so far; see `judge_looks`.

    n: seeds of the last look. p_value, tost_p_value: of the last look. p_adjusted,
    tost_p_adjusted: over looks and family. decided_at: seeds of the look that settled it, whose
    repeated intervals `ci` and `equivalence_ci` are; while nothing is settled those of the last.
    p_different, p_equivalent: chance that the maximum will show it, as things stand; both None at
    the maximum. futile: open, and hardly to be settled any more. Not binding: going on costs no
    alpha.
    """

    n: int = 0
    decided_at: int | None = None
    p_different: float | None = None
    p_equivalent: float | None = None
    futile: bool = False


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

    Each look is tested at its nominal level (`nominal_levels`, Hwang-Shih-DeCani spending), for a
    difference two-sided, for equivalence by two tests at the one-sided levels. Over the family:
    the group-sequential Holm procedure (Maurer & Bretz 2013), in which a comparison that is settled
    hands its alpha to the others, for the looks that they have had as well. As the spending is a
    share of alpha, that is Holm's procedure on the smallest alpha at which a comparison would have
    been rejected by now. Both kinds have families of their own.

    Verdicts: 'different' and 'equivalent' stay, whatever later looks show; 'open' while seeds are
    left, 'inconclusive' at the maximum. Raises ValueError for looks or alpha out of range.
    """
    check_alpha(alpha)
    both = list(zip(histories, margins, strict=True))
    p = [[look.estimate.p_value for look in looks] for looks, _ in both]
    tost = [[look.estimate.tost_p_value(margin) for look in looks] for looks, margin in both]
    ns = [tuple(look.n for look in looks) for looks, _ in both]
    overall = [sequential_p(x, n, maximum, sides=2) for x, n in zip(p, ns, strict=True)]
    tost_overall = [sequential_p(x, n, maximum, sides=1) for x, n in zip(tost, ns, strict=True)]
    levels, tost_levels = holm_levels(overall, alpha), holm_levels(tost_overall, alpha)
    adjusted, tost_adjusted = holm(overall), holm(tost_overall)
    found = []
    for k, (looks, margin) in enumerate(both):
        level, tost_level = levels[k], tost_levels[k]
        if level is None or tost_level is None:
            found.append(LookJudgement("undefined", "no look with a standard error"))
            continue
        word = verdict(adjusted[k], tost_adjusted[k], alpha)
        small = word == "different" and (tost_adjusted[k] or 0) < alpha
        known = LookJudgement(
            verdict="open" if word == "inconclusive" and ns[k][-1] < maximum else word,
            reason=SMALL if small else None,
            p_value=p[k][-1],
            p_adjusted=adjusted[k],
            tost_p_value=tost[k][-1],
            tost_p_adjusted=tost_adjusted[k],
            n=ns[k][-1],
        )
        spent = nominal_levels(ns[k], maximum, alpha=level)
        tost_spent = nominal_levels(ns[k], maximum, alpha=tost_level, sides=1)
        known = _with_intervals(known, looks, (p[k], spent), (tost[k], tost_spent))
        if known.verdict == "open":
            known = _with_outlook(known, looks, margin, maximum, level, tost_level)
        found.append(known)
    return found


def sequential_p(
    p_values: Sequence[float], looks: Sequence[int], maximum: int, *, sides: int = 2
) -> float | None:
    """The smallest alpha at which the looks so far would have rejected; None without a look.

    p_values: shape [looks], the p-value of each look by itself. It is a p-value whatever the number
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
    """For each look: log of its nominal level -> log of the alpha that gives it."""
    alphas = np.concatenate([np.geomspace(1e-9, 1e-3, 40), np.geomspace(1.2e-3, 0.99, 80)])
    levels = np.array([nominal_levels(looks, maximum, alpha=float(a), sides=sides) for a in alphas])
    return [
        interpolate.PchipInterpolator(np.log(x[x < 1]), np.log(alphas[x < 1])) for x in levels.T
    ]


def _with_intervals(
    known: LookJudgement,
    looks: Sequence[Look],
    difference: tuple[Sequence[float], Sequence[float]],
    equivalence: tuple[Sequence[float], Sequence[float]],
) -> LookJudgement:
    """`known` with the repeated intervals of the look that decided; each pair is p and level."""
    crossed = [k for k, (p, level) in enumerate(zip(*difference, strict=True)) if p < level]
    shown = [k for k, (p, level) in enumerate(zip(*equivalence, strict=True)) if p < level]
    at = {"different": crossed, "equivalent": shown}.get(known.verdict, [])
    k = at[0] if at else len(looks) - 1
    level, tost_level = difference[1][k], equivalence[1][k]
    estimate = looks[k].estimate
    return replace(
        known,
        decided_at=looks[k].n if at else None,
        ci=estimate.interval(level),
        ci_level=1 - level,
        equivalence_ci=estimate.interval(2 * tost_level),
        equivalence_ci_level=1 - 2 * tost_level,
    )


def _with_outlook(
    known: LookJudgement,
    looks: Sequence[Look],
    margin: float,
    maximum: int,
    level: float,
    tost_level: float,
) -> LookJudgement:
    """`known` with the chances that the maximum, the only look from here, shows either.

    The last estimate moves on to one that is normal around it, as it is for a flat prior, with the
    variance that the seeds to come take away; standard deviations stay as they are.
    """
    last = looks[-1]
    share = last.n / maximum
    ns = [*(look.n for look in looks), maximum]
    fixed = last.text_error**2
    of_seeds = max(0.0, last.estimate.std_error**2 - fixed)
    final = Estimate(0.0, math.sqrt(fixed + of_seeds * share), last.estimate.df / share)
    moves = math.sqrt(of_seeds * (1 - share))

    def chance(low: float, high: float) -> float:
        if moves == 0:
            return float(low < last.estimate.difference < high)
        z = (np.array([low, high]) - last.estimate.difference) / moves
        return float(np.diff(special.ndtr(z))[0])

    needed = final.interval(nominal_levels(ns, maximum, alpha=level)[-1])[1]
    room = (
        margin - final.interval(2 * nominal_levels(ns, maximum, alpha=tost_level, sides=1)[-1])[1]
    )
    different = 1 - chance(-needed, needed)
    equivalent = chance(-room, room) if room > 0 else 0.0
    return replace(
        known,
        p_different=different,
        p_equivalent=equivalent,
        futile=different + equivalent < FUTILE,
    )
