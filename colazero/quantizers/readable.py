"""Which models' checkpoints by GPTQModel 7.6 can be read back, told before hours of work.

GPTQModel takes some fused layers apart and keeps the parts under names of its own, which
transformers does not know; the weights of GPT-2's layers lie the other way round.
"""

from __future__ import annotations

import json
from pathlib import Path

from colazero.errors import UserError
from colazero.models.anatomy import Layer, anatomy
from colazero.models.files import stored, weight_files

BY_GPTQMODEL = frozenset({"gptqmodel", "rtn"})
RENAMED = frozenset({"phimoe"})
"""Model types whose experts GPTQModel renames (tried on tiny models of random weights)."""


def check_readable(quantizer: str, name: str, folder: Path) -> None:
    """Raise UserError if the quantizer's checkpoint of this model could not be evaluated."""
    if quantizer not in BY_GPTQMODEL:
        return
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    odd = [layer.name for layer in anatomy(folder).layers if _is_odd(layer)]
    if odd or kind in RENAMED:
        layer = f" (as {odd[0]!r})" if odd else ""
        raise UserError(
            f"quantizer={quantizer!r} stores the layers of model {name!r} (model_type {kind!r}) "
            f"under names or in an order of its own{layer}: what it makes could not be read back. "
            "Use quantizer=onepass, which keeps transformers' names, or another model."
        )


def _is_odd(layer: Layer) -> bool:
    """Tell whether a layer is turned, or several in one that GPTQModel takes apart."""
    fused = layer.kind == "experts" and layer.name.rpartition(".")[2] != "weight"
    return layer.kind == "conv1d" or fused or ".gate_up_proj." in layer.name


def left_dense(model: Path, checkpoint: Path) -> tuple[str, ...]:
    """Return the matrices of a model's blocks that a GPTQ checkpoint of it does not pack."""
    packed = {name.removesuffix("qweight") for name in stored(weight_files(checkpoint))}
    layers = (layer.name for layer in anatomy(model).layers)
    return tuple(name for name in layers if name.removesuffix("weight") not in packed)
