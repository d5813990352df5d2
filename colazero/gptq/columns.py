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

from colazero.gptq.grid import nearest

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
        code = nearest(values[i], scale, zero, top)
        became = (code - zero) * scale
        codes[i] = code
        weights[i] -= became
        values[i] -= became
        values[:i] -= factor[i, :i, None] * values[i]


@lru_cache
def for_device(kind: str) -> tuple[Block, str]:
    """Return the implementation for a kind of device, and its name.

    It is tried once on a small block; where it fails or differs from the reference, it is the
    reference that is returned, and a warning says why.
    """
    name = KERNELS.get(kind)
    if name is None:
        log.warning("GPTQ's columns are computed by plain torch: no kernel is for %r", kind)
        return reference, "torch"
    try:
        kernel = _compiled(kind)
        same = agrees(kernel, torch.device(kind))
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


def agrees(kernel: Block, device: torch.device) -> bool:
    """Tell whether a kernel does to a small block, of an odd shape, what the reference does."""
    generator = torch.Generator().manual_seed(0)
    columns, rows, top = 24, 67, 15
    values, weights = torch.randn(2, columns, rows, generator=generator)
    factor = torch.randn(columns, 2 * columns, generator=generator)[:, :columns] / 4
    scale = (torch.rand(rows, generator=generator) / 4 + 0.1).half().float()
    zero = torch.randint(0, top + 1, (rows,), generator=generator).float()
    codes = torch.zeros(columns, rows, dtype=torch.uint8)

    def after(block: Block) -> list[Tensor]:
        moved = [t.to(device, copy=True) for t in (values, weights, codes)]
        block(
            moved[0], moved[1], factor.to(device), scale.to(device), zero.to(device), moved[2], top
        )
        return moved

    return all(torch.equal(a, b) for a, b in zip(after(reference), after(kernel), strict=True))
