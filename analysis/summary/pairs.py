"""One method against another on one model: over seeds and text, over seeds alone, in spread."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from analysis.stats import (
    Comparison,
    Estimate,
    Judgement,
    PooledVariance,
    TextComparison,
    Verdict,
    compare,
    compare_on_text,
    compare_spread,
    pooled_variance,
)
from analysis.stats.samples import Interval, percent_change, percent_interval
from analysis.stats.spread import SpreadComparison
from analysis.summary.methods import Method
from analysis.summary.options import Options
from analysis.summary.windows import Text

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
    windows together; None where the runs have no windows of the metric.
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
        seeds=compare(a.values, b.values, margin=margin, alpha=alpha, noise=setting.noise),
        text=_on_text(a, b, setting),
        spread=_spread(a, b, alpha),
        log=setting.log,
        scale=scale,
        margin=options.margin,
        one_set_a=a.one_set,
        one_set_b=b.one_set,
    )


def _on_text(a: Method, b: Method, setting: Setting) -> TextComparison | None:
    text = setting.text
    if text is None or not {a.name, b.name} <= set(text.draws):
        return None
    rows_a, rows_b = (text.draws[name].rows for name in (a.name, b.name))
    total = text.tokens.sum()
    noise = pooled_variance(s.sum(axis=1) / total for d in text.draws.values() for s in d.sets)
    return compare_on_text(rows_a, rows_b, text.tokens, alpha=setting.options.alpha, noise=noise)


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
