"""AWQ's arithmetic on one layer's tensors (Lin et al. 2024, arXiv 2306.00978), at 4 bits.

Inputs with large activations are scaled down, and their weights up, before rounding to nearest.
Errors are errors of linear layers' outputs, tr(ΔW H ΔWᵀ), the paper's equation 4: H = Σ x xᵀ gives
them for all calibration tokens at once. (The authors' code compares the attention's output for q, k
and v instead, on some of the tokens.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from colazero.gptq.hessian import Hessian
from colazero.gptq.solving import nearest

BITS = 4
STEPS = 20
"""Exponents α that are tried: 0, 1/20 … 19/20."""
CLIPS = 10
"""Limits of weights that are tried: 1, 0.95 … 0.55 of a group's largest."""
OUTPUTS = 256
"""The most outputs of a layer whose errors choose α, evenly spaced: a product costs as many."""
LEAST = 1e-4
"""The smallest scale before they are normalised."""


class Activations:
    """What AWQ needs of a layer's inputs: their Hessian, and the sum of their magnitudes."""

    def __init__(self, inputs: int, device: torch.device | str) -> None:
        self.tokens = 0
        self.hessian = Hessian(inputs, device)
        self._sum = torch.zeros(inputs, device=device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add inputs [..., inputs] of any float dtype, one token per row."""
        self.hessian.add(x)
        self.tokens = self.hessian.tokens
        self._sum += x.reshape(-1, x.shape[-1]).float().abs().sum(0)

    @property
    def magnitudes(self) -> Tensor:
        """Return the mean of |x| of each input over all tokens: float32 [inputs]."""
        return self._sum / max(1, self.tokens)


def find_scales(
    weights: Sequence[Tensor], value: Tensor, magnitudes: Tensor, size: int
) -> tuple[Tensor, float]:
    """Return the scales [inputs] of layers with one input, and their exponent α.

    s = magnitudes^α, divided by √(max s · min s), for the α at which rounding W · s, then divided
    by s, loses least. `weights`: float32 [outputs, inputs] each; `value`: H [inputs, inputs];
    `size`: inputs per group.
    """
    rows = [weight[:: -(-len(weight) // OUTPUTS)] for weight in weights]
    tried, lost = [], []
    for step in range(STEPS):
        scales = magnitudes.pow(step / STEPS).clamp_(min=LEAST)
        scales = scales / (scales.max() * scales.min()).sqrt()
        parts = [loss(row, rounded(row * scales, size) / scales, value) for row in rows]
        tried.append(scales)
        lost.append(torch.stack(parts))
    losses = [sum(parts) for parts in torch.stack(lost).tolist()]  # one wait for the device
    best = losses.index(min(losses))
    return tried[best], best / STEPS


def clipped(weight: Tensor, value: Tensor, size: int) -> Tensor:
    """Return a weight [outputs, inputs], each group cut off where its rounding then loses least.

    Lost is a group's own part of the output's error, δᵀ H δ with the group's block of H.
    """
    outputs, inputs = weight.shape
    groups = weight.reshape(outputs, -1, size)
    blocks = value.reshape(inputs // size, size, -1, size).diagonal(dim1=0, dim2=2)  # [i, j, group]
    reach = groups.abs().amax(2, keepdim=True)
    best, least = groups, torch.full_like(reach, torch.inf)
    for step in range(CLIPS):
        limit = reach * (1 - step / STEPS)
        tried = groups.clamp(-limit, limit)
        change = rounded(tried.reshape(outputs, inputs), size).view_as(groups) - groups
        lost = torch.einsum("ogi,ijg,ogj->og", change, blocks, change)[:, :, None]
        best, least = torch.where(lost < least, tried, best), torch.minimum(lost, least)
    return best.reshape(outputs, inputs)


def loss(before: Tensor, after: Tensor, value: Tensor) -> Tensor:
    """Return tr(ΔW H ΔWᵀ), a number on the device."""
    change = after - before
    lost: Tensor = torch.linalg.vecdot(change @ value, change).sum()
    return lost


def rounded(weight: Tensor, size: int) -> Tensor:
    """Return a weight [outputs, inputs] rounded to nearest, asymmetric, in float32."""
    codes, scales, zeros = nearest(weight, size, BITS, sym=False)
    steps = (codes - zeros).mul_(scales)
    return steps.transpose(0, 1).reshape(weight.shape[1], -1).T
