"""Methods that write their windows: what they draw from, and that it is shown as nobody's text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from colazero import corpora, models, pipeline
from colazero.calibration import picture
from colazero.calibration.sets import documents_of, select
from colazero.corpora.tokens import build_pool, token_counts
from colazero.errors import UserError
from colazero.selection import METHODS, features, self
from colazero.settings import RunConfig
from colazero.types import Model, TokenPool

WRITING = ["random_tokens", "self"]


@pytest.fixture(scope="module")
def pool(
    corpus_file: Path, tokenizer: Any, equipped: Callable[[TokenPool], TokenPool]
) -> TokenPool:
    return equipped(build_pool(corpora.load(f"file:{corpus_file}"), tokenizer))


def test_random_tokens_have_the_corpus_s_frequencies_and_no_order(pool: TokenPool) -> None:
    drawn = select("random_tokens", pool, 32, 512, 7, "toy").windows.ravel()
    expected = token_counts(pool.tokens).astype(float)
    common = np.argsort(expected)[-60:]
    counts = np.bincount(drawn, minlength=len(expected))
    seen = np.append(counts[common], counts.sum() - counts[common].sum())
    shares = expected / expected.sum()
    share = np.append(shares[common], 1 - shares[common].sum())
    assert chisquare(seen, share * len(drawn)).pvalue > 1e-3
    # Pairs of neighbours are as frequent as their members' frequencies say; in text they are not.
    pairs = [np.mean(text[1:] == text[:-1]) for text in (drawn, pool.tokens[: len(drawn)])]
    independent = float((shares**2).sum())
    error = (independent / len(drawn)) ** 0.5
    assert abs(pairs[0] - independent) < 4 * error
    assert abs(pairs[1] - independent) > 4 * error


def test_the_model_writes_what_it_finds_likely(
    pool: TokenPool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own text must be likelier to it than that of another order: a check of the sampling."""
    import torch

    from colazero.evaluation.perplexity import load_dense

    # A processor without bfloat16, in which the two likeliest tokens are often one number.
    monkeypatch.setattr("colazero.devices.CPU", tmp_path / "none")
    windows = select("self", pool, 16, 64, 3, "toy").windows
    model = load_dense(tiny_llama, "cpu")
    begin = self.first_token("tiny", models.load_tokenizer(Model("tiny", tiny_llama, "1")))
    front = np.full((len(windows), 1), begin)
    ids = torch.from_numpy(np.concatenate([front, windows], axis=1))
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, :-1]
        logits[..., sorted(pool.forbidden)] = -torch.inf
        likely = logits.log_softmax(-1)
    head = likely[0, : self.HEAD].argmax(-1)
    assert (ids[:, 1 : self.HEAD + 1] == head).all(), "the head is the likeliest, in all windows"
    tail = likely[:, self.HEAD :]
    found = tail.gather(-1, ids[:, self.HEAD + 1 :, None]).double()
    # At temperature 1 the mean log-probability of what is drawn is minus the entropy.
    entropy = -(tail.exp() * tail.clamp_min(-1e9)).sum(-1).double()
    spread = (found.squeeze(-1) + entropy).std() / found.numel() ** 0.5
    assert abs(float((found.squeeze(-1) + entropy).mean())) < 4 * float(spread)


def test_what_a_model_wrote_is_kept_and_costs_what_it_took(
    pool: TokenPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path))
    first = select("self", pool, 4, 32, 11, "toy")

    def never(*_: Any) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(self, "write", never)
    with features.spared() as seconds:
        assert select("self", pool, 4, 32, 11, "toy").digest == first.digest
    assert len(seconds) == 1
    assert seconds[0] > 0
    with pytest.raises(AssertionError):
        select("self", pool, 4, 32, 12, "toy")


def test_processors_that_compute_in_other_dtypes_share_nothing_that_is_kept(
    pool: TokenPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path))
    monkeypatch.setattr("colazero.devices.CPU", tmp_path / "cpuinfo")
    kept = []
    for flags in ("avx2", "avx2 avx512_bf16", "avx2"):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        select("self", pool, 4, 32, 11, "toy")
        kept.append(len(list((tmp_path / "self").iterdir())))
    assert kept == [1, 2, 2]


def test_a_model_s_own_settings_of_sampling_change_nothing(
    pool: TokenPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GenerationConfig

    from colazero.evaluation import perplexity as loading

    plain = self.write(pool, 4, 24, 5)
    load = loading.load_dense

    def picky(*where: Any) -> Any:
        model = load(*where)
        model.generation_config = GenerationConfig(
            do_sample=True, temperature=0.3, top_k=2, top_p=0.5, repetition_penalty=1.5
        )
        return model

    monkeypatch.setattr(loading, "load_dense", picky)
    assert np.array_equal(self.write(pool, 4, 24, 5), plain)


def test_a_tokenizer_without_a_first_token_is_refused() -> None:
    class Bare:
        bos_token_id = None
        eos_token_id = None

    with pytest.raises(UserError, match=r"method 'self'.* it .*BOS"):
        self.first_token("it", Bare())


@pytest.mark.parametrize("method", WRITING)
def test_the_page_and_the_picture_say_that_no_document_was_taken(
    method: str, corpus_file: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    model = models.fetch(str(tiny_llama))
    name = f"file:{corpus_file}"
    config = RunConfig(
        corpus=name, eval_corpora=(name,), method=method, n_calibration_samples=4, seq_len=64
    )
    chosen, _ = pipeline.calibrate(config, model)
    assert chosen.notes["pieces"] == []
    picture.write(tmp_path, config, model, chosen)
    page = (tmp_path / "windows.html").read_text()
    assert page.count("written by the method") == 4
    assert "method&#39;s own text, not from any document." in page


def test_windows_of_another_shape_are_the_method_s_fault(pool: TokenPool) -> None:
    chosen = METHODS.get("random_tokens")(pool, 4, 16, np.random.default_rng(0))
    from colazero.calibration.sets import cut

    assert chosen.tokens is not None
    with pytest.raises(ValueError, match="asked for 5"):
        cut(pool, chosen, 5, 16)
    special = np.array(chosen.tokens)
    special[0, 0] = min(pool.forbidden)
    with pytest.raises(UserError, match="special token"):
        cut(pool, replace(chosen, tokens=special), 4, 16)
    assert len(documents_of(cut(pool, chosen, 4, 16), pool)) == 0
