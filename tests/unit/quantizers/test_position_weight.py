"""`position_weight`: how much each window's first token counts in a layer's Hessian."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colazero import gptq
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense
from colazero.gptq import Hessian, prepare, solve
from colazero.quantizers import onepass
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
WINDOWS = np.random.default_rng(0).integers(10, 250, size=(6, 32), dtype=np.int32)


def quantized(model: Path, out: Path, weight: float) -> QuantizationReport:
    settings = replace(SETTINGS, position_weight=weight)
    calibration = CalibrationSet(WINDOWS, [], {})
    return onepass.quantize(Work(model, calibration, settings, out, "cpu", lambda *_: None, None))


def codes(packed: torch.Tensor) -> torch.Tensor:
    """Return the 4-bit codes of a packed tensor, eight in each number."""
    return torch.stack([packed >> shift & 15 for shift in range(0, 32, 4)])


def test_the_first_tokens_of_all_windows_count_so_often(tiny_llama: Path, tmp_path: Path) -> None:
    """The first layer's codes are those for inputs whose first rows are scaled by √weight."""
    report = quantized(tiny_llama, tmp_path / "16", 16)
    quantized(tiny_llama, tmp_path / "1", 1)
    model = load_dense(tiny_llama, "cpu").model
    first = model.layers[0]
    with torch.no_grad():
        x = first.input_layernorm(model.embed_tokens(torch.from_numpy(WINDOWS).long()))
    share = float(x[:, 0].square().sum() / x.square().sum())
    assert report.modules[0]["first_position_share"] == pytest.approx(share, rel=1e-3)
    x[:, 0] *= 4
    hessian = Hessian(x.shape[-1], "cpu")
    hessian.add(x)
    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(tiny_llama / "model.safetensors")[f"{name}.weight"]
    wanted = codes(gptq.pack(solve(weight, prepare(hessian, SETTINGS), SETTINGS), 4)["qweight"])
    alike = {
        given: (codes(written[f"{name}.qweight"]) == wanted).float().mean().item()
        for given in ("1", "16")
        if (written := load_file(tmp_path / given / "model.safetensors"))
    }
    assert alike["16"] > 0.99 > alike["1"]


def test_tokens_without_places_cannot_be_weighed() -> None:
    experts = onepass.Input(onepass.Gptq(replace(SETTINGS, position_weight=4)))
    with pytest.raises(UserError, match="position_weight=4"):
        experts.add(0, torch.ones(5, 8), (2, 4), "cpu")
    experts.add(0, torch.ones(8, 8), (2, 4), "cpu")
