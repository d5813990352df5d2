"""Quantizers, one backend a file; its library is imported inside. See `interfaces.Quantizer`."""

from __future__ import annotations

from colazero.errors import UserError, unknown
from colazero.registry import Registry
from colazero.types import Quantizer

QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "colazero.quantizers")

UNQUANTIZED = "none"
"""The quantizer that leaves a model as it is: a control."""
WITHOUT_CALIBRATION = frozenset({UNQUANTIZED, "rtn"})
"""Quantizers that look at no calibration set: whatever method and seed, they do the same."""
CUDA_ONLY = frozenset({"auto-gptq"})
ACT_GROUP_AWARE = frozenset({"onepass", "gptqmodel"})
"""Quantizers that can order groups by activation."""


def check_quantizer(name: str, device: str, act_group_aware: bool | str = "auto") -> None:
    """Raise UserError if there is no such quantizer, or it cannot work so or on this device."""
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
