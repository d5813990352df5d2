"""COLA-Zero: cluster documents on features of their text, and take documents from every cluster.

The idea is COLA's (arXiv 2510.10618), which clusters the model's activations. COLA-Zero does not
run a model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.selection import METHODS, features
from colazero.selection.clusters import deal, kmeans, pack, too_small
from colazero.types import Selection, TokenPool

log = logging.getLogger(__name__)

MIN_DOC_TOKENS = 175
"""Shorter documents say too little about their style to be clustered."""
GROUPS = ("tfidf", "length", "diversity")
"""Feature groups; see `colazero.selection.features`."""


@METHODS.register("cola_zero")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster the long documents into `n` clusters and deal their documents into windows."""
    return on_features(GROUPS, pool, n, seq_len, rng)


def on_features(
    groups: Sequence[str], pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator
) -> Selection:
    """Select as COLA-Zero does, on these feature groups."""
    documents, notes = eligible(pool, n, seq_len)
    selection = cluster_and_deal(
        features.matrix(pool, documents, groups), documents, pool, n, seq_len, rng
    )
    return replace(selection, notes={**notes, **selection.notes})


def eligible(pool: TokenPool, n: int, seq_len: int) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return the documents of at least MIN_DOC_TOKENS tokens, and notes.

    If these are too few for `n` clusters, or too short together for the budget, add the longest
    of the shorter ones; the notes and the log say so. A chat template's tokens make no document
    longer, but fill windows, so they count for the budget.
    """
    lengths = pool.contents.stops - pool.contents.starts
    order = np.argsort(-lengths, kind="stable")
    enough_documents = min(n, int((lengths > 0).sum()))
    budget = np.searchsorted(np.cumsum((pool.stops - pool.starts)[order]), n * seq_len) + 1
    needed = min(len(order), max(enough_documents, int(budget)))
    long = int((lengths >= MIN_DOC_TOKENS).sum())
    taken = order[: max(long, needed)]
    taken = np.sort(taken[lengths[taken] > 0])
    if not len(taken):
        raise too_small(n * seq_len, 0)
    shortest = int(lengths[taken].min())
    if long < needed:
        log.warning(
            "only %d documents have %d tokens or more; the %d longest documents are clustered "
            "instead, down to %d tokens.",
            *(long, MIN_DOC_TOKENS, len(taken), shortest),
        )
    return taken, {"min_doc_tokens": min(MIN_DOC_TOKENS, shortest), "fallback": long < needed}


def cluster_and_deal(
    matrix: NDArray[np.float32],
    documents: NDArray[np.int64],
    pool: TokenPool,
    n: int,
    seq_len: int,
    rng: np.random.Generator,
) -> Selection:
    """Cluster `documents` on `matrix` [documents, features] and deal them into windows."""
    exact = pool.settings.exact_documents
    clusters = kmeans(matrix, min(n, len(documents)), int(rng.integers(2**31)), exact)
    spans, used = deal(pool, documents, clusters, n * seq_len, seq_len)
    by_label = np.bincount(clusters.labels)
    largest_first = np.argsort(-by_label, kind="stable")
    sizes = by_label[largest_first]
    rank = {label: number for number, label in enumerate(largest_first.tolist())}
    notes = {
        "clusters": len(sizes),
        "cluster_size_min": int(sizes.min()),
        "cluster_size_median": float(np.median(sizes)),
        "cluster_size_max": int(sizes.max()),
        "cluster_sizes": sizes.tolist(),
        "document_clusters": {str(documents[i]): rank[int(clusters.labels[i])] for i in used},
        "clusters_covered": len({int(clusters.labels[i]) for i in used}),
        "documents_eligible": len(documents),
        "documents_used": len(used),
        "inertia": clusters.inertia,
        "exact_documents": exact,
        "clustered_in_batches": len(documents) > exact,
    }
    if len(sizes) < n:
        log.warning(
            "%d eligible documents make %d clusters, not %d: too few of them differ.",
            *(len(documents), len(sizes), n),
        )
        notes["fallback"] = True
    return Selection(pack(spans, n, seq_len), notes)
