"""Which comparisons are made, and which of them are judged together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from analysis.stats import holm_family, judge
from analysis.summary.pairs import Family, Pair
from analysis.summary.planning import plan
from analysis.summary.windows import Text


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
