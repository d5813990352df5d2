"""One linear layer, quantized with its prepared Hessian."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from colazero.gptq import columns, grid
from colazero.gptq.factor import Block, Prepared
from colazero.gptq.solved import Solved
from colazero.types import QuantizationSettings

FEWEST = 32
"""Rows that are worth a thread of their own."""


def solve(weight: Tensor, prepared: Prepared, settings: QuantizationSettings) -> Solved:
    """Quantize a weight [outputs, inputs] of any float dtype; it is left as it is.

    Rows are independent of each other: on a CPU each of torch's threads takes some of them from
    the first column to the last, and computes alone.
    """
    weight = weight.detach()
    if prepared.factor is None or prepared.pivots is None:
        codes, scales, zeros = _nearest(weight, prepared.group_size, settings)
        return Solved(codes.T, scales, zeros, _g_idx(prepared), None, 0.0, "torch", True)
    work = _Work(weight, prepared.factor, prepared, settings)
    outputs = len(weight)
    threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
    pieces = max(1, min(threads, outputs // FEWEST))
    if pieces == 1:
        squares = [work.rows(0, outputs)]
    else:
        ends = [outputs * piece // pieces for piece in range(pieces + 1)]
        squares = list(_alone(threads, os.getpid()).map(work.rows, ends, ends[1:]))
    loss = float(prepared.pivots.square() @ torch.stack(squares).sum(0)) / prepared.tokens
    scales, zeros, damp = work.scales.half(), work.zeros.short(), prepared.damp
    return Solved(work.codes.T, scales, zeros, _g_idx(prepared), loss, damp, work.kernel, False)


def _g_idx(prepared: Prepared) -> Tensor:
    """Return each input's group, int32 [inputs]."""
    g_idx = torch.empty_like(prepared.order, dtype=torch.int32)
    g_idx[prepared.order.flip(0)] = prepared.groups.int().repeat_interleave(prepared.group_size)
    return g_idx


def _nearest(
    weight: Tensor, size: int, settings: QuantizationSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Round to nearest; return codes [inputs, outputs], scales and zero points."""
    bits, (outputs, inputs) = settings.quant_bits, weight.shape
    values = weight.T.float().reshape(-1, size, outputs).transpose(0, 1)
    scales, zeros = grid.fit(values, bits, settings.sym)
    codes = grid.nearest(values, scales, zeros, 2**bits - 1).transpose(0, 1)
    return codes.reshape(inputs, outputs).to(torch.uint8), scales.half(), zeros.short()


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

    def __init__(
        self, weight: Tensor, factor: Tensor, prepared: Prepared, settings: QuantizationSettings
    ) -> None:
        outputs, inputs = weight.shape
        self._weight, self._factor, self._prepared = weight, factor, prepared
        self._bits, self._sym = settings.quant_bits, settings.sym
        self._inference = torch.is_inference_mode_enabled()
        self._block, self.kernel = columns.for_device(weight.device.type, settings.group_size)
        self.codes = torch.empty(inputs, outputs, dtype=torch.uint8, device=weight.device)
        self.scales = torch.empty(len(prepared.groups), outputs, device=weight.device)
        self.zeros = torch.empty_like(self.scales)

    def rows(self, first: int, last: int) -> Tensor:
        """Solve some rows and return the sum of each column's squared errors, [inputs]."""
        with torch.inference_mode(self._inference), torch.no_grad():
            prepared, here = self._prepared, slice(first, last)
            todo = self._weight[here].T.contiguous().index_select(0, prepared.order).float()
            todo.index_fill_(0, prepared.dead, 0)
            codes = torch.empty_like(todo, dtype=torch.uint8)
            squares = torch.empty_like(todo[:, 0])
            grids, corners = [], iter(prepared.corners)
            for blocks in prepared.blocks():
                corrected = self._corrected(todo, *blocks[0])
                whole = corrected if len(blocks) == 1 else self._whole(todo, blocks)
                grids.append(grid.fit(whole, self._bits, self._sym))
                for low, high in blocks:
                    if (low, high) != blocks[0]:
                        corrected = self._corrected(todo, low, high)
                    self._block(
                        corrected,
                        todo[low:high],
                        next(corners),
                        *grids[-1],
                        codes[low:high],
                        2**self._bits - 1,
                    )
                    torch.linalg.vecdot(corrected, corrected, out=squares[low:high])
            self.codes[:, here].index_copy_(0, prepared.order, codes)
            scales, zeros = zip(*grids, strict=True)
            self.scales[:, here].index_copy_(0, prepared.groups, torch.stack(scales))
            self.zeros[:, here].index_copy_(0, prepared.groups, torch.stack(zeros))
            return squares

    def _corrected(self, todo: Tensor, low: int, high: int) -> Tensor:
        """Return the columns [low, high) as the errors of all columns from `high` on leave them.

        `todo` [inputs, rows] holds weights below `high`, and what they were changed by from there.
        """
        return torch.addmm(todo[low:high], self._factor[high:, low:high].T, todo[high:])

    def _whole(self, todo: Tensor, blocks: list[Block]) -> Tensor:
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
