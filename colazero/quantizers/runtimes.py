"""Which runtimes load a GPTQ checkpoint, by its settings."""

from __future__ import annotations

VLLM = "0.33"
"""The version whose limits stand here."""
VLLM_BITS, VLLM_GROUPS = (4, 8), (-1, 32, 64, 128)


def refused_by_vllm(bits: int, group_size: int, sym: bool) -> str:
    """Return why vLLM does not load a checkpoint of these settings; '' if it does."""
    if bits in VLLM_BITS and group_size in VLLM_GROUPS and sym:
        return ""
    groups = ", ".join(map(str, VLLM_GROUPS[:-1]))
    return (
        f"vLLM {VLLM} loads GPTQ of {' or '.join(map(str, VLLM_BITS))} bits, symmetric, with "
        f"groups of {groups} or {VLLM_GROUPS[-1]} only (this: {bits} bits, sym={str(sym).lower()}, "
        f"group_size={group_size})"
    )
