"""Two quantized models on the same evaluation windows: evaluation noise taken out by pairing.

llama.cpp reports its quantized models this way (pull request 12557 there: a difference of
0.392 ± 0.010 between two perplexities that are each known to ± 0.08).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.samples import (
    FloatArray,
    Interval,
    percent_change,
    percent_interval,
    t_quantile,
)

# Under this share of the NLL a difference between windows is float64 round-off.
ROUND_OFF = 1e-12


@dataclass(frozen=True)
class PairedWindows:
    """Model a against model b on the same text; every undefined number is None.

    n_windows, n_clusters, n_tokens: what was compared. df: n_clusters - 1.
    diff_nll, diff_nll_se, diff_nll_ci95: mean NLL of a minus that of b, nats a token.
    ppl_percent, ppl_percent_ci95: 100 * (perplexity of a / perplexity of b - 1).
    """

    n_windows: int
    n_clusters: int
    n_tokens: float
    diff_nll: float
    ppl_percent: float | None
    reason: str | None
    df: int | None = None
    diff_nll_se: float | None = None
    diff_nll_ci95: Interval | None = None
    ppl_percent_ci95: Interval | None = None


def paired_windows(
    nll_a: ArrayLike, nll_b: ArrayLike, tokens: ArrayLike, clusters: ArrayLike
) -> PairedWindows:
    """Difference of two models' mean NLL a token, with a standard error by clusters of windows.

    nll_a, nll_b: shape [windows], negative log-likelihood summed over a window's tokens, in nats.
    tokens: shape [windows], tokens scored in each window, > 0. clusters: shape [windows], labels
    of what is independent, such as the document; neighbouring windows of one are not.

    The estimate is sum(nll_a - nll_b) / sum(tokens), a token-weighted ratio, and its error the
    linearised cluster-robust one (Liang & Zeger 1986) with factor G/(G - 1) and a t interval with
    G - 1 degrees of freedom (Cameron & Miller 2015), which is too narrow for few or very unequal
    clusters (under about 30).

    It speaks about these two checkpoints on text like this. The noise of choosing calibration data
    is not in it, so it is no test of two methods: that is what `compare` over seeds is for.

    With one cluster, or a difference that is the same in every cluster (the same checkpoint
    twice), the error is None and `reason` says why. Raises ValueError for shapes that differ and
    for values out of range.
    """
    a, b, weight, cluster, n_clusters = _checked(nll_a, nll_b, tokens, clusters)
    total = float(weight.sum())
    diff = float(np.sum(a - b)) / total
    cluster_diff = np.bincount(cluster, weights=a - b, minlength=n_clusters)
    cluster_tokens = np.bincount(cluster, weights=weight, minlength=n_clusters)
    reason = None
    if n_clusters < 2:
        reason = "all windows are in one cluster: a standard error needs at least 2"
    elif np.ptp(cluster_diff / cluster_tokens) <= ROUND_OFF * float(np.max((a + b) / weight)):
        reason = "the difference is the same in every cluster: no variation to estimate an error"
    known = (a.size, n_clusters, total, diff, percent_change(diff), reason)
    if reason is not None:
        return PairedWindows(*known)
    residual = cluster_diff - diff * cluster_tokens
    error = math.sqrt(n_clusters / (n_clusters - 1) * float(np.sum(residual**2))) / total
    half = t_quantile(0.975, n_clusters - 1) * error
    return PairedWindows(
        *known,
        df=n_clusters - 1,
        diff_nll_se=error,
        diff_nll_ci95=(diff - half, diff + half),
        ppl_percent_ci95=percent_interval(diff - half, diff + half),
    )


def _checked(
    nll_a: ArrayLike, nll_b: ArrayLike, tokens: ArrayLike, clusters: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray, NDArray[np.intp], int]:
    a, b, weight = (np.asarray(x, dtype=np.float64) for x in (nll_a, nll_b, tokens))
    labels = np.asarray(clusters)
    arrays = {"nll_a": a, "nll_b": b, "tokens": weight, "clusters": labels}
    shapes = {name: x.shape for name, x in arrays.items()}
    if len(set(shapes.values())) > 1 or a.ndim != 1 or a.size == 0:
        raise ValueError(f"all four must have one shape [windows], not empty; got {shapes}")
    for name, x, good in (
        ("nll_a", a, a >= 0),
        ("nll_b", b, b >= 0),
        ("tokens", weight, weight > 0),
    ):
        bad = np.flatnonzero(~(good & np.isfinite(x)))
        if bad.size:
            raise ValueError(
                f"{name}[{bad[0]}] is {x[bad[0]]:g}; allowed are finite tokens above 0 and finite "
                "NLL sums of at least 0 (a log-likelihood with its sign turned)"
            )
    names, cluster = np.unique(labels, return_inverse=True)
    return a, b, weight, cluster, int(names.size)
