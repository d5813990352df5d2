"""COLA-Zero: cluster documents on features of their text, and take from every cluster.

The idea is COLA's (arXiv 2510.10618), which clusters the model's activations; here no model is
run at all.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colazero.selection import METHODS, features
from colazero.selection.clusters import kmeans
from colazero.selection.dealing import deal, pack, too_small
from colazero.types import Selection, TokenPool

log = logging.getLogger(__name__)

MIN_DOC_TOKENS = 175
"""Shorter documents say too little about their style to be clustered."""
GROUPS = ("tfidf", "length", "diversity")
"""Feature groups; see `colazero.selection.features`."""


@METHODS.register("cola_zero")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster the long documents into `n` clusters and deal their documents into windows."""
    return on_features("cola_zero", GROUPS, pool, n, seq_len, rng)


def on_features(
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
    return cluster_and_deal(method, matrix, documents, notes, pool, n, seq_len, rng)


def cluster_and_deal(
    method: str,
    matrix: NDArray[np.float32],
    documents: NDArray[np.int64],
    notes: Mapping[str, Any],
    pool: TokenPool,
    n: int,
    seq_len: int,
    rng: np.random.Generator,
) -> Selection:
    """Cluster `documents` on `matrix` [documents, features], deal them, and add to `notes`."""
    exact = pool.config.exact_documents
    found = kmeans(matrix, min(n, len(documents)), int(rng.integers(2**31)), exact)
    spans, used = deal(pool, documents, found, n * seq_len, seq_len)
    by_label = np.bincount(found.labels)
    largest_first = np.argsort(-by_label, kind="stable")
    sizes = by_label[largest_first]
    number = {label: rank for rank, label in enumerate(largest_first.tolist())}
    if len(sizes) < n:
        log.warning(
            "%s: %d eligible documents make %d clusters, not %d: too few of them differ.",
            *(method, len(documents), len(sizes), n),
        )
        notes = {**notes, "fallback": True}
    about = {
        "clusters": len(sizes),
        "cluster_size_min": int(sizes.min()),
        "cluster_size_median": float(np.median(sizes)),
        "cluster_size_max": int(sizes.max()),
        "cluster_sizes": sizes.tolist(),
        "document_clusters": {str(documents[i]): number[int(found.labels[i])] for i in used},
        "clusters_covered": len({int(found.labels[i]) for i in used}),
        "documents_eligible": len(documents),
        "documents_used": len(used),
        "inertia": found.inertia,
        "exact_documents": exact,
        "clustered_in_batches": len(documents) > exact,
    }
    return Selection(pack(spans, n, seq_len), {**notes, **about})


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
        raise too_small(n * seq_len, 0)
    shortest = int(lengths[taken].min())
    if long < needed:
        log.warning(
            "cola_zero: only %d documents have %d tokens or more; took the %d longest instead, "
            "down to %d tokens.",
            *(long, MIN_DOC_TOKENS, len(taken), shortest),
        )
    return taken, {"min_doc_tokens": min(MIN_DOC_TOKENS, shortest), "fallback": long < needed}
