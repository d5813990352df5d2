"""The group size a model allows: GPTQ gives each group of inputs of a layer a scale of its own."""

from __future__ import annotations

from pathlib import Path

from colazero.errors import UserError
from colazero.models.anatomy import anatomy

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""What GPTQModel's kernels take."""
DEFAULT = 128


def layer_inputs(model_dir: Path) -> set[int]:
    """Return the input sizes of the matrices in the model's blocks, as its files hold them.

    Those of experts count, one tensor or many, and GPT-2's, which lie the other way round.
    """
    return {layer.inputs for layer in anatomy(model_dir).layers}


def resolve(group_size: int | str, inputs: set[int]) -> int:
    """Return the group size as a number; `auto` is 128, or the largest that divides all inputs.

    UserError if the given one does not divide every layer's inputs, or no kernel takes it.
    """
    if group_size == -1:  # all inputs of a layer, however many
        return -1
    dividing = [size for size in SIZES if all(n % size == 0 for n in inputs)]
    if not dividing:
        raise UserError(
            f"no group size divides the layers' inputs {sorted(inputs)}; allowed are {SIZES}."
        )
    if group_size == "auto":
        return max(size for size in dividing if size <= DEFAULT)
    if group_size not in dividing:
        raise UserError(
            f"group_size={group_size} does not fit: the model's layers have {sorted(inputs)} "
            f"inputs, which allows {', '.join(map(str, dividing))}. Take one of these, or auto."
        )
    return int(group_size)
