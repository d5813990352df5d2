"""Layers with inputs that are correlated as those of a language model are, and GPTQModel's GPTQ."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colazero.gptq import Hessian
from colazero.interfaces import QuantizationSettings

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, False)
ORDERS = {
    "none": {"desc_act": False, "act_group_aware": False},
    "desc_act": {"desc_act": True, "act_group_aware": False},
    "act_group_aware": {"desc_act": False, "act_group_aware": True},
}


def settings(order: str = "none", **changes: Any) -> QuantizationSettings:
    """Return settings with the columns in one of ORDERS."""
    return replace(SETTINGS, **ORDERS[order], **changes)


def correlated(tokens: int, inputs: int, seed: int = 0, strength: float = 0.25) -> Tensor:
    """Return float32 [tokens, inputs]: a few shared directions, noise, and inputs of all sizes."""
    draw = torch.Generator().manual_seed(seed)
    shared = torch.randn(tokens, 16, generator=draw) @ torch.randn(16, inputs, generator=draw)
    x = shared * strength + torch.randn(tokens, inputs, generator=draw)
    return x * (torch.rand(inputs, generator=draw) * 1.8 + 0.2)


def weights(outputs: int, inputs: int, seed: int = 1) -> Tensor:
    """Return float32 [outputs, inputs] of the size that weights have."""
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)) / 20


def hessian(x: Tensor) -> Hessian:
    """Return the Hessian of some inputs."""
    made = Hessian(x.shape[-1], x.device)
    made.add(x)
    return made


def layer_error(before: Tensor, after: Tensor, value: Tensor) -> float:
    """Return tr(ΔW H ΔWᵀ) in float64."""
    change = (before - after).double()
    return float(((change @ value.double()) * change).sum())


class Theirs(NamedTuple):
    """What GPTQModel makes of a layer: its weight, codes, group of each input, and its log."""

    weight: Tensor
    codes: Tensor
    g_idx: Tensor
    loss: float
    damp: float


def gptqmodel(
    weight: Tensor, x: Tensor, wanted: QuantizationSettings, *, half: bool = True
) -> Theirs:
    """Quantize by GPTQModel's own class, one group a block.

    `half`: its scales are rounded to float16 when they are found, not when they are saved.
    """
    from gptqmodel import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ
    from gptqmodel.quantization.quantizer import Quantizer

    class HalfScales(Quantizer):
        def find_params(self, x: Tensor, weight: bool = False) -> None:
            super().find_params(x, weight)
            self.scale = self.scale.half().float()

    config = QuantizeConfig(
        bits=wanted.quant_bits,
        group_size=wanted.group_size,
        desc_act=wanted.desc_act,
        sym=wanted.sym,
        damp_percent=wanted.damp_percent,
        act_group_aware=wanted.act_group_aware,
    )
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    gptq = GPTQ(layer, config)
    if half:
        gptq.quantizer = HalfScales(config)
    gptq.quantizer.configure(perchannel=True)
    gptq.add_batch(x, None)
    size = wanted.group_size if wanted.group_size != -1 else 128
    dense, scale, zero, g_idx, _, loss, damp, _ = gptq.quantize(blocksize=size)
    groups = g_idx.long()
    codes = torch.round(dense / scale[:, groups] + zero[:, groups])
    saved = (codes - zero[:, groups]) * scale.half().float()[:, groups]
    return Theirs(saved, codes.to(torch.uint8), g_idx, float(loss), float(damp))
