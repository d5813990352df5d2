"""Compare two methods over seeds and text together.

Two questions can be asked of the text. "mix": what would other documents of the same kinds and
periods show? "eras": what if whole periods were drawn anew? A difference between two methods that
goes with the period is a fixed effect for the first and noise for the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from analysis.stats.samples import (
    Estimate,
    FloatArray,
    Interval,
    PooledVariance,
    check_alpha,
    percent_change,
    percent_interval,
    satterthwaite,
)

Question = Literal["mix", "eras"]
Unit = Literal["documents", "windows", "stretches"]
Term = tuple[float, float]
"""A variance and its degrees of freedom."""

FEWEST_WINDOWS = 8
FEWEST_DOCUMENTS = 4
# From this many windows on, a stretch is long enough to count as independent of its neighbours.
LONG_TEXT = 64
LARGEST_CORRELATION = 0.8
# Below this share of the NLL a difference is float64 round-off.
ROUND_OFF = 1e-12


class Parts(NamedTuple):
    """The parts that a text's noise is estimated from.

    label: [W], the part of each window, 0..G-1 in the text's order. size: tokens of each part [G].
    """

    label: NDArray[np.intp]
    size: FloatArray
    unit: Unit


@dataclass(frozen=True)
class Trend:
    """How the difference of two methods changes along the text.

    rho, p_value: Spearman's correlation of the parts' differences with their place. first_percent,
    last_percent: the difference in the first and in the last quarter of the windows, % of b.
    """

    rho: float
    p_value: float
    first_percent: float | None
    last_percent: float | None


@dataclass(frozen=True)
class TextComparison:
    """Method a against method b over seeds and windows; every undefined number is None.

    n_a, n_b: rows. unit: what a part is. text: the question. lent: 'a', 'b' or 'ab', the arms of
    one draw whose variance other sets lent.
    log_ratio: log perplexity of a minus that of b; std_error, df, ci: of it, at 1 - alpha.
    percent, percent_ci: 100 * (perplexity of a / perplexity of b - 1).
    seed_variance, text_variance, overlap_variance: the components of std_error**2. The first two
    are added; the third (seed x text noise, which both hold) is subtracted.
    text_df: degrees of freedom of text_variance. edge_factor: for "eras", the factor by which
    text_variance was raised because neighbouring stretches are alike; else 1.
    trend: along the text; None below 8 windows and without variation.
    """

    n_a: int
    n_b: int
    n_windows: int
    n_parts: int
    unit: Unit
    text: Question
    n_tokens: float
    alpha: float
    lent: str | None
    log_ratio: float
    percent: float | None
    reason: str | None
    std_error: float | None = None
    df: float | None = None
    p_value: float | None = None
    ci: Interval | None = None
    percent_ci: Interval | None = None
    seed_variance: float | None = None
    text_variance: float | None = None
    text_df: float | None = None
    overlap_variance: float | None = None
    edge_factor: float | None = None
    trend: Trend | None = None

    @property
    def estimate(self) -> Estimate | None:
        if self.std_error is None or self.df is None:
            return None
        return Estimate(self.log_ratio, self.std_error, self.df)


def compare_on_text(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    tokens: ArrayLike,
    *,
    documents: ArrayLike | None = None,
    text: Question = "mix",
    ratio: bool = False,
    alpha: float = 0.05,
    noise: PooledVariance | None = None,
) -> TextComparison:
    """Estimate the log ratio of two methods' perplexities with the noise of seeds and text.

    nll_a, nll_b: shapes [n_a, W] and [n_b, W], nats summed over a window. A row is an independent
    observation, as in `compare`. tokens: shape [W], scored in each window, in the text's order.
    documents: labels [W]; windows with one label are one part. None, or fewer than 4 documents:
    each window is a part.
    ratio: the log ratio of the two means instead, for sums that are not logarithms (KL divergence,
    agreement); its error is linearised and holds that of both means.
    noise: variance of one draw's mean per token, for a method with a single row.

    text: "mix" takes the text's variance from successive differences of the parts' means
    (`succession_variance`), "eras" from the spread of 8 contiguous stretches (4 below 64 windows),
    raised by `edge_factor`.

    V = sum_m S2_m / n_m + V_text - overlap, at least each of the first two: two-way clustering
    after Cameron, Gelbach & Miller (2011) and Owen (2007). Degrees of freedom: Satterthwaite over
    the terms. Where the seeds' variance is the largest they are at most Welch's, because a sum
    that rests on two or three seeds is not known better than these.

    Undefined, with a reason: one row without `noise`, fewer than 8 windows, and rows without
    variation. Raises ValueError for shapes and values out of range.
    """
    check_alpha(alpha)
    weight = check_tokens(tokens)
    a, b = check_nll(nll_a, weight.size, "nll_a"), check_nll(nll_b, weight.size, "nll_b")
    total, shift, scales = float(weight.sum()), 0.0, (1.0, 1.0)
    if ratio:
        mean_a, mean_b = (float(x.mean(axis=0).sum()) / total for x in (a, b))
        if min(mean_a, mean_b) <= 0:
            raise ValueError(f"ratio needs means above 0; got {mean_a:g} and {mean_b:g}")
        a, b, shift = a / mean_a, b / mean_b, math.log(mean_a / mean_b)
        scales = mean_a, mean_b
    parts = parts_of(text, weight, documents)
    variance = succession_variance if text == "mix" else ratio_variance
    arms = profiles(a, parts, variance), profiles(b, parts, variance)
    delta = arms[0].mean - arms[1].mean
    log_ratio = shift or float(delta.sum() / total)
    seeds = _seed_term(arms[0], noise, scales[0]), _seed_term(arms[1], noise, scales[1])
    lent = "".join(name for name, x in zip("ab", arms, strict=True) if x.rows == 1 and noise)
    known = TextComparison(
        n_a=arms[0].rows,
        n_b=arms[1].rows,
        n_windows=weight.size,
        n_parts=parts.size.size,
        unit=parts.unit,
        text=text,
        n_tokens=total,
        alpha=float(alpha),
        lent=lent or None,
        log_ratio=log_ratio,
        percent=percent_change(log_ratio),
        reason=None,
    )
    if weight.size < FEWEST_WINDOWS:
        few = f"{weight.size} windows: the noise of the text needs at least {FEWEST_WINDOWS}"
        return replace(known, reason=few)
    delta_by_window = a.mean(axis=0) - b.mean(axis=0) + shift * weight
    known = replace(known, trend=_trend(delta_by_window, weight, parts))
    if seeds[0] is None or seeds[1] is None:
        one = " and ".join(n for n, x in zip("ab", seeds, strict=True) if x is None)
        return replace(known, reason=f"{one} has one row: one draw of unknown noise")
    edges = upper = 1.0
    if text == "eras":
        # The upper 95 % limit of a variance over stretches, as a multiple of its estimate.
        upper = float((parts.size.size - 1) / special.chdtri(parts.size.size - 1, 0.95))
        edges = edge_factor((a.mean(axis=0) - b.mean(axis=0)) / weight, parts.size.size)
    of_text = edges * float(variance(delta, parts.size))
    df = degrees_of_freedom(text, parts.size)
    shared = [(x.overlap, (x.rows - 1) * df) for x in arms]
    level = float(arms[0].mean.sum() + arms[1].mean.sum()) / weight.sum()
    if math.sqrt(max(seeds[0][0] + seeds[1][0], of_text)) <= ROUND_OFF * level:
        return replace(known, reason="neither rows nor windows vary: no error can be estimated")
    known = replace(known, edge_factor=edges, text_df=df)
    return _with_error(known, [seeds[0], seeds[1]], (of_text, df), shared, upper)


def parts_of(text: Question, weight: FloatArray, documents: ArrayLike | None = None) -> Parts:
    """Return the parts of a text of W windows with `weight` tokens. Raises ValueError."""
    windows = weight.size
    unit: Unit = "windows"
    label: NDArray[np.intp] = np.arange(windows, dtype=np.intp)
    if documents is not None:
        given = np.asarray(documents)
        if given.shape != (windows,):
            raise ValueError(f"documents must label {windows} windows; got shape {given.shape}")
        first, number = np.unique(given, return_index=True, return_inverse=True)[1:]
        if first.size >= FEWEST_DOCUMENTS:
            label = np.asarray(np.argsort(np.argsort(first))[number], dtype=np.intp)
            unit = "documents"
    if text == "eras":
        label, unit = stretch_labels(windows), "stretches"
    elif text != "mix":
        raise ValueError(f"text must be 'mix' or 'eras'; got {text!r}")
    size = np.asarray(np.bincount(label, weights=weight), dtype=np.float64)
    return Parts(label, size, unit)


def stretch_labels(windows: int) -> NDArray[np.intp]:
    """Return the stretch of each window: 8 contiguous ones from 64 windows on, else up to 4."""
    stretches = min(windows, 8 if windows >= LONG_TEXT else 4)
    return np.arange(windows, dtype=np.intp) * stretches // windows


def succession_variance(sums: FloatArray, size: FloatArray) -> FloatArray:
    """Estimate the variance of sums.sum() / size.sum() from neighbouring parts.

    sums: shape [..., G] -> [...]. Each part's mean has half the squared difference from its
    neighbours' means as its variance, the mean over its two neighbours. What changes slowly along
    the text, such as the period, cancels (Wolter 2007, Introduction to Variance Estimation, ch. 8).
    """
    if size.size < 2:
        return np.zeros(sums.shape[:-1])
    steps = np.diff(sums / size, axis=-1) ** 2 / 2
    return np.asarray(steps @ _steps_weight(size))


def _steps_weight(size: FloatArray) -> FloatArray:
    """Return the weight of each squared half difference in `succession_variance`: shape [G - 1]."""
    share = (size / size.sum()) ** 2
    neighbours = np.full(size.size, 2.0)
    neighbours[[0, -1]] = 1.0
    each = share / neighbours
    return np.asarray(each[:-1] + each[1:])


def ratio_variance(sums: FloatArray, size: FloatArray) -> FloatArray:
    """Estimate the variance of sums.sum() / size.sum() over independent parts.

    Linearised, with factor G / (G - 1) (Liang & Zeger 1986). sums: shape [..., G] -> [...].
    """
    g = size.size
    if g < 2:
        return np.zeros(sums.shape[:-1])
    residual = sums - sums.sum(axis=-1, keepdims=True) / size.sum() * size
    return np.asarray(g / (g - 1) * np.sum(residual**2, axis=-1) / size.sum() ** 2)


def degrees_of_freedom(text: Question, size: FloatArray) -> float:
    """Return the degrees of freedom of the text's variance.

    "mix": those of a quadratic form in the parts' means (Satterthwaite), about 2 (G - 1) / 3 for
    equal parts. The smaller of two answers: means of equal variance, and means whose variance is
    inverse to the part's size.
    """
    g = size.size
    if text == "eras" or g < 3:
        return float(g - 1)
    steps = _steps_weight(size)
    diagonal = np.append(steps, 0.0) + np.append(0.0, steps)
    found = []
    for variance in (np.ones(g), 1 / size):
        mean = float(np.sum(diagonal * variance))
        square = np.sum((diagonal * variance) ** 2)
        square += 2 * np.sum(steps**2 * variance[1:] * variance[:-1])
        found.append(mean**2 / float(square))
    return min(found)


@dataclass(frozen=True)
class Profiles:
    """A method's rows over G parts.

    mean: shape [G], NLL sum of each part, mean over the rows. rows: how many. variance: of a row's
    log perplexity between rows; None for one. overlap: what row x part noise adds to the variance
    of the mean's text, nats**2 a token**2.
    """

    mean: FloatArray
    rows: int
    variance: float | None
    overlap: float


def profiles(
    nll: FloatArray, parts: Parts, variance: Callable[[FloatArray, FloatArray], FloatArray]
) -> Profiles:
    """Sum nll [n, W] over parts."""
    sums = summed(nll, parts)
    mean, n = sums.mean(axis=0), len(sums)
    if n < 2:
        return Profiles(mean, n, None, 0.0)
    between = float(np.var(sums.sum(axis=1) / parts.size.sum(), ddof=1))
    noise = float(np.sum(variance(sums - mean, parts.size))) / (n - 1)
    return Profiles(mean, n, between, noise / n)


def summed(nll: FloatArray, parts: Parts) -> FloatArray:
    """Sum nll [n, W] over parts: [n, G]."""
    if parts.size.size == nll.shape[-1]:
        return nll
    return np.asarray(nll @ (parts.label[:, None] == np.arange(parts.size.size)))


def edge_factor(values: FloatArray, stretches: int) -> float:
    """Return the factor that `ratio_variance` over stretches lacks when neighbours are alike.

    values: shape [W], a number per window, in the order of the text. As a first-order
    autoregression the windows give short stretches a variance that is too small, by a ratio that
    follows from the correlation at lag 1 (prewhitening: Andrews & Monahan 1992). That correlation
    is freed of its bias of about -(1 + 4 r) / W (Marriott & Pope 1954), raised by half a standard
    error, since too small an error is worse than too large a one, and held to 0..0.8.
    """
    around, windows = values - values.mean(), values.size
    total = float(np.sum(around**2))
    if total == 0:
        return 1.0
    r = float(np.sum(around[1:] * around[:-1])) / total
    r += (1 + 4 * r) / windows + 0.5 / math.sqrt(windows)
    r = min(max(r, 0.0), LARGEST_CORRELATION)

    def variance(length: float) -> float:
        """Return the variance of a sum of `length` windows, in units of one window's."""
        return float(length * (1 + r) / (1 - r) - 2 * r * (1 - r**length) / (1 - r) ** 2)

    share = stretches**2 * variance(windows / stretches) / variance(windows)
    return float((stretches - 1) / (share - 1))


