"""A corpus in a model's tokens: the whole of it, and the share that a seed draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from colazero import corpora, pipeline
from colazero.calibration.sets import ordered
from colazero.corpora.tokens import pool_of, token_pool
from colazero.settings import RunConfig
from colazero.types import CalibrationSet, Model, Span


@pytest.fixture
def model(tiny_llama: Path) -> Model:
    return Model("tiny", tiny_llama, "1")


@pytest.fixture
def config(corpus_file: Path) -> RunConfig:
    name = f"file:{corpus_file}"
    given = {"corpus": name, "eval_corpora": (name,), "n_calibration_samples": 4, "seq_len": 64}
    return RunConfig(**given, method="gptq_default", device="cpu")


def test_a_seed_draws_its_share_of_the_training_documents_and_no_other(config: RunConfig) -> None:
    whole = corpora.load(config.corpus)
    drawn, documents = corpora.drawn(whole, 0.25, 42)
    assert len(documents) == len(drawn.train) == round(0.25 * len(whole.train))
    assert list(drawn.train) == [whole.train[i] for i in documents]
    assert (np.diff(documents) > 0).all()
    assert drawn.test == whole.test
    assert drawn.revision != whole.revision
    assert np.array_equal(documents, corpora.drawn(whole, 0.25, 42)[1])
    other = corpora.drawn(whole, 0.25, 43)[1]
    expected = 0.25 * len(documents)
    assert abs(len(set(documents) & set(other)) - expected) < 4 * expected**0.5


def test_every_method_even_a_deterministic_one_has_a_spread_over_drawn_corpora(
    config: RunConfig, model: Model
) -> None:
    def digest(seed: int, share: float) -> str:
        own = config.model_copy(update={"seed": seed, "corpus_share": share})
        return pipeline.calibrate(own, model)[0].digest

    assert len({digest(seed, 1) for seed in (1, 2, 3)}) == 1
    assert len({digest(seed, 0.5) for seed in (1, 2, 3)}) == 3
    assert digest(1, 0.5) == digest(1, 0.5)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_pieces_of_a_set_are_its_tokens_by_document_of_the_corpus(
    config: RunConfig, model: Model, share: float
) -> None:
    config = config.model_copy(update={"method": "random", "corpus_share": share})
    chosen, _ = pipeline.calibrate(config, model)
    whole, own = token_pool(model, config.corpus), pool_of(config, model)
    rebuilt = {document: own.tokens[0:0] for document, _, _ in chosen.notes["pieces"]}
    for document, first, stop in chosen.notes["pieces"]:
        start = int(whole.starts[document])
        assert start + stop <= whole.stops[document]
        rebuilt[document] = np.append(rebuilt[document], whole.tokens[start + first : start + stop])
    inside = np.zeros(len(own.tokens), dtype=bool)
    for start, stop in zip(own.starts, own.stops, strict=True):
        inside[start:stop] = True
    expected = [
        own.tokens[at]
        for span in sorted((s for spans in chosen.spans for s in spans), key=lambda s: s.start)
        for at in range(span.start, span.stop)
        if inside[at]
    ]
    assert np.concatenate(list(rebuilt.values())).tolist() == expected


def test_the_order_of_windows_is_drawn_by_seed_and_replicate_and_changes_no_set() -> None:
    windows = np.arange(40, dtype=np.int32).reshape(10, 4)
    one = CalibrationSet(windows, [[Span(i, 4 * i, 4 * i + 4)] for i in range(10)], {})
    found = [ordered(one, seed, replicate) for seed in (1, 2) for replicate in (1, 2, 1)]
    assert len({again.digest for again in found} | {one.digest}) == 1
    assert len({again.order_digest for again in found}) == 4
    for again in found:
        for window, (span,) in zip(again.windows, again.spans, strict=True):
            assert window.tolist() == list(range(span.start, span.stop))
