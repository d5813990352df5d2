"""The group size that a model allows: GPTQ gives each group of a layer's inputs its own scale."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import facts_digest, file_digest, kept_json, own_code
from colazero.errors import UserError
from colazero.models.files import model_type
from colazero.models.fit import examine

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""The group sizes of GPTQModel's kernels."""
DEFAULT = 128
BY_MODULE_TREE = ("gptqmodel", "rtn")
"""Quantizers that take the layers in GPTQModel's module tree; others take all in the blocks."""


def layer_inputs(model_dir: Path, quantizer: str = "onepass") -> set[int]:
    """Return the input sizes of the matrices that a quantizer takes, as the files hold them.

    Experts count, in one tensor or many. UserError if it takes none: every size would fit.
    """
    layers = examine(model_dir).layers
    if quantizer in BY_MODULE_TREE and (tree := _module_tree(model_dir)):
        layers = tuple(
            one for one in layers if one.kind == "experts" or one.module.rpartition(".")[2] in tree
        )
    if not layers and quantizer != "none":
        raise UserError(
            f"{model_dir}: quantizer={quantizer!r} finds no layer to quantize in the model's "
            "blocks. Name another model."
        )
    return {layer.inputs for layer in layers}


def _module_tree(model_dir: Path) -> list[str]:
    """Return the last names of the modules that GPTQModel quantizes; [] if it cannot say."""
    digest = file_digest(model_dir / "config.json")
    key = facts_digest(digest, version("gptqmodel"), own_code(__name__))

    def asked() -> list[str]:
        definition = gptqmodel_definitions().get(model_type(model_dir))
        if definition is None:
            return []
        from gptqmodel import QuantizeConfig
        from transformers import AutoConfig

        try:
            text = AutoConfig.from_pretrained(model_dir).get_text_config(decoder=True)
            found = definition.simple_layer_modules(text, QuantizeConfig())
        except Exception:  # its definitions expect fields that some configurations lack
            return []
        return sorted({name.split(":")[0].rpartition(".")[2] for group in found for name in group})

    found: list[str] = kept_json(f"anatomy/tree-{key}.json", asked)
    return found


def gptqmodel_definitions() -> dict[str, Any]:
    """Return model type → GPTQModel's definition of its layers."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints a banner
        from gptqmodel.models.auto import MODEL_MAP
    return dict(MODEL_MAP)


def resolve(group_size: int | str, inputs: set[int]) -> int:
    """Return the group size as a number; `auto` is 128, or the largest that divides all inputs.

    UserError if the given one does not divide every layer's inputs, or no kernel takes it.
    """
    if group_size == -1:  # one group for all inputs of a layer
        return -1
    dividing = [size for size in SIZES if all(n % size == 0 for n in inputs)]
    if not dividing:
        raise UserError(
            f"group_size={group_size}: no group size divides the layers' inputs {sorted(inputs)}; "
            f"allowed are -1 (one group per output) and {', '.join(map(str, SIZES))}."
        )
    if group_size == "auto":
        return max(size for size in dividing if size <= DEFAULT)
    if group_size not in dividing:
        raise UserError(
            f"group_size={group_size} does not fit: the model's layers have {sorted(inputs)} "
            f"inputs, which allows {', '.join(map(str, dividing))}. Take one of these, or auto."
        )
    return int(group_size)
