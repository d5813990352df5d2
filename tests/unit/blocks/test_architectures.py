"""A block at a time gives bit for bit what the whole model gives, or is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from architectures import EVALUATED, LOOKING_AHEAD, RAISING, SHAPE, TAKEN, WHOLE, make
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from colazero.blocks.probe import open_sequence
from colazero.blocks.sequence import Sequence
from colazero.blocks.weights import Refused, eval_dtype
from colazero.errors import UserError
from colazero.evaluation.perplexity import perplexity
from colazero.evaluation.through_blocks import perplexities
from colazero.types import Text

WINDOWS = np.random.default_rng(0).integers(3, 160, size=(5, 48))


@pytest.fixture
def nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the probe run anew: another test has kept its answer for this architecture."""
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))


def whole_logits(folder: Path, dtype: Any, parts: list[slice]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return torch.cat([model(torch.from_numpy(WINDOWS[part])).logits for part in parts])


@pytest.mark.parametrize("name", [*TAKEN, *EVALUATED])
def test_the_logits_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *(TAKEN | EVALUATED)[name])
    sequence = open_sequence(folder, "cpu", to_quantize=name in TAKEN)
    stream = sequence.begin(WINDOWS, at_once=2, alone=1)
    for index in range(len(sequence)):
        with sequence.filled(index):
            sequence.advance(index, stream)
    found = [sequence.logits(h, i) for h, i in zip(stream.hidden, stream.ids, strict=True)]
    expected = whole_logits(folder, eval_dtype(folder, "cpu"), stream.batches)
    torch.testing.assert_close(torch.stack(found), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*TAKEN, *EVALUATED])
def test_what_no_file_holds_is_as_transformers_makes_it(
    name: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """GPT-J's positions are computed in float32, and parts of RWKV stay in it, in any dtype."""
    folder = make(tmp_path / "model", *(TAKEN | EVALUATED)[name])
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    sequence = Sequence(folder, "cpu", dtype)
    found = dict(sequence.model.named_buffers())
    assert found.keys() == dict(whole.named_buffers()).keys()
    for own, buffer in whole.named_buffers():
        torch.testing.assert_close(found[own], buffer, rtol=0, atol=0, msg=own)
    kept = {own: weight.dtype for own, weight in whole.state_dict().items()}
    for index in range(len(sequence)):
        with sequence.filled(index) as block:
            for own, weight in block.state_dict().items():
                assert weight.dtype == kept.pop(sequence.at(index, own)), own
    for own in kept:
        assert sequence.model.state_dict()[own].dtype == kept[own], own


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_is_not_taken_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *WHOLE[name])
    with pytest.raises(Refused, match="weight '"):
        open_sequence(folder, "cpu")


@pytest.mark.parametrize("name", LOOKING_AHEAD)
def test_a_model_that_sees_what_it_is_to_predict_is_refused(name: str, tmp_path: Path) -> None:
    architecture, values = LOOKING_AHEAD[name]
    folder = make(tmp_path / "model", architecture, values)
    with pytest.raises(UserError, match="is_decoder"):
        open_sequence(folder, "cpu")
    whole = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with pytest.raises(UserError, match="not a causal language model"):
        perplexity(whole, "c", WINDOWS, WINDOWS[:, 0])
    decoder = make(tmp_path / "decoder", architecture, values | {"is_decoder": True})
    assert len(open_sequence(decoder, "cpu")) == 3


