"""One linear layer, quantized with its prepared Hessian."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from colazero.gptq import columns
from colazero.gptq.hessian import Block, Prepared
from colazero.types import QuantizationSettings

FEWEST = 32
"""The fewest rows that are worth a thread."""


@dataclass(frozen=True)
class Solved:
    """A quantized layer, its inputs in the checkpoint's order.

    `codes`: uint8 [outputs, inputs]; `scales`: float16 [groups, outputs]; `zeros`: int16 [groups,
    outputs], the true zero points; `g_idx`: int32 [inputs], each input's group.
    `loss`: tr(ΔW H ΔWᵀ) per token, with H damped, divided by the number of tokens again, as
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


def values(codes: Tensor, zeros: Tensor, scales: Tensor, g_idx: Tensor) -> Tensor:
    """Return (code − zero point) · scale in float32, all by input first: [inputs, outputs]."""
    steps = codes.short() - zeros.short().index_select(0, g_idx)
    return steps.float().mul_(scales.float().index_select(0, g_idx))


def solve(weight: Tensor, prepared: Prepared, settings: QuantizationSettings) -> Solved:
    """Quantize a weight [outputs, inputs] of any float dtype, which is not changed.

    Rows are independent of each other. On a CPU each of torch's threads takes some of them from the
    first column to the last, and computes alone.
    """
    weight = weight.detach()
    if prepared.factor is None or prepared.pivots is None:
        solved = to_nearest(weight, prepared.group_size, settings.quant_bits, settings.sym)
        return replace(solved, rtn_fallback=True)
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
    g_idx = torch.empty_like(prepared.order, dtype=torch.int32)
    g_idx[prepared.order.flip(0)] = prepared.groups.int().repeat_interleave(prepared.group_size)
    return Solved(work.codes.T, scales, zeros, g_idx, loss, damp, work.kernel, False)


def nearest(weight: Tensor, size: int, bits: int, sym: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Round a weight [outputs, inputs] to nearest.

    Return codes [size, groups, outputs] as floats, scales and zero points [groups, outputs].
    """
    grouped = weight.T.float().reshape(-1, size, len(weight)).transpose(0, 1)
    scales, zeros = columns.fit(grouped, bits, sym)
    return columns.nearest(grouped, scales, zeros, 2**bits - 1), scales, zeros


def to_nearest(weight: Tensor, size: int, bits: int, sym: bool) -> Solved:
    """Return a weight [outputs, inputs] rounded to nearest, as it is stored."""
    outputs, inputs = weight.shape
    codes, scales, zeros = nearest(weight, size, bits, sym)
    flat = codes.transpose(0, 1).reshape(inputs, outputs).to(torch.uint8)
    g_idx = torch.arange(inputs, device=weight.device, dtype=torch.int32) // size
    return Solved(flat.T, scales.half(), zeros.short(), g_idx, None, 0.0, "torch", False)


@lru_cache(maxsize=1)
def _alone(threads: int, pid: int) -> ThreadPoolExecutor:
    """Return a pool of threads in each of which torch uses one thread.

    `pid`: this process's, because threads do not survive a fork.
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
    """A layer while it is solved. Its tensors have inputs first: `codes` [inputs, outputs]."""

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
                grids.append(columns.fit(whole, self._bits, self._sym))
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
        """Return the columns [low, high), corrected by the errors of all columns from `high` on.

        `todo` [inputs, rows] holds weights below `high`, and changes of weights from there.
        """
        return torch.addmm(todo[low:high], self._factor[high:, low:high].T, todo[high:])

    def _whole(self, todo: Tensor, blocks: list[Block]) -> Tensor:
        """Return a group of several blocks, corrected by the errors of all groups before it."""
        here = slice(blocks[-1][0], blocks[0][1])
        weights = todo[here].clone()
        if here.stop == len(todo):
            return weights
        for low, high in blocks:  # as if each block became its corrected values
            todo[low:high] -= self._corrected(todo, low, high)
        corrected = weights - todo[here]
        todo[here] = weights
        return corrected
