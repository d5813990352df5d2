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


@numba.njit(nogil=True, cache=True)
def _columns(work, hinv, scale, zero, group, quantized, errors, losses, maxq):  # type: ignore[no-untyped-def]
    """Quantize each row of `work` [rows, columns] from left to right, passing its error on.

    Frantar et al. 2023 (arXiv 2210.17323), algorithm 1, the loop over one block. Rows do not
    touch each other. All arrays are float32 but `group`, which names each column's row in `scale`
    and `zero` [groups, rows].
    """
    rows, columns = work.shape
    top = np.float32(maxq)
    for r in range(rows):
        row = work[r]
        for i in range(columns):
            g = group[i]
            s, z = scale[g, r], zero[g, r]
            code = min(max(np.rint(row[i] / s) + z, np.float32(0)), top)
            value = s * (code - z)
            error = row[i] - value
            d = hinv[i, i]
            quantized[r, i] = value
            losses[r, i] = (error * error) / (d * d)
            error = error / d
            errors[r, i] = error
            for j in range(i, columns):
                row[j] -= error * hinv[i, j]


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
    """Fill `quantized`, `errors` and `losses` [rows, 128] in place; `work` is used up."""
    arrays = [t.numpy() for t in (scale, zero, column_group, quantized, errors, losses)]
    # Contiguous, so that the innermost loop becomes vector instructions.
    _columns(work.contiguous().numpy(), hinv.contiguous().numpy(), *arrays, maxq)


@lru_cache
def install() -> bool:
    """Let GPTQModel take `update_block` on the CPU where it takes its CUDA kernel on a GPU.

    It offers no setting for that, so its method is compiled again with the two lines that ask for
    CUDA changed. Where they are not found as they stand in the pinned version, nothing is changed
    and the slow loop stays.
    """
    from gptqmodel.quantization import gptq

    source = textwrap.dedent(inspect.getsource(gptq.GPTQ.quantize))
    changes = {
        'and W.device.type == "cuda"': 'and W.device.type == "cpu"',
        "from .gptq_cuda import block_update_available, gptq_block_update": (
            "from colazero.quantizers.block_update import update_block as gptq_block_update"
        ),
        "if block_update_available():": "if True:",
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
