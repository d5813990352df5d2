"""The check of a calibration set: each measure against a plain computation, each refusal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colazero.calibration.sets import (
    LEAK_LIMIT,
    NGRAM,
    documents_of,
    measures,
    ngrams,
    overlap,
    refuse_unusable,
)
from colazero.corpora.tokens import token_counts
from colazero.errors import UserError
from colazero.types import CalibrationSet, Span, TokenPool


def pool_of(documents: Sequence[Sequence[int]]) -> TokenPool:
    """Return a pool of these tokens, with one token 5 between each two documents."""
    lengths = np.array([len(document) for document in documents])
    starts = np.concatenate([[0], np.cumsum(lengths + 1)[:-1]]).astype(np.int64)
    tokens = [token for document in documents for token in (*document, 5)][:-1]
    texts = [" ".join(map(str, document)) for document in documents]
    return TokenPool(
        texts, np.array(tokens, dtype=np.int32), starts, starts + lengths, frozenset({0, 1})
    )


def calibration_of(pool: TokenPool, *windows: Sequence[tuple[int, int]]) -> CalibrationSet:
    """Return windows made of [start, stop) pieces of the pool; documents are not looked at."""
    spans = [[Span(0, *piece) for piece in pieces] for pieces in windows]
    rows = [np.concatenate([pool.tokens[a:b] for a, b in pieces]) for pieces in windows]
    return CalibrationSet(np.stack(rows), spans, {})


POOL = pool_of([[10, 11, 12], [], [13, 10], [14, 15, 16, 17, 18], [19]])


# --- measures


def test_the_measures_are_what_a_plain_count_gives() -> None:
    calibration = calibration_of(POOL, [(0, 6)], [(7, 11), (13, 15)])
    found = measures(calibration, POOL, token_counts(POOL.tokens))
    tokens, corpus = calibration.windows.ravel().tolist(), POOL.tokens.tolist()
    own, whole = Counter(tokens), Counter(corpus)
    p = {token: count / len(tokens) for token, count in own.items()}
    assert found == {
        "tokens_given": 12,
        "special_tokens": 0,
        "duplicate_windows": 0,
        "documents_used": 4,
        "documents_share": 1.0,
        "type_token_ratio": pytest.approx(len(own) / 12),
        "entropy_bits": pytest.approx(-sum(x * math.log2(x) for x in p.values())),
        "kl_from_corpus_bits": pytest.approx(
            sum(x * math.log2(x / (whole[t] / len(corpus))) for t, x in p.items())
        ),
    }


def test_the_whole_corpus_does_not_diverge_from_itself() -> None:
    tokens = np.random.default_rng(0).integers(10, 40, size=1_000)
    pool = pool_of([tokens.tolist()])
    found = measures(calibration_of(pool, [(0, 500)], [(500, 1_000)]), pool, token_counts(tokens))
    assert found["kl_from_corpus_bits"] == pytest.approx(0.0, abs=1e-12)
    assert found["entropy_bits"] < math.log2(30)


def test_one_repeated_token_has_no_entropy() -> None:
    pool = pool_of([[7] * 40, [8] * 40])
    found = measures(calibration_of(pool, [(0, 8)]), pool, token_counts(pool.tokens))
    assert found["entropy_bits"] == 0.0
    assert found["type_token_ratio"] == 1 / 8
    assert found["kl_from_corpus_bits"] == pytest.approx(math.log2(81 / 40))


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12),
    pieces=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), min_size=1, max_size=5),
)
def test_a_document_is_used_if_one_of_its_tokens_is(
    lengths: list[int], pieces: list[tuple[int, int]]
) -> None:
    pool = pool_of([[9] * length for length in lengths])
    spans = [Span(0, a, min(a + b, len(pool.tokens))) for a, b in pieces if a < len(pool.tokens)]
    calibration = CalibrationSet(np.zeros((1, 1), dtype=np.int32), [spans], {})
    taken = {position for span in spans for position in range(span.start, span.stop)}
    expected = [
        document
        for document, (start, stop) in enumerate(zip(pool.starts, pool.stops, strict=True))
        if taken & set(range(start, stop))
    ]
    assert documents_of(calibration, pool).tolist() == expected


def test_counting_in_pieces_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.array([3, 0, 9, 3, 1, 1, 2, 40, 3], dtype=np.int32)
    whole = np.bincount(tokens)
    monkeypatch.setattr("colazero.corpora.tokens.CHUNK", 2)
    assert token_counts(tokens).tolist() == whole.tolist()
    assert token_counts(tokens, 50).tolist() == [*whole.tolist(), *[0] * 9]


# --- n-grams shared with a test split


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 2), max_size=200), st.lists(st.integers(0, 2), max_size=200))
def test_hashes_agree_exactly_where_n_grams_do(left: list[int], right: list[int]) -> None:
    """Three tokens make many n-grams equal, also shifted and permuted ones nearly so."""

    def plain(tokens: list[int]) -> list[tuple[int, ...]]:
        return [tuple(tokens[i : i + NGRAM]) for i in range(len(tokens) - NGRAM + 1)]

    hashes = [ngrams(np.array(tokens, dtype=np.int32)) for tokens in (left, right)]
    known = set(plain(right))
    assert np.isin(*hashes).tolist() == [gram in known for gram in plain(left)]


def split(share: float, windows: int = 10, seq_len: int = 112) -> tuple[CalibrationSet, np.ndarray]:
    """Return a set of which the first tokens of each window, `share` of its n-grams, leak."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 10_000, size=windows * seq_len)
    pool = pool_of([tokens.tolist()])
    pieces = [[(i * seq_len, (i + 1) * seq_len)] for i in range(windows)]
    calibration = calibration_of(pool, *pieces)
    leaked = round(share * (seq_len - NGRAM + 1)) + NGRAM - 1
    copied = [row[:leaked] if share else row[:0] for row in calibration.windows]
    test = np.concatenate([rng.integers(10, 10_000, size=500), *copied]).astype(np.int32)
    return calibration, np.unique(ngrams(test))


