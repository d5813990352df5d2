"""Rows of NLL sums by stretches of text: profiles, and the variances that they show."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from analysis.stats.samples import FloatArray

FEWEST_WINDOWS = 4
# From so many windows on a stretch is long enough to be taken as independent of its neighbours.
LONG_TEXT = 64
LARGEST_CORRELATION = 0.8


@dataclass(frozen=True)
class Profiles:
    """A method's rows over G stretches.

    mean: shape [G], NLL sum of each stretch, mean over the rows. rows: how many. variance: of a
    row's log perplexity between rows; None for one. overlap: what row x stretch noise adds to the
    variance of the mean's text, nats**2 a token**2.
    """

    mean: FloatArray
    rows: int
    variance: float | None
    overlap: float


def profiles(nll: FloatArray, label: NDArray[np.intp], size: FloatArray) -> Profiles:
    """Sum nll [n, W] over stretches: label [W] in 0..G-1, size [G] tokens."""
    sums = nll @ (label[:, None] == np.arange(size.size))
    mean, n = sums.mean(axis=0), len(sums)
    if n < 2:
        return Profiles(mean, n, None, 0.0)
    variance = float(np.var(sums.sum(axis=1) / size.sum(), ddof=1))
    noise = ratio_variance(sums - mean, size) / (n - 1)
    return Profiles(mean, n, variance, noise / n)


def ratio_variance(sums: FloatArray, size: FloatArray) -> float:
    """Variance of sums.sum() / size.sum() over stretches, linearised, with factor G / (G - 1).

    sums: shape [G], or [n, G] for the total of n rows. size: shape [G].
    """
    g = size.size
    if g < 2:
        return 0.0
    residual = sums - sums.sum(axis=-1, keepdims=True) / size.sum() * size
    return float(g / (g - 1) * np.sum(residual**2) / size.sum() ** 2)


def stretch_labels(stretches: int | ArrayLike | None, windows: int) -> NDArray[np.intp]:
    """The stretch of each window, 0..G-1: `stretches` contiguous ones, or from labels [windows].

    None: 8 stretches from 64 windows on, else 4, never more than windows. Raises ValueError.
    """
    if stretches is None:
        stretches = min(windows, 8 if windows >= LONG_TEXT else 4)
    if isinstance(stretches, (int, np.integer)):
        if not 1 <= stretches <= windows:
            raise ValueError(f"stretches must be 1 to {windows}, the windows; got {stretches}")
        return np.arange(windows) * stretches // windows
    labels = np.asarray(stretches)
    if labels.shape != (windows,):
        raise ValueError(f"stretches must label {windows} windows; got shape {labels.shape}")
    return np.asarray(np.unique(labels, return_inverse=True)[1], dtype=np.intp)


def edge_factor(values: FloatArray, stretches: int) -> float:
    """What `ratio_variance` over contiguous stretches lacks when neighbouring windows are alike.

    values: shape [W], a number a window, in the order of the text. As a first-order autoregression
    the windows give stretches that are too short to be independent a variance that is too small,
    by a ratio that follows from the correlation at lag 1 (prewhitening: Andrews & Monahan 1992).
    That is estimated here, freed of its bias of about -(1 + 4 r) / W (Marriott & Pope 1954), taken
    half a standard error larger, since too small an error is worse than too large a one, and held
    to 0..0.8. Returns the inverse of the ratio, >= 1.
    """
    around, windows = values - values.mean(), values.size
    total = float(np.sum(around**2))
    if total == 0:
        return 1.0
    r = float(np.sum(around[1:] * around[:-1])) / total
    r += (1 + 4 * r) / windows + 0.5 / math.sqrt(windows)
    r = min(max(r, 0.0), LARGEST_CORRELATION)

    def variance(length: float) -> float:
        """Of the sum of so many windows, in units of one."""
        return float(length * (1 + r) / (1 - r) - 2 * r * (1 - r**length) / (1 - r) ** 2)

    share = stretches**2 * variance(windows / stretches) / variance(windows)
    return float((stretches - 1) / (share - 1))


def upper_factor(stretches: int) -> float:
    """Upper 95 % limit of a variance over so many stretches, as a multiple of its estimate."""
    return float((stretches - 1) / special.chdtri(stretches - 1, 0.95))


def stretch_sizes(label: NDArray[np.intp], tokens: FloatArray) -> FloatArray:
    """Tokens of each stretch [G]."""
    return np.asarray(np.bincount(label, weights=tokens), dtype=np.float64)


def check_tokens(tokens: ArrayLike) -> FloatArray:
    """Tokens [W] as numbers. Raises ValueError unless there are some, all finite and above 0."""
    weight = np.asarray(tokens, dtype=np.float64)
    if weight.ndim != 1 or not weight.size:
        raise ValueError(f"tokens must have shape [windows], not empty; got {weight.shape}")
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight > 0)))
    if bad.size:
        raise ValueError(f"tokens[{bad[0]}] is {weight[bad[0]]:g}; allowed are numbers above 0")
    return weight


def check_nll(nll: ArrayLike, windows: int, name: str) -> FloatArray:
    """NLL sums [n, windows] as numbers. Raises ValueError for another shape, and unless all are
    finite and at least 0."""
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
