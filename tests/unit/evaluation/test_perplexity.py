from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
)

from colazero.corpora.tokens import text_tokens
from colazero.errors import UserError
from colazero.evaluation import perplexity as module
from colazero.evaluation.perplexity import eval_windows, perplexity
from colazero.types import Corpus

CORPUS = Corpus("c", "1", ["a"], [f"Document {i} says {i * i} things." for i in range(200)])


def text_of(tokenizer: Any) -> Any:
    return np.array(tokenizer("\n\n".join(CORPUS.test)).input_ids)


def test_equals_an_independent_computation(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    windows, starts = eval_windows(text_of(tokenizer), 64, "all", "c")
    found = perplexity(model, "c", windows, starts)
    # transformers' own loss, one window at a time.
    losses = []
    for window in torch.from_numpy(windows):
        with torch.no_grad():
            losses.append(model(window[None], labels=window[None]).loss.item())
    assert found.perplexity == pytest.approx(float(np.exp(np.mean(losses))), rel=1e-5)
    assert found.tokens.tolist() == [63] * len(windows)


def test_batches_and_slices_change_nothing(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    windows = np.random.default_rng(0).integers(0, 250, size=(5, 48))
    whole = perplexity(model, "c", windows, windows[:, 0])
    monkeypatch.setattr(module, "TOKENS_A_BATCH", 1)
    monkeypatch.setattr(module, "LOGITS_A_SLICE", 7 * 256)
    parts = perplexity(model, "c", windows, windows[:, 0])
    np.testing.assert_allclose(parts.nll, whole.nll, rtol=1e-6)


SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def capped() -> Any:
    more = {"head_dim": 16, "final_logit_softcapping": 0.05, "initializer_range": 1.0}
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **more)).eval()


def scaled() -> Any:
    return CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.25, initializer_range=1.0)).eval()


@pytest.mark.parametrize(("make", "in_slices"), [(capped, True), (scaled, False)])
def test_models_that_do_more_to_their_logits(
    make: Callable[[], Any], in_slices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make()
    asked: list[tuple[int, ...]] = []
    model.register_forward_hook(lambda _m, _i, out: asked.append(tuple(out.logits.shape)))
    windows = np.random.default_rng(0).integers(0, 300, size=(3, 48))
    found = perplexity(model, "c", windows, windows[:, 0])
    assert asked == [(2, 16, 300)] * 2 + [(1, 48, 300)] * (0 if in_slices else 3)
    for window, nll in zip(torch.from_numpy(windows), found.nll, strict=True):
        with torch.no_grad():
            loss = model(window[None], labels=window[None]).loss.item()
        assert nll == pytest.approx(47 * loss, rel=1e-5)
    if in_slices:
        assert found.perplexity == pytest.approx(300, rel=0.1), "capped, so nearly uniform"


def test_the_first_window_alone_gives_the_same_bits(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.bfloat16).eval()
    windows = np.random.default_rng(0).integers(0, 250, size=(5, 48))
    several = perplexity(model, "c", windows, windows[:, 0])
    alone = perplexity(model, "c", windows[:1], windows[:1, 0])
    assert alone.nll[0] == several.nll[0]


def test_windows_follow_the_protocol(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer("\n\n".join(CORPUS.test)).input_ids
    windows, starts = eval_windows(text_of(tokenizer), 32, "all", "c")
    assert windows.ravel().tolist() == ids[: len(ids) // 32 * 32]
    assert starts.tolist() == list(range(0, len(ids) // 32 * 32, 32))


def test_what_stands_in_front_takes_the_place_of_text() -> None:
    windows, starts = eval_windows(np.arange(100), 32, "all", "c", front=(7,))
    assert windows.shape == (3, 32)
    assert (windows[:, 0] == 7).all()
    assert windows[:, 1:].ravel().tolist() == list(range(93))
    assert starts.tolist() == [0, 31, 62]


def test_fewer_windows_are_spread_over_the_whole_text(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    every, _ = eval_windows(text_of(tokenizer), 32, "all", "c")
    some, starts = eval_windows(text_of(tokenizer), 32, 4, "c")
    step = len(every) // 4
    assert np.abs(np.diff(starts) / 32 - step).max() <= 1
    assert all((every == window).all(axis=1).any() for window in some)


def test_too_many_windows_are_refused_with_both_numbers(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with pytest.raises(UserError, match=r"eval_windows=9999.*fewer or shorter"):
        eval_windows(text_of(tokenizer), 32, 9999, "c")


def test_not_finite_is_an_error(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    model.get_output_embeddings().weight.data[3] = float("nan")
    windows = np.full((2, 16), 5)
    with pytest.raises(FloatingPointError, match=r"not finite \(2 windows of 2\)"):
        perplexity(model, "c", windows, windows[:, 0])


def test_a_corpus_says_how_it_is_joined_and_how_much_of_it_is_evaluated(tiny_llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    spaces, lines = (
        np.concatenate([part.ids for part in text_tokens(CORPUS.test, tokenizer, between)])
        for between in (" ", "\n\n")
    )
    plain = tokenizer(" ".join(CORPUS.test), add_special_tokens=False)
    assert spaces.tolist() == plain.input_ids
    assert spaces.tolist() != lines.tolist()
    assert len(eval_windows(spaces, 64, "all", "c")[0]) > 5
    windows, starts = eval_windows(spaces, 64, "all", "c", most=5)
    assert starts.tolist() == [0, 64, 128, 192, 256]
    assert windows.ravel().tolist() == spaces[: 5 * 64].tolist()


@pytest.mark.parametrize(
    ("corpus", "vocabulary", "tokens", "warned"),
    [
        ("wikitext2", 32_000, 341_469, False),
        ("wikitext2", 32_000, 341_468, True),
        ("wikitext2", 128_256, 289_077, False),
        ("sotu", 32_000, 1_000, False),
    ],
)
def test_other_tokens_than_the_papers_are_warned_of(
    corpus: str,
    vocabulary: int,
    tokens: int,
    warned: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = {"model_type": "llama", "vocab_size": vocabulary}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module.warn_of_other_tokens(corpus, tmp_path, tokens)
    assert ("341,469" in caplog.text) is warned
