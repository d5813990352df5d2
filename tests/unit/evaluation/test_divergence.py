"""Divergence from the unquantized model, held against the whole models' logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import TAKEN, make

from colazero.blocks.probe import open_sequence
from colazero.evaluation import perplexity as slicing
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import Reference, evaluate, perplexities, references
from colazero.types import Model, Text

TEXT = Text("text", np.random.default_rng(5).integers(10, 250, size=(3, 48)), np.arange(3) * 48)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = load_dense(folder, "cpu")(torch.from_numpy(TEXT.windows)).logits
    return found[:, :-1].double()


def test_equals_the_definition_on_the_whole_models(
    tiny_llama: Path, tiny_mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models of one vocabulary: the second is taken for what quantization made of the first."""
    monkeypatch.setattr(slicing, "LOGITS_A_SLICE", 20 * 800)  # three slices a window
    model = Model("tiny", tiny_llama, "1")
    known = references(model, "cpu", [TEXT])
    found = perplexities(tiny_mistral, "cpu", [TEXT], lambda *_: None, known)[0]
    p, q = (logits(folder).log_softmax(-1) for folder in (tiny_llama, tiny_mistral))
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum((1, 2))
    same = (p.argmax(-1) == q.argmax(-1)).sum(1)
    assert found.divergence is not None
    assert found.divergence.kl == pytest.approx(kl.numpy(), rel=1e-4)
    assert found.divergence.agreed.tolist() == same.tolist()
    assert found.distances["kl_divergence"] == pytest.approx(float(kl.sum()) / 141, rel=1e-4)
    assert found.distances["top1_agreement"] == pytest.approx(int(same.sum()) / 141)


@pytest.mark.parametrize("name", ["llama", "gemma2", "opt-projections", "granite", "cohere"])
def test_norm_is_run_once_per_window_and_gives_the_logits_of_slices(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of these scale their logits after the head, so all that follows a block is run again."""
    sequence = open_sequence(make(tmp_path, *TAKEN[name]), "cpu")
    ids = torch.from_numpy(TEXT.windows[0] % 150)
    hidden = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)).to(sequence.dtype)
    calls: list[int] = []
    sequence.model.register_forward_pre_hook(lambda *_: calls.append(1))
    whole = sequence.logits(hidden, ids)
    calls.clear()
    logits_of = sequence.logits_of(hidden, ids)
    parts = [slice(0, 20), slice(20, 40), slice(40, 48)]
    found = torch.cat([logits_of(part) for part in parts])
    torch.testing.assert_close(found, whole, rtol=0, atol=0)
    assert len(calls) == (3 if name in ("granite", "cohere") else 1)
    assert sequence.vocabulary == whole.shape[-1] == 160


def test_the_model_itself_is_at_no_distance(tiny_llama: Path) -> None:
    model = Model("tiny", tiny_llama, "1")
    found = perplexities(
        tiny_llama, "cpu", [TEXT], lambda *_: None, references(model, "cpu", [TEXT])
    )[0]
    assert found.distances["top1_agreement"] == 1
    others = {name: value for name, value in found.distances.items() if name != "top1_agreement"}
    assert set(others.values()) == {0.0}


def test_the_unquantized_model_is_run_once(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequence = open_sequence(tiny_llama, "cpu")
    text = Text("another", TEXT.windows[:, ::-1].copy(), TEXT.starts)
    model = Model("tiny", tiny_llama, "1")
    first = Reference(model, sequence, text)
    monkeypatch.setattr(sequence, "advance", None)
    again = Reference(model, sequence, text)
    assert torch.equal(first.hidden(2), again.hidden(2))
    with pytest.raises(TypeError):
        Reference(Model("tiny", tiny_llama, "2"), sequence, text)


def test_what_is_not_asked_for_is_not_there(tiny_llama: Path) -> None:
    found = evaluate(open_sequence(tiny_llama, "cpu"), [TEXT])[0]
    assert found.divergence is None
    assert found.distances == {}


def test_tails_equal_their_definition_on_the_whole_models(
    tiny_llama: Path, tiny_mistral: Path
) -> None:
    scored = np.random.default_rng(1).random(TEXT.windows.shape) < 0.5
    text = Text("half", TEXT.windows, TEXT.starts, scored)
    known = references(Model("tiny", tiny_llama, "1"), "cpu", [text])
    found = perplexities(tiny_mistral, "cpu", [text], lambda *_: None, known)[0]
    p, q = (logits(folder).log_softmax(-1)[scored[:, 1:]] for folder in (tiny_llama, tiny_mistral))
    each = (p.exp() * (p - q)).sum(-1).numpy()
    reverse = (q.exp() * (q - p)).sum(-1).numpy()
    changed = (p.argmax(-1) != q.argmax(-1)).numpy()[p.max(-1).values.numpy().argsort()]
    distances = found.distances
    assert found.tokens.sum() == len(each) < TEXT.windows.size / 2
    assert distances["kl_divergence"] == pytest.approx(each.mean(), rel=1e-4)
    assert distances["divergence.kl_reverse"] == pytest.approx(reverse.mean(), rel=1e-4)
    for share in (95, 99):
        expected = np.quantile(each, share / 100)
        assert distances[f"divergence.kl_q{share}"] == pytest.approx(expected, rel=1e-4)
    shares = [distances[f"divergence.top1_changed_q{number}"] for number in range(1, 5)]
    assert shares == pytest.approx([part.mean() for part in np.array_split(changed, 4)])
    assert 1 - np.average(changed) == pytest.approx(distances["top1_agreement"])


def test_the_whole_model_scores_the_same_tokens(tiny_llama: Path) -> None:
    scored = np.random.default_rng(2).random(TEXT.windows.shape) < 0.3
    text = Text("some", TEXT.windows, TEXT.starts, scored)
    by_blocks = evaluate(open_sequence(tiny_llama, "cpu"), [text])[0]
    arguments = (text.windows, text.starts)
    whole = perplexity(load_dense(tiny_llama, "cpu"), "some", *arguments, scored=scored)
    assert whole.tokens.tolist() == by_blocks.tokens.tolist() == scored[:, 1:].sum(1).tolist()
    assert whole.nll == pytest.approx(by_blocks.nll, rel=1e-5)
    ids = torch.from_numpy(TEXT.windows[:, 1:, None])
    nll = -logits(tiny_llama).log_softmax(-1).gather(-1, ids)[..., 0].numpy()
    assert whole.nll == pytest.approx((nll * scored[:, 1:]).sum(1), rel=1e-4)
    assert whole.digest != evaluate(open_sequence(tiny_llama, "cpu"), [TEXT])[0].digest