@pytest.mark.parametrize("share", [0.0, 0.05, LEAK_LIMIT])
def test_what_is_shared_with_the_test_split_is_reported(share: float) -> None:
    calibration, test = split(share)
    found = overlap(calibration, {"other": np.zeros(0, dtype=np.uint64), "toy": test})
    assert found["test_13gram_overlap"] == pytest.approx(share)
    assert found["test_13gram_overlap_worst_window"] == pytest.approx(share)


def test_a_leak_is_refused_with_its_place_and_size() -> None:
    calibration, test = split(LEAK_LIMIT + 0.02)
    with pytest.raises(UserError) as caught:
        overlap(calibration, {"toy": test, "other": np.zeros(0, dtype=np.uint64)})
    for word in ("22.0 %", "'toy'", "at most 20 %", "Window 1", "training document 0"):
        assert word in str(caught.value)


def test_one_window_of_the_test_split_shows_in_the_worst_window() -> None:
    calibration, _ = split(0.0, windows=20)
    test = np.unique(ngrams(calibration.windows[7]))
    found = overlap(calibration, {"toy": test})
    assert found["test_13gram_overlap"] == pytest.approx(1 / 20)
    assert found["test_13gram_overlap_worst_window"] == 1.0


def test_windows_shorter_than_an_n_gram_share_none() -> None:
    calibration, test = split(0.0, seq_len=NGRAM - 1)
    assert overlap(calibration, {"toy": test})["test_13gram_overlap"] == 0.0


# --- what no calibration set may hold


def test_a_special_token_is_refused_with_its_place_and_their_number() -> None:
    windows = np.arange(10, 34, dtype=np.int32).reshape(4, 6)
    refuse_unusable(windows, {0, 1})
    windows[2, 3:] = 1
    with pytest.raises(UserError) as caught:
        refuse_unusable(windows, {0, 1})
    for word in ("window 3 of 4", "special token 1", "position 3", "3 of the set's 24 tokens"):
        assert word in str(caught.value)


def test_a_window_twice_is_refused() -> None:
    windows = np.arange(10, 34, dtype=np.int32).reshape(4, 6)
    windows[3] = windows[0]
    with pytest.raises(UserError, match=r"3 of the 4 .*n_calibration_samples"):
        refuse_unusable(windows, {0, 1})
