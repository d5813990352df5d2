"""A model's variance budget, in % of the metric, and how sharp each metric of the runs is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.stats import (
    Comparison,
    Design,
    Source,
    VarianceBudget,
    seeds_for_difference,
    variance_budget,
)
from analysis.summary.windows import Text


def budgets(texts: Mapping[str, Text], log: bool) -> dict[str, VarianceBudget]:
    """Return by model its budget; percentages of the metric (`log`: of perplexity)."""
    found = {}
    for model, text in texts.items():
        budget = variance_budget({m: list(d.sets) for m, d in text.draws.items()}, text.tokens)
        level = np.mean([d.rows.mean(axis=0).sum() for d in text.draws.values()])
        mean = float(level / text.tokens.sum())
        if log or mean > 0:
            found[model] = budget if log else _of_mean(budget, mean)
    return found


def _of_mean(budget: VarianceBudget, mean: float) -> VarianceBudget:
    """Turn % of an exponential into % of a mean a token."""

    def turned(percent: float | None) -> float | None:
        return None if percent is None else 100 * math.log1p(percent / 100) / mean

    def source(one: Source) -> Source:
        return replace(one, percent=turned(one.percent))

    return replace(
        budget,
        seed=source(budget.seed),
        arithmetic=source(budget.arithmetic),
        window=source(budget.window),
        method_window=source(budget.method_window),
        std_error_percent=turned(budget.std_error_percent),
    )


@dataclass(frozen=True)
class Sharpness:
    """One metric on one comparison, on exactly these windows.

    seeds: seeds a method with which Welch's test at Holm's first step finds, with 80 % power, a
    difference as large as the one estimated; few, many: the same for the far and the near limit of
    its 95 % interval; None where no number does, as where the interval holds 0.
    """

    metric: str
    model: str
    a: str
    b: str
    percent: float
    p_value: float
    seeds: int | None
    few: int | None
    many: int | None


def sharpness(
    metric: str, model: str, names: tuple[str, str], found: Comparison, scale: float, tests: int
) -> Sharpness | None:
    """Return how many seeds a metric needs for what it shows; None where no test is defined."""
    if found.sd is None or found.diff is None or found.p_value is None or found.diff_ci95 is None:
        return None
    if found.sd == 0:
        return None
    design = Design(found.sd, found.sd, max(1, tests), found.alpha)
    limits = found.diff_ci95
    holds_zero = limits[0] <= 0 <= limits[1]
    near, far = sorted(abs(x) for x in limits)
    return Sharpness(
        metric=metric,
        model=model,
        a=names[0],
        b=names[1],
        percent=100 * found.diff / scale,
        p_value=found.p_value,
        seeds=_seeds(abs(found.diff), design),
        few=_seeds(far, design),
        many=None if holds_zero else _seeds(near, design),
    )


def _seeds(difference: float, design: Design) -> int | None:
    return seeds_for_difference(difference, design) if difference > 0 else None


def ordered(found: Sequence[Sharpness | None]) -> list[Sharpness]:
    """Return the known ones, a comparison's metrics side by side."""
    known = [s for s in found if s is not None]
    first = {key: i for i, key in enumerate(dict.fromkeys((s.model, s.a, s.b) for s in known))}
    return sorted(known, key=lambda s: first[s.model, s.a, s.b])
