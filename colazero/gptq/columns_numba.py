"""The loop over a block's columns for CPUs, compiled; see `columns.reference`."""

from __future__ import annotations

import numba
import numpy as np
from torch import Tensor

ROWS = 512
"""Rows that go through the columns together: a block of them stays in a core's second cache."""


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
    """Correct one column by the error of another."""
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
            for j in range(low):  # where any are left, there were four
                _correct_by_four(
                    values[j, here],
                    factor[a, j], factor[b, j], factor[c, j], factor[d, j],
                    values[a, here], values[b, here], values[c, here], values[d, here],
                )  # fmt: skip


def columns(
    values: Tensor,
    weights: Tensor,
    factor: Tensor,
    scale: Tensor,
    zero: Tensor,
    codes: Tensor,
    top: int,
) -> None:
    """Do what `columns.reference` does, in one thread and without Python's lock."""
    tensors = (values, weights, factor, scale, zero, codes)
    _columns(*(tensor.numpy() for tensor in tensors), np.float32(top))
