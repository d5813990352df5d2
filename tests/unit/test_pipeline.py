"""The stages as the entry points call them, on a tiny model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from numpy.typing import NDArray

from colazero import corpora, models, pipeline
from colazero.calibration.sets import load_calibration, save_calibration
from colazero.corpora import tokens
from colazero.errors import UserError
from colazero.evaluation import perplexity as texts
from colazero.selection import METHODS, features
from colazero.settings import RunConfig
from colazero.types import CalibrationSet, Model, Span, TokenPool

N, SEQ_LEN = 4, 128


@pytest.fixture(scope="module")
def model(tiny_llama: Path) -> Model:
    return models.fetch(str(tiny_llama))


def config_of(corpus: Path, model: Model, **more: Any) -> RunConfig:
    name = f"file:{corpus}"
    shape = {"n_calibration_samples": N, "seq_len": SEQ_LEN, "proxy_model": model.name}
    return RunConfig(corpus=name, eval_corpora=(name,), **shape, **more)


@pytest.mark.parametrize("method", METHODS.names())
def test_every_calibration_set_is_measured(method: str, model: Model, corpus_file: Path) -> None:
    chosen, times = pipeline.calibrate(config_of(corpus_file, model, method=method), model)
    notes = chosen.notes
    assert times["selection_time_sec"] > 0
    assert notes["tokens_asked"] == notes["tokens_given"] == chosen.windows.size
    assert notes["special_tokens"] == notes["duplicate_windows"] == 0
    assert notes["type_token_ratio"] == len(np.unique(chosen.windows)) / chosen.windows.size
    assert 0 < notes["entropy_bits"] < np.log2(N * SEQ_LEN)
    if method in ("random_tokens", "self"):
        assert (notes["documents_used"], notes["documents_share"]) == (0, 0)
    else:
        assert 0 < notes["documents_share"] < 1
    if method != "self":  # it may write what the corpus lacks
        assert 0 < notes["kl_from_corpus_bits"] < notes["entropy_bits"]
    assert notes["test_13gram_overlap"] <= notes["test_13gram_overlap_worst_window"] < 0.1


def test_the_evaluation_text_is_tokenised_once_for_all_processes(
    model: Model, paragraphs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "corpus.txt"
    file.write_text("\n\n".join(paragraphs))
    text = pipeline.evaluation_text(model, f"file:{file}", 64, 6)
    windows, starts = text.windows, text.starts

    def never(_model: Model) -> None:
        raise AssertionError("it was tokenised again")

    monkeypatch.setattr(texts, "tokenizer", never)
    pipeline.evaluation_text.cache_clear()  # as another process
    text = pipeline.evaluation_text(model, f"file:{file}", 64, 6)
    again, places = text.windows, text.starts
    assert np.array_equal(windows, again)
    assert np.array_equal(starts, places)
    file.write_text("\n\n".join(paragraphs[::-1]))
    for kept in (corpora.load, pipeline.evaluation_text):
        kept.cache_clear()
    with pytest.raises(AssertionError):
        pipeline.evaluation_text(model, f"file:{file}", 64, 6)


def test_features_cost_every_seed_what_they_took(
    model: Model, corpus_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def slow(pool: TokenPool, documents: NDArray[np.int64]) -> NDArray[np.float64]:
        calls.append(len(documents))
        time.sleep(1)
        return features.length(pool, documents)

    this_test = str(uuid4())
    monkeypatch.setitem(features.GROUPS, "tfidf", features.Group(slow, lambda _: [this_test]))
    config = config_of(corpus_file, model, method="cola_zero")
    both = [
        pipeline.calibrate(config.model_copy(update={"seed": seed}), model)[1] for seed in (1, 2)
    ]
    first, other = (one["selection_time_sec"] for one in both)
    computed, reused = (one["selection.features_reused_sec"] for one in both)
    assert computed < 1 < first < 2, "computed, and not counted twice"
    assert 1 < reused < other < 2
    assert len(calls) == 1


@pytest.mark.parametrize("method", sorted(set(METHODS.names()) - {"random_tokens", "self"}))
def test_text_of_the_test_split_is_refused(
    method: str, model: Model, paragraphs: list[str], tmp_path: Path
) -> None:
    """Training documents that end differently are not the test's word for word, but copies."""
    held_out = paragraphs[-90:]
    copies = [f"{text} zora {i}" for i, text in enumerate(held_out)]
    leaky = tmp_path / "leaky.txt"
    leaky.write_text("\n\n".join([*copies * 9, *held_out]), encoding="utf-8")
    with pytest.raises(UserError, match=r"%.*test split.*leaky\.txt"):
        pipeline.calibrate(config_of(leaky, model, method=method, seed=3), model)


def test_a_set_of_ones_own_with_padding_is_refused(
    model: Model, corpus_file: Path, tmp_path: Path
) -> None:
    windows = np.arange(10, 10 + N * SEQ_LEN, dtype=np.int32).reshape(N, SEQ_LEN)
    windows[:, -3:] = tokens.tokenizer(model).pad_token_id
    spans = [[Span(0, 0, SEQ_LEN)]] * N
    corpus = corpora.load(f"file:{corpus_file}")
    own = CalibrationSet(windows, spans, {})
    save_calibration(tmp_path, own, model, corpus, {"method": "own"})
    assert json.loads((tmp_path / "selection.json").read_text())["digest"] == own.digest
    with pytest.raises(UserError, match=r"12 of .*512 tokens"):
        load_calibration(tmp_path, model)


def test_a_set_is_read_back_as_it_was_written_whatever_its_strides(
    model: Model, corpus_file: Path, tmp_path: Path
) -> None:
    """safetensors writes an array's memory, in which Fortran's order has other windows."""
    ids = np.random.default_rng(0).integers(10, 200, size=(N, SEQ_LEN), dtype=np.int32)
    corpus, spans = corpora.load(f"file:{corpus_file}"), [[Span(0, 0, SEQ_LEN)]] * N
    for name, windows in (
        ("columns", np.asfortranarray(ids)),
        ("slice", np.repeat(ids, 2, 1)[:, ::2]),
    ):
        own = CalibrationSet(windows, spans, {})
        save_calibration(tmp_path / name, own, model, corpus, {"method": "own"})
        found, _ = load_calibration(tmp_path / name, model)
        assert np.array_equal(found.windows, ids), name
        modes = {file.stat().st_mode & 0o777 for file in (tmp_path / name).iterdir()}
        assert len(modes) == 1, "whoever may read selection.json may read the windows"
