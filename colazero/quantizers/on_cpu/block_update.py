"""GPTQ's inner loop on a CPU, compiled.

GPTQModel 7.6 updates a block of 128 columns one column at a time, with some twenty small tensor
operations each: on a CPU that is over half of its time for small models, nearly all of it spent
between the operations. For CUDA it has a fused kernel; this is the same step for the CPU, with the
same arithmetic in the same order, so that checkpoints stay bit for bit what they were
(tests/integration/test_quantizer.py compares them).
"""

from __future__ import annotations

import inspect
import logging
import textwrap
from functools import lru_cache
from typing import Any

import numba
import numpy as np

log = logging.getLogger(__name__)


LANES = 16
"""Rows that go through the columns together: what a vector register of 512 bits holds."""


@numba.njit(nogil=True, cache=True)
def _columns(work, hinv, scale, zero, group, quantized, errors, losses, maxq):  # type: ignore[no-untyped-def]
    """Quantize each row of `work` [rows, columns] from left to right, passing its error on.

    Frantar et al. 2023 (arXiv 2210.17323), algorithm 1, the loop over one block. Rows do not
    touch each other. All arrays are float32 but `group`, which names each column's row in `scale`
    and `zero` [groups, rows].
    """
    rows, columns = work.shape
    top = np.float32(maxq)
    value = np.empty((columns, LANES), np.float32)
    error = np.empty((columns, LANES), np.float32)
    loss = np.empty((columns, LANES), np.float32)
    s = np.ones(LANES, np.float32)
    z = np.zeros(LANES, np.float32)
    for first in range(0, rows, LANES):
        lanes = min(LANES, rows - first)
        for r in range(lanes):
            for i in range(columns):
                value[i, r] = work[first + r, i]
        for i in range(columns):
            for r in range(lanes):
                s[r] = scale[group[i], first + r]
                z[r] = zero[group[i], first + r]
            d = hinv[i, i]
            for r in range(LANES):
                code = min(max(np.rint(value[i, r] / s[r]) + z[r], np.float32(0)), top)
                q = s[r] * (code - z[r])
                e = value[i, r] - q
                value[i, r] = q
                loss[i, r] = (e * e) / (d * d)
                error[i, r] = e / d
            for j in range(i + 1, columns):
                for r in range(LANES):
                    value[j, r] -= error[i, r] * hinv[i, j]
        for r in range(lanes):
            for i in range(columns):
                quantized[first + r, i] = value[i, r]
                errors[first + r, i] = error[i, r]
                losses[first + r, i] = loss[i, r]


def update_block(
    work: Any,
    hinv: Any,
    scale: Any,
    zero: Any,
    column_group: Any,
    quantized: Any,
    errors: Any,
    losses: Any,
    maxq: int,
) -> None:
    """Fill `quantized`, `errors` and `losses` [rows, at most 128] in place."""
    arrays = (work, hinv.contiguous(), scale, zero, column_group, quantized, errors, losses)
    _columns(*(array.numpy() for array in arrays), maxq)


@lru_cache
def install() -> bool:
    """Let GPTQModel take `update_block` on the CPU where it takes its CUDA kernel on a GPU.

    It offers no setting for that, so its method is compiled again with the lines that ask for
    CUDA and for whole blocks changed. Where they are not found as they stand in the pinned
    version, nothing is changed and the slow loop stays.
    """
    from gptqmodel.quantization import gptq

    source = textwrap.dedent(inspect.getsource(gptq.GPTQ.quantize))
    changes = {
        'and W.device.type == "cuda"': 'and W.device.type == "cpu"',
        "from .gptq_cuda import block_update_available, gptq_block_update": (
            "from colazero.quantizers.on_cpu.block_update import update_block as gptq_block_update"
        ),
        "if block_update_available():": "if True:",
        # The kernel for CUDA is for whole blocks only.
        "if fused_block_update is not None and count == 128:": "if fused_block_update is not None:",
    }
    if any(source.count(old) != 1 for old in changes):
        log.warning("this GPTQModel is not the pinned one: its slow CPU loop stays.")
        return False
    for old, new in changes.items():
        source = source.replace(old, new)
    names: dict[str, Any] = {}
    exec(compile(source, gptq.__file__, "exec"), gptq.__dict__, names)
    gptq.GPTQ.quantize = names["quantize"]
    return True
