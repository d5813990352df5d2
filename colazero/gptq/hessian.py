"""What a layer's inputs say about the worth of its weights: H = Σ x xᵀ."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 4096
"""Rows that are converted to float32 and multiplied at once: bounds the memory of the copy."""


class Hessian:
    """The sum of x xᵀ over all inputs x of a layer that were added, in float32.

    Only the blocks on and below the diagonal are computed: a third or more of the products saved.
    On CUDA half-precision inputs are multiplied as they are and summed in float32, which is exact
    but for the sums' rounding; everywhere else they are converted to float32 first.
    """

    def __init__(self, inputs: int, device: torch.device | str) -> None:
        self.tokens = 0
        self._sum = torch.zeros(inputs, inputs, device=device)
        # Blocks are as small as still keeps the device busy with one of them.
        self._block = 1024 if self._sum.is_cuda else 256

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add inputs [..., inputs] of any float dtype, one token a row."""
        rows = x.reshape(-1, x.shape[-1])
        self.tokens += len(rows)
        as_they_are = x.is_cuda and x.dtype in (torch.float16, torch.bfloat16)
        if as_they_are:
            self._add(rows)
            return
        for part in torch.split(rows, ROWS):
            self._add(part.float())

    def _add(self, x: Tensor) -> None:
        for first in range(0, x.shape[1], self._block):
            last = first + self._block
            left, right, into = x[:, first:].T, x[:, first:last], self._sum[first:, first:last]
            if x.dtype == torch.float32:
                into.addmm_(left, right)
            else:
                into.add_(torch.mm(left, right, out_dtype=torch.float32))

    def value(self) -> Tensor:
        """Return Σ x xᵀ, float32 [inputs, inputs] on the device: no copy, later adds change it.

        It is the plain sum. What is solved with it depends on its scale in no way: damp is a share
        of its mean diagonal.
        """
        for first in range(0, len(self._sum), self._block):
            last = first + self._block
            self._sum[first:last, last:] = self._sum[last:, first:last].T
            corner = self._sum[first:last, first:last]
            # The two halves of a symmetric product may differ in their last bit.
            corner.copy_(corner.tril() + corner.tril(-1).T)
        return self._sum
