"""The models, group sizes and runtimes that a quantizer supports, and checks of checkpoints.

Quantizers that work by blocks solve the weights of `nn.Linear` alone. GPTQModel 7.6 splits several
experts in one tensor and stores the parts under names that transformers does not know. Such a model
could not be read back.
"""

from __future__ import annotations

import importlib
import io
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from colazero.cache import facts_digest, file_digest, kept_json, own_code
from colazero.errors import UserError
from colazero.models.files import model_type, packed, parts_of, stored, weight_files
from colazero.models.fit import Layer, examine
from colazero.quantizers import BY_BLOCKS

log = logging.getLogger(__name__)

BY_GPTQMODEL = frozenset({"gptqmodel", "rtn"})
"""Quantizers that take the layers in GPTQModel's module tree; others take all in the blocks."""
CALIBRATED = ("onepass", "gptqmodel")
"""Quantizers to recommend where another one does not take a model."""
RENAMED = frozenset({"phimoe", "granitemoe"})
"""Model types whose experts GPTQModel renames (tried on tiny models of random weights)."""
MASKED = frozenset({"mpt"})
"""Model types whose blocks get a mask that is true where a token must *not* be attended to.
GPTQModel reads it as a padding mask, the other way round, and drops each window's first token."""
SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""The group sizes of GPTQModel's kernels."""
GROUP_SIZE = 128
"""The group size of most published results: `auto`, where it divides all inputs."""
VLLM = "0.33"
"""The version whose limits stand here."""
VLLM_BITS, VLLM_GROUPS = (4, 8), (-1, 32, 64, 128)
LEAST_SCALE, LARGEST_SCALE = 2.0**-21, 65_504.0
"""Between them float16 holds a scale within 1/16. Below, its steps of 2⁻²⁴ are too coarse."""


def check_model(quantizer: str, name: str, folder: Path) -> None:
    """Raise UserError if a model's file headers show that the quantizer does not support it."""
    _check(quantizer, name, folder, _by_files)


@lru_cache(maxsize=4)
def try_model(quantizer: str, name: str, folder: Path, device: str) -> None:
    """Raise UserError as `check_model` does, or if running the model shows it.

    A quantizer by blocks runs it on a few tokens, GPTQModel a random model with some of its blocks;
    both once per model and version.
    """
    _check(quantizer, name, folder, lambda one, where: why_not(one, where, device))


def _check(quantizer: str, name: str, folder: Path, reason: Callable[[str, Path], str]) -> None:
    why = reason(quantizer, folder)
    if not why:
        return
    others = [one for one in CALIBRATED if one != quantizer and not reason(one, folder)]
    way = f"Use quantizer={others[0]}, or" if others else "No quantizer here does:"
    raise UserError(
        f"quantizer={quantizer!r} does not take model {name!r} (model_type "
        f"{model_type(folder)!r}): {why}. {way} take another model."
    )


def _by_files(quantizer: str, folder: Path) -> str:
    """Return why a quantizer does not support a model, by its files; '' for no reason."""
    layers = examine(folder).layers
    if quantizer in BY_BLOCKS:
        odd = next((layer.name for layer in layers if layer.kind != "linear"), "")
        return f"its weight {odd!r} is in no nn.Linear" if odd else ""
    if quantizer not in BY_GPTQMODEL:
        return ""
    if quantizer == "gptqmodel" and model_type(folder) in MASKED:
        return "GPTQModel would leave the first token of each window out"
    # The name of a tensor that holds several experts does not end in `weight`.
    experts = (layer.name for layer in layers if layer.kind == "experts")
    fused = next((name for name in experts if not name.endswith(".weight")), "")
    what = repr(fused) if fused else "its experts" if model_type(folder) in RENAMED else ""
    return f"it would store {what} under other names, and not be read back" if what else ""


