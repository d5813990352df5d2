"""A model's variance budget: what a perplexity is made of, and what would halve the interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.samples import FloatArray, percent_change, pooled_variance
from analysis.stats.text import (
    FEWEST_WINDOWS,
    check_nll,
    check_tokens,
    edge_factor,
    profiles,
    ratio_variance,
    stretch_labels,
    stretch_sizes,
)

Term = tuple[float, float]
"""A variance and its degrees of freedom."""
Rows = Sequence[Sequence[FloatArray]]


@dataclass(frozen=True)
class Source:
    """One source of noise.

    percent: its standard deviation in one draw, % of perplexity; df: that this was estimated with.
    share: of the variance of a difference between two methods, 0 to 1; None where undefined.
    factor: how many times as many draws (seeds, replicates, windows) halve that difference's
        interval, the rest unchanged; None when no number does. reason: why something is None.
    """

    percent: float | None
    df: int
    share: float | None
    factor: float | None
    reason: str | None = None


@dataclass(frozen=True)
class VarianceBudget:
    """Of one model; see `variance_budget`. std_error_percent: of a difference of two methods."""

    n_methods: int
    n_sets: int
    n_draws: int
    n_windows: int
    n_stretches: int
    seed: Source
    arithmetic: Source
    window: Source
    method_window: Source
    std_error_percent: float | None


def variance_budget(
    methods: Mapping[str, Sequence[ArrayLike]],
    tokens: ArrayLike,
    *,
    stretches: int | ArrayLike | None = None,
) -> VarianceBudget:
    """Take apart the variance of log perplexity by calibration set, arithmetic and text.

    methods: by name, an array [R, W] a calibration set, nats summed over a window: a row a
    numerical replicate of that set. tokens: shape [W]. stretches: as for `compare_on_text`.

    seed: between sets of a method, the mean of R replicates freed of their arithmetic (at least
    0). arithmetic: between replicates of a set, pooled. window: between windows, the same for all
    methods, so that it leaves the difference of two alone. method_window: what is left between
    windows of a method against the mean of all, freed of row x stretch noise (at least 0).

    Shares and factors are those of two methods with the average of these designs, a method of one
    set being judged by its replicates alone, as in `compare_on_text`; the degrees of freedom, which
    also grow with draws, are left out. More seeds average arithmetic as well.
    Without replicates the seeds' source holds the arithmetic, and `reason` says so.
    Raises ValueError for shapes and values out of range, and without a method.
    """
    weight = check_tokens(tokens)
    if not methods or not all(len(sets) for sets in methods.values()):
        raise ValueError("methods must name at least one, each with at least one calibration set")
    sets = [
        [check_nll(rows, weight.size, f"methods[{name!r}]") for rows in arrays]
        for name, arrays in methods.items()
    ]
    label = stretch_labels(stretches, weight.size)
    size = stretch_sizes(label, weight)
    means = [np.stack([rows.mean(axis=0) for rows in m]) for m in sets]
    noise = pooled_variance(rows.sum(axis=1) / weight.sum() for m in sets for rows in m)
    arithmetic = None if noise is None else (noise.variance, noise.df)
    seed = _seed(sets, means, weight, arithmetic)
    edges = _edges(means, weight, size.size) if stretches is None else 1.0
    text = _interaction(sets, means, label, size, edges)
    per_set = np.mean([1 / len(m) if len(m) > 1 else 0 for m in sets])
    per_draw = np.mean([sum(1 / len(x) for x in m) / len(m) ** 2 for m in sets])
    parts = _part(seed, per_set), _part(arithmetic, per_draw), _part(text, 1.0)
    total = None if seed is None or text is None else sum(parts)
    no_rounding, no_seed, no_text = _reasons(seed, arithmetic, text)
    windows = _interaction(sets, means, np.arange(weight.size), weight, float(weight.size))
    return VarianceBudget(
        n_methods=len(sets),
        n_sets=sum(len(m) for m in sets),
        n_draws=sum(len(x) for m in sets for x in m),
        n_windows=weight.size,
        n_stretches=size.size,
        seed=_source(seed, parts[0], parts[0] + parts[1], total, no_seed),
        arithmetic=_source(arithmetic, parts[1], parts[1], total, no_rounding),
        window=_window(means, weight),
        method_window=_source(windows, parts[2], parts[2], total, no_text),
        std_error_percent=None if total is None else percent_change(math.sqrt(total)),
    )


def _reasons(
    seed: Term | None, arithmetic: Term | None, text: Term | None
) -> tuple[str | None, str | None, str | None]:
    """Why arithmetic, seed and method x window are unknown, or what they hold besides."""
    no_rounding = None if arithmetic else "no set was quantized twice to other numbers"
    no_seed = no_rounding and f"{no_rounding}: the arithmetic is in here"
    if seed is None:
        no_seed = "no method has two sets"
    return no_rounding, no_seed, None if text else f"needs two methods, {FEWEST_WINDOWS} windows"


def _seed(
    sets: Rows, means: Sequence[FloatArray], weight: FloatArray, arithmetic: Term | None
) -> Term | None:
    """Variance between sets of a method, pooled, without the arithmetic in a set's mean."""
    several = [k for k, m in enumerate(means) if len(m) > 1]
    df = sum(len(means[k]) - 1 for k in several)
    if df == 0:
        return None
    total = sum(
        (len(means[k]) - 1) * float(np.var(means[k].sum(axis=1) / weight.sum(), ddof=1))
        for k in several
    )
    rounding = float(np.mean([1 / len(rows) for k in several for rows in sets[k]]))
    return max(0.0, total / df - rounding * (arithmetic[0] if arithmetic else 0.0)), df


