"""COLA: cluster documents on the activations of the model to be quantized (arXiv 2510.10618).

The third stage of He et al. 2025: average activations over a document's tokens, normalize them per
layer, project them at random, run k-means, and take the documents nearest to each centroid. It
costs a forward pass over the beginnings of the candidates, once per model, corpus and size of the
calibration set; all seeds share it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from colazero.selection import METHODS, cola_zero, features
from colazero.types import Selection, TokenPool

CANDIDATES = 4
"""The candidates hold about this many times the tokens asked for: more candidates cost more."""


@METHODS.register("cola")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster candidates on their activations and take the nearest ones from each cluster."""
    documents, notes = cola_zero.eligible(pool, n, seq_len)
    documents = candidates(pool, documents, n * seq_len)
    matrix = features.group(pool, documents, "activations").astype(np.float32)
    selection = cola_zero.cluster_and_deal(matrix, documents, pool, n, seq_len, rng)
    return replace(selection, notes={**notes, **selection.notes})


def candidates(pool: TokenPool, documents: NDArray[np.int64], needed: int) -> NDArray[np.int64]:
    """Return documents evenly spread over the corpus that hold CANDIDATES times `needed` tokens.

    Return all of them if they hold fewer, or if the spread ones hold fewer than `needed`.
    """
    lengths = (pool.stops - pool.starts)[documents]
    count = int(np.ceil(len(documents) * min(1.0, CANDIDATES * needed / lengths.sum())))
    spread = np.arange(count) * len(documents) // count
    return documents[spread] if lengths[spread].sum() >= needed else documents