@pytest.mark.usefixtures("nothing_kept")
def test_a_model_that_looks_one_token_ahead_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", *TAKEN["llama"])
    own = LlamaDecoderLayer.forward

    def ahead(layer: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(layer, hidden, *args, **kwargs)
        return out + torch.cat([hidden[:, 1:], hidden[:, :1]], dim=1)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", ahead)
    with pytest.raises(UserError, match="not a causal language model"):
        open_sequence(folder, "cpu")


@pytest.mark.parametrize("name", RAISING)
def test_what_the_try_out_raises_means_that_the_model_is_run_whole(
    name: str, tmp_path: Path
) -> None:
    folder = make(tmp_path / "model", *RAISING[name])
    text = Text("text", WINDOWS, WINDOWS[:, 0])
    found = perplexities(folder, "cpu", [text], lambda *_: None)[0]
    logits = whole_logits(folder, eval_dtype(folder, "cpu"), [slice(0, 1), slice(1, 5)]).float()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), torch.from_numpy(WINDOWS[:, 1:]).flatten(), reduction="none"
    )
    assert found.nll == pytest.approx(losses.view(5, -1).sum(1).numpy(), rel=1e-4)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("error", [AttributeError, TypeError, AssertionError, NotImplementedError])
def test_whatever_a_model_raises_in_the_try_out_is_an_answer(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", *TAKEN["llama"])
    own = LlamaDecoderLayer.forward

    def forward(layer: Any, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if len(hidden) == 2:  # the windows of the probe
            raise error("not in parts")
        return own(layer, hidden, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    with pytest.raises(Refused, match=f"{error.__name__}: not in parts"):
        open_sequence(folder, "cpu")
    monkeypatch.undo()
    assert len(open_sequence(folder, "cpu")) == 3, "the answer was not kept for good"


@pytest.mark.usefixtures("nothing_kept")
def test_memory_that_runs_out_says_nothing_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(tmp_path / "model", *TAKEN["llama"])
    raising = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr(LlamaDecoderLayer, "forward", raising)
    with pytest.raises(torch.OutOfMemoryError):
        open_sequence(folder, "cpu")


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize(("units", "taken"), [(1, True), (40, False)])
def test_logits_may_differ_in_their_last_places_alone(
    units: int,
    taken: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on a GPU, where products of other shapes run other kernels."""
    folder = make(tmp_path / "model", *TAKEN["llama"])
    own = Sequence.logits

    def logits(sequence: Sequence, *args: Any) -> Any:
        found = own(sequence, *args)
        largest = found.abs().max()
        return found + units * torch.finfo(found.dtype).eps * largest * (found.abs() == largest)

    monkeypatch.setattr(Sequence, "logits", logits)
    if taken:
        assert len(open_sequence(folder, "cpu")) == 3
        assert "units in the last place" in caplog.text
    else:
        with pytest.raises(Refused, match="do not give the whole model's logits"):
            open_sequence(folder, "cpu")


@pytest.mark.usefixtures("nothing_kept")
def test_the_head_gets_the_rows_that_the_whole_model_gave_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU products of 16 and of 32 rows need not agree bit for bit."""
    folder = make(tmp_path / "model", *TAKEN["llama"])
    rows: list[int] = []
    own = torch.nn.Linear.forward

    def forward(layer: Any, x: Any) -> Any:
        if layer.out_features == SHAPE["vocab_size"]:
            rows.append(x[..., 0].numel())
        return own(layer, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", forward)
    open_sequence(folder, "cpu")
    assert set(rows) == {8, 32}, "8 where the form of the head is learnt"


def test_weights_outside_linear_layers_are_not_quantized(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *EVALUATED["gpt2"])
    with pytest.raises(Refused, match=r"is not in an nn\.Linear"):
        open_sequence(folder, "cpu", to_quantize=True)


def test_a_head_of_its_own_that_the_configuration_ties_is_not_left_out(tmp_path: Path) -> None:
    """transformers computes with it, and unties; so does whoever loads the whole model."""
    name, values = TAKEN["llama"]
    folder = make(tmp_path / "model", name, values)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(Refused, match=r"'lm_head\.weight'.*config\.json"):
        open_sequence(folder, "cpu")


def test_a_model_whose_logits_are_no_numbers_says_nothing_of_a_good_one(tmp_path: Path) -> None:
    name, values = TAKEN["llama"]
    good = make(tmp_path / "good", name, values | {"rms_norm_eps": 0.0123})
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    state = load_file(bad / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="logits that are not numbers"):
        open_sequence(bad, "cpu", to_quantize=True)
    assert len(open_sequence(good, "cpu", to_quantize=True)) == 3
