"""The most frequent words and pairs of words of a corpus, counted as numbers instead of strings.

scikit-learn's CountVectorizer makes a string of every pair, keeps them all in a dictionary and
sorts it: four times the work, and ties at the limit fall as the processor's sort happens to put
them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Keys = NDArray[np.int64]

_words = re.compile(r"\w+|[^\w\s]+").findall
"""Words, and punctuation: scikit-learn's own pattern finds none, nor a word of one letter."""


class Terms:
    """A vocabulary of 1- and 2-grams.

    A word's key is its number, in order of first appearance; a pair's is 2³² × (first + 1) +
    second.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._keys: Keys = np.empty(0, np.int64)

    def fit(self, texts: Iterable[str], limit: int) -> csr_array:
        """Learn the `limit` most frequent terms; return their counts, float32 [texts, terms].

        Of equally frequent ones at the limit, those with the smaller keys are taken.
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
    ) -> tuple[list[int], Keys]:
        """Return how many terms each text has, and the terms' keys, text by text."""
        totals, parts = [], []
        for text in texts:
            found = _words(text.lower())
            words = np.fromiter(map(number, found), np.int64, len(found))
            pairs = (words[:-1] + 1 << 32) + words[1:]
            known = (words[:-1] >= 0) & (words[1:] >= 0)
            parts += [words, pairs[known]]
            totals.append(len(words) + int(known.sum()))
        return totals, np.concatenate([np.empty(0, np.int64), *parts])

    def _matrix(self, totals: list[int], keys: Keys) -> csr_array:
        rows = np.repeat(np.arange(len(totals)), totals)
        columns = np.searchsorted(self._keys, keys)
        columns[columns == len(self._keys)] = 0
        is_term = self._keys[columns] == keys if len(self._keys) else np.zeros(len(keys), bool)
        places = (rows[is_term], columns[is_term])
        ones = np.ones(len(places[0]), np.float32)
        return csr_array((ones, places), shape=(len(totals), len(self._keys)))