def why_not(quantizer: str, folder: Path, device: str) -> str:
    """Return why a quantizer does not support a model, by its files or a trial; '' if it does."""
    why = _by_files(quantizer, folder)
    if why or quantizer not in (*BY_BLOCKS, *BY_GPTQMODEL):
        return why
    if quantizer in BY_BLOCKS:
        from colazero.blocks.probe import open_sequence
        from colazero.blocks.weights import Refused

        try:
            open_sequence(folder, device, to_quantize=True)
        except Refused as refused:
            return refused.why
        return str(_module("awq").why_not(folder, device)) if quantizer == "awq" else ""
    if model_type(folder) not in gptqmodel_definitions():
        # The order of its guess differs between processes.
        return "GPTQModel does not know this architecture, and would guess its layers"
    # Being on that list is not support. A model that runs block by block has no odd blocks.
    if not why_not("onepass", folder, device):
        return ""
    return str(_module("gptqmodel").why_not(folder, device))


def _module(name: str) -> Any:
    # By name: an import would make its source decide the results of every quantizer.
    return importlib.import_module(f"colazero.quantizers.{name}")


def refuse_lost_scales(model: str, checkpoint: Path) -> int:
    """Return how many groups of a GPTQ checkpoint have a scale that float16 cannot hold.

    Their weights are wrong by more than rounding. Warn if there are any; UserError if they are most
    of a layer.
    """
    from safetensors import safe_open

    lost: dict[str, tuple[int, int]] = {}
    for file in weight_files(checkpoint):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if name.endswith(".scales"):
                    scales = tensors.get_tensor(name).float().abs()
                    held = int(((scales >= LEAST_SCALE) & (scales < LARGEST_SCALE)).sum())
                    if held < scales.numel():
                        layer, groups = name.removesuffix(".scales"), scales.numel()
                        lost[layer] = groups - held, groups
    if not lost:
        return 0
    worst = max(lost, key=lambda layer: lost[layer][0] / lost[layer][1])
    count, groups = lost[worst]
    said = (
        f"{count:,} of {groups:,} groups of layer {worst!r} have a scale outside what GPTQ's "
        "format holds, float16 from 5e-7 to 65,504"
    )
    if 2 * count > groups:
        raise UserError(
            f"model {model!r}: {said}. Quantized, the layer would be worse than zeros. Its weights "
            "are too small or too large: rescale them, or take another model."
        )
    total = sum(count for count, _ in lost.values())
    log.warning("%s: %s; %d in all. Their weights are wrong.", model, said, total)
    return total


def left_dense(model: Path, checkpoint: Path) -> tuple[str, ...]:
    """Return the matrices of a model's blocks that its GPTQ checkpoint does not pack.

    A packed layer whose name the model does not have stands for a matrix of its size: GPTQModel
    calls Mixtral's w1 gate_proj.
    """
    heads = stored(weight_files(checkpoint))
    there = {name.removesuffix("qweight") for name in heads if name.endswith(".qweight")}
    left: list[Layer] = []
    used: set[str] = set()
    for layer in examine(model).layers:
        stem = layer.name.removesuffix("weight")
        for stored_as in ((stem,), parts_of(stem)):
            if stored_as and there.issuperset(stored_as):
                used.update(stored_as)
                break
        else:
            left.append(layer)
    bits = (packed(checkpoint) or {"bits": 4})["bits"]
    spare: Counter[tuple[int, ...]] = Counter()
    for name in there - used:
        rows, outputs = heads[f"{name}qweight"].shape
        spare[rows * 32 // bits, outputs] += 1
    dense = []
    for layer in left:
        spare[layer.inputs, layer.outputs] -= 1
        if spare[layer.inputs, layer.outputs] < 0:
            dense.append(layer.name)
    return tuple(dense)


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


def layer_inputs(model_dir: Path, quantizer: str = "onepass") -> set[int]:
    """Return the input sizes of the matrices that a quantizer takes, as the files hold them.

    Experts count, in one tensor or many. UserError if it takes none: every size would fit.
    """
    layers = examine(model_dir).layers
    if quantizer in BY_GPTQMODEL and (tree := _module_tree(model_dir)):
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


def resolve_group_size(group_size: int | str, inputs: set[int]) -> int:
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
        return max(size for size in dividing if size <= GROUP_SIZE)
    if group_size not in dividing:
        raise UserError(
            f"group_size={group_size} does not fit: the model's layers have {sorted(inputs)} "
            f"inputs, which allows {', '.join(map(str, dividing))}. Take one of these, or auto."
        )
    return int(group_size)
