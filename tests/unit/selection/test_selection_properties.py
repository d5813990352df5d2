"""Whatever text there is, every method gives right windows or says in a sentence why it cannot."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from colazero.calibration.sets import measures, overlap, select
from colazero.corpora.tokens import build_pool, token_counts
from colazero.errors import UserError
from colazero.selection import METHODS
from colazero.types import CalibrationSet, Corpus, TokenPool

WORDS = [
    *("bado", "kemi", "zora", "Größe", "1790", "a", "...", "<s>", "</s>", "<pad>"),
    *("東京は", "e\u0301", "🙂", "👩\u200d🚀", "עברית", "عربى", "\u202eabc\u202c", "ไทย"),
    *("\u200b", "\ufeff", "\x00", "\r\n", "\t", "ﷺ", "\U0010ffff"),
]
TEXTS = st.one_of(
    st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join),
    st.text(max_size=40),  # of every alphabet, without halves of surrogate pairs
    st.sampled_from(["", " ", "\n\n\n", "\u3000 \u2028" * 20, "\t" * 300]),
    st.tuples(st.sampled_from(WORDS), st.integers(1, 3_000)).map(lambda pair: pair[0] * pair[1]),
)
CORPORA = st.one_of(
    st.lists(TEXTS, max_size=25),
    st.tuples(TEXTS, st.integers(1, 30)).map(lambda pair: [pair[0]] * pair[1]),
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=40),  # a word a document
    st.lists(st.text(max_size=12), min_size=20, max_size=60),
)


PoolIn = Callable[[list[str]], TokenPool]


def pool_of(documents: list[str], tokenizer: Any, cache: Path) -> TokenPool:
    revision = hashlib.sha256(repr(documents).encode()).hexdigest()
    return build_pool(Corpus("odd", revision, documents, []), tokenizer, cache)


@pytest.fixture(scope="module")
def pool_in(tokenizer: Any, equipped: Any, tmp_path_factory: pytest.TempPathFactory) -> PoolIn:
    """Return what makes a pool of documents, with a tiny model beside it."""
    folder = tmp_path_factory.mktemp("pools")

    def make(documents: list[str]) -> TokenPool:
        pool: TokenPool = equipped(pool_of(documents, tokenizer, folder))
        return pool

    return make


def refuse_wrong(chosen: CalibrationSet, pool: TokenPool, n: int, seq_len: int) -> None:
    """Fail unless these are `n` different windows of text, each token of the corpus used once."""
    assert chosen.windows.shape == (n, seq_len)
    assert chosen.windows.dtype == np.int32
    assert len(np.unique(chosen.windows, axis=0)) == n
    assert not np.isin(chosen.windows, list(pool.forbidden)).any()
    if not any(chosen.spans):  # no document's: the method wrote them
        return
    for window, spans in zip(chosen.windows, chosen.spans, strict=True):
        pieces = [pool.tokens[span.start : span.stop] for span in spans]
        assert np.array_equal(window, np.concatenate(pieces))
    spans = sorted((span.start, span.stop) for row in chosen.spans for span in row)
    assert spans[0][0] >= 0
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


WITH_A_MODEL = ["cola", "cola_zero_perplexity", "self"]
OFTEN = settings(
    max_examples=30,
    deadline=20_000,  # milliseconds: a hang is not slowness
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SIZES = {"n": st.integers(1, 8), "seq_len": st.integers(1, 40)}


@pytest.mark.parametrize("method", sorted(set(METHODS.names()) - set(WITH_A_MODEL)))
@OFTEN
@given(documents=CORPORA, **SIZES)
def test_any_corpus_gives_right_windows_or_a_sentence(
    method: str, pool_in: PoolIn, documents: list[str], n: int, seq_len: int
) -> None:
    right_windows_or_a_sentence(method, pool_in(documents), n, seq_len)


@pytest.mark.parametrize("method", WITH_A_MODEL)
@settings(OFTEN, max_examples=8)
@given(documents=CORPORA, **SIZES)
def test_any_corpus_gives_right_windows_or_a_sentence_with_a_model(
    method: str, pool_in: PoolIn, documents: list[str], n: int, seq_len: int
) -> None:
    right_windows_or_a_sentence(method, pool_in(documents), n, seq_len)


def right_windows_or_a_sentence(method: str, pool: TokenPool, n: int, seq_len: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a division by zero is no answer
        chosen = answer(method, pool, n, seq_len)
        if isinstance(chosen, str):
            assert len(chosen) > 40, "a sentence"
            return
        refuse_wrong(chosen, pool, n, seq_len)
        assert select(method, pool, n, seq_len, 0, "odd").digest == chosen.digest
        found = measures(chosen, pool, token_counts(pool.tokens)) | overlap(chosen, {})
    assert all(math.isfinite(value) and value >= 0 for value in found.values())
    assert found["documents_share"] <= 1


def answer(method: str, pool: TokenPool, n: int, seq_len: int) -> CalibrationSet | str:
    """Return what a method chooses, or what the user is told instead."""
    try:
        return select(method, pool, n, seq_len, 0, "odd")
    except UserError as error:
        return str(error)


@OFTEN
@given(documents=CORPORA, **SIZES)
def test_random_windows_are_refused_for_their_number_or_their_repeats_alone(
    pool_in: PoolIn, documents: list[str], n: int, seq_len: int
) -> None:
    """The other direction: where there is text enough and none repeats, there is an answer."""
    pool = pool_in(documents)
    chosen = answer("random", pool, n, seq_len)
    if isinstance(chosen, str):
        enough = len(pool.tokens) >= n * seq_len
        assert ("repeats itself" if enough else "is too small") in chosen


# --- a tokenizer that does not know every word


@pytest.fixture(scope="module")
def words_only() -> Any:
    """A tokenizer of whole words, which writes the special token <unk> for any other."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = ["<unk>", *(f"w{i}" for i in range(200))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def text(seed: int, words: int) -> str:
    return " ".join(f"w{i}" for i in np.random.default_rng(seed).integers(200, size=words))


@pytest.mark.parametrize("method", sorted(set(METHODS.names()) - {"self"}))
def test_words_that_the_tokenizer_does_not_know_are_refused_in_a_sentence(
    method: str, words_only: Any, equipped: Any, tmp_path: Path
) -> None:
    documents = [text(i, 180).replace("w7", "never") for i in range(30)]
    pool = equipped(pool_of(documents, words_only, tmp_path))
    with pytest.raises(UserError, match=r"holds the special token 0 .*vocabulary covers"):
        select(method, pool, 4, 200, 0, "odd")


@pytest.mark.parametrize("method", METHODS.names())
def test_words_that_it_knows_are_enough(
    method: str, words_only: Any, equipped: Any, tmp_path: Path
) -> None:
    pool = equipped(pool_of([text(i, 180) for i in range(30)], words_only, tmp_path))
    refuse_wrong(select(method, pool, 4, 200, 0, "odd"), pool, 4, 200)
