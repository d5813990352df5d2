"""Features of documents that need no forward pass of any model, in groups of equal weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from colazero.interfaces import TokenPool

TERMS = 5_000
COMPONENTS = 100


def tfidf(texts: Sequence[str], seed: int) -> NDArray[np.float64]:
    """Return TF-IDF vectors (1- and 2-grams, sublinear) reduced by truncated SVD.

    Shape [documents, at most 100]. The SVD is the randomised one of Halko et al. 2011
    (arXiv 0909.4061). A corpus too small to reduce keeps as many components as it has.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not any(text.strip() for text in texts):
        return np.zeros((len(texts), 1))  # blanks: tokens, but no terms
    # scikit-learn's default pattern finds no word of one letter, and none in punctuation.
    vectorizer = TfidfVectorizer(
        max_features=TERMS, ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]+"
    )
    matrix = vectorizer.fit_transform(texts)
    components = min(COMPONENTS, matrix.shape[0] - 1, matrix.shape[1] - 1)
    if components < 1:
        return np.zeros((len(texts), 1))
    svd = TruncatedSVD(components, random_state=seed)
    with np.errstate(invalid="ignore", divide="ignore"):  # shares of no variance, which we ignore
        reduced: NDArray[np.float64] = svd.fit_transform(matrix)
    return reduced


def length(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the documents' lengths in tokens, [documents, 1]."""
    return (pool.stops[documents] - pool.starts[documents]).astype(np.float64)[:, None]


def diversity(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return distinct tokens / tokens of each document, [documents, 1]."""
    shares = [
        len(np.unique(pool.tokens[pool.starts[d] : pool.stops[d]]))
        / max(1, pool.stops[d] - pool.starts[d])
        for d in documents
    ]
    return np.array(shares)[:, None]


def weighted(groups: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Standardise each feature, then weight the groups to the same share of squared distance.

    Each group is [documents, features]; the result is them side by side. The expected squared
    distance of two documents over f standardised features is 2f, so a group's features are
    divided by √f. (Weights put on before standardising would be undone by it.) A feature that
    does not vary carries nothing and becomes zero; a group's f counts those that vary.
    """
    blocks = []
    for block in groups.values():
        spread = block.std(axis=0)
        varies = spread > 1e-12 * np.maximum(1.0, np.abs(block).max(axis=0))
        scaled = np.where(varies, (block - block.mean(axis=0)) / np.where(varies, spread, 1.0), 0.0)
        blocks.append(scaled / np.sqrt(max(1, int(varies.sum()))))
    return np.hstack(blocks)
