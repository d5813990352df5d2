"""One method against another on one model, planned, and judged in its family."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np

from analysis.stats import (
    Comparison,
    Design,
    Estimate,
    Judgement,
    PooledVariance,
    TextComparison,
    Verdict,
    compare,
    compare_on_text,
    compare_spread,
    holm_family,
    judge,
    pooled_variance,
    seeds_for_difference,
    seeds_for_equivalence,
)
from analysis.stats.comparison import SpreadComparison
from analysis.stats.samples import FloatArray, Interval, percent_change, percent_interval
from analysis.stats.text import Question
from analysis.summary.methods import Method, Text
from analysis.summary.options import Options

Family = Literal["primary", "exploratory"]


@dataclass(frozen=True)
class Plan:
    """Draws a method (seeds; replicates of a method that is one set), 80 % power; None: no number.

    difference: that find one as large as the margin. equivalence: that show one smaller, if there
    is none. tests: of the family, at whose first step by Holm this holds.
    text_error_percent: standard error, % of b, that more seeds leave; 0 where seeds alone decide.
    """

    difference: int | None
    equivalence: int | None
    tests: int
    text_error_percent: float


@dataclass(frozen=True)
class Pair:
    """Method a against method b on one model.

    seeds: Welch's test over the observations, on exactly these windows. text: over observations and
    windows together, for other documents of the same mix; None where the runs have no windows of
    the metric. eras: the same for periods drawn anew; it never decides.
    judgement: the verdict in its family, from `text` where that is defined and else from `seeds`.
    log: `text` compares logarithms. scale: the value of b, of which differences are a percentage.
    tests: defined tests of the family. margin: % of b. plan: what more seeds would show.
    one_set_a, one_set_b: the method is one calibration set, and the result speaks about that.
    """

    model: str
    a: str
    b: str
    family: Family
    seeds: Comparison
    text: TextComparison | None
    eras: TextComparison | None
    spread: SpreadComparison
    log: bool
    scale: float
    margin: float
    one_set_a: bool
    one_set_b: bool
    tests: int = 0
    judgement: Judgement = field(default_factory=lambda: Judgement("undefined", None))
    plan: Plan | None = None

    @property
    def name(self) -> str:
        return f"{self.a} vs {self.b}"

    @property
    def verdict(self) -> Verdict:
        return self.judgement.verdict

    @property
    def decided_by(self) -> Literal["seeds and text", "seeds"] | None:
        """What the verdict rests on; None where it is undefined."""
        if self.text is not None and self.text.estimate is not None:
            return "seeds and text"
        return None if self.seeds.estimate is None else "seeds"

    @property
    def estimate(self) -> Estimate | None:
        """The difference that decides: of logarithms, or in the metric's unit."""
        by_text = None if self.text is None else self.text.estimate
        return by_text or self.seeds.estimate

    @property
    def margin_of_estimate(self) -> float:
        """The margin in the unit of the estimate."""
        if self.decided_by == "seeds and text" and self.log:
            return math.log1p(self.margin / 100)
        return self.margin / 100 * self.scale

    @property
    def percent(self) -> float | None:
        """The difference that decides, or that is all there is, % of b."""
        if self.estimate is not None:
            return self._percent(self.estimate.difference)
        return self.seeds_percent

    @property
    def decided(self) -> tuple[Interval, float] | None:
        """The interval that decided (for equivalence its own), % of b, and its confidence."""
        j = self.judgement
        limits, level = j.ci, j.ci_level
        if j.verdict == "equivalent":
            limits, level = j.equivalence_ci, j.equivalence_ci_level
        if limits is None or level is None:
            return None
        found = self._percent(limits[0]), self._percent(limits[1])
        return None if found[0] is None or found[1] is None else ((found[0], found[1]), level)

    @property
    def seeds_percent(self) -> float | None:
        """Difference of the means on exactly these windows, % of b."""
        return None if self.seeds.diff is None else 100 * self.seeds.diff / self.scale

    @property
    def seeds_percent_ci95(self) -> Interval | None:
        limits = self.seeds.diff_ci95
        return limits and (100 * limits[0] / self.scale, 100 * limits[1] / self.scale)

    def _percent(self, value: float) -> float | None:
        if self.decided_by == "seeds and text" and self.log:
            return percent_change(value)
        return 100 * value / self.scale


@dataclass(frozen=True)
class Setting:
    """What all pairs of a model share: the options, its text, and one draw's arithmetic noise."""

    options: Options
    log: bool
    text: Text | None
    noise: PooledVariance | None


