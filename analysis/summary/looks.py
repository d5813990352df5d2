"""A family of comparisons over its looks: what each look showed, and the verdict that they allow.

With a declared maximum alpha is spent over the looks (`judge_looks`); looks without one are judged
by a test that holds at any time (`anytime`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from scipy import special

from analysis.reading.looks import Course
from analysis.reading.table import mark_observations
from analysis.stats.samples import Interval
from analysis.stats.sequential import (
    Anytime,
    Look,
    LookJudgement,
    anytime,
    hwang_shih_decani,
    judge_looks,
    median_unbiased,
    nominal_levels,
    sequential_p,
)
from analysis.stats.verdicts import Judgement, Verdict, holm, holm_levels, standings
from analysis.summary.methods import Method, Text, methods_of
from analysis.summary.pairs import (
    Basis,
    Compared,
    Frame,
    Pair,
    adjusted,
    compared,
    families,
    leading,
)


@dataclass(frozen=True)
class Tracked:
    """One comparison over its looks.

    pairs, ns: at each look, and the seeds then, which rise: of the smaller group, or of the larger
    one where no maximum was declared: seeds added to one method are a look as well. levels:
    nominal two-sided level of each look, spent: alpha of this comparison spent up to it; both empty
    where no maximum was declared. maximum: the declared one. judgement: of all looks together. One
    look without a maximum: a suite broke off there after its values were shown.
    decided: index of the look whose numbers the verdict rests on. at_any_time: what undeclared
    looks allow.
    """

    pairs: tuple[Pair, ...]
    ns: tuple[int, ...]
    judgement: Judgement
    decided: int
    maximum: int | None = None
    levels: tuple[float, ...] = ()
    spent: tuple[float, ...] = ()
    at_any_time: Anytime | None = None

    @property
    def pair(self) -> Pair:
        """Return the comparison at the look that decided, with the verdict of all looks."""
        pair = self.pairs[self.decided]
        return replace(pair, judgement=self.judgement, at_any_time=self.at_any_time)

    @property
    def unbiased(self) -> float | None:
        """Return the median-unbiased difference where the test ended before its maximum, % of b.

        None where nothing was settled early. The plain estimate is too large then: simulated with
        looks at 5, 10, ... 30 seeds, 1.5 to 2.5 times for tests that end at the first look.
        """
        j, pair = self.judgement, self.pairs[self.decided]
        estimate, early = pair.estimate, isinstance(j, LookJudgement) and j.verdict == "different"
        if not early or not self.levels or self.maximum is None or estimate is None:
            return None
        if self.ns[self.decided] >= self.maximum:
            return None
        k = self.decided + 1
        z = float(-special.ndtri(max(estimate.p_value, 1e-300) / 2))
        factor = median_unbiased(z, self.ns[:k], self.maximum, self.levels[:k])
        return pair.to_percent(factor * estimate.difference)

    @property
    def nominal(self) -> Interval | None:
        """Return the 1 - alpha interval of the last look as if there had been no other, % of b."""
        return self._interval(len(self.ns) - 1, self.pairs[-1].seeds.alpha)

    def repeated(self, k: int) -> Interval | None:
        """Return the interval of look k at its nominal level, % of b; None without a maximum."""
        return self._interval(k, self.levels[k]) if self.levels else None

    def _interval(self, k: int, alpha: float) -> Interval | None:
        pair = self.pairs[k]
        return None if pair.estimate is None else pair.in_percent(pair.estimate.interval(alpha))


def track(
    good: pd.DataFrame,
    course: Course,
    frame: Frame,
    texts_in: Callable[[pd.DataFrame], Mapping[str, Text]],
    pairs: Sequence[Pair],
) -> list[Tracked]:
    """Follow each comparison of the primary family (of all pairs where there is none).

    good: finished cells. texts_in: returns the texts of some of them. pairs: the comparisons over
    all of them. Comparisons without a defined test at any look are left out. All are left out after
    a single planned look without a declared maximum: `judged` covers these.
    """
    cells = list(zip(good["model"], good["method"], good["seed"], strict=True))
    at_looks = []
    for seen in course.looks:
        here = [pd.notna(seed) and (model, name, int(seed)) in seen for model, name, seed in cells]
        rows = mark_observations(good[here])
        methods = methods_of(rows, frame.metric, frame.keys)
        both = compared(methods, rows, texts_in(rows), frame)
        at_looks.append({(one.pair.model, one.pair.name): one for one in both})
    found = []
    for model in dict.fromkeys(p.model for p in pairs):
        maximum = course.maxima.get(model)
        names = [p.name for p in leading([p for p in pairs if p.model == model])]
        family = [_rising([one[model, name] for one in at_looks], maximum) for name in names]
        family = [history for history in family if history]
        if maximum is not None:
            found += _sequential(family, maximum, frame.options.alpha)
        elif model in course.interrupted or any(len(history) > 1 for history in family):
            found += _anytime(family, frame.options.alpha)
    return found


def after_looks(pairs: Sequence[Pair], tracked: Sequence[Tracked]) -> list[Pair]:
    """Return the pairs with the verdicts of their looks instead of those of one look."""
    known = {(t.pair.model, t.pair.name): t.pair for t in tracked}
    found = []
    for p in pairs:
        own = known.get((p.model, p.name), p)
        found.append(replace(own, tests=p.tests, plan=None if own.at_any_time else p.plan))
    return [p for family in families(found) for p in adjusted(family)]


def _seeds(one: Compared) -> tuple[int, int]:
    return one.a.n_seeds, one.b.n_seeds


def _rising(found: Sequence[Compared], maximum: int | None) -> list[Compared]:
    """Keep the looks at which there were more seeds than before, and a test as at the last one.

    Without a declared maximum seeds added to one of the two methods are a look too. With one, more
    seeds of one method alone bring no information: the numbers of the look before stay.
    """
    tested = [one for one in found if one.pair.estimate is not None]
    tested.sort(key=lambda one: sum(_seeds(one)))
    count = sum if maximum is None else min
    kept: list[Compared] = []
    for one in tested:
        alike = one.pair.decided_by == tested[-1].pair.decided_by
        if alike and (not kept or count(_seeds(one)) > count(_seeds(kept[-1]))):
            kept.append(one)
    return kept


def _sequential(family: Sequence[Sequence[Compared]], maximum: int, alpha: float) -> list[Tracked]:
    histories = [
        [
            Look(min(_seeds(one)), one.pair.estimate)
            for one in history
            if one.pair.estimate is not None
        ]
        for history in family
    ]
    margins = [history[-1].pair.margin_of_estimate for history in family]
    judged = judge_looks(histories, margins, maximum, alpha=alpha)
    overall = [
        sequential_p([x.estimate.p_value for x in looks], [x.n for x in looks], maximum)
        for looks in histories
    ]
    found = []
    for history, judgement, own in zip(family, judged, holm_levels(overall, alpha), strict=True):
        ns = tuple(min(_seeds(one)) for one in history)
        at = len(ns) - 1 if judgement.decided_at is None else ns.index(judgement.decided_at)
        level = alpha if own is None else own
        found.append(
            Tracked(
                pairs=tuple(one.pair for one in history),
                ns=ns,
                judgement=judgement,
                decided=at,
                maximum=maximum,
                levels=tuple(nominal_levels(ns, maximum, alpha=level)),
                spent=tuple(hwang_shih_decani(level, n / maximum) for n in ns),
            )
        )
    return found


def _anytime(family: Sequence[Sequence[Compared]], alpha: float) -> list[Tracked]:
    """Judge by what holds at any time: Holm over differences, Bonferroni over equivalences.

    It is over seeds, on exactly these windows. The interval is the one at Holm's step, so that it
    leaves 0 out exactly where the verdict is "different".
    """
    values = [in_unit_of(*history[-1]) for history in family]
    level = alpha / max(1, len(family))
    plain = [anytime(*both, alpha=level) for both in values]
    p_values = [one.p_value for one in plain]
    adjusted, levels = holm(p_values), holm_levels(p_values, alpha)
    found = []
    for k, history in enumerate(family):
        one, p, own = plain[k], adjusted[k], levels[k]
        decided = one if own is None else anytime(*values[k], alpha=own)
        margin = replace(history[-1].pair, at_any_time=one).margin_of_estimate
        inside = one.ci is not None and -margin < one.ci[0] and one.ci[1] < margin
        word: Verdict = "equivalent" if inside else "inconclusive"
        judgement = Judgement(
            verdict="undefined" if p is None else "different" if p < alpha else word,
            reason=one.reason,
            p_value=one.p_value,
            p_adjusted=p,
            ci=decided.ci,
            ci_level=None if decided.ci is None else 1 - decided.alpha,
            equivalence_ci=one.ci,
            equivalence_ci_level=None if one.ci is None else 1 - level,
        )
        pairs = tuple(one.pair for one in history)
        ns = tuple(max(_seeds(one)) for one in history)
        found.append(Tracked(pairs, ns, judgement, len(ns) - 1, at_any_time=decided))
    return found


def in_unit_of(pair: Pair, a: Method, b: Method) -> tuple[list[float], list[float]]:
    """Return the observations of both methods, as logarithms where ratios are compared."""
    if pair.kind in ("exponential", "ratio") and min((*a.values, *b.values)) > 0:
        return [math.log(x) for x in a.values], [math.log(x) for x in b.values]
    return list(a.values), list(b.values)


@dataclass(frozen=True)
class Rank:
    """A method among all of its model, the best first.

    mean: of its observations. at_most: it is worse than the best method by no more than this, in
    `unit`; at_least: by at least this. None where it cannot be said. basis: what this rests on.
    """

    name: str
    mean: float
    at_most: float | None
    at_least: float | None
    unit: str
    basis: Basis | None


def ranking(
    pairs: Sequence[Pair],
    methods: Sequence[Method],
    tracked: Sequence[Tracked],
    alpha: float,
    lower: bool,
) -> list[Rank]:
    """Rank the methods of one model with the most that each can be worse than the best.

    pairs: all comparisons of the model, over all of its cells. tracked: its looks. The level is
    that of the suite's last look: alpha of one look, the nominal level of a declared maximum, or
    the e-process where looks were not declared.
    """
    best_first = sorted(
        (m for m in methods if m.description.mean is not None),
        key=lambda m: (m.description.mean or 0.0) * (1 if lower else -1),
    )
    by_names = {(p.a, p.b): p for p in pairs}
    by_name = {m.name: m for m in best_first}
    longest = max(tracked, key=lambda t: len(t.ns), default=None)

    def interval(a: str, b: str, level: float) -> Interval | None:
        pair = by_names.get((a, b)) or by_names.get((b, a))
        if pair is None:
            return None
        limits: Interval | None = None
        if longest is not None and longest.maximum is None:
            both = in_unit_of(pair, by_name[pair.a], by_name[pair.b])
            now = anytime(*both, alpha=min(level, 0.49))
            pair, limits = replace(pair, at_any_time=now), now.ci
        elif pair.estimate is not None:
            if longest is not None and longest.maximum is not None:
                level = nominal_levels(longest.ns, longest.maximum, alpha=level)[-1]
            limits = pair.estimate.interval(level)
        if limits is None:
            return None
        forward = ((pair.a, pair.b) == (a, b)) == lower
        return pair.in_percent(limits if forward else (-limits[1], -limits[0]))

    if len(best_first) < 2:
        return []
    found = standings([m.name for m in best_first], interval, alpha=alpha)
    any_pair = next(iter(pairs))
    basis = any_pair.decided_by if longest is None or longest.maximum else "seeds at any time"
    return [
        Rank(m.name, m.description.mean or 0.0, s.at_most, s.at_least, any_pair.unit, basis)
        for m, s in zip(best_first, found, strict=True)
    ]