def _edges(means: Sequence[FloatArray], weight: FloatArray, stretches: int) -> float:
    """Mean `edge_factor` of the methods' profiles against the mean of all."""
    mean = np.mean([m.mean(axis=0) for m in means], axis=0)
    return float(np.mean([edge_factor((m.mean(axis=0) - mean) / weight, stretches) for m in means]))


def _interaction(
    sets: Rows,
    means: Sequence[FloatArray],
    label: NDArray[np.intp],
    size: FloatArray,
    factor: float,
) -> Term | None:
    """Variance of one method's mean that comes of its windows alone, times `factor`."""
    if len(sets) < 2 or size.size < 2 or label.size < FEWEST_WINDOWS:
        return None
    rows = [m if len(m) > 1 else s[0] for m, s in zip(means, sets, strict=True)]
    arms = [profiles(x, label, size) for x in rows]
    mean = np.mean([arm.mean for arm in arms], axis=0)
    found = sum(ratio_variance(arm.mean - mean, size) for arm in arms) / (len(arms) - 1)
    overlap = float(np.mean([arm.overlap for arm in arms]))
    return factor * max(0.0, found - overlap), (len(arms) - 1) * (size.size - 1)


def _window(means: Sequence[FloatArray], weight: FloatArray) -> Source:
    if weight.size < 2:
        return Source(None, 0, None, None, "one window")
    profile = np.mean([m.mean(axis=0) for m in means], axis=0)
    variance = weight.size * ratio_variance(profile, weight)
    reason = "the same for all methods: it leaves their difference alone"
    return Source(percent_change(math.sqrt(variance)), weight.size - 1, 0.0, None, reason)


def _part(term: Term | None, share: float | np.floating) -> float:
    """What a source adds to the variance of a difference of two methods."""
    return 0.0 if term is None else 2 * float(share) * term[0]


def _source(
    term: Term | None, part: float, shrinks: float, total: float | None, reason: str | None
) -> Source:
    """shrinks: what of `total` is divided when there are more draws of this source."""
    if term is None:
        return Source(None, 0, None, None, reason)
    percent = percent_change(math.sqrt(term[0]))
    if not total:
        return Source(percent, int(term[1]), None, None, reason)
    left = total / 4 - (total - shrinks)
    factor = shrinks / left if left > 0 else None
    return Source(percent, int(term[1]), part / total, factor, reason)
