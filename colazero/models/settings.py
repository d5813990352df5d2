"""What a model directory says of its own quantization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colazero.errors import UserError, first_line


def quantization(folder: Path) -> dict[str, Any] | None:
    """Return the settings with which a directory was quantized, by whatever method; None if not."""
    found = _read(folder / "config.json").get("quantization_config")
    beside = folder / "quantize_config.json"  # AutoGPTQ's
    if not found and beside.is_file():
        found = _read(beside)
    return found or None


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged: {first_line(error)}. Fetch the model again."
        ) from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no settings but {str(found)[:40]!r}. Fetch the model again.")
    return found


def is_quantized(folder: Path) -> bool:
    """Tell whether a model directory holds quantized weights (of any method)."""
    return quantization(folder) is not None


def gptq_bits(folder: Path) -> int | None:
    """Return the bits of a GPTQ checkpoint; None of any other directory."""
    found = quantization(folder) or {}
    method, form = found.get("quant_method", "gptq"), found.get("checkpoint_format", "gptq")
    known = method in ("gptq", "gptqmodel") and form in ("gptq", "gptq_v2")
    return int(found["bits"]) if known and found.get("bits") in (2, 3, 4, 8) else None
