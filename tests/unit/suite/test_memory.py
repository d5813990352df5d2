"""What a plan says of a GPU's memory is what a cell takes there, counted at a scaled-down shape."""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_believe import DEVICE, Machine, There, machine
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from colazero.blocks.lockstep import Lockstep
from colazero.blocks.probe import open_sequence
from colazero.evaluation import perplexity
from colazero.evaluation.through_blocks import Evaluator
from colazero.quantizers.onepass import quantize
from colazero.suite import memory
from colazero.types import CalibrationSet, Model, QuantizationSettings, Text, Work

SCALE = 32
"""Widths and tokens are a 32nd, so that hidden states stay in proportion to Hessians."""
GATED: dict[str, tuple[int, int, int, int]] = {
    "llama-2-7b": (4096, 11_008, 32, 32),
    "llama-2-13b": (5120, 13_824, 40, 40),
    "llama-3-8b": (4096, 14_336, 32, 8),
    "llama-3-70b": (8192, 28_672, 64, 8),
}
"""Hidden size, intermediate size, heads and heads of keys and values."""
SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)


class Live:
    """Bytes of tensors on the make-believe device: now, and the most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._tensors: Counter[int] = Counter()

    def add(self, tensor: There) -> None:
        storage = tensor.numbers.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        self.now += 0 if self._tensors[key] else size
        self._tensors[key] += 1
        self.most = max(self.most, self.now)
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        self.now -= 0 if self._tensors[key] else size


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """Count live bytes, also of what the threads of a lockstep make."""
    live, own, member = Live(), There.__new__, Lockstep._member

    def made(kind: type[There], numbers: torch.Tensor) -> There:
        tensor = own(kind, numbers)
        live.add(tensor)
        return tensor

    def in_its_thread(lockstep: Lockstep, number: int) -> None:
        if number == lockstep._last:
            member(lockstep, number)
            return
        with Machine():
            member(lockstep, number)

    monkeypatch.setattr(There, "__new__", staticmethod(made))
    monkeypatch.setattr(Lockstep, "_member", in_its_thread)
    with machine():
        yield live


def shape_of(name: str) -> Any:
    """Return the scaled-down configuration of a model."""
    sizes = {"vocab_size": 512, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    if name == "opt-6.7b":
        width = {"hidden_size": 128, "ffn_dim": 512, "word_embed_proj_dim": 128}
        return OPTConfig(**sizes, **width, num_attention_heads=4)
    hidden, inner, heads, keys = GATED[name]
    inner = -(-inner // SCALE // 32) * 32
    heads, keys = heads // 8, max(1, keys // 8)
    width = {"hidden_size": hidden // SCALE, "intermediate_size": inner}
    return LlamaConfig(**sizes, **width, num_attention_heads=heads, num_key_value_heads=keys)


@pytest.mark.parametrize("name", [*GATED, "opt-6.7b"])
def test_the_plan_is_within_a_quarter_of_what_a_cell_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = AutoModelForCausalLM.from_config(shape_of(name), dtype=torch.bfloat16)
    whole.save_pretrained(tmp_path / "model")
    draw = np.random.default_rng(0)
    calibration = CalibrationSet(draw.integers(3, 500, size=(128, 64), dtype=np.int32), (), {})
    text = Text("text", draw.integers(3, 500, size=(166, 64)), np.arange(166) * 64)
    with counted(monkeypatch) as live:
        open_sequence(tmp_path / "model", DEVICE, to_quantize=True)
        live.most = live.now
        folder, out = tmp_path / "model", tmp_path / "out"
        monkeypatch.setattr("colazero.quantizers.onepass.TOKENS_PER_BATCH", 4 * 64)
        monkeypatch.setattr("colazero.evaluation.through_blocks.TOKENS_A_BATCH", 2 * 64)
        monkeypatch.setattr("colazero.evaluation.perplexity.LOGITS_A_SLICE", 512 * 16)
        quantize(Work(folder, calibration, SETTINGS, out, DEVICE, evaluator=Evaluator([text])))
    assert memory.BATCH == perplexity.TOKENS_A_BATCH
    weights = memory.Weights.of(Model(name, folder, "1"))
    windows = 128 + 166
    planned = (
        2.0 * (weights.block + weights.outside)
        + 2.0 * weights.hidden * windows * 64
        + weights.solved(128 * 64, 2.0)
    )
    print(f"{name}: counted {live.most:,}, planned {planned:,.0f}", file=sys.stderr)
    assert planned == pytest.approx(live.most, rel=0.25)
