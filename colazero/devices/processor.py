"""What CPUs of a kind compute in."""

from __future__ import annotations

from pathlib import Path

CPU = Path("/proc/cpuinfo")
"""Where Linux tells what instructions a CPU has."""


def cpu_dtype(device: str) -> str:
    """Return the name of the dtype that CPUs of this kind compute in; for others, `own`.

    It is part of a result, and so of its key.
    """
    if device != "cpu":
        return "own"
    try:
        flags = set(CPU.read_text().split())
    except OSError:
        flags = set()
    return "bfloat16" if flags & {"avx512_bf16", "amx_bf16"} else "float32"
