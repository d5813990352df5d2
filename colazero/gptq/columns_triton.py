"""The loop over a block's columns for CUDA; see `columns.reference`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

ROWS = 32
"""Rows per program, whose one warp holds a block of 128 columns in registers without spilling."""
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
"""Fusing a product with a sum would round otherwise than the reference does."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _columns(  # type: ignore[no-untyped-def]
    values_at, weights_at, factor_at, scale_at, zero_at, codes_at,
    columns, rows, stride, step, top,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    inside = row < rows
    scale = tl.load(scale_at + row, mask=inside, other=1.0)
    zero = tl.load(zero_at + row, mask=inside, other=0.0)
    tile = column[:, None] * rows + row[None, :]
    values = tl.load(
        values_at + tile, mask=(column[:, None] < columns) & inside[None, :], other=0.0
    )
    for back in range(columns):
        i = columns - 1 - back
        # One number and zeros: the sum takes it out exactly.
        value = tl.sum(tl.where(column[:, None] == i, values, 0.0), axis=0)
        # Far outside the grid all is clamped alike; inside, adding 1.5 · 2²³ rounds to even.
        steps = tl.minimum(tl.maximum(tl.div_rn(value, scale), -1024.0), 1024.0)
        steps = (steps + 12582912.0) - 12582912.0
        code = tl.minimum(tl.maximum(steps + zero, 0.0), top)
        became = (code - zero) * scale
        at = i * rows + row
        weight = tl.load(weights_at + at, mask=inside, other=0.0)
        tl.store(weights_at + at, weight - became, mask=inside)
        error = value - became
        tl.store(values_at + at, error, mask=inside)
        tl.store(codes_at + at, code.to(tl.uint8), mask=inside)
        by = tl.load(factor_at + i * stride + column * step, mask=column < i, other=0.0)
        values -= by[:, None] * error[None, :]


def columns(
    values: Tensor,
    weights: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    top: int,
) -> None:
    """Do what `columns.reference` does; ValueError if a tensor but `factor` is not contiguous.

    The kernel computes addresses itself and would read other numbers without a fault.
    """
    columns, rows = values.shape
    if not all(tensor.is_contiguous() for tensor in (values, weights, scale, zero, codes)):
        raise ValueError("the columns of a block and their grid must be contiguous")
    _columns[(triton.cdiv(rows, ROWS),)](
        values, weights, factor, scale, zero, codes, columns, rows, *factor.stride(), float(top),
        COLUMNS=max(16, triton.next_power_of_2(columns)), ROWS=ROWS,
        **OPTIONS,
    )  # fmt: skip
