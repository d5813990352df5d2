"""Terms: the counts are scikit-learn's, the limit is kept, ties fall by first appearance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer

from colazero.selection.features import Terms

TEXTS = ["The cat, the dog.", "the cat sat", "", "Ünïcode 3.5 the cat", "  ", "a"]


def columns(counts: object) -> list[tuple[float, ...]]:
    """Return the columns of a sparse matrix, sorted: their order is not compared."""
    return sorted(map(tuple, counts.toarray().T))  # type: ignore[attr-defined]


@settings(deadline=None, derandomize=True, database=None)
@given(st.lists(st.text("ab .,\n", max_size=12), min_size=1, max_size=6))
def test_without_a_limit_the_counts_are_those_of_scikit_learn(texts: list[str]) -> None:
    ours = Terms().fit(texts, 10_000)
    if not any(text.strip() for text in texts):
        assert ours.shape == (len(texts), 0)
        return
    theirs = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]+").fit_transform(texts)
    assert columns(ours) == columns(theirs)


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
def test_the_most_frequent_terms_are_kept(limit: int) -> None:
    everything = Terms().fit(TEXTS, 10_000)
    totals = sorted(everything.sum(axis=0), reverse=True)
    assert sorted(Terms().fit(TEXTS, limit).sum(axis=0), reverse=True) == totals[:limit]


def test_of_equally_frequent_terms_the_first_seen_are_kept() -> None:
    assert Terms().fit(["b a c"], 2).toarray().tolist() == [[1, 1]]
    terms = Terms()
    terms.fit(["b a c"], 2)
    assert terms.counts(["b", "a", "c", "b a"]).toarray().tolist() == [
        [1, 0],
        [0, 1],
        [0, 0],
        [1, 1],
    ]


def test_later_texts_are_counted_by_the_terms_learnt_and_teach_nothing() -> None:
    terms = Terms()
    learnt = terms.fit(TEXTS, 10)
    assert np.array_equal(terms.counts(TEXTS).toarray(), learnt.toarray())
    assert terms.counts(["never seen words", ""]).nnz == 0
    assert np.array_equal(terms.counts(TEXTS).toarray(), learnt.toarray())
