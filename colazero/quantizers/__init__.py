"""Quantizers, one file per library. Each takes a `types.Work` and imports its library inside."""

from __future__ import annotations

from colazero.errors import UserError, unknown
from colazero.registry import Registry
from colazero.types import Quantizer

QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "colazero.quantizers")

UNQUANTIZED = "none"
"""The quantizer that leaves a model as it is: a control."""
WITHOUT_CALIBRATION = frozenset({UNQUANTIZED, "rtn", "magnitude"})
"""Quantizers that use no calibration set: every method and seed gives the same result."""
CUDA_ONLY = frozenset({"auto-gptq"})
ACT_GROUP_AWARE = frozenset({"onepass", "gptqmodel"})
"""Quantizers that can order groups by activation."""
BY_BLOCKS = frozenset({"onepass", "awq", "magnitude", "wanda", "sparsegpt"})
"""Quantizers that hold one block of the model at a time."""
COMPILERS = ("numba",)
"""Packages that compile GPTQ's kernels: their versions decide when a result may be reused."""


def check_quantizer(name: str, device: str, act_group_aware: bool | str = "auto") -> None:
    """Raise UserError if there is no such quantizer, or it cannot run with this device or order."""
    names = [*QUANTIZERS.names(), UNQUANTIZED]
    if name not in names:
        raise unknown("quantizer", name, names)
    if name == "auto-gptq" and act_group_aware is True:
        raise UserError("quantizer='auto-gptq' has no act_group_aware: set it to false or auto.")
    if name in CUDA_ONLY and not device.startswith("cuda"):
        raise UserError(
            f"quantizer={name!r} needs a CUDA device, and this run has device={device!r}. Use "
            "quantizer=gptqmodel, its successor, which works on a CPU too."
        )
