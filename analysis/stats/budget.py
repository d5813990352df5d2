"""A model's variance budget: each source's share of the noise, and what more draws leave of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from analysis.stats.samples import FloatArray, percent_change, pooled_variance
from analysis.stats.text import (
    FEWEST_WINDOWS,
    Parts,
    Question,
    Term,
    Unit,
    check_nll,
    check_tokens,
    degrees_of_freedom,
    parts_of,
    profiles,
    ratio_variance,
    succession_variance,
)

Rows = Sequence[Sequence[FloatArray]]


@dataclass(frozen=True)
class Source:
    """One source of noise.

    percent: its standard deviation in one draw, % of perplexity; df: that this was estimated with.
    share: of the variance of a difference between two methods, 0 to 1; None where undefined.
    left_percent: standard error of that difference with any number of draws (seeds, replicates,
    windows of the same documents), the rest unchanged. reason: why something is None.
    """

    percent: float | None
    df: int
    share: float | None
    left_percent: float | None
    reason: str | None = None


@dataclass(frozen=True)
class VarianceBudget:
    """The variance budget of one model; see `variance_budget`.

    n_parts, unit: the parts of the text whose neighbours were compared, and what a part is.
    std_error_percent: of a difference of two methods. available: windows that the whole text has.
    at_best_percent: the standard error with all of them evaluated and the same seeds, if windows
    of one document vary independently; None where `available` is unknown.
    """

    n_methods: int
    n_sets: int
    n_draws: int
    n_windows: int
    n_parts: int
    unit: Unit
    seed: Source
    arithmetic: Source
    window: Source
    method_window: Source
    std_error_percent: float | None
    available: int | None = None
    at_best_percent: float | None = None


def variance_budget(
    methods: Mapping[str, Sequence[ArrayLike]],
    tokens: ArrayLike,
    *,
    documents: ArrayLike | None = None,
    available: int | None = None,
) -> VarianceBudget:
    """Split the variance of log perplexity into calibration set, arithmetic and text.

    methods: by name, an array [R, W] per calibration set, nats summed over a window: a row per
    numerical replicate of that set. tokens: shape [W]. documents: as for `compare_on_text`.
    available: windows of the whole text, where known.

    seed: between sets of a method, without the arithmetic in the mean of R replicates (at least
    0). arithmetic: between replicates of a set, pooled. window: between windows, common to all
    methods; it cancels in a difference. method_window: what remains between windows of a method
    and the mean of all methods, without row x text noise (at least 0). For shares it is estimated
    as the question "mix" asks, from neighbouring parts of the text.

    More windows of the same documents reduce only the part within documents. It is known where
    documents hold several windows; else all of the text's part counts as that. Without replicates
    the seeds' source holds the arithmetic. `reason` says either. Shares and what is left are those
    of two methods with the average of these designs. Raises ValueError for shapes and values out
    of range, and without a method.
    """
    weight = check_tokens(tokens)
    if not methods or not all(len(sets) for sets in methods.values()):
        raise ValueError("methods must name at least one, each with at least one calibration set")
    sets = [
        [check_nll(rows, weight.size, f"methods[{name!r}]") for rows in arrays]
        for name, arrays in methods.items()
    ]
    parts = parts_of("mix", weight, documents)
    means = [np.stack([rows.mean(axis=0) for rows in m]) for m in sets]
    arithmetic = pooled_variance(rows.sum(axis=1) / weight.sum() for m in sets for rows in m)
    seed = _seed(sets, means, weight, arithmetic)
    rows = [m if len(m) > 1 else s[0] for m, s in zip(means, sets, strict=True)]
    text = _interaction(rows, parts, succession_variance)
    windows = _interaction(rows, parts_of("mix", weight), ratio_variance)
    inside = within(rows, weight, parts)
    per_set = np.mean([1 / len(m) if len(m) > 1 else 0 for m in sets])
    per_draw = np.mean([sum(1 / len(x) for x in m) / len(m) ** 2 for m in sets])
    shares = _part(seed, per_set), _part(arithmetic, per_draw), _part(text, 1.0)
    total = None if seed is None or text is None else sum(shares)
    no_rounding = None if arithmetic else "no set was quantized twice to other numbers"
    no_seed = no_rounding and f"{no_rounding}: the arithmetic is in here"
    if seed is None:
        no_seed = "no method has two sets"
    no_text = None if text else f"needs two methods, {FEWEST_WINDOWS} windows"
    shrinks = shares[2] if inside is None else min(shares[2], 2 * inside)
    if text is not None and inside is None:
        no_text = "too few windows per document to tell what more windows of the same would give"
    best = None
    if total is not None and available:
        best = total - shrinks * (1 - min(1.0, weight.size / available))
    each = None if windows is None else (windows[0] * weight.size, windows[1])
    return VarianceBudget(
        n_methods=len(sets),
        n_sets=sum(len(m) for m in sets),
        n_draws=sum(len(x) for m in sets for x in m),
        n_windows=weight.size,
        n_parts=parts.size.size,
        unit=parts.unit,
        seed=_source(seed, shares[0], shares[0] + shares[1], total, no_seed),
        arithmetic=_source(arithmetic, shares[1], shares[1], total, no_rounding),
        window=_window(means, weight),
        method_window=_source(each, shares[2], shrinks, total, no_text),
        std_error_percent=None if total is None else percent_change(math.sqrt(total)),
        available=available,
        at_best_percent=None if best is None else percent_change(math.sqrt(max(0.0, best))),
    )


def _seed(
    sets: Rows, means: Sequence[FloatArray], weight: FloatArray, arithmetic: Term | None
) -> Term | None:
    """Return the pooled variance between sets of a method, without their means' arithmetic."""
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


