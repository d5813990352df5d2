"""A block at a time gives bit for bit what the whole model gives, or is refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import EVALUATED, TAKEN, WHOLE, make
from transformers import AutoModelForCausalLM

from colazero.blocks import Refused, open_sequence
from colazero.blocks.weights import eval_dtype

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


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_that_is_not_taken_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *WHOLE[name])
    with pytest.raises(Refused, match="its files have no weight"):
        open_sequence(folder, "cpu")


def test_weights_outside_linear_layers_are_not_quantized(tmp_path: Path) -> None:
    folder = make(tmp_path / "model", *EVALUATED["gpt2"])
    with pytest.raises(Refused, match=r"is in no nn\.Linear"):
        open_sequence(folder, "cpu", to_quantize=True)
