"""One method against another on one model, planned, and judged in its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from analysis.stats.comparison import (
    Comparison,
    SpreadComparison,
    compare,
    compare_spread,
    holm_family,
)
from analysis.stats.power import Design, seeds_for_difference, seeds_for_equivalence
from analysis.stats.samples import (
    Estimate,
    FloatArray,
    Interval,
    PooledVariance,
    percent_change,
    percent_interval,
    pooled_variance,
    satterthwaite,
)
from analysis.stats.sequential import Anytime
from analysis.stats.text import Question, TextComparison, compare_on_text
from analysis.stats.verdicts import Judgement, Verdict, judge
from analysis.summary.methods import Key, Method, Text, arithmetic
from analysis.summary.options import Kind, Known, Options

Family = Literal["primary", "exploratory"]


@dataclass(frozen=True)
class Plan:
    """Draws per method (seeds, or replicates of one set) for 80 % power; None: no number.

    difference: to find one as large as the margin. equivalence: to show that it is smaller, if
    there is none. tests: of the family, at whose first step by Holm this holds.
    text_error_percent: standard error, % of b, that more seeds leave; 0 where seeds alone decide.
    """

    difference: int | None
    equivalence: int | None
    tests: int
    text_error_percent: float


Basis = Literal["seeds and text", "seeds", "seeds at any time"]
"""What a verdict rests on. "seeds at any time": the e-process of undeclared looks (`anytime`)."""
BASES: dict[Basis, str] = {
    "seeds and text": "over seeds and text, for other documents of this mix",
    "seeds": "over seeds, on exactly these windows (Welch)",
    "seeds at any time": "over seeds, on exactly these windows, valid at any look (t e-process)",
}
"""The words for it: every sentence, caption and column takes them from here."""


@dataclass(frozen=True)
class Pair:
    """Method a against method b on one model.

    seeds: Welch's test over the observations, on exactly these windows. ratio: the same for the log
    ratio of two means, of a metric that is compared so. text: over observations and windows
    together, for other documents of the same mix; None where the runs have no windows of the
    metric. eras: the same for periods drawn anew; it never decides. at_any_time: what undeclared
    looks allow; where it is set, it decides.
    judgement: the verdict in its family, by what `decided_by` names.
    kind: how values are compared (`Known`). scale: the value of b, of which differences are a
    percentage. margin: % of b, or percentage points. tests: defined tests of the family. plan: what
    more seeds would show. one_sets: the methods that are one calibration set; the result holds for
    that one.
    """

    model: str
    a: str
    b: str
    family: Family
    seeds: Comparison
    ratio: Estimate | None
    text: TextComparison | None
    eras: TextComparison | None
    spread: SpreadComparison
    kind: Kind
    scale: float
    margin: float
    one_sets: tuple[str, ...]
    tests: int = 0
    judgement: Judgement = field(default_factory=lambda: Judgement("undefined", None))
    plan: Plan | None = None
    at_any_time: Anytime | None = None

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def unit(self) -> str:
        """Return the unit of differences: "%" of b, or percentage "points"."""
        return "points" if self.kind == "share" else "%"

    @property
    def decided_by(self) -> Basis | None:
        """Return the basis of the verdict; None where it is undefined."""
        if self.at_any_time is not None:
            return "seeds at any time"
        if self.text is not None and self.text.estimate is not None:
            return "seeds and text"
        return None if self.seeds.estimate is None else "seeds"

    @property
    def estimate(self) -> Estimate | None:
        """Return the difference at one look: of logarithms, or in the metric's unit."""
        by_text = None if self.text is None else self.text.estimate
        return by_text or self.ratio or self.seeds.estimate

    @property
    def margin_of_estimate(self) -> float:
        """Return the margin in the unit of the estimate."""
        if self.in_logs:
            return math.log1p(self.margin / 100)
        return self.margin / 100 * self.scale

    @property
    def in_logs(self) -> bool:
        """Return True if the deciding difference is one of logarithms."""
        if self.decided_by == "seeds":
            return self.kind == "logarithm" or self.ratio is not None
        return self.kind in ("exponential", "logarithm", "ratio")

    @property
    def text_error(self) -> float:
        """Return the part of the estimate's standard error that more seeds do not reduce."""
        if self.decided_by != "seeds and text" or self.text is None:
            return 0.0
        # More seeds reduce seed x window noise, which text_variance holds as well.
        left = (self.text.text_variance or 0.0) - (self.text.overlap_variance or 0.0)
        return math.sqrt(max(0.0, left))

    @property
    def percent(self) -> float | None:
        """Return the difference that decides, or the only one there is, in `unit`."""
        if self.at_any_time is not None and self.at_any_time.diff is not None:
            return self.to_percent(self.at_any_time.diff)
        if self.estimate is not None:
            return self.to_percent(self.estimate.difference)
        return self.seeds_percent

    @property
    def decided(self) -> tuple[Interval, float] | None:
        """Return the interval that decided, in `unit`, and its confidence."""
        j = self.judgement
        limits, level = j.ci, j.ci_level
        if j.verdict == "equivalent":
            limits, level = j.equivalence_ci, j.equivalence_ci_level
        if limits is None or level is None:
            return None
        found = self.in_percent(limits)
        return found and (found, level)

    @property
    def seeds_percent(self) -> float | None:
        """Return the difference of the means on exactly these windows, in `unit`."""
        if self.seeds.diff is None:
            return None
        if self.kind == "logarithm":
            return percent_change(self.seeds.diff)
        return 100 * self.seeds.diff / self.scale

    @property
    def seeds_percent_ci95(self) -> Interval | None:
        if self.ratio is not None:
            return percent_interval(*self.ratio.interval(0.05))
        limits = self.seeds.diff_ci95
        if limits is None or self.kind == "logarithm":
            return limits and percent_interval(*limits)
        return 100 * limits[0] / self.scale, 100 * limits[1] / self.scale

    def in_percent(self, limits: Interval) -> Interval | None:
        """Turn limits of what decides into `unit`."""
        low, high = map(self.to_percent, limits)
        return None if low is None or high is None else (low, high)

    def to_percent(self, value: float) -> float | None:
        """Turn a difference of what decides into `unit`."""
        return percent_change(value) if self.in_logs else 100 * value / self.scale