def _trend(delta: FloatArray, weight: FloatArray, parts: Parts) -> Trend | None:
    """Test for a trend along the text. delta: [W], the difference of the mean NLL sums."""
    means = summed(delta[None], parts)[0] / parts.size
    if means.size < FEWEST_DOCUMENTS or np.ptp(means) == 0:
        return None
    found = stats.spearmanr(np.arange(means.size), means)
    quarter = max(1, weight.size // 4)
    first, last = slice(quarter), slice(-quarter, None)
    return Trend(
        rho=float(found.statistic),
        p_value=float(found.pvalue),
        first_percent=percent_change(float(delta[first].sum() / weight[first].sum())),
        last_percent=percent_change(float(delta[last].sum() / weight[last].sum())),
    )


def _seed_term(arm: Profiles, noise: PooledVariance | None, scale: float) -> Term | None:
    if arm.variance is not None:
        return arm.variance / arm.rows, arm.rows - 1
    return None if noise is None else (noise.variance / scale**2, noise.df)


def _with_error(
    known: TextComparison,
    seeds: Sequence[Term],
    text: Term,
    shared: Sequence[Term],
    upper: float,
) -> TextComparison:
    seed, overlap = sum(term for term, _ in seeds), sum(term for term, _ in shared)
    variance = max(seed + text[0] - overlap, seed, text[0])
    less = [(-term, df) for term, df in shared]
    if variance == text[0]:
        df = text[1]
    elif variance == seed:
        df = satterthwaite(seeds)
    else:
        df = min(satterthwaite([*seeds, (k * text[0], text[1]), *less]) for k in (1.0, upper))
        if seed >= text[0] - overlap:
            df = min(df, satterthwaite(seeds))
    estimate = Estimate(known.log_ratio, math.sqrt(variance), df)
    limits = estimate.interval(known.alpha)
    return replace(
        known,
        std_error=estimate.std_error,
        df=estimate.df,
        p_value=estimate.p_value,
        ci=limits,
        percent_ci=percent_interval(*limits),
        seed_variance=seed,
        text_variance=text[0],
        overlap_variance=overlap,
    )


def check_tokens(tokens: ArrayLike) -> FloatArray:
    """Return tokens [W] as numbers. Raises ValueError unless all are finite and above 0."""
    weight = np.asarray(tokens, dtype=np.float64)
    if weight.ndim != 1 or not weight.size:
        raise ValueError(f"tokens must have shape [windows], not empty; got {weight.shape}")
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight > 0)))
    if bad.size:
        raise ValueError(f"tokens[{bad[0]}] is {weight[bad[0]]:g}; allowed are numbers above 0")
    return weight


def check_nll(nll: ArrayLike, windows: int, name: str) -> FloatArray:
    """Return NLL sums [n, windows]. Raises ValueError for other shapes and values below 0."""
    rows = np.asarray(nll, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != windows or not rows.size:
        raise ValueError(f"{name} must have shape [n, {windows}], n > 0; got {rows.shape}")
    bad = np.argwhere(~(np.isfinite(rows) & (rows >= 0)))
    if bad.size:
        raise ValueError(
            f"{name}[{bad[0][0]}, {bad[0][1]}] is {rows[tuple(bad[0])]:g}; allowed are finite sums "
            "of at least 0 (a log-likelihood with its sign turned)"
        )
    return rows
