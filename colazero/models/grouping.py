"""The group size a model allows: GPTQ gives each group of inputs of a layer a scale of its own."""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from pathlib import Path

from colazero.cache import kept_json
from colazero.errors import UserError

SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""What GPTQModel's kernels take."""
DEFAULT = 128


def layer_inputs(model_dir: Path) -> set[int]:
    """Return the input sizes of the linear layers inside the model's blocks, without weights.

    They are kept on disk by the model's configuration: to find them, seconds of imports are needed.
    """
    file = model_dir / "config.json"
    digest = hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()[:24]
    name = f"layers/{digest}-{version('transformers')}.json"
    return set(kept_json(name, lambda: sorted(_layer_inputs(model_dir))))


def _layer_inputs(model_dir: Path) -> set[int]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{model_dir} is no causal language model that transformers knows: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return {
        module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(part.isdigit() for part in name.split("."))
    }


def resolve(group_size: int | str, inputs: set[int]) -> int:
    """Return the group size as a number; `auto` is 128, or the largest that divides all inputs.

    UserError if the given one does not divide every layer's inputs, or no kernel takes it.
    """
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
