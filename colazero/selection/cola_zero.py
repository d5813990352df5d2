"""COLA-Zero: cluster documents on features of their text, and take from every cluster.

The idea is COLA's (arXiv 2510.10618), which clusters the model's activations; here no model is
run at all.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError
from colazero.interfaces import Selection, Span, TokenPool
from colazero.selection import METHODS, features
from colazero.selection.clusters import Clusters, kmeans

log = logging.getLogger(__name__)

MIN_DOC_TOKENS = 175
"""Shorter documents say too little about their style to be clustered."""
GROUPS = ("tfidf", "length", "diversity")
"""Feature groups; see `colazero.selection.features`."""


@METHODS.register("cola_zero")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster the long documents into `n` clusters and deal their documents into windows."""
    return cluster_and_deal("cola_zero", GROUPS, pool, n, seq_len, rng)


def cluster_and_deal(
    method: str,
    groups: Sequence[str],
    pool: TokenPool,
    n: int,
    seq_len: int,
    rng: np.random.Generator,
) -> Selection:
    """Do COLA-Zero on these feature groups; `method` is what warnings call it."""
    documents, notes = eligible(pool, n, seq_len)
    matrix = features.matrix(pool, documents, groups)
    found = kmeans(matrix, min(n, len(documents)), int(rng.integers(2**31)))
    spans, used = deal(pool, documents, found, n, seq_len)
    sizes = np.bincount(found.labels)
    if len(sizes) < n:
        log.warning(
            "%s: %d eligible documents make %d clusters, not %d: too few of them differ.",
            *(method, len(documents), len(sizes), n),
        )
        notes["fallback"] = True
    notes |= {
        "clusters": len(sizes),
        "cluster_size_min": int(sizes.min()),
        "cluster_size_median": float(np.median(sizes)),
        "cluster_size_max": int(sizes.max()),
        "cluster_sizes": sizes.tolist(),
        "clusters_covered": len({int(found.labels[i]) for i in used}),
        "documents_eligible": len(documents),
        "documents_used": len(used),
        "inertia": found.inertia,
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


def deal(
    pool: TokenPool,
    documents: NDArray[np.int64],
    clusters: Clusters,
    n: int,
    seq_len: int,
) -> tuple[list[Span], list[int]]:
    """Deal documents round by round, from each cluster its next nearest, until the budget is met.

    A document brings its separator along, and gives at most one window's worth of tokens, so that
    the first round reaches every cluster. If all are dealt and tokens are still missing, the rests
    of the long ones follow. Returns the spans in order, and which of `documents` they came from.
    """
    ends = np.append(pool.starts[1:], pool.stops[-1:])
    labels = clusters.labels
    nearest = np.lexsort((documents, clusters.distances, labels))
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
