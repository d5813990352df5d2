"""COLA-Zero: cluster documents on features of their text, and take from every cluster.

The idea is COLA's (arXiv 2510.10618), which clusters the model's activations; here no model is
run at all.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError
from colazero.interfaces import Selection, Span, TokenPool
from colazero.selection import METHODS, features

log = logging.getLogger(__name__)

MIN_DOC_TOKENS = 175
"""Shorter documents say too little about their style to be clustered."""
N_INIT = 10
"""k-means starts. 50 starts gain less than 0.05 % of inertia and take five times as long."""


@METHODS.register("cola_zero")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster the long documents into `n` clusters and deal their documents into windows."""
    documents, notes = eligible(pool, n, seq_len)
    seeds = rng.integers(2**31, size=2)
    matrix = features.weighted(
        {
            "tfidf": features.tfidf([pool.texts[d] for d in documents], int(seeds[0])),
            "length": features.length(pool, documents),
            "diversity": features.diversity(pool, documents),
        }
    )
    labels, distances, inertia = cluster(matrix, min(n, len(documents)), int(seeds[1]))
    spans, used = deal(pool, documents, labels, distances, n, seq_len)
    sizes = np.unique(labels, return_counts=True)[1]
    if len(sizes) < n:
        log.warning(
            "cola_zero: %d eligible documents make %d clusters, not %d: too few of them differ.",
            *(len(documents), len(sizes), n),
        )
        notes["fallback"] = True
    notes |= {
        "clusters": len(sizes),
        "cluster_size_min": int(sizes.min()),
        "cluster_size_median": float(np.median(sizes)),
        "cluster_size_max": int(sizes.max()),
        "cluster_sizes": sizes.tolist(),
        "clusters_covered": len({int(labels[i]) for i in used}),
        "documents_eligible": len(documents),
        "documents_used": len(used),
        "inertia": inertia,
    }
    return Selection(pack(spans, n, seq_len), notes)


def eligible(pool: TokenPool, n: int, seq_len: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the documents of at least MIN_DOC_TOKENS tokens, and notes.

    Where these are too few for `n` clusters, or too short together for the budget, the longest
    shorter ones are added until they are not; the notes and the log say so.
    """
    lengths = pool.stops - pool.starts
    order = np.argsort(-lengths, kind="stable")
    enough_documents = min(n, int((lengths > 0).sum()))
    budget = np.searchsorted(np.cumsum(lengths[order]), n * seq_len) + 1
    needed = min(len(order), max(enough_documents, int(budget)))
    long = int((lengths >= MIN_DOC_TOKENS).sum())
    taken = order[: max(long, needed)]
    taken = np.sort(taken[lengths[taken] > 0])
    if not len(taken):
        raise _too_small(n, seq_len, 0)
    shortest = int(lengths[taken].min())
    if long < needed:
        log.warning(
            "cola_zero: only %d documents have %d tokens or more; took the %d longest instead, "
            "down to %d tokens.",
            *(long, MIN_DOC_TOKENS, len(taken), shortest),
        )
    return taken, {"min_doc_tokens": min(MIN_DOC_TOKENS, shortest), "fallback": long < needed}


def cluster(
    matrix: NDArray[np.float64], k: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    """Run k-means; return labels [documents], squared distances to own centroid, inertia."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():  # of documents that do not differ; the caller says it itself
        warnings.simplefilter("ignore", ConvergenceWarning)
        kmeans = KMeans(k, n_init=N_INIT, random_state=seed).fit(matrix)
    distances = ((matrix - kmeans.cluster_centers_[kmeans.labels_]) ** 2).sum(axis=1)
    return kmeans.labels_.astype(np.int64), distances, float(kmeans.inertia_)


def deal(
    pool: TokenPool,
    documents: NDArray[np.int64],
    labels: NDArray[np.int64],
    distances: NDArray[np.float64],
    n: int,
    seq_len: int,
) -> tuple[list[Span], list[int]]:
    """Deal documents round by round, from each cluster its next nearest, until the budget is met.

    A document brings its separator along, and gives at most one window's worth of tokens, so that
    the first round reaches every cluster. If all are dealt and tokens are still missing, the rests
    of the long ones follow. Returns the spans in order, and which of `documents` they came from.
    """
    ends = np.append(pool.starts[1:], pool.stops[-1:])
    nearest = np.lexsort((documents, distances, labels))
    first = np.searchsorted(labels[nearest], labels[nearest], side="left")
    rounds = np.arange(len(nearest)) - first
    dealt = nearest[np.lexsort((labels[nearest], rounds))]
    spans: list[Span] = []
    used: list[int] = []
    missing = n * seq_len
    for offset in range(0, int((ends - pool.starts)[documents].max()), seq_len):
        for i in dealt:
            document = int(documents[i])
            start = int(pool.starts[document]) + offset
            stop = min(int(ends[document]), start + seq_len, start + missing)
            if stop > start:
                spans.append(Span(document, start, stop))
                missing -= stop - start
                if offset == 0:
                    used.append(int(i))
            if missing == 0:
                return spans, used
    raise _too_small(n, seq_len, n * seq_len - missing)


def _too_small(n: int, seq_len: int, available: int) -> UserError:
    """Return the error for a corpus that has its tokens between its documents, not in them."""
    return UserError(
        f"corpus too small for cola_zero: {n} windows of {seq_len} tokens need {n * seq_len:,} "
        f"tokens, its documents have {available:,}. Ask for fewer windows."
    )


def pack(spans: list[Span], n: int, seq_len: int) -> list[list[Span]]:
    """Fill `n` windows of `seq_len` tokens one after the other, dividing spans at their borders."""
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
