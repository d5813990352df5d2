"""The grid of a group, the loop over a block's columns, and the choice of its implementation.

One function has three implementations: plain torch (`reference`), which the others are compared
with, numba for CPUs and `columns_triton` for CUDA. They do the same operations in the same order
and agree bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import numba
import numpy as np
import torch
from torch import Tensor

from colazero.gptq.hessian import WIDEST, Hessian, prepare
from colazero.types import QuantizationSettings

log = logging.getLogger(__name__)

HALF_MIN, HALF_MAX = 2.0**-24, 65504.0
"""The smallest and the largest positive number in float16."""

Grid = tuple[Tensor, Tensor]
"""Scales and zero points of a group: both float32 [rows]."""
Block = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], None]
"""(values, weights, factor, scale, zero, codes, top) → None, see `reference`."""

KERNELS = {"cpu": "numba", "cuda": "triton"}
"""The kernel per kind of device; other kinds get the reference."""
ROWS = 512
"""Rows per pass over the columns: they stay in a core's second-level cache."""


def fit(values: Tensor, bits: int, sym: bool) -> Grid:
    """Return the grid for a group's `values` [columns, rows]; rows may have several dimensions.

    The grid spans from the least to the largest value of a row, zero included; if symmetric, as far
    down as up. Scales are rounded to float16 first, so a checkpoint holds the scales that columns
    are rounded with. A row of zeros gets any grid.
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


def reference(
    values: Tensor,
    weights: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    top: int,
) -> None:
    """Quantize the columns of a block from last to first, passing each one's error on.

    All but `codes` are float32, all but `factor` contiguous. `values` [columns, rows], in: weights
    with the errors from outside the block; out: rounding errors. `weights` [columns, rows], out:
    weights − dequantized. `factor` [columns, columns], read below the diagonal: an error times row
    i corrects the columns below i. `scale`, `zero` [rows]: the grid. `codes` uint8 [columns, rows],
    at most `top`, are written.
    """
    for i in reversed(range(len(values))):
        code = nearest(values[i], scale, zero, top)
        became = (code - zero) * scale
        codes[i] = code
        weights[i] -= became
        values[i] -= became
        values[:i] -= factor[i, :i, None] * values[i]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _round(values, weights, codes, scale, zero, top):  # type: ignore[no-untyped-def]
    """Round one column, all [rows]."""
    for r in range(len(values)):
        code = np.rint(values[r] / scale[r]) + zero[r]
        code = min(max(code, np.float32(0)), top)
        became = (code - zero[r]) * scale[r]
        codes[r] = np.uint8(code)
        weights[r] -= became
        values[r] -= became


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _correct(values, a, first):  # type: ignore[no-untyped-def]
    for r in range(len(values)):
        values[r] -= a * first[r]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _correct_by_four(values, a, b, c, d, first, second, third, fourth):  # type: ignore[no-untyped-def]
    """Correct one column by the errors of four, one after another, while it is in registers."""
    for r in range(len(values)):
        value = values[r] - a * first[r]
        value -= b * second[r]
        value -= c * third[r]
        values[r] = value - d * fourth[r]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _columns(values, weights, factor, scale, zero, codes, top):  # type: ignore[no-untyped-def]
    columns, rows = values.shape
    for start in range(0, rows, ROWS):
        here = slice(start, min(start + ROWS, rows))
        for stop in range(columns, 0, -4):
            low = max(stop - 4, 0)
            for i in range(stop - 1, low - 1, -1):
                errors = values[i, here]
                _round(errors, weights[i, here], codes[i, here], scale[here], zero[here], top)
                for j in range(low, i):
                    _correct(values[j, here], factor[i, j], errors)
            a, b, c, d = stop - 1, stop - 2, stop - 3, stop - 4
            for j in range(low):  # where columns are left, four were rounded
                _correct_by_four(
                    values[j, here],
                    factor[a, j], factor[b, j], factor[c, j], factor[d, j],
                    values[a, here], values[b, here], values[c, here], values[d, here],
                )  # fmt: skip


def by_numba(
    values: Tensor,
    weights: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    top: int,
) -> None:
    """Do what `reference` does, in one thread and without Python's lock."""
    tensors = (values, weights, factor, scale, zero, codes)
    _columns(*(tensor.numpy() for tensor in tensors), np.float32(top))


@lru_cache
def for_device(kind: str, group_size: int = -1) -> tuple[Block, str]:
    """Return the implementation for a kind of device, and its name.

    The implementation is tried first, on blocks as wide as a group among others, so that a compiler
    is done before layers come. Where it fails or differs from the reference, the reference is
    returned and a warning says why.
    """
    name = KERNELS.get(kind)
    if name is None:
        log.warning("GPTQ's columns are computed by plain torch: no kernel is for %r", kind)
        return reference, "torch"
    try:
        kernel = by_numba
        if kind == "cuda":
            from colazero.gptq.columns_triton import columns as kernel
        same = agrees(kernel, torch.device(kind), group_size)
        reason = "it does not give the reference's codes"
    except Exception as error:  # a compiler can raise anything; torch works without it
        same, reason = False, f"{type(error).__name__}: {error}"
    if same:
        return kernel, name
    log.warning("GPTQ's columns are computed by plain torch, not %s: %s", name, reason)
    return reference, "torch"


def agrees(kernel: Block, device: torch.device, group_size: int = -1) -> bool:
    """Return True if a kernel gives the reference's numbers on blocks as solving hands them over.

    The blocks come from a prepared Hessian. One has an odd shape, one is as wide as a group, one
    has WIDEST columns; the last two have rows that fill several of Triton's tiles.
    """
    width = min(group_size, WIDEST) if group_size > 0 else WIDEST
    for columns, rows in {(24, 67), (width, 96), (WIDEST, 96)}:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(8 * columns, 2 * columns, generator=generator)
        hessian = Hessian(2 * columns, device)
        hessian.add((x + x.roll(1, 1)).to(device))
        prepared = prepare(hessian, QuantizationSettings(4, columns, False, False, 0.05, False))
        values, weights = torch.randn(2, columns, rows, generator=generator).to(device)
        codes = torch.zeros(columns, rows, dtype=torch.uint8, device=device)
        scale, zero = fit(values, 4, sym=False)
        results = []
        for block in (reference, kernel):
            changed = [tensor.clone() for tensor in (values, weights, codes)]
            block(changed[0], changed[1], prepared.corners[0], scale, zero, changed[2], 15)
            results.append(changed)
        if not all(map(torch.equal, *results)):
            return False
    return True
