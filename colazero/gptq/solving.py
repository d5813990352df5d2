"""One linear layer, quantized with its prepared Hessian."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from colazero.gptq import columns, grid
from colazero.gptq.factor import Prepared
from colazero.gptq.packing import values
from colazero.interfaces import QuantizationSettings

FEWEST = 32
"""Rows that are worth a thread of their own."""


@dataclass(frozen=True)
class Solved:
    """A quantized layer, its inputs in the checkpoint's order.

    `codes`: uint8 [outputs, inputs]; `scales`: float16 [groups, outputs]; `zeros`: int16 [groups,
    outputs], the true zero points; `g_idx`: int32 [inputs], each input's group.
    `loss`: tr(ΔW H ΔWᵀ) of a token, with H damped, divided by the number of tokens once more, as
    GPTQModel logs it; None where weights were rounded to nearest.
    `damp`: the share of H's mean diagonal that was added to it. `kernel`: what ran the columns:
    numba, triton or torch.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    g_idx: Tensor
    loss: float | None
    damp: float
    kernel: str
    rtn_fallback: bool

    def weight(self, dtype: torch.dtype) -> Tensor:
        """Return the dense weight [outputs, inputs]: to the bit what the packed tensors give."""
        dense = values(self.codes.T, self.zeros, self.scales, self.g_idx)
        return dense.to(dtype).T.contiguous()


def solve(weight: Tensor, prepared: Prepared, settings: QuantizationSettings) -> Solved:
    """Quantize a weight [outputs, inputs] of any float dtype; it is left as it is.

    Rows are independent of each other: on a CPU each of torch's threads takes some of them from
    the first column to the last, and computes alone.
    """
    work = _Work(weight, prepared, settings)
    outputs = len(weight)
    threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
    pieces = max(1, min(threads, outputs // FEWEST))
    if pieces == 1:
        losses = [work.rows(0, outputs)]
    else:
        ends = [outputs * piece // pieces for piece in range(pieces + 1)]
        losses = list(_alone(threads, os.getpid()).map(work.rows, ends, ends[1:]))
    fallback = prepared.factor is None
    return Solved(
        work.codes.T,
        work.scales.half(),
        work.zeros,
        work.g_idx(),
        None if fallback else sum(losses) / prepared.tokens,
        prepared.damp,
        work.kernel,
        fallback,
    )


@lru_cache(maxsize=1)
def _alone(threads: int, pid: int) -> ThreadPoolExecutor:
    """Return a pool of threads in each of which torch computes in that thread alone.

    `pid` is this process's: threads do not outlive a fork.
    """
    here = threading.Barrier(threads)

    def start() -> None:
        torch.set_num_threads(1)  # for this thread, and as the default of threads yet to come
        here.wait()

    pool = ThreadPoolExecutor(threads, "gptq-rows", start)
    for done in [pool.submit(int) for _ in range(threads)]:
        done.result()
    torch.set_num_threads(threads)
    return pool


class _Work:
    """A layer while it is solved. Tensors here are by input first: `codes` [inputs, outputs]."""

    def __init__(self, weight: Tensor, prepared: Prepared, settings: QuantizationSettings) -> None:
        outputs, inputs = weight.shape
        self._weight, self._prepared, self._settings = weight.detach(), prepared, settings
        self._inference, self._top = torch.is_inference_mode_enabled(), 2**settings.quant_bits - 1
        self._block, self.kernel = columns.for_device(weight.device.type)
        if prepared.factor is None:
            self.kernel = "torch"
        self.codes = torch.empty(inputs, outputs, dtype=torch.uint8, device=weight.device)
        self.scales = torch.empty(len(prepared.groups), outputs, device=weight.device)
        self.zeros = torch.empty_like(self.scales, dtype=torch.int16)

    def g_idx(self) -> Tensor:
        """Return each input's group, int32 [inputs]."""
        prepared = self._prepared
        groups = torch.tensor(prepared.groups[::-1], dtype=torch.int32, device=self.codes.device)
        g_idx = torch.empty_like(prepared.order, dtype=torch.int32)
        g_idx[prepared.order] = groups.repeat_interleave(prepared.group_size)
        return g_idx

    def rows(self, first: int, last: int) -> float:
        """Solve some rows and return their loss."""
        with torch.inference_mode(self._inference), torch.no_grad():
            order, here = self._prepared.order, slice(first, last)
            todo = self._weight[here].T.contiguous().index_select(0, order).float()
            todo.masked_fill_(self._prepared.dead[order, None], 0)
            codes = torch.empty_like(todo, dtype=torch.uint8)
            loss = torch.zeros((), device=todo.device)
            for number, group in enumerate(self._prepared.groups):
                blocks = self._prepared.blocks(number)
                corrected = self._corrected(todo, *blocks[0])
                whole = corrected if len(blocks) == 1 else self._whole(todo, blocks)
                fitted = grid.fit(whole, self._settings.quant_bits, self._settings.sym)
                self.scales[group, here], self.zeros[group, here] = fitted
                for low, high in blocks:
                    if (low, high) != blocks[0]:
                        corrected = self._corrected(todo, low, high)
                    loss += self._rounded(corrected, todo[low:high], codes[low:high], low, fitted)
            self.codes[:, here].index_copy_(0, order, codes)
            return float(loss)

    def _corrected(self, todo: Tensor, low: int, high: int) -> Tensor:
        """Return the columns [low, high) as the errors of all columns from `high` on leave them.

        `todo` [inputs, rows] holds weights below `high`, and what they were changed by from there.
        """
        factor = self._prepared.factor
        if factor is None:
            return todo[low:high]
        return torch.addmm(todo[low:high], factor[high:, low:high].T, todo[high:])

    def _whole(self, todo: Tensor, blocks: list[tuple[int, int]]) -> Tensor:
        """Return a group of several blocks as the errors of all groups before leave it."""
        here = slice(blocks[-1][0], blocks[0][1])
        weights = todo[here].clone()
        if here.stop == len(todo):
            return weights
        for low, high in blocks:  # as if each became what it is corrected to
            todo[low:high] -= self._corrected(todo, low, high)
        corrected = weights - todo[here]
        todo[here] = weights
        return corrected

    def _rounded(
        self, corrected: Tensor, weights: Tensor, codes: Tensor, low: int, fitted: grid.Grid
    ) -> Tensor:
        """Round a block that begins at `low`, and return its loss. All but `fitted` change."""
        factor, pivots, top = self._prepared.factor, self._prepared.pivots, self._top
        if factor is None or pivots is None:
            codes.copy_(grid.nearest(corrected, *fitted, top))
            return torch.zeros((), device=codes.device)
        here = slice(low, low + len(codes))
        square = factor[here, here].contiguous()
        self._block(corrected, weights, square, *fitted, codes, top)
        return pivots[here].square() @ corrected.square().sum(1)
