"""The loop over the columns of one block, in plain torch, and the choice of what runs it.

There are three implementations of one function: the one here, which the others are held against,
`columns_numba` for CPUs and `columns_triton` for CUDA. They do the same operations in the same
order and agree bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from colazero.gptq import grid
from colazero.gptq.factor import WIDEST, prepare
from colazero.gptq.hessian import Hessian
from colazero.types import QuantizationSettings

log = logging.getLogger(__name__)

Block = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int], None]
"""(values, weights, factor, scale, zero, codes, top) → None, see `reference`."""

KERNELS = {"cpu": "numba", "cuda": "triton"}
"""What is tried first on a kind of device; elsewhere it is the reference."""


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

    All but `codes` are float32, all but `factor` contiguous. `values` [columns, rows]: what is to
    be rounded, with the errors from outside the block; leaves as the errors of rounding. `weights`
    [columns, rows]: leaves less what they became. `factor` [columns, columns], read below the
    diagonal: an error times row i corrects the columns below i. `scale`, `zero` [rows]: the grid.
    `codes` uint8 [columns, rows], at most `top`, are written.
    """
    for i in reversed(range(len(values))):
        code = grid.nearest(values[i], scale, zero, top)
        became = (code - zero) * scale
        codes[i] = code
        weights[i] -= became
        values[i] -= became
        values[:i] -= factor[i, :i, None] * values[i]


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
        kernel = _compiled(kind)
        same = agrees(kernel, torch.device(kind), group_size)
        reason = "it does not give the reference's codes"
    except Exception as error:  # whatever a compiler may raise: there is a way without it
        same, reason = False, f"{type(error).__name__}: {error}"
    if same:
        return kernel, name
    log.warning("GPTQ's columns are computed by plain torch, not %s: %s", name, reason)
    return reference, "torch"


def _compiled(kind: str) -> Block:
    """Import what is compiled for a kind of device; by its name, so that its source is known."""
    if kind == "cpu":
        from colazero.gptq.columns_numba import columns
    else:
        from colazero.gptq.columns_triton import columns
    return columns


def agrees(kernel: Block, device: torch.device, group_size: int = -1) -> bool:
    """Return True if a kernel gives the reference's numbers on blocks as solving hands them over.

    The blocks come from a prepared Hessian. One has an odd shape, one is as wide as a group, one
    has WIDEST columns; the last two have rows that fill several of Triton's tiles.
    """
    width = min(group_size, WIDEST) if group_size > 0 else WIDEST
    return all(
        _agrees(kernel, device, columns, rows)
        for columns, rows in {(24, 67), (width, 96), (WIDEST, 96)}
    )


def _agrees(kernel: Block, device: torch.device, columns: int, rows: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8 * columns, 2 * columns, generator=generator)
    hessian = Hessian(2 * columns, device)
    hessian.add((x + x.roll(1, 1)).to(device))
    prepared = prepare(hessian, QuantizationSettings(4, columns, False, False, 0.05, False))
    values, weights = torch.randn(2, columns, rows, generator=generator).to(device)
    codes = torch.zeros(columns, rows, dtype=torch.uint8, device=device)
    scale, zero = grid.fit(values, 4, sym=False)

    def after(block: Block) -> list[Tensor]:
        changed = [tensor.clone() for tensor in (values, weights, codes)]
        block(changed[0], changed[1], prepared.corners[0], scale, zero, changed[2], 15)
        return changed

    return all(torch.equal(a, b) for a, b in zip(after(reference), after(kernel), strict=True))
