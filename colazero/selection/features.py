"""Features of documents, in groups of equal weight, computed once and kept in the cache.

They depend on the corpus and the tokenizer alone, never on a seed: seeds differ in the clusters
that k-means makes of them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from colazero.cache import facts_digest, kept_arrays, own_code
from colazero.selection import forward, one_thread
from colazero.types import TokenPool

TERMS = 5_000
COMPONENTS = 100
CHUNK = 5_000
"""Documents whose terms are in memory at a time."""

Matrix = NDArray[np.float32]
Compute = Callable[[TokenPool, NDArray[np.int64]], NDArray[np.floating]]


def matrix(pool: TokenPool, documents: NDArray[np.int64], groups: Sequence[str]) -> Matrix:
    """Return the weighted features of `documents`, float32 [documents, features].

    `groups` are names in GROUPS. Each group is computed once per corpus and tokenizer, on one
    thread (see `colazero.selection.one_thread`), and memory-mapped from the cache from then on.
    """
    return weighted({name: group(pool, documents, name) for name in groups})


def group(pool: TokenPool, documents: NDArray[np.int64], name: str) -> NDArray[np.floating]:
    """Return one group's features, [documents, features], before weighting."""
    compute, facts = GROUPS[name]
    if pool.entry is None:
        return compute(pool, documents)

    chosen = hashlib.sha256(documents.tobytes()).hexdigest()
    libraries = [version(name) for name in ("numpy", "scipy", "scikit-learn")]
    key = facts_digest(name, *facts(pool), own_code(compute.__module__), *libraries, chosen)
    entry = pool.entry.parent.parent / "features" / f"{pool.entry.name}-{name}-{key}"
    return kept(entry, lambda: compute(pool, documents))


