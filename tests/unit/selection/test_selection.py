"""What every method promises, what each one adds, and what happens on corpora nobody expected."""

from __future__ import annotations

import logging
import random as python_random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from colazero import corpora
from colazero.calibration.sets import select
from colazero.corpora.tokens import build_pool
from colazero.errors import UserError
from colazero.selection import METHODS, cola_zero, features, random, stratified, zipcal
from colazero.selection.clusters import Clusters, deal, pack
from colazero.settings import Settings, taken_by
from colazero.types import CalibrationSet, Corpus, SelectionSettings, TokenPool

N, SEQ_LEN = 16, 128
SETTINGS = SelectionSettings.of(Settings(), device="cpu")
METHOD_NAMES = METHODS.names()
SEEDLESS = ["unique_tokens", "zipcal"]
WRITING = ["random_tokens", "self"]
"""Methods whose windows stand in no document."""
WITH_A_MODEL = ["cola", "cola_zero_perplexity"]
CUTTING = [name for name in METHOD_NAMES if name not in WRITING]
Equip = Callable[[TokenPool], TokenPool]


@pytest.fixture(scope="module")
def pool(corpus_file: Path, tokenizer: Any, equipped: Equip) -> TokenPool:
    return equipped(build_pool(corpora.load(f"file:{corpus_file}"), tokenizer))


def choose(method: str, pool: TokenPool, seed: int = 42) -> CalibrationSet:
    return select(method, pool, N, SEQ_LEN, seed, "toy")


def pool_of(lengths: Sequence[int], seed: int = 0, vocabulary: int = 400) -> TokenPool:
    """Return a pool of random documents: one token a word, one token between two documents."""
    rng = np.random.default_rng(seed)
    ids = [rng.integers(10, vocabulary, size=length) for length in lengths]
    texts = [" ".join(f"w{i}" for i in document) for document in ids]
    pieces = [piece for document in ids for piece in (document, np.array([5]))][:-1]
    starts = np.concatenate([[0], np.cumsum(np.array(lengths) + 1)[:-1]]).astype(np.int64)
    stops = starts + np.array(lengths)
    tokens = np.concatenate(pieces).astype(np.int32)
    special = frozenset({0})
    return TokenPool(texts, tokens, starts, stops, special, selection_settings=SETTINGS)


def intervals(chosen: CalibrationSet) -> list[tuple[int, int]]:
    return sorted((span.start, span.stop) for spans in chosen.spans for span in spans)


# --- the contract: every method, also those yet to be written


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_exactly_n_windows_of_exactly_seq_len_real_tokens(method: str, pool: TokenPool) -> None:
    chosen = choose(method, pool)
    assert chosen.windows.shape == (N, SEQ_LEN)
    assert chosen.windows.dtype == np.int32
    assert pool.forbidden
    assert not np.isin(chosen.windows, list(pool.forbidden)).any()


@pytest.mark.parametrize("method", CUTTING)
def test_no_window_twice_and_no_token_twice(method: str, pool: TokenPool) -> None:
    chosen = choose(method, pool)
    assert len(np.unique(chosen.windows, axis=0)) == N
    spans = intervals(chosen)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("method", CUTTING)
