"""A block at a time gives bit for bit what the whole model gives, or is refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import EVALUATED, TAKEN, WHOLE, make
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colazero.blocks import Refused, open_sequence
from colazero.blocks.sequence import Sequence
from colazero.blocks.weights import eval_dtype
from colazero.errors import UserError

WINDOWS = np.random.default_rng(0).integers(3, 160, size=(5, 48))


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
    with pytest.raises(Refused, match="its files have no weight"):
        open_sequence(folder, "cpu")


def test_weights_outside_linear_layers_are_not_quantized(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *EVALUATED["gpt2"])
    with pytest.raises(Refused, match=r"is in no nn\.Linear"):
        open_sequence(folder, "cpu", to_quantize=True)


def test_a_head_of_its_own_that_the_configuration_ties_is_not_left_out(tmp_path: Path) -> None:
    """transformers computes with it, and unties; so does whoever loads the whole model."""
    name, values = TAKEN["llama"]
    folder = make(tmp_path / "model", name, values)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    with pytest.raises(Refused, match=r"hold 'lm_head\.weight', which its config\.json ties"):
        open_sequence(folder, "cpu")


def test_a_model_whose_logits_are_no_numbers_says_nothing_of_a_good_one(tmp_path: Path) -> None:
    name, values = TAKEN["llama"]
    good = make(tmp_path / "good", name, values | {"rms_norm_eps": 0.0123})
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    state = load_file(bad / "model.safetensors")
    state["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="logits that are no numbers"):
        open_sequence(bad, "cpu", to_quantize=True)
    assert len(open_sequence(good, "cpu", to_quantize=True)) == 3