def kept(entry: Path, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
    """Return `compute()`, or its earlier result memory-mapped from the cache's `entry`.

    Compute on one thread. A later reader is charged the seconds that it took; see `spared`.
    """
    computed = False

    def build(draft: Path) -> None:
        nonlocal computed
        computed = True
        with one_thread():
            begin = time.perf_counter()
            np.save(draft / "features.npy", compute())
            np.save(draft / "seconds.npy", time.perf_counter() - begin)

    arrays = kept_arrays(entry, ["features", "seconds"], build)
    reader = _reader.get()
    if reader is not None and not computed:
        reader.append(float(arrays["seconds"]))
    return arrays["features"]


_reader: ContextVar[list[float] | None] = ContextVar("reader", default=None)


@contextmanager
def spared() -> Iterator[list[float]]:
    """Yield a list of the seconds that cached features took when they were computed.

    It gets one number per group that is read from the cache inside the block. Without it, the
    first method to run would seem to cost what all methods share.
    """
    seconds: list[float] = []
    token = _reader.set(seconds)
    try:
        yield seconds
    finally:
        _reader.reset(token)


_words = re.compile(r"\w+|[^\w\s]+").findall
"""Words and punctuation. scikit-learn's own pattern drops punctuation and words of one letter."""


class Terms:
    """A vocabulary of 1- and 2-grams, counted as numbers instead of strings.

    scikit-learn's CountVectorizer makes a string of every pair, keeps all of them in a dictionary
    and sorts it. That is four times the work, and the processor's sort decides ties at the limit.

    A word's key is its number, in order of first appearance. A pair's key is
    2³² × (first + 1) + second.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._keys: NDArray[np.int64] = np.empty(0, np.int64)

    def fit(self, texts: Iterable[str], limit: int) -> csr_array:
        """Learn the `limit` most frequent terms; return their counts, float32 [texts, terms].

        Of equally frequent terms at the limit, take those with the smaller keys.
        """
        numbers = self._numbers
        totals, keys = self._occurrences(texts, lambda word: numbers.setdefault(word, len(numbers)))
        distinct, counts = np.unique(keys, return_counts=True)
        self._keys = np.sort(distinct[np.argsort(-counts, kind="stable")[:limit]])
        return self._matrix(totals, keys)

    def counts(self, texts: Iterable[str]) -> csr_array:
        """Return how often each term occurs in each text, float32 [texts, terms]."""
        return self._matrix(*self._occurrences(texts, lambda word: self._numbers.get(word, -1)))

    def _occurrences(
        self, texts: Iterable[str], number: Callable[[str], int]
    ) -> tuple[list[int], NDArray[np.int64]]:
        """Return the number of terms per text, and the keys of all terms, text by text."""
        totals, parts = [], []
        for text in texts:
            strings = _words(text.lower())
            words = np.fromiter(map(number, strings), np.int64, len(strings))
            pairs = (words[:-1] + 1 << 32) + words[1:]
            in_vocabulary = (words[:-1] >= 0) & (words[1:] >= 0)
            parts += [words, pairs[in_vocabulary]]
            totals.append(len(words) + int(in_vocabulary.sum()))
        return totals, np.concatenate([np.empty(0, np.int64), *parts])

    def _matrix(self, totals: list[int], keys: NDArray[np.int64]) -> csr_array:
        rows = np.repeat(np.arange(len(totals)), totals)
        columns = np.searchsorted(self._keys, keys)
        columns[columns == len(self._keys)] = 0
        is_term = self._keys[columns] == keys if len(self._keys) else np.zeros(len(keys), bool)
        places = (rows[is_term], columns[is_term])
        ones = np.ones(len(places[0]), np.float32)
        return csr_array((ones, places), shape=(len(totals), len(self._keys)))


def tfidf(pool: TokenPool, documents: NDArray[np.int64]) -> Matrix:
    """Return TF-IDF vectors (1- and 2-grams, sublinear) reduced by truncated SVD.

    Shape [documents, at most 100]. The SVD is the randomized one of Halko et al. 2011
    (arXiv 0909.4061) with a fixed random state: the features are the same for every seed. A corpus
    too small to reduce keeps as many components as it has. Of more than `exact_documents`
    documents, an evenly spread sample of that size decides the terms and the components.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer

    reduced = np.zeros((len(documents), 1), np.float32)
    count = min(len(documents), pool.settings.exact_documents)
    sample = documents[np.arange(count) * len(documents) // count]
    if not any(pool.texts[d].strip() for d in sample):
        return reduced  # blanks: tokens without terms
    terms, weights = Terms(), TfidfTransformer(sublinear_tf=True)
    weighed = weights.fit_transform(terms.fit((pool.texts[d] for d in sample), TERMS))
    components = min(COMPONENTS, weighed.shape[0] - 1, weighed.shape[1] - 1)
    if components < 1:
        return reduced
    svd = TruncatedSVD(components, random_state=0)
    with np.errstate(invalid="ignore", divide="ignore"):  # explained shares, which are not used
        reduced = svd.fit_transform(weighed)
    if count < len(documents):
        chunks = [documents[i : i + CHUNK] for i in range(0, len(documents), CHUNK)]
        counts = (terms.counts(pool.texts[d] for d in part) for part in chunks)
        reduced = np.concatenate([svd.transform(weights.transform(part)) for part in counts])
    return reduced


def length(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the documents' lengths in tokens without the template's, [documents, 1]."""
    said = pool.contents
    return (said.stops[documents] - said.starts[documents]).astype(np.float64)[:, None]


def diversity(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return distinct tokens / tokens of each document, [documents, 1], without the template's."""
    said = pool.contents
    spans = zip(said.starts[documents].tolist(), said.stops[documents].tolist(), strict=True)
    shares = [len(set(said.tokens[a:b].tolist())) / max(1, b - a) for a, b in spans]
    return np.array(shares)[:, None]


MARKS = {
    "digits": r"\d+",
    "operators": r"[+*=<>^÷×±√∑∫≤≥≠≈→⇒]+|(?<=[\d\s])[-/](?=[\d\s])",
    "logic words": r"\b(?:if|then|else|because|therefore|thus|hence|since|implies|suppose|assume"
    r"|let|given|proves?|follows?|either|neither|unless|iff)\b",
    "step markers": r"\b(?:step|first(?:ly)?|second(?:ly)?|third(?:ly)?|next|finally|lastly)\b"
    r"|^\s*(?:\d+|[a-z])[.)]\s",
    "code marks": r"[{}\[\]_`\\]|;\s*$|//|::|->|\w\(",
}
"""Surface marks of reasoning in lower-case text (lines begin at ^)."""


def reasoning(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return occurrences of each of MARKS per token, [documents, 5]."""
    patterns = [re.compile(pattern, re.MULTILINE) for pattern in MARKS.values()]
    counts = np.zeros((len(documents), len(patterns)))
    for row, document in enumerate(documents):
        text = pool.texts[document].lower()
        counts[row] = [len(pattern.findall(text)) for pattern in patterns]
    shares: NDArray[np.float64] = counts / np.maximum(1, length(pool, documents))
    return shares


class Group(NamedTuple):
    """The function that computes a group, and what decides it apart from documents and code."""

    compute: Compute
    facts: Callable[[TokenPool], Sequence[str]] = lambda pool: ()


GROUPS: Mapping[str, Group] = {
    "tfidf": Group(tfidf, lambda pool: [str(pool.settings.exact_documents)]),
    "length": Group(length),
    "diversity": Group(diversity),
    "reasoning": Group(reasoning),
    "perplexity": Group(forward.perplexity, lambda pool: forward.facts(pool, forward.proxy(pool))),
    "activations": Group(
        forward.activations, lambda pool: forward.facts(pool, forward.target(pool))
    ),
}


def weighted(groups: Mapping[str, NDArray[np.floating]]) -> Matrix:
    """Standardize each feature, then give each group the same share of squared distance.

    Each group is [documents, features]; the result holds them next to each other. The expected
    squared distance of two documents over f standardized features is 2f, so a group's features are
    divided by √f. (Standardizing after weighting would undo the weights.) A feature that does not
    vary becomes zero; a group's f counts only the features that vary.
    """
    ends = np.cumsum([block.shape[1] for block in groups.values()])
    result = np.empty((len(next(iter(groups.values()))), int(ends[-1])), np.float32)
    for end, block in zip(ends, groups.values(), strict=True):
        mean, spread = block.mean(axis=0, dtype=np.float64), block.std(axis=0, dtype=np.float64)
        varies = spread > 100 * np.finfo(block.dtype).eps * np.abs(block).max()
        scale = np.where(varies, spread * np.sqrt(max(1, int(varies.sum()))), np.inf)
        place = result[:, end - block.shape[1] : end]  # written in place, without a copy
        np.subtract(block, mean, out=place, casting="same_kind")
        place /= scale.astype(np.float32)
    return result