def test_the_spans_reproduce_the_windows_and_name_their_documents(
    method: str, pool: TokenPool
) -> None:
    chosen = choose(method, pool)
    assert len(chosen.spans) == N
    for window, spans in zip(chosen.windows, chosen.spans, strict=True):
        pieces = [pool.tokens[span.start : span.stop] for span in spans]
        assert np.array_equal(window, np.concatenate(pieces))
        for span in spans:
            assert pool.starts[span.document] <= span.start
            following = span.document + 1
            assert following == len(pool.starts) or span.start < pool.starts[following]


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_the_global_random_state_changes_nothing_and_is_not_changed(
    method: str, pool: TokenPool
) -> None:
    import torch

    digests = set()
    for seed in (1, 2):
        np.random.seed(seed)
        python_random.seed(seed)
        torch.manual_seed(seed)
        expected = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
        digests.add(choose(method, pool).digest)
        assert np.array_equal(np.random.get_state()[1], expected)  # type: ignore[index, arg-type]
    assert len(digests) == 1


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_too_small_a_corpus_is_told_with_both_counts(method: str, pool: TokenPool) -> None:
    needed = 10_000 * SEQ_LEN
    with pytest.raises(UserError) as caught:
        select(method, pool, 10_000, SEQ_LEN, 42, "toy")
    assert f"{needed:,}" in str(caught.value)
    assert f"{len(pool.tokens):,}" in str(caught.value)


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_a_corpus_can_be_used_up_to_its_last_token(method: str, equipped: Equip) -> None:
    pool = equipped(pool_of([50, 120, 7, 300, 25, 3]))
    total = len(pool.tokens)
    chosen = select(method, pool, total // 10, 10, 0, "toy")
    assert len(np.unique(chosen.windows, axis=0)) == total // 10


def test_the_methods_differ(pool: TokenPool) -> None:
    assert len({choose(method, pool).digest for method in METHOD_NAMES}) == len(METHOD_NAMES)


def test_a_method_gets_every_setting_that_decides_a_selection() -> None:
    """Either as an argument, through the pool's documents, or as one of SelectionSettings."""
    arguments = {"n_calibration_samples", "seq_len", "bos", "seed", "method", "model"}
    documents = {"corpus", "corpus_share", "chat", "chat_template_kwargs", "windows"}
    after_selection = {"replicate"}
    given = {one.name for one in fields(SelectionSettings)}
    assert set(taken_by("selection")) == given | arguments | documents | after_selection


def test_a_pool_without_a_runs_settings_says_what_it_lacks(pool: TokenPool) -> None:
    with pytest.raises(ValueError, match="selection_settings"):
        choose("cola_zero", replace(pool, selection_settings=None, entry=None))


# --- gptq_default


def test_gptq_default_takes_the_first_tokens_in_order(pool: TokenPool) -> None:
    chosen = choose("gptq_default", pool)
    assert np.array_equal(chosen.windows.ravel(), pool.tokens[: N * SEQ_LEN])


def test_the_seed_changes_nothing_for_gptq_default(pool: TokenPool) -> None:
    assert choose("gptq_default", pool, 1).digest == choose("gptq_default", pool, 2).digest


# --- random


@pytest.mark.parametrize("method", SEEDLESS)
def test_the_seed_changes_nothing_where_nothing_is_random(method: str, pool: TokenPool) -> None:
    assert choose(method, pool, 1).digest == choose(method, pool, 2).digest


@pytest.mark.parametrize(
    "method", ["random", "stratified", "cola_zero", "cola_zero_reasoning", *WITH_A_MODEL, *WRITING]
)
def test_the_seed_decides(method: str, pool: TokenPool) -> None:
    digests = [choose(method, pool, seed).digest for seed in (1, 2, 3, 1)]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def test_random_windows_start_anywhere_with_the_same_probability() -> None:
    """Starts of many small draws against the uniform distribution: p under 0.001 would fail."""
    pool = pool_of([200] * 100)
    last = len(pool.tokens) - 10
    draws = [random.select(pool, 5, 10, np.random.default_rng(seed)) for seed in range(300)]
    starts = [spans[0].start for drawn in draws for spans in drawn.windows]
    assert kstest(np.array(starts) / last, "uniform").pvalue > 0.001
    assert min(starts) < 0.01 * last
    assert max(starts) > 0.99 * last


def test_random_can_place_windows_in_every_way_that_fits() -> None:
    """Two windows of 2 tokens fit into 5 tokens in three ways, each as likely as the others."""
    pool = pool_of([5], vocabulary=10_000)
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(600):
        drawn = random.select(pool, 2, 2, np.random.default_rng(seed))
        starts = tuple(sorted(spans[0].start for spans in drawn.windows))
        counts[starts] = counts.get(starts, 0) + 1
    assert set(counts) == {(0, 2), (0, 3), (1, 3)}
    assert all(150 < count < 250 for count in counts.values()), counts  # 200 ± 4.3 deviations


# --- stratified


def test_each_tercile_of_length_gives_the_same_share_of_tokens(pool: TokenPool) -> None:
    chosen = choose("stratified", pool)
    lengths = pool.stops - pool.starts
    edges = np.quantile(lengths, [1 / 3, 2 / 3])
    tokens = np.zeros(3)
    for span in (span for spans in chosen.spans for span in spans):
        tokens[np.searchsorted(edges, lengths[span.document])] += span.stop - span.start
    assert tokens / tokens.sum() == pytest.approx([1 / 3] * 3, abs=0.01)
    assert chosen.notes["stratum_tokens"] == [682, 683, 683]


@pytest.mark.parametrize(
    ("available", "shares"),
    [([90, 90, 90], [20, 20, 20]), ([5, 90, 90], [5, 27, 28]), ([50, 0, 20], [40, 0, 20])],
)
def test_what_a_tercile_cannot_give_the_others_do(available: list[int], shares: list[int]) -> None:
    assert stratified.equal_shares(60, available) == shares


# --- zipcal


def test_zipcal_takes_the_windows_with_the_rarest_tokens_first() -> None:
    """Frequencies: 1 six times, 2 three times, 3 twice, 4 once."""
    tokens = np.array([1, 1, 1, 2, 1, 2, 1, 3, 1, 3, 4, 2], dtype=np.int32)
    pool = TokenPool(["a"], tokens, np.array([0]), np.array([12]), frozenset())
    assert zipcal.scores(pool, np.array([0, 3, 6, 9]), 3) == pytest.approx(
        [1 / 6, 1 / 6 + 1 / 3, 1 / 6 + 1 / 2, 1 / 2 + 1 + 1 / 3]
    )
    chosen = select("zipcal", pool, 3, 3, 0, "")
    assert [spans[0].start for spans in chosen.spans] == [9, 6, 3]


# --- unique_tokens


def test_unique_tokens_takes_what_a_full_search_would_take(pool: TokenPool) -> None:
    windows = pool.tokens[: len(pool.tokens) // 32 * 32].reshape(-1, 32)
    covered: set[int] = set()
    expected = []
    for _ in range(40):
        gains = [len(set(window.tolist()) - covered) for window in windows]
        if not max(gains):
            break
        expected.append(int(np.argmax(gains)))
        covered |= set(windows[expected[-1]].tolist())
    chosen = select("unique_tokens", pool, len(expected), 32, 0, "")
    assert [spans[0].start // 32 for spans in chosen.spans] == expected
    assert chosen.notes["tokens_covered"] == len(covered)
    assert chosen.notes["gains_counted"] < len(expected) * len(windows) / 5, "lazy"


def test_unique_tokens_covers_anew_when_nothing_new_is_left() -> None:
    tokens = np.array([1, 2, 1, 2, 3, 1, 2, 3, 3, 2, 1, 1], dtype=np.int32)
    pool = TokenPool(["a"], tokens, np.array([0]), np.array([12]), frozenset())
    chosen = select("unique_tokens", pool, 4, 3, 0, "")
    assert [spans[0].start for spans in chosen.spans] == [3, 0, 6, 9]
    assert chosen.notes["covers_completed"] > 0


@pytest.mark.parametrize("method", SEEDLESS)
def test_windows_that_repeat_others_or_hold_special_tokens_are_passed_over(method: str) -> None:
    tokens = np.array([9, 8, 9, 8, 9, 0, 1, 2, 3, 1], dtype=np.int32)
    pool = TokenPool(["a"], tokens, np.array([0]), np.array([10]), frozenset({0}))
    chosen = select(method, pool, 3, 2, 0, "")
    assert sorted(spans[0].start for spans in chosen.spans) == [0, 6, 8]


# --- cola_zero_reasoning


def test_five_marks_of_reasoning_are_counted_per_token() -> None:
    texts = [
        "Step 1. If x = 3 then y + 2 = 5; therefore done.",
        "A plain well-known sentence.",
        "def f(x):\n    return {x: 1}",
    ]
    starts = np.arange(3) * 10
    pool = TokenPool(texts, np.zeros(30, np.int32), starts, starts + 10, frozenset())
    counts = 10 * features.reasoning(pool, np.arange(3))
    assert counts.tolist() == [[4, 3, 3, 1, 0], [0] * 5, [1, 0, 0, 0, 3]]


# --- cola_zero: features


def groups(pool: TokenPool) -> dict[str, np.ndarray]:
    documents, _ = cola_zero.eligible(pool, N, SEQ_LEN)
    return {name: features.GROUPS[name].compute(pool, documents) for name in cola_zero.GROUPS}


def mean_squared_distance(block: np.ndarray) -> float:
    return float(((block[:, None] - block[None]) ** 2).sum(axis=2).mean())


def test_each_feature_group_contributes_the_same_to_squared_distance(pool: TokenPool) -> None:
    blocks = groups(pool)
    assert [block.shape[1] for block in blocks.values()] == [100, 1, 1]
    matrix = features.weighted(blocks)
    parts = (matrix[:, :100], matrix[:, 100:101], matrix[:, 101:])
    for part in parts:
        assert mean_squared_distance(part) == pytest.approx(2.0, rel=1e-4)


def test_features_are_standardised_before_they_are_weighted(pool: TokenPool) -> None:
    """So the unit of a feature cannot matter, and weights are not undone."""
    blocks = groups(pool)
    rescaled = blocks | {"length": blocks["length"] * 1000 + 7, "tfidf": blocks["tfidf"] / 50}
    assert features.weighted(blocks) == pytest.approx(features.weighted(rescaled), abs=1e-4)


def test_a_feature_that_does_not_vary_carries_nothing() -> None:
    rng = np.random.default_rng(0)
    constant = np.full((50, 1), 1 / 3)
    block = np.hstack([rng.normal(size=(50, 2)), constant])
    matrix = features.weighted({"a": block, "b": constant})
    assert np.array_equal(matrix[:, 2:], np.zeros((50, 2)))
    assert mean_squared_distance(matrix[:, :2]) == pytest.approx(2.0, rel=1e-4)


def test_length_and_diversity_are_counted_in_tokens() -> None:
    tokens = np.array([7, 7, 8, 5, 9, 9, 9, 9], dtype=np.int32)
    pool = TokenPool(["a", "b"], tokens, np.array([0, 4]), np.array([3, 8]), frozenset())
    both = np.array([0, 1])
    assert features.length(pool, both).tolist() == [[3.0], [4.0]]
    assert features.diversity(pool, both) == pytest.approx(np.array([[2 / 3], [1 / 4]]))


def test_features_are_computed_once_for_all_seeds_and_processes(
    corpus_file: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = corpora.load(f"file:{corpus_file}")

    def built() -> TokenPool:
        return replace(build_pool(corpus, tokenizer, tmp_path), selection_settings=SETTINGS)

    first = choose("cola_zero", built(), 1)
    uncached = replace(built(), entry=None)
    assert choose("cola_zero", uncached, 1).digest == first.digest

    def never(*_: Any) -> Any:
        raise AssertionError("computed again")

    never.__module__ = features.__name__
    groups = {name: group._replace(compute=never) for name, group in features.GROUPS.items()}
    monkeypatch.setattr(features, "GROUPS", groups)
    again = built()
    assert choose("cola_zero", again, 1).digest == first.digest
    assert choose("cola_zero", again, 2).digest != first.digest
    with pytest.raises(AssertionError, match="computed again"):
        select("cola_zero", again, 250, 200, 1, "asks for other documents")


def test_of_many_documents_a_sample_decides_the_terms(pool: TokenPool) -> None:
    """A third of the documents decides; distances stay about what they are with all of them."""
    documents, _ = cola_zero.eligible(pool, N, SEQ_LEN)
    settings = replace(pool.settings, exact_documents=120)
    sampled = replace(pool, selection_settings=settings)
    whole, part = features.tfidf(pool, documents), features.tfidf(sampled, documents)
    assert whole.shape[0] == part.shape[0] == len(documents)
    cosine = [(m @ m.T)[np.triu_indices(len(documents), 1)] for m in (whole, part)]
    assert np.corrcoef(cosine)[0, 1] > 0.9
    chosen = choose("cola_zero", sampled)
    assert chosen.notes["clustered_in_batches"] is True
    assert choose("cola_zero", pool).notes["clustered_in_batches"] is False
    assert chosen.notes["clusters_covered"] == chosen.notes["clusters"] == N


# --- cola_zero: clusters and packing


def test_every_cluster_reaches_the_calibration_set(pool: TokenPool) -> None:
    chosen = choose("cola_zero", pool)
    notes = chosen.notes
    assert notes["clusters"] == notes["clusters_covered"] == N
    assert sum(notes["cluster_sizes"]) == notes["documents_eligible"]
    assert notes["cluster_size_min"] == min(notes["cluster_sizes"])
    assert notes["cluster_size_max"] == max(notes["cluster_sizes"])
    assert notes["inertia"] > 0
    used = {span.document for spans in chosen.spans for span in spans}
    assert len(used) == notes["documents_used"]


def test_long_documents_alone_are_taken_where_there_are_enough(
    pool: TokenPool, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = choose("cola_zero", pool)
    lengths = pool.stops - pool.starts
    assert all(lengths[s.document] >= 175 for spans in chosen.spans for s in spans)
    assert (chosen.notes["fallback"], chosen.notes["min_doc_tokens"]) == (False, 175)
    assert caplog.text == ""


def test_documents_are_dealt_round_by_round_nearest_first() -> None:
    pool = pool_of([9] * 6)  # each brings its separator: ten tokens, but nine for the last
    labels = np.array([0, 0, 0, 1, 1, 2])
    clusters = Clusters(labels, np.array([3.0, 1.0, 2.0, 5.0, 4.0, 0.0]))
    spans, used = deal(pool, np.arange(6), clusters, 55, 11)
    assert used == [1, 4, 5, 2, 3, 0]
    assert [s.document for s in spans] == used
    assert [s.stop - s.start for s in spans] == [10, 10, 9, 10, 10, 6]


def test_equal_distances_are_dealt_in_order_of_the_corpus() -> None:
    clusters = Clusters(np.zeros(4, dtype=np.int64), np.zeros(4))
    _, used = deal(pool_of([9] * 4), np.arange(4), clusters, 30, 10)
    assert used == [0, 1, 2]


def test_a_very_long_document_cannot_keep_other_clusters_out() -> None:
    pool = pool_of([5_000, 200, 200, 200])
    chosen = select("cola_zero", pool, 4, 64, 0, "toy")
    assert {s.document for spans in chosen.spans for s in spans} == {0, 1, 2, 3}


def test_windows_are_filled_one_after_the_other() -> None:
    pool = pool_of([9] * 3)
    clusters = Clusters(np.arange(3), np.zeros(3))
    spans, _ = deal(pool, np.arange(3), clusters, 28, 7)
    windows = pack(spans, 4, 7)
    assert [sum(s.stop - s.start for s in window) for window in windows] == [7, 7, 7, 7]
    flat = [token for window in windows for s in window for token in range(s.start, s.stop)]
    assert flat == [token for s in spans for token in range(s.start, s.stop)]


# --- cola_zero: fall-backs


def test_too_few_long_documents_is_a_fallback_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = pool_of([300, 200, *range(20, 120)])
    chosen = select("cola_zero", pool, 8, 128, 0, "toy")
    assert chosen.notes["fallback"] is True
    assert 20 <= chosen.notes["min_doc_tokens"] < 175
    assert "only 2 documents have 175 tokens or more" in caplog.text
    taken = {s.document for spans in chosen.spans for s in spans}
    assert {0, 1} <= taken, "the long ones come first"
    assert chosen.notes["clusters_covered"] == 8


def test_fewer_documents_than_windows_is_a_fallback_that_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chosen = select("cola_zero", pool_of([1_000, 900, 800]), 8, 128, 0, "toy")
    assert (chosen.notes["clusters"], chosen.notes["fallback"]) == (3, True)
    assert "3 eligible documents make 3 clusters, not 8" in caplog.text


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_identical_documents_give_windows_or_a_sentence(
    method: str, equipped: Equip, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    one = pool_of([200])
    tokens = np.tile(np.append(one.tokens, 5), 40)[:-1].astype(np.int32)
    starts = np.arange(40) * 201
    pool = equipped(TokenPool(list(one.texts) * 40, tokens, starts, starts + 200, frozenset({0})))
    chosen = outcome_of(method, pool, 8, 100, "the corpus repeats itself")
    assert chosen is None or len(np.unique(chosen.windows, axis=0)) == 8
    if method == "cola_zero":
        assert "40 eligible documents make 1 clusters, not 8" in caplog.text


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize(
    "documents",
    [
        [" ".join(map(str, range(3_000)))],
        ["東京は日本の首都です。" * 40, "Größe und Übermaß, " * 60, "🙂🙃 " * 90, "ไทย " * 90],
        ["!?…; " * 30, "\u200b" * 50, "a\u0301" * 60],
        ["short", " ".join(map(str, range(30_000))), "also short"],
    ],
    ids=["one document", "scripts without spaces", "no words at all", "one huge among short"],
)
def test_unusual_corpora_are_handled(
    method: str, documents: list[str], tokenizer: Any, equipped: Equip, tmp_path: Path
) -> None:
    pool = equipped(build_pool(Corpus("odd", "1", documents, []), tokenizer, tmp_path))
    assert outcome_of(method, pool, 4, 32) is not None, "they all have text enough"


def outcome_of(
    method: str, pool: TokenPool, n: int, seq_len: int, complaint: str = ""
) -> CalibrationSet | None:
    """Return what a method chooses, None for a UserError; anything else it may not do."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a division by zero is no answer
        try:
            return select(method, pool, n, seq_len, 0, "odd")
        except UserError as error:
            if complaint not in str(error):
                raise
            return None
