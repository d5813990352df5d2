"""COLA: cluster documents on the activations of the model to be quantized (arXiv 2510.10618).

The third stage of He et al. 2025: activations, averaged over a document's tokens and normalised a
layer, in a random projection, k-means, and the documents nearest to each centroid. It costs a
forward pass over the beginnings of the candidates, once for a model, a corpus and a size of the
calibration set; all seeds share it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colazero.selection import METHODS, cola_zero, features
from colazero.types import Selection, TokenPool

CANDIDATES = 4
"""Candidates hold about so many times the tokens asked for: to choose from more costs more."""


@METHODS.register("cola")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster candidates on their activations and take from each cluster what is nearest."""
    documents, notes = cola_zero.eligible(pool, n, seq_len)
    documents = candidates(pool, documents, n * seq_len)
    matrix = features.group(pool, documents, "activations").astype(np.float32)
    return cola_zero.cluster_and_deal("cola", matrix, documents, notes, pool, n, seq_len, rng)


def candidates(pool: TokenPool, documents: NDArray[np.int64], needed: int) -> NDArray[np.int64]:
    """Return documents evenly spread over the corpus that hold CANDIDATES times `needed` tokens.

    All of them where that is not more than they hold, or where so few hold less than is needed.
    """
    lengths = (pool.stops - pool.starts)[documents]
    count = int(np.ceil(len(documents) * min(1.0, CANDIDATES * needed / lengths.sum())))
    spread = np.arange(count) * len(documents) // count
    return documents[spread] if lengths[spread].sum() >= needed else documents