def _interaction(
    rows: Sequence[FloatArray],
    parts: Parts,
    variance: Callable[[FloatArray, FloatArray], FloatArray],
) -> Term | None:
    """Estimate the variance of one method's mean that comes from its windows alone."""
    if len(rows) < 2 or parts.size.size < 2 or parts.label.size < FEWEST_WINDOWS:
        return None
    arms = [profiles(x, parts, variance) for x in rows]
    mean = np.mean([arm.mean for arm in arms], axis=0)
    spread = sum(float(variance(arm.mean - mean, parts.size)) for arm in arms) / (len(arms) - 1)
    overlap = float(np.mean([arm.overlap for arm in arms]))
    question: Question = "eras" if variance is ratio_variance else "mix"
    df = degrees_of_freedom(question, parts.size)
    return max(0.0, spread - overlap), (len(arms) - 1) * df


def within(rows: Sequence[FloatArray], weight: FloatArray, parts: Parts) -> float | None:
    """Estimate the part of a method's text variance that comes from windows within documents.

    None where fewer than half of the windows share their document with another one.
    """
    counts = np.bincount(parts.label)
    several = counts[parts.label] > 1
    if len(rows) < 2 or several.mean() < 0.5 or parts.label.size < FEWEST_WINDOWS:
        return None

    def variance(values: FloatArray) -> float:
        """Return the variance of `values` [W], NLL sums, within documents, of their mean."""
        means = np.bincount(parts.label, weights=values) / parts.size
        residual = (values - means[parts.label] * weight)[several]
        df = several.sum() - np.sum(counts > 1)
        each = float(np.sum(residual**2 / weight[several])) / float(df)  # variance times tokens
        return each / float(weight.sum())

    mean = np.mean([x.mean(axis=0) for x in rows], axis=0)
    spread = sum(variance(x.mean(axis=0) - mean) for x in rows) / (len(rows) - 1)
    noise = [
        sum(variance(row - x.mean(axis=0)) for row in x) / (len(x) - 1) / len(x)
        for x in rows
        if len(x) > 1
    ]
    return max(0.0, spread - (float(np.mean(noise)) if noise else 0.0))


def _window(means: Sequence[FloatArray], weight: FloatArray) -> Source:
    if weight.size < 2:
        return Source(None, 0, None, None, "one window")
    profile = np.mean([m.mean(axis=0) for m in means], axis=0)
    variance = weight.size * float(ratio_variance(profile, weight))
    reason = "the same for all methods: it leaves their difference alone"
    return Source(percent_change(math.sqrt(variance)), weight.size - 1, 0.0, None, reason)


def _part(term: Term | None, share: float | np.floating) -> float:
    """Return a source's part of the variance of a difference of two methods."""
    return 0.0 if term is None else 2 * float(share) * term[0]


def _source(
    term: Term | None, part: float, shrinks: float, total: float | None, reason: str | None
) -> Source:
    """Describe a source. shrinks: the part of `total` that more draws of it reduce."""
    if term is None:
        return Source(None, 0, None, None, reason)
    percent = percent_change(math.sqrt(term[0]))
    if not total:
        return Source(percent, int(term[1]), None, None, reason)
    left = percent_change(math.sqrt(max(0.0, total - shrinks)))
    return Source(percent, int(term[1]), part / total, left, reason)
