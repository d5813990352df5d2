"""A family of comparisons over its looks: what each look showed, and the verdict that they allow.

With a declared maximum alpha is spent over the looks (`judge_looks`); looks without one are judged
by what holds whenever one looks (`anytime`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pandas as pd

from analysis.reading.checks import mark_observations, observations
from analysis.reading.looks import Course, Seen
from analysis.stats import (
    Estimate,
    Judgement,
    Look,
    Verdict,
    anytime,
    holm,
    holm_family,
    hwang_shih_decani,
    judge_looks,
    nominal_levels,
    sequential_p,
)
from analysis.stats.samples import Interval
from analysis.stats.verdicts import holm_levels
from analysis.summary.methods import Windows, arithmetic, method, read_windows_of, texts_of
from analysis.summary.options import (
    DEFAULT_BASELINE,
    OURS,
    Known,
    Options,
    about,
    chosen,
    column_of,
    corpora_of,
)
from analysis.summary.pairs import Family, Pair, Setting, pair, pairs_of


@dataclass(frozen=True)
class Tracked:
    """One comparison over its looks.

    pairs, ns: at each look, and the seeds of the smaller group then, which rise. levels: nominal
    two-sided level of each look, spent: alpha of this comparison spent up to it; both empty where
    no maximum was declared. maximum: the declared one. judgement: of all looks together.
    decided: index of the look whose numbers the verdict rests on.
    """

    pairs: tuple[Pair, ...]
    ns: tuple[int, ...]
    judgement: Judgement
    decided: int
    maximum: int | None = None
    levels: tuple[float, ...] = ()
    spent: tuple[float, ...] = ()

    @property
    def pair(self) -> Pair:
        """The comparison at the look that decided, with the verdict of all looks."""
        return replace(self.pairs[self.decided], judgement=self.judgement)

    @property
    def nominal(self) -> Interval | None:
        """The 1 - alpha interval of the last look as if there had been no other, % of b."""
        return self._percent(len(self.ns) - 1, self.pairs[-1].seeds.alpha)

    def repeated(self, k: int) -> Interval | None:
        """The interval of look k at its nominal level, % of b; None without a declared maximum."""
        return self._percent(k, self.levels[k]) if self.levels else None

    def _percent(self, k: int, alpha: float) -> Interval | None:
        estimate = self.pairs[k].estimate
        if estimate is None:
            return None
        own = Judgement("open", None, ci=estimate.interval(alpha), ci_level=1 - alpha)
        found = replace(self.pairs[k], judgement=own).decided
        return found[0] if found else None


def track(cells: pd.DataFrame, options: Options, course: Course) -> list[Tracked]:
    """Follow each comparison of the primary family (of all pairs where there is none).

    Those without a look at which a test is defined are left out; so are all where one look was all
    there was and no maximum was declared: `judge` knows them.
    """
    metric = column_of(options.metric, cells)
    known = about(metric, cells, options.direction)
    names = list(dict.fromkeys(cells.loc[cells["kind"] == "cell", "method"]))
    primary = chosen("primary", options.primary, OURS, names)
    baseline = chosen("baseline", options.baseline, DEFAULT_BASELINE, names)
    grid = pairs_of(names, primary, baseline)
    read = read_windows_of(cells, corpora_of(metric, cells))
    at_looks = [_at(cells, metric, known, read, options, seen, grid) for seen in course.looks]
    found = []
    for model in dict.fromkeys(cells["model"]):
        there = set(cells.loc[cells["model"] == model, "method"])
        family = [
            _rising([one[model, a, b] for one in at_looks if (model, a, b) in one])
            for a, b, name in grid
            if primary not in there or name == "primary"
        ]
        family = [history for history in family if history]
        maximum = course.maximum_of(model)
        if maximum is not None:
            found += _sequential(family, maximum, options.alpha)
        elif any(len(history) > 1 for history in family):
            found += _anytime(family, options.alpha)
    return found


def after_looks(pairs: Sequence[Pair], tracked: Sequence[Tracked]) -> list[Pair]:
    """Return the pairs with what their looks say in the place of what one look would."""
    known = {(t.pair.model, t.pair.name): t.pair for t in tracked}
    found = [
        replace(known[p.model, p.name], tests=p.tests, plan=p.plan)
        if (p.model, p.name) in known
        else p
        for p in pairs
    ]
    families = {key: [p for p in found if (p.model, p.family) == key] for key in _families(found)}
    seeds = {key: holm_family([p.seeds for p in own]) for key, own in families.items()}
    return [replace(p, seeds=seeds[p.model, p.family].pop(0)) for p in found]


def _families(pairs: Sequence[Pair]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((p.model, p.family) for p in pairs))


class Compared(NamedTuple):
    """A comparison at one look: seeds of the smaller group, and the observations of both."""

    n: int
    pair: Pair
    a: tuple[float, ...]
    b: tuple[float, ...]


At = Mapping[tuple[str, str, str], Compared]
"""By model, a and b."""


def _at(
    cells: pd.DataFrame,
    metric: str,
    known: Known,
    read: Windows,
    options: Options,
    seen: Seen,
    grid: Sequence[tuple[str, str, Family]],
) -> At:
    """Make the comparisons from the cells that one look saw."""
    keys = zip(cells["model"], cells["method"], cells["seed"], strict=True)
    here = [pd.notna(seed) and (model, name, int(seed)) in seen for model, name, seed in keys]
    rows = cells[here]
    good = mark_observations(rows[(rows["error"] == "") & rows[metric].notna()])
    once = observations(good)
    texts = {} if known.windows is None else texts_of(good, read, known.windows)
    found = {}
    for model, own in good.groupby("model", sort=False):
        name = str(model)
        setting = Setting(options, known.log, texts.get(name), arithmetic(good, name, metric))
        there = set(own["method"])
        methods = {m: method(good, once, metric, None, None, (name, m)) for m in there}
        for a, b, family in grid:
            if {a, b} <= there:
                x, y = methods[a], methods[b]
                made = pair(x, y, family, setting)
                found[name, a, b] = Compared(min(x.n_seeds, y.n_seeds), made, x.values, y.values)
    return found


def _rising(found: Sequence[Compared]) -> list[Compared]:
    """Keep the looks at which there were more seeds than before, and a test as at the last one."""
    tested = [one for one in sorted(found, key=lambda c: c.n) if one.pair.estimate is not None]
    kept: list[Compared] = []
    for one in tested:
        alike = one.pair.decided_by == tested[-1].pair.decided_by
        if alike and (not kept or one.n > kept[-1].n):
            kept.append(one)
    return kept


def _sequential(family: Sequence[Sequence[Compared]], maximum: int, alpha: float) -> list[Tracked]:
    histories = [[_look(one) for one in history] for history in family]
    margins = [history[-1].pair.margin_of_estimate for history in family]
    judged = judge_looks(histories, margins, maximum, alpha=alpha)
    overall = [
        sequential_p([x.estimate.p_value for x in looks], [x.n for x in looks], maximum)
        for looks in histories
    ]
    found = []
    for history, judgement, own in zip(family, judged, holm_levels(overall, alpha), strict=True):
        ns = tuple(one.n for one in history)
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


def _look(found: Compared) -> Look:
    estimate = found.pair.estimate
    assert estimate is not None
    return Look(found.n, estimate, _of_text(found.pair, estimate))


def _of_text(found: Pair, estimate: Estimate) -> float:
    """The part of the standard error that more seeds leave as it is."""
    text = found.text
    if found.decided_by != "seeds and text" or text is None or text.text_variance is None:
        return 0.0
    left = max(0.0, text.text_variance - (text.overlap_variance or 0.0))
    return min(math.sqrt(left), estimate.std_error)


def _anytime(family: Sequence[Sequence[Compared]], alpha: float) -> list[Tracked]:
    """Judge by what holds at any time: Holm over differences, Bonferroni over equivalences.

    It is over seeds, on exactly these windows.
    """
    level = alpha / len(family)
    plain = [anytime(*_values(history[-1]), alpha=level) for history in family]
    adjusted = holm([one.p_value for one in plain])
    found = []
    for history, one, p in zip(family, plain, adjusted, strict=True):
        margin = history[-1].pair.margin_of_estimate
        inside = one.ci is not None and -margin < one.ci[0] and one.ci[1] < margin
        word: Verdict = "equivalent" if inside else "inconclusive"
        judgement = Judgement(
            verdict="different" if p is not None and p < alpha else word,
            reason=None,
            p_value=one.p_value,
            p_adjusted=p,
            ci=one.ci,
            ci_level=None if one.ci is None else 1 - level,
            equivalence_ci=one.ci,
            equivalence_ci_level=None if one.ci is None else 1 - level,
        )
        pairs, ns = tuple(one.pair for one in history), tuple(one.n for one in history)
        found.append(Tracked(pairs, ns, judgement, len(ns) - 1))
    return found


def _values(found: Compared) -> tuple[list[float], list[float]]:
    """The observations of both methods in the unit of the estimate."""
    if found.pair.decided_by == "seeds and text" and found.pair.log:
        return [math.log(x) for x in found.a], [math.log(x) for x in found.b]
    return list(found.a), list(found.b)
