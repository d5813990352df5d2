"""What GPTQModel computes more than once while it quantizes a layer, computed once.

To quantize the modules of a layer in turn, GPTQModel runs the layer once for each group of them
(q, k and v; o; gate and up; down), to see the group's inputs, and once more for the next layer's
input. From one run to the next only the last group's weights have changed: the attention and most
of the products come out as before, and a run's last product is thrown away. On a CPU that is more
than half of these runs' time. Of the symmetric Hessians it computes both halves. Checkpoints stay
bit for bit what they were (tests/integration/test_quantizer.py compares them).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

BUDGET = 2**29
"""Bytes of operands and results that are kept; the oldest are dropped first."""
COLUMNS = 256
"""Columns of a Hessian that are computed at once."""


@contextmanager
def nothing_twice() -> Iterator[None]:
    """Shorten the runs of what GPTQModel quantizes on the CPU meanwhile, called in this thread."""
    from gptqmodel.nn_modules.hooked_linear import STOP_FORWARD_EXCEPTION, HookedLinear

    whole = HookedLinear.forward

    def forward(self: Any, input: Any) -> Any:
        if not (self.forward_hook and self.forward_hook_last):
            return whole(self, input)
        with torch.inference_mode():  # GPTQ's hook looks at the input only
            self.forward_hook(self, (input,), input.new_empty((*input.shape[:-1], 0)))
        raise STOP_FORWARD_EXCEPTION.with_traceback(None)

    HookedLinear.forward = forward
    try:
        with Remembered():
            yield
    finally:
        HookedLinear.forward = whole


class Remembered(TorchFunctionMode):
    """In this context a linear map or an attention of the same operands is not computed twice.

    Operands are the same if every element is, so what is returned has the same bits. They are kept
    as copies: nobody's writing into them in place can make a wrong pair. A matrix's product with
    its own transpose is computed on and above the diagonal, and mirrored.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        super().__init__()
        self._room = budget
        self._kept: deque[tuple[Any, list[Any], Any]] = deque()

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func is torch.matmul and not named and _is_gram(*args):
            return _gram(args[1])
        if func not in (F.linear, F.scaled_dot_product_attention):
            return func(*args, **named)
        # The small operand, the weights, is the one that tells most calls apart.
        operands = sorted([*args, *named, *named.values()], key=_size)
        for known, before, result in reversed(self._kept):
            if known is func and len(before) == len(operands) and all(map(_same, before, operands)):
                return result.clone()
        result = func(*args, **named)
        self._keep(func, [_copy(operand) for operand in operands], result.clone())
        return result

    def _keep(self, func: Any, operands: list[Any], result: Any) -> None:
        self._kept.append((func, operands, result))
        self._room -= sum(map(_size, [*operands, result]))
        while self._room < 0:
            _, operands, result = self._kept.popleft()
            self._room += sum(map(_size, [*operands, result]))


def _is_gram(a: Any, b: Any) -> bool:
    return bool(
        b.dim() == 2
        and a.data_ptr() == b.data_ptr()
        and (a.shape, a.stride()) == (b.T.shape, b.T.stride())
    )


def _gram(matrix: Any) -> Any:
    """Return matrixᵀ · matrix for `matrix` [rows, columns]."""
    columns = matrix.shape[1]
    product = matrix.new_empty(columns, columns)
    for first in range(0, columns, COLUMNS):
        stop = first + COLUMNS
        part = matrix[:, first:stop].T @ matrix[:, first:]
        product[first:stop, first:] = part
        product[first:, first:stop] = part.T
    return product


def _size(value: Any) -> int:
    return int(value.nbytes) if torch.is_tensor(value) else 0


def _same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and bool(a == b)


def _copy(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value
