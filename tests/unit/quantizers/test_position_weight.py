"""`position_weight`: how much each window's first token counts in a layer's Hessian."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colazero import gptq
from colazero.blocks.probe import open_sequence
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense
from colazero.gptq import Hessian, prepare, solve
from colazero.quantizers import onepass
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
WINDOWS = np.random.default_rng(0).integers(10, 250, size=(6, 32), dtype=np.int32)


def quantized(model: Path, out: Path, weight: Any) -> QuantizationReport:
    settings = replace(SETTINGS, position_weight=weight)
    calibration = CalibrationSet(WINDOWS, [], {})
    return onepass.quantize(Work(model, calibration, settings, out, "cpu", lambda *_: None, None))


def codes(packed: torch.Tensor) -> torch.Tensor:
    """Return the 4-bit codes of a packed tensor, eight in each number."""
    return torch.stack([packed >> shift & 15 for shift in range(0, 32, 4)])


def alike(model: Path, x: torch.Tensor, out: Path) -> dict[str, float]:
    """Return by checkpoint in `out` the share of the first layer's codes that inputs x give too."""
    hessian = Hessian(x.shape[-1], "cpu")
    hessian.add(x)
    name = "model.layers.0.self_attn.q_proj"
    weight = load_file(model / "model.safetensors")[f"{name}.weight"]
    wanted = codes(gptq.pack(solve(weight, prepare(hessian, SETTINGS), SETTINGS), 4)["qweight"])
    written = {p.name: load_file(p / "model.safetensors")[f"{name}.qweight"] for p in out.iterdir()}
    return {given: (codes(q) == wanted).float().mean().item() for given, q in written.items()}


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
    shares = alike(tiny_llama, x, tmp_path)
    assert shares["16"] > 0.99 > shares["1"]


def test_tokens_without_places_cannot_be_weighed() -> None:
    experts = onepass.Input(onepass.Gptq(replace(SETTINGS, position_weight=4)))
    with pytest.raises(UserError, match="position_weight=4"):
        experts.add(0, torch.ones(5, 8), (2, 4), "cpu")
    experts.add(0, torch.ones(8, 8), (2, 4), "cpu")


def test_tokens_count_by_the_attention_that_they_get(tiny_llama: Path, tmp_path: Path) -> None:
    """The first block's codes are those for inputs scaled by the weights of eager attention."""
    report = quantized(tiny_llama, tmp_path / "attention", "attention")
    plain = quantized(tiny_llama, tmp_path / "1", 1)
    # The first block sees the same inputs: the metric tells of the model, whatever the weights.
    share, same = (r.modules[0]["first_position_share"] for r in (plain, report))
    assert share == pytest.approx(same, rel=1e-5)
    loaded = load_dense(tiny_llama, "cpu")
    loaded.set_attn_implementation("eager")
    ids = torch.from_numpy(WINDOWS).long()
    with torch.no_grad():
        attention = loaded(ids, output_attentions=True).attentions[0].float()
        attended = attention.sum((1, 2))
        low, high = attended.amin(1, keepdim=True), attended.amax(1, keepdim=True)
        weights = 0.005 + 0.995 * (attended - low) / (high - low)
        weights /= weights.mean(1, keepdim=True)
        x = loaded.model.layers[0].input_layernorm(loaded.model.embed_tokens(ids))
    shares = alike(tiny_llama, x.float() * weights.sqrt()[..., None], tmp_path)
    assert shares["attention"] > 0.99 > shares["1"]


def test_weighing_by_attention_leaves_the_evaluation_as_it_was(tiny_llama: Path) -> None:
    """Hidden states after a block are the same bits, whether its attention was read before."""
    sequence, streams = open_sequence(tiny_llama, "cpu"), []
    for read in (False, True):
        stream = sequence.begin(WINDOWS, 3)
        with sequence.filled(0):
            if read:
                sequence.attended(0, stream)
            sequence.advance(0, stream)
        streams.append(stream.hidden)
    assert torch.equal(*streams)


def test_each_window_has_the_weight_of_its_tokens() -> None:
    weights = gptq.token_weights(torch.tensor([[9.0, 1.0, 2.0, 4.0], [3.0, 3.0, 3.0, 3.0]]))
    assert weights.sum(1).tolist() == pytest.approx([4, 4])
    assert weights[0, 0] / weights[0, 1] == pytest.approx(200)
    assert weights[1].tolist() == [1, 1, 1, 1]


def test_experts_and_attention_without_weights_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(UserError, match="position_weight=attention"):
        Hessian(8, "cpu").add(torch.ones(5, 8), torch.ones(2, 4))
    sequence = open_sequence(tiny_llama, "cpu")
    stream = sequence.begin(WINDOWS, 3)
    attention = sequence.blocks[0].self_attn
    plain = type(attention).forward
    attention.forward = lambda *args, **kwargs: (plain(attention, *args, **kwargs)[0], None)
    with sequence.filled(0), pytest.raises(UserError, match="position_weight=attention"):
        sequence.attended(0, stream)
