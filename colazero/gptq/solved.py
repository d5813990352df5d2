"""What is known of a quantized layer, before it is packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Solved:
    """A quantized layer, its inputs in the checkpoint's order.

    `codes`: uint8 [outputs, inputs]; `scales`: float16 [groups, outputs]; `zeros`: int16 [groups,
    outputs], the true zero points; `g_idx`: int32 [inputs], each input's group.
    `loss`: tr(ΔW H ΔWᵀ) of a token, with H damped, divided by the number of tokens once more, as
    GPTQModel logs it; None where weights were rounded to nearest.
    `damp`: the share of H's mean diagonal that was added to it. `kernel`: what ran the columns:
    numba, triton or torch.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    loss: float | None
    damp: float
    kernel: str
    rtn_fallback: bool

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the dense weight [outputs, inputs]: to the bit what the packed tensors give."""
        dense = values(self.codes.T, self.zeros, self.scales, self.g_idx)
        return dense.to(dtype).T.contiguous()


def values(codes: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor) -> Tensor:
    """Return (code − zero point) · scale in float32, all by input first: [inputs, outputs]."""
    steps = codes.short() - zeros.short().index_select(0, g_idx)
    return steps.float().mul_(scales.float().index_select(0, g_idx))