@dataclass(frozen=True)
class Frame:
    """What an analysis describes and compares: methods by model and name, and pairs of them."""

    options: Options
    metric: str
    known: Known
    keys: Sequence[Key]
    grid: Sequence[tuple[str, str, Family]]


class Compared(NamedTuple):
    """A comparison and its two methods."""

    pair: Pair
    a: Method
    b: Method


def compared(
    methods: Mapping[Key, Method], good: pd.DataFrame, texts: Mapping[str, Text], frame: Frame
) -> list[Compared]:
    """Compare the pairs of each model; good: the finished cells that `methods` are of."""
    found = []
    for model in dict.fromkeys(model for model, _ in frame.keys):
        noise = arithmetic(good, model, frame.metric)
        setting = Setting(frame.options, frame.known.kind, texts.get(model), noise)
        for a, b, family in frame.grid:
            if {(model, a), (model, b)} <= methods.keys():
                both = methods[model, a], methods[model, b]
                found.append(Compared(pair(*both, family, setting), *both))
    return found


@dataclass(frozen=True)
class Setting:
    """What all pairs of a model share: the options, its text, and one draw's arithmetic noise."""

    options: Options
    kind: Kind
    text: Text | None
    noise: PooledVariance | None


def pair(a: Method, b: Method, family: Family, setting: Setting) -> Pair:
    """Compare two methods of a model; the verdict is left to its family."""
    scale = abs(b.description.mean or a.description.mean or 1.0)
    options, kind = setting.options, setting.kind
    margin = options.margin / 100 * scale
    if kind == "logarithm":
        margin = math.log1p(options.margin / 100)
    elif kind == "share":
        scale, margin = 1.0, options.margin / 100
    seeds = _on_windows(a, b, margin, setting)
    return Pair(
        model=a.model,
        a=a.name,
        b=b.name,
        family=family,
        seeds=seeds,
        ratio=_ratio(a, b, setting.noise) if kind == "ratio" and seeds.estimate else None,
        text=_on_text(a, b, setting),
        eras=_on_text(a, b, setting, "eras"),
        spread=_spread(a, b, options.alpha),
        kind=kind,
        scale=scale,
        margin=options.margin,
        one_sets=tuple(m.name for m in (a, b) if m.one_set),
    )


def _ratio(a: Method, b: Method, noise: PooledVariance | None) -> Estimate | None:
    """Return the log ratio of two means with the linearised error of both."""
    terms, means = [], []
    for method in (a, b):
        mean, std = method.description.mean, method.description.std
        if mean is None or mean <= 0:
            return None
        means.append(mean)
        if std is not None:
            terms.append((std**2 / method.n / mean**2, method.n - 1))
        elif noise is not None:
            terms.append((noise.variance / mean**2, noise.df))
    error = math.sqrt(sum(term for term, _ in terms))
    if len(terms) < 2 or error == 0:
        return None
    return Estimate(math.log(means[0] / means[1]), error, satterthwaite(terms))


def _on_windows(a: Method, b: Method, margin: float, setting: Setting) -> Comparison:
    """Compare two methods over their observations; not what was evaluated on other text."""
    alpha, text = setting.options.alpha, setting.text
    other = [m.name for m in (a, b) if text is not None and m.name in text.elsewhere]
    if not other:
        return compare(a.values, b.values, margin=margin, alpha=alpha, noise=setting.noise)
    nothing = compare((), (), margin=margin, alpha=alpha)
    why = f"{' and '.join(other)} was evaluated on other text than most methods"
    return replace(nothing, n_a=a.n, n_b=b.n, reason=why)


