"""The grid of a group: its scale and zero point."""

from __future__ import annotations

import torch
from torch import Tensor

HALF_MIN, HALF_MAX = 2.0**-24, 65504.0
"""The smallest and the largest positive number in float16."""

Grid = tuple[Tensor, Tensor]
"""Scales and zero points of a group, a row each: both float32 [rows]."""


def fit(values: Tensor, bits: int, sym: bool) -> Grid:
    """Return the grid for a group's `values` [columns, rows]; rows may have several dimensions.

    The grid spans from the least to the largest value of a row, zero included; if symmetric, as
    far down as up. Scales are numbers of float16: a checkpoint holds what columns are rounded with.
    A row of zeros gets any grid.
    """
    top = 2**bits - 1
    low, high = values.amin(0), values.amax(0)
    if sym:
        reach = torch.maximum(high, low.neg_())
        reach.masked_fill_(reach == 0, 1)
        scale = reach.mul_(2).div_(top)
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low.clamp_(max=0)
        high.clamp_(min=0)
        blank = low == high
        low.masked_fill_(blank, -1)
        scale = high.masked_fill_(blank, 1).sub_(low).div_(top)
        zero = low.neg_().div_(scale).round_()
    return scale.clamp_(HALF_MIN, HALF_MAX).half().float(), zero


def nearest(values: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    """Return the codes, as floats, that are nearest to `values`; halves go to the even step."""
    return (torch.round(values / scale) + zero).clamp_(0, top)
