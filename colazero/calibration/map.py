"""Where a corpus's documents lie: the features that COLA-Zero clusters, in two dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from colazero.selection import features, one_thread
from colazero.selection.cola_zero import GROUPS, MIN_DOC_TOKENS
from colazero.types import TokenPool

MOST = 4_000
"""Documents of a corpus that are shown; of more, a sample that never changes."""
FEWEST = 50
"""Where fewer documents are long enough to be clustered, all are shown."""


@dataclass(frozen=True)
class DocumentMap:
    """`documents` [m] at `points` [m, 2], of `available` documents of `min_tokens` or more.

    An axis explains `shares` [2] of the features' variance; `groups` says what it is made of.
    """

    documents: NDArray[np.int64]
    points: NDArray[np.float64]
    available: int
    min_tokens: int
    shares: tuple[float, float]
    groups: tuple[str, str]


def shown(pool: TokenPool, chosen: NDArray[np.int64]) -> tuple[NDArray[np.int64], int, int]:
    """Return the documents to map, of how many, and how many tokens these have at least.

    Those long enough to be clustered; of more than MOST a sample, with what was `chosen` of them.
    """
    lengths = pool.stops - pool.starts
    min_tokens = MIN_DOC_TOKENS if (lengths >= MIN_DOC_TOKENS).sum() >= FEWEST else 1
    documents = np.flatnonzero(lengths >= min_tokens)
    available = len(documents)
    if available > MOST:
        among = chosen[lengths[chosen] >= min_tokens]
        documents = np.union1d(_sample(documents), _sample(among))
    return documents, available, min_tokens


def _sample(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(documents) <= MOST:
        return documents
    return np.random.default_rng(0).choice(documents, size=MOST, replace=False)


def document_map(
    pool: TokenPool, documents: NDArray[np.int64], available: int, min_tokens: int
) -> DocumentMap | None:
    """Project documents to the first two principal components; None if they do not differ."""
    if len(documents) < 3:
        return None
    if len(documents) < available:  # not the same ones in every cell: not worth keeping
        pool = replace(pool, entry=None)
    with one_thread():
        blocks = {name: features.matrix(pool, documents, [name]) for name in GROUPS}
        matrix = np.hstack(list(blocks.values())).astype(np.float64)
        values, vectors = np.linalg.eigh(np.cov(matrix, rowvar=False))
        if values[-2] <= 1e-12:
            return None
        axes = vectors[:, :-3:-1]
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), [0, 1]])  # eigh leaves it open
        points = matrix @ axes
    first, second = (float(values[-i] / values.sum()) for i in (1, 2))
    groups = (_made_of(blocks, axes[:, 0]), _made_of(blocks, axes[:, 1]))
    return DocumentMap(documents, points, available, min_tokens, (first, second), groups)


def _made_of(blocks: Mapping[str, NDArray[np.float32]], axis: NDArray[np.float64]) -> str:
    """Name the feature groups that an axis of length 1 lies in, with their shares of it."""
    ends = np.cumsum([block.shape[1] for block in blocks.values()])
    shares = [float((part**2).sum()) for part in np.split(axis, ends[:-1])]
    ranked = sorted(zip(shares, blocks, strict=True), reverse=True)
    names = [(share, "TF-IDF" if name == "tfidf" else name) for share, name in ranked]
    return " and ".join(f"{name} ({100 * share:.0f} %)" for share, name in names if share >= 0.1)
