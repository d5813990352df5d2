"""What a model makes of documents: the same alone and in a batch, on one thread and on several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colazero import corpora
from colazero.calibration.sets import select
from colazero.corpora.tokens import build_pool
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense
from colazero.evaluation.perplexity import perplexity as evaluate
from colazero.selection import cola, features, forward
from colazero.settings import Settings
from colazero.types import Model, SelectionSettings, TokenPool


@pytest.fixture(scope="module")
def pool(corpus_file: Path, tokenizer: Any, tiny_llama: Path) -> TokenPool:
    built = build_pool(corpora.load(f"file:{corpus_file}"), tokenizer)
    config = Settings.model_validate(
        {"proxy_model": str(tiny_llama), "device": "cpu", "document_tokens": 60}
    )
    model, settings = Model("tiny", tiny_llama, "1"), SelectionSettings.of(config)
    return replace(built, selection_settings=settings, model=model, entry=None)


MIXED = np.array([3, 700, 5, 41, 42, 100, 8])


def test_padding_enters_no_mean(
    pool: TokenPool, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32, so that nothing but padding could make a difference."""
    import torch

    model = load_dense(tiny_llama, "cpu").float()
    monkeypatch.setattr("colazero.evaluation.perplexity.load_dense", lambda *_: model)
    rows = [np.arange(3, 3 + length) for length in (5, 60, 17, 1, 33)]
    assert len(forward.batches([len(row) for row in rows])) == 1
    for measure in (forward.mean_nll, forward.projected_means()):
        together = forward.forward(tiny_llama, "cpu", rows, measure)
        alone = np.concatenate([forward.forward(tiny_llama, "cpu", [row], measure) for row in rows])
        assert np.allclose(together, alone, atol=1e-5, equal_nan=True)
    with torch.inference_mode():
        ids = torch.from_numpy(rows[2])[None]
        logits = model(input_ids=ids).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
    assert forward.forward(tiny_llama, "cpu", rows, forward.mean_nll)[2, 0] == pytest.approx(nll)


def test_what_padding_holds_changes_nothing() -> None:
    import torch

    class Blocks:
        """Puts out the ids themselves; what is not a number where the mask is 0."""

        def __call__(self, input_ids: Any, attention_mask: Any, **_: Any) -> Any:
            values = input_ids[:, :, None].float().expand(-1, -1, 8)
            values = torch.where(attention_mask[:, :, None] == 1, values, torch.nan)
            return type("Output", (), {"hidden_states": (None, values, values)})

    measure = forward.projected_means()
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    found = measure(Blocks(), torch.tensor([[1, 2, 3, 9], [1, 2, 2, 3]]), mask)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[0], found[1]), "both means are 2"


def test_perplexity_is_that_of_the_evaluation(pool: TokenPool, tiny_llama: Path) -> None:
    long = np.flatnonzero(pool.stops - pool.starts >= 60)[:3]
    found = forward.perplexity(pool, long)
    windows = np.stack([pool.tokens[pool.starts[d] :][:60] for d in long]).astype(np.int64)
    expected = evaluate(load_dense(tiny_llama, "cpu"), "", windows, windows[:, 0])
    assert found[:, 0] == pytest.approx(expected.nll / expected.tokens, rel=1e-2)


def test_the_first_tokens_alone_count(pool: TokenPool) -> None:
    """Documents 0 and 1 begin with the same 60 tokens and differ after them."""
    start = int(pool.starts[np.argmax(pool.stops - pool.starts)])
    first = np.asarray(pool.tokens[start : start + 60])
    tokens = np.concatenate([first, first[:9], first, first[20:40]])
    twins = replace(pool, tokens=tokens, starts=np.array([0, 69]), stops=np.array([69, 149]))
    found = forward.activations(twins, np.array([0, 1]))
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("name", ["perplexity", "activations"])
def test_the_same_bits_on_any_number_of_threads(
    pool: TokenPool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for cores in (1, 2, 8):
        monkeypatch.setattr(forward, "_cores", lambda cores=cores: cores)
        found.append(features.GROUPS[name].compute(pool, np.arange(60)).tobytes())
    assert len(set(found)) == 1


def test_the_number_of_threads_is_left_as_it_was(pool: TokenPool) -> None:
    import torch

    before = torch.get_num_threads()
    forward.activations(pool, MIXED)
    assert torch.get_num_threads() == before


def test_batches_hold_documents_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "BATCH_TOKENS", 100)
    lengths = [10, 90, 50, 11, 300, 49, 12]
    parts = forward.batches(lengths)
    assert [part.tolist() for part in parts] == [[4], [1], [2, 5], [6, 3, 0]]


def test_features_of_a_model_are_kept_by_what_decides_them(pool: TokenPool, tmp_path: Path) -> None:
    kept = replace(pool, entry=tmp_path / "tokens" / "entry")
    for change in ({}, {"document_tokens": 30}, {"exact_documents": 500}):
        changed = replace(pool.settings, **change)
        features.group(replace(kept, selection_settings=changed), MIXED, "activations")
    assert len(list((tmp_path / "features").iterdir())) == 2
    features.group(replace(kept, model=replace(pool.model, revision="2")), MIXED, "activations")
    assert len(list((tmp_path / "features").iterdir())) == 3


def test_cola_chooses_from_four_times_what_is_asked_for(pool: TokenPool) -> None:
    lengths = pool.stops - pool.starts
    documents = np.flatnonzero(lengths >= 175)
    few = cola.candidates(pool, documents, 2_500)
    assert 8_000 < lengths[few].sum() < 12_000
    assert set(few) <= set(documents)
    assert np.ptp(few) > 0.9 * np.ptp(documents), "spread over the corpus"
    assert np.array_equal(cola.candidates(pool, documents, 10**9), documents)
    long = np.append(np.argmin(lengths), np.argmax(lengths))
    assert np.array_equal(cola.candidates(pool, long, 100), long), "the first alone has too few"


def test_cola_needs_to_know_the_model(pool: TokenPool) -> None:
    with pytest.raises(UserError, match=r"pool\.model"):
        select("cola", replace(pool, model=None), 4, 64, 0, "toy")
