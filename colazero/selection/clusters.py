"""Clusters of documents, and windows dealt from them: k-means with exchange, dealing, packing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError
from colazero.types import Span, TokenPool

SWEEPS = 40
"""Rounds of Hartigan's exchange. The first gains most: docs/guide/selection.md."""
BATCH = 4_096
"""Points per mini-batch."""


@dataclass(frozen=True)
class Clusters:
    """`labels`: [documents], from 0; fewer clusters than asked for where documents repeat.

    `distances`: squared distance of each document to its centroid, [documents].
    """

    labels: NDArray[np.int64]
    distances: NDArray[np.float64]

    @property
    def inertia(self) -> float:
        """Return the sum of squared distances."""
        return float(self.distances.sum())


def kmeans(points: NDArray[np.float32], k: int, seed: int, exact: int) -> Clusters:
    """Cluster `points` [documents, features] into at most `k` clusters.

    One start of k-means++ and Lloyd's iterations, then Hartigan's exchange of single points. The
    exchange goes on where Lloyd stops, because it counts that a centroid moves when a point leaves
    or joins. One such start ends more than 1 % below the best of 50 starts of Lloyd's alone. More
    than `exact` points are clustered in mini-batches (Sculley 2010, doi 10.1145/1772690.1772862),
    without exchange.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    large = len(points) > exact
    start = {"n_init": 1, "random_state": seed}
    method = MiniBatchKMeans(k, batch_size=BATCH, **start) if large else KMeans(k, **start)
    with warnings.catch_warnings():  # about documents that do not differ; the caller reports those
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = method.fit(points)
    labels = np.unique(fitted.labels_, return_inverse=True)[1].astype(np.int64)
    if not large:
        labels = exchange(points, labels)
    centroids = _sums(points, labels) / np.bincount(labels)[:, None]
    parts = [slice(first, first + BATCH) for first in range(0, len(points), BATCH)]
    distances = [((points[part] - centroids[labels[part]]) ** 2).sum(axis=1) for part in parts]
    return Clusters(labels, np.concatenate(distances))


def exchange(points: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Move points to other clusters while that lowers the inertia, at most SWEEPS rounds.

    Let a point have squared distances a and b to the centroids of its own cluster of m points and
    of another of n. Moving it changes the inertia by b·n/(n + 1) − a·m/(m − 1) (Hartigan and Wong
    1979, doi 10.2307/2346830). No two moves of a round touch the same cluster, so each is worth
    what was computed. The last point of a cluster stays.
    """
    labels = labels.copy()
    sizes = np.bincount(labels).astype(np.float64)
    sums = _sums(points, labels)
    norms = (points.astype(np.float64) ** 2).sum(axis=1)
    everyone = np.arange(len(points))
    for _ in range(SWEEPS):
        centroids = sums / sizes[:, None]
        cross = points @ centroids.T.astype(points.dtype)
        cost = norms[:, None] - 2.0 * cross + (centroids**2).sum(axis=1)
        own = cost[everyone, labels]
        worth = np.where(sizes > 1, sizes / np.maximum(1, sizes - 1), 0.0)[labels] * own
        cost *= sizes / (sizes + 1)
        cost[everyone, labels] = np.inf
        target = cost.argmin(axis=1)
        gain = worth - cost[everyone, target]
        moved = _disjoint_moves(labels, target, gain, len(sizes), 1e-6 * norms.mean())
        if not len(moved):
            break
        for source, sign in ((labels[moved], -1), (target[moved], 1)):
            sizes[source] += sign
            sums[source] += sign * points[moved]
        labels[moved] = target[moved]
    return labels


def _disjoint_moves(
    labels: NDArray[np.int64],
    target: NDArray[np.int64],
    gain: NDArray[np.float64],
    k: int,
    least: float,
) -> NDArray[np.int64]:
    """Return the points to move, best first; no two from or into the same cluster."""
    order = np.argsort(-gain, kind="stable")
    touched = np.zeros(k, dtype=bool)
    moved = []
    for point in order[: int((gain > least).sum())]:
        pair = [labels[point], target[point]]
        if not touched[pair].any():
            touched[pair] = True
            moved.append(point)
    return np.array(moved, dtype=np.int64)


def _sums(points: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum of each cluster's points, [clusters, features], added in their order."""
    from scipy.sparse import csr_array

    places = (np.ones(len(labels)), (labels, np.arange(len(labels))))
    sums: NDArray[np.float64] = csr_array(places) @ points
    return sums


def separator_ends(pool: TokenPool) -> NDArray[np.int64]:
    """Return where the separator after each document ends, [documents]."""
    return np.append(pool.starts[1:], pool.stops[-1:])


def deal(
    pool: TokenPool, documents: NDArray[np.int64], clusters: Clusters, tokens: int, seq_len: int
) -> tuple[list[Span], list[int]]:
    """Take the next nearest document of every cluster in turn until there are `tokens` tokens.

    A document comes with its separator and gives at most one window's worth of tokens, so that the
    first round reaches every cluster. If tokens are still missing after the last document, the
    remaining tokens of the long ones follow. Return the spans in order, and the indices of the
    documents used. Raise UserError if the documents have too few tokens.
    """
    stops = separator_ends(pool)
    labels = clusters.labels
    nearest = np.lexsort((documents, clusters.distances, labels))
    first = np.searchsorted(labels[nearest], labels[nearest], side="left")
    rounds = np.arange(len(nearest)) - first
    dealt = nearest[np.lexsort((labels[nearest], rounds))]
    spans: list[Span] = []
    used: list[int] = []
    missing = tokens
    longest = int((stops - pool.starts)[documents].max(initial=0))
    for offset in range(0, longest, seq_len):
        for i in dealt:
            document = int(documents[i])
            start = int(pool.starts[document]) + offset
            stop = min(int(stops[document]), start + seq_len, start + missing)
            if stop > start:
                spans.append(Span(document, start, stop))
                missing -= stop - start
                if offset == 0:
                    used.append(int(i))
            if missing == 0:
                return spans, used
    raise too_small(tokens, tokens - missing)


def too_small(needed: int, available: int) -> UserError:
    """Return the error for documents with too few tokens: most are in separators."""
    return UserError(
        f"corpus too small: the windows need {needed:,} tokens, but the documents to choose from "
        f"have {available:,}. Lower n_calibration_samples or seq_len."
    )


def pack(spans: list[Span], n: int, seq_len: int) -> list[list[Span]]:
    """Fill `n` windows of `seq_len` tokens one after the other; split spans at window borders."""
    windows: list[list[Span]] = [[] for _ in range(n)]
    filled = 0
    for span in spans:
        start = span.start
        while start < span.stop:
            window, used = divmod(filled, seq_len)
            stop = min(span.stop, start + seq_len - used)
            windows[window].append(Span(span.document, start, stop))
            filled += stop - start
            start = stop
    return windows