def pair(a: Method, b: Method, family: Family, setting: Setting) -> Pair:
    """Compare two methods of a model; the verdict is left to its family."""
    scale = abs(b.description.mean or a.description.mean or 1.0)
    options, alpha = setting.options, setting.options.alpha
    margin = options.margin / 100 * scale
    return Pair(
        model=a.model,
        a=a.name,
        b=b.name,
        family=family,
        seeds=_on_windows(a, b, margin, setting),
        text=_on_text(a, b, setting),
        eras=_on_text(a, b, setting, "eras"),
        spread=_spread(a, b, alpha),
        log=setting.log,
        scale=scale,
        margin=options.margin,
        one_set_a=a.one_set,
        one_set_b=b.one_set,
    )


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
    total = text.tokens.sum()
    noise = pooled_variance(s.sum(axis=1) / total for d in text.draws.values() for s in d.sets)
    return compare_on_text(
        rows_a,
        rows_b,
        text.tokens,
        documents=text.documents,
        text=question,
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


def text_percent(found: TextComparison, scale: float, log: bool) -> Interval | None:
    """Return the 95 % (1 - alpha) interval of a comparison on text, % of b."""
    if found.ci is None:
        return None
    if log:
        return percent_interval(*found.ci)
    return 100 * found.ci[0] / scale, 100 * found.ci[1] / scale


def plan(pair: Pair, text: Text | None) -> Plan | None:
    """Plan a comparison anew; None where it is undefined."""
    found = design(pair, text)
    if found is None:
        return None
    margin = pair.margin_of_estimate
    error = found.text_error / (1.0 if _log(pair) else pair.scale)
    return Plan(
        difference=seeds_for_difference(margin, found),
        equivalence=seeds_for_equivalence(margin, found),
        tests=found.family,
        text_error_percent=100 * (math.expm1(error) if _log(pair) else error),
    )


def _log(pair: Pair) -> bool:
    return pair.log and pair.decided_by == "seeds and text"


def design(pair: Pair, text: Text | None) -> Design | None:
    """Return the design by which `pair` was decided; None where it is undefined.

    In nats a token where seeds and text decided, else in the metric's own unit.
    """
    family, alpha = max(1, pair.tests), pair.seeds.alpha
    if pair.decided_by is None:
        return None
    if pair.decided_by == "seeds":
        sd = pair.seeds.sd
        return Design(sd, sd, family, alpha) if sd else None
    assert pair.text is not None
    assert text is not None
    sds = [_sd(text.draws[name].rows, text.tokens) for name in (pair.a, pair.b)]
    other = next((sd for sd in sds if sd is not None), None)
    if other is None:
        return None
    sd_a, sd_b = (other if sd is None else sd for sd in sds)
    left = _left(pair.text)
    if sd_a + sd_b + left == 0:
        return None
    df = pair.text.text_df or math.inf
    return Design(sd_a, sd_b, family, alpha, text_error=left, text_df=df)


def _left(found: TextComparison) -> float:
    """Standard error of the text alone: seed x window noise goes with the number of seeds."""
    assert found.text_variance is not None
    assert found.overlap_variance is not None
    return math.sqrt(max(0.0, found.text_variance - found.overlap_variance))


def _sd(rows: FloatArray, tokens: FloatArray) -> float | None:
    """Standard deviation of a draw's mean a token; None for one draw."""
    if len(rows) < 2:
        return None
    return float(np.std(rows.sum(axis=1) / tokens.sum(), ddof=1))


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


def judged(
    pairs: Sequence[Pair], texts: Mapping[str, Text], models: Sequence[str], alpha: float
) -> list[Pair]:
    """Judge each family of each model: Holm over its differences and over its equivalences."""
    found = []
    for model in models:
        for family in ("primary", "exploratory"):
            own = [p for p in pairs if (p.model, p.family) == (model, family)]
            found += _family(own, texts.get(model), alpha)
    return found


def _family(pairs: Sequence[Pair], text: Text | None, alpha: float) -> list[Pair]:
    tests = sum(p.estimate is not None for p in pairs)
    seeds = holm_family([p.seeds for p in pairs])
    judgements = judge(
        [p.estimate for p in pairs], [p.margin_of_estimate for p in pairs], alpha=alpha
    )
    known = [
        replace(p, seeds=s, judgement=j, tests=tests)
        for p, s, j in zip(pairs, seeds, judgements, strict=True)
    ]
    return [replace(p, plan=plan(p, text)) for p in known]
