"""Pruning of one linear layer: by magnitude, Wanda and SparseGPT.

Each returns a weight in which the share `sparsity` of the entries is zero. With pattern `2:4` they
are two in each four inputs that follow each other.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from colazero.gptq.hessian import Hessian, Prepared, prepare
from colazero.types import QuantizationSettings

AT_ONCE = 32
"""Columns between two corrections of the rest of a block: fewer, larger products."""


class Norms:
    """The sum of x² of each input over all tokens that were added: float32 [inputs]."""

    def __init__(self, inputs: int, device: torch.device | str) -> None:
        self.tokens = 0
        self.squares = torch.zeros(inputs, device=device)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add inputs [..., inputs] of any float dtype, one token per row."""
        rows = x.reshape(-1, x.shape[-1])
        self.tokens += len(rows)
        self.squares += rows.float().square().sum(0)


def magnitude(weight: Tensor, settings: QuantizationSettings) -> Tensor:
    """Zero the smallest weights of a layer [outputs, inputs]."""
    metric = weight.float().abs()
    return weight.masked_fill(
        _two_of_four(metric) if _fixed(settings) else _lowest(metric, settings), 0
    )


def wanda(weight: Tensor, squares: Tensor, settings: QuantizationSettings) -> Tensor:
    """Zero in each row the weights with the smallest |w| · ‖x‖₂ (Sun et al., arXiv 2306.11695).

    weight: [outputs, inputs]; squares: Σ x² of each input, [inputs].
    """
    metric = weight.float().abs() * squares.sqrt()
    if _fixed(settings):
        return weight.masked_fill(_two_of_four(metric), 0)
    count = int(settings.sparsity * weight.shape[1])
    lowest = metric.sort(dim=1, stable=True).indices[:, :count]
    return weight.scatter(1, lowest, 0)


def factor(hessian: Hessian, settings: QuantizationSettings) -> Prepared:
    """Factor a Hessian for `sparsegpt`: columns in their own order, in blocks of 128."""
    natural = replace(settings, group_size=-1, desc_act=False, act_group_aware=False)
    return prepare(hessian, natural)


@torch.no_grad()
def sparsegpt(
    weight: Tensor, prepared: Prepared, settings: QuantizationSettings
) -> tuple[Tensor, float | None]:
    """Prune a weight [outputs, inputs] and correct the rest (Frantar & Alistarh, arXiv 2301.00774).

    Columns go in blocks of 128 from the first to the last. In each block the share `sparsity` of
    the entries with the smallest w² / [U]²ⱼⱼ becomes zero, over all rows together; with pattern
    `2:4` two of each row's four, chosen when the first of the four is reached. H⁻¹ = Uᵀ U. The
    error of each column corrects the later ones as in GPTQ: U is the factor that GPTQ has.

    Return the weight in float32 and tr(ΔW H ΔWᵀ) per token, with H damped; None where the Hessian
    had no factor and magnitude decided.
    """
    weight = weight.float()
    if prepared.factor is None or prepared.pivots is None:
        return magnitude(weight, settings), None
    todo = weight.T.contiguous().index_select(0, prepared.order)
    todo.index_fill_(0, prepared.dead, 0)
    loss = torch.zeros((), dtype=torch.float64, device=weight.device)
    corners = iter(prepared.corners)
    for low, high in prepared.blocks()[0]:
        pivots, corner = prepared.pivots[low:high, None], next(corners)
        values = torch.addmm(todo[low:high], prepared.factor[high:, low:high].T, todo[high:])
        zeros = torch.zeros_like(values, dtype=torch.bool)
        if not _fixed(settings):
            zeros = _lowest(values.abs() * pivots, settings)
        for last in range(len(values), 0, -AT_ONCE):
            first = max(last - AT_ONCE, 0)
            errors = torch.zeros_like(values[first:last])
            for i in reversed(range(first, last)):
                if _fixed(settings) and i % 4 == 3:
                    four = slice(i - 3, i + 1)
                    zeros[four] = _two_of_four((values[four].abs() * pivots[four]).T).T
                error = values[i].masked_fill(~zeros[i], 0)
                errors[i - first] = error
                values[first:i] -= corner[i, first:i, None] * error
            values[:first] -= corner[first:last, :first].T @ errors
            loss += (errors * pivots[first:last]).square().sum()
            values[first:last] -= errors
        todo[low:high] -= values
    rows = weight.T.index_select(0, prepared.order) - todo
    rows.index_fill_(0, prepared.dead, 0)
    pruned = torch.empty_like(rows).index_copy_(0, prepared.order, rows).T
    return pruned.contiguous(), float(loss)


def _fixed(settings: QuantizationSettings) -> bool:
    return settings.pattern == "2:4"


def _lowest(metric: Tensor, settings: QuantizationSettings) -> Tensor:
    """Return a mask of the share `sparsity` of the entries that are lowest, of all together."""
    count = int(settings.sparsity * metric.numel())
    mask = torch.zeros_like(metric, dtype=torch.bool)
    lowest = metric.flatten().sort(stable=True).indices[:count]
    mask.view(-1)[lowest] = True
    return mask


def _two_of_four(metric: Tensor) -> Tensor:
    """Return a mask of the two lowest entries in each four columns of [rows, columns]."""
    fours = metric.reshape(len(metric), -1, 4)
    lowest = fours.sort(dim=2, stable=True).indices[:, :, :2]
    return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, lowest, True).view_as(metric)