def _on_text(
    a: Method, b: Method, setting: Setting, question: Question = "mix"
) -> TextComparison | None:
    text = setting.text
    if text is None or not {a.name, b.name} <= set(text.draws):
        return None
    rows_a, rows_b = (text.draws[name].rows for name in (a.name, b.name))
    ratio = setting.kind == "ratio"
    if ratio and min(rows_a.sum(), rows_b.sum()) <= 0:
        return None
    total = text.tokens.sum()
    noise = pooled_variance(s.sum(axis=1) / total for d in text.draws.values() for s in d.sets)
    return compare_on_text(
        rows_a,
        rows_b,
        text.tokens,
        documents=text.documents,
        text=question,
        ratio=ratio,
        alpha=setting.options.alpha,
        noise=noise,
    )


def _spread(a: Method, b: Method, alpha: float) -> SpreadComparison:
    if a.one_set or b.one_set:
        which = " and ".join(k for k, m in (("a", a), ("b", b)) if m.one_set)
        reason = f"{which} is one set: its draws show the arithmetic's spread, not that of sets"
        return SpreadComparison(None, a.n, b.n, reason)
    if min((*a.values, *b.values), default=1.0) <= 0:
        return SpreadComparison(None, a.n, b.n, "a value of 0 has no logarithm")
    return compare_spread(a.values, b.values, alpha=alpha)


def plan(pair: Pair, text: Text | None) -> Plan | None:
    """Plan a comparison anew; None where it is undefined."""
    found = design(pair, text)
    if found is None:
        return None
    margin = pair.margin_of_estimate
    error = found.text_error / (1.0 if pair.in_logs else pair.scale)
    return Plan(
        difference=seeds_for_difference(margin, found),
        equivalence=seeds_for_equivalence(margin, found),
        tests=found.family,
        text_error_percent=100 * (math.expm1(error) if pair.in_logs else error),
    )


def design(pair: Pair, text: Text | None) -> Design | None:
    """Return the design by which `pair` was decided; None where it is undefined.

    In the unit of its estimate: of logarithms (nats per token), or in the metric's own.
    """
    family, alpha = max(1, pair.tests), pair.seeds.alpha
    if pair.decided_by is None:
        return None
    if pair.decided_by == "seeds":
        sd = (pair.seeds.sd or 0.0) / (pair.scale if pair.ratio is not None else 1.0)
        return Design(sd, sd, family, alpha) if sd else None
    assert pair.text is not None
    assert text is not None
    relative = pair.kind == "ratio"
    sds = [_sd(text.draws[name].rows, text.tokens, relative) for name in (pair.a, pair.b)]
    other = next((sd for sd in sds if sd is not None), None)
    if other is None:
        return None
    sd_a, sd_b = (other if sd is None else sd for sd in sds)
    if sd_a + sd_b + pair.text_error == 0:
        return None
    df = pair.text.text_df or math.inf
    return Design(sd_a, sd_b, family, alpha, text_error=pair.text_error, text_df=df)


def _sd(rows: FloatArray, tokens: FloatArray, relative: bool) -> float | None:
    """Return the deviation of draws' means per token, or as a share; None for one draw."""
    if len(rows) < 2:
        return None
    means = rows.sum(axis=1) / tokens.sum()
    return float(np.std(means, ddof=1) / (means.mean() if relative else 1.0))


def pairs_of(
    methods: Sequence[str], primary: str | None, baseline: str | None
) -> list[tuple[str, str, Family]]:
    """Return the comparisons of a model: (a, b, family).

    Primary: the primary method against each other one, the baseline last. Exploratory: all other
    pairs, the baseline second where it is one of them.
    """
    last = [baseline] if baseline in methods else []
    ordered = [name for name in methods if name not in last] + [b for b in last if b]
    others = [name for name in ordered if name != primary]
    found: list[tuple[str, str, Family]] = []
    if primary in methods and primary is not None:
        found += [(primary, name, "primary") for name in others]
    return found + [(a, b, "exploratory") for a, b in combinations(others, 2)]


def leading(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the primary comparisons of a model; all of its comparisons where there is none."""
    return [p for p in pairs if p.family == "primary"] or list(pairs)


def families(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs by model and family."""
    found: dict[tuple[str, Family], list[Pair]] = {}
    for p in pairs:
        found.setdefault((p.model, p.family), []).append(p)
    return list(found.values())


def adjusted(family: Sequence[Pair]) -> list[Pair]:
    """Return a family with Holm's adjustment over its tests on exactly these windows."""
    seeds = holm_family([p.seeds for p in family])
    return [replace(p, seeds=s) for p, s in zip(family, seeds, strict=True)]


def judged(pairs: Sequence[Pair], texts: Mapping[str, Text], alpha: float) -> list[Pair]:
    """Judge each family of each model: Holm over its differences and over its equivalences."""
    found = []
    for family in map(adjusted, families(pairs)):
        tests = sum(p.estimate is not None for p in family)
        margins = [p.margin_of_estimate for p in family]
        judgements = judge([p.estimate for p in family], margins, alpha=alpha)
        for p, judgement in zip(family, judgements, strict=True):
            p = replace(p, judgement=judgement, tests=tests)
            found.append(replace(p, plan=plan(p, texts.get(p.model))))
    return found
