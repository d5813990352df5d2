"""Which models a quantizer takes, told before any work; and what it left as it was.

`onepass` solves the weights of `nn.Linear` alone. GPTQModel 7.6 takes several experts in one tensor
apart, and keeps the parts under names that transformers does not know: what it makes of such a
model could not be read back.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path

from colazero.errors import UserError
from colazero.models.files import gptq_bits, parts_of, stored, weight_files
from colazero.models.fit import Layer, examine

BY_GPTQMODEL = frozenset({"gptqmodel", "rtn"})
CALIBRATED = ("onepass", "gptqmodel")
"""What is recommended where another quantizer does not take a model."""
RENAMED = frozenset({"phimoe", "granitemoe"})
"""Model types whose experts GPTQModel renames (tried on tiny models of random weights)."""
MASKED = frozenset({"mpt"})
"""Model types whose blocks get a mask that is true where a token must *not* be looked at. GPTQModel
takes it for one of padding, the other way round, and so for the first token of each window."""


def check_model(quantizer: str, name: str, folder: Path) -> None:
    """Raise UserError if the quantizer does not take the model, as the heads of its files tell."""
    _check(quantizer, name, folder, _told)


@lru_cache(maxsize=4)
def try_model(quantizer: str, name: str, folder: Path, device: str) -> None:
    """Do as `check_model`, and look at what only the quantizer's own code tells.

    `onepass` runs the model on a few tokens, once a model and version.
    """

    def why_not(one: str, where: Path) -> str:
        return _told(one, where) or _tried(one, where, device)

    _check(quantizer, name, folder, why_not)


def _check(quantizer: str, name: str, folder: Path, why_not: Callable[[str, Path], str]) -> None:
    why = why_not(quantizer, folder)
    if not why:
        return
    others = [one for one in CALIBRATED if one != quantizer and not why_not(one, folder)]
    way = f"Use quantizer={others[0]}, or" if others else "No quantizer here does:"
    raise UserError(
        f"quantizer={quantizer!r} does not take model {name!r} (model_type {_kind(folder)!r}): "
        f"{why}. {way} take another model."
    )


def _told(quantizer: str, folder: Path) -> str:
    """Return why a quantizer does not take a model; '' if its files tell no reason."""
    layers = examine(folder).layers
    if quantizer == "onepass":
        odd = _first(layer for layer in layers if layer.kind != "linear")
        return f"its weight {odd!r} is in no nn.Linear" if odd else ""
    if quantizer not in BY_GPTQMODEL:
        return ""
    if quantizer == "gptqmodel" and _kind(folder) in MASKED:
        return "GPTQModel would leave the first token of each window out"
    fused = _first(layer for layer in layers if layer.kind == "experts" and _fused(layer))
    what = repr(fused) if fused else "its experts" if _kind(folder) in RENAMED else ""
    return f"it would store {what} under other names, and not be read back" if what else ""


def _tried(quantizer: str, folder: Path, device: str) -> str:
    """Return why a quantizer does not take a model that its files let through; '' if it does."""
    if quantizer == "onepass":
        from colazero.blocks.probe import open_sequence
        from colazero.blocks.weights import Refused

        try:
            open_sequence(folder, device, to_quantize=True)
        except Refused as refused:
            return refused.why
    if quantizer in BY_GPTQMODEL:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it greets
            from gptqmodel.models.auto import SUPPORTED_MODELS

        if _kind(folder) not in SUPPORTED_MODELS:
            # The order of its guess differs from one process to the next.
            return "GPTQModel does not know this architecture, and would guess its layers"
    return ""


def _kind(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text()).get("model_type"))


def _fused(layer: Layer) -> bool:
    """Tell whether the files themselves hold several experts in one tensor."""
    return layer.name.rpartition(".")[2] != "weight"


def _first(layers: Iterable[Layer]) -> str:
    return next((layer.name for layer in layers), "")


def left_dense(model: Path, checkpoint: Path) -> tuple[str, ...]:
    """Return the matrices of a model's blocks that a GPTQ checkpoint of it does not pack.

    Where a packed layer has no name of the model's (GPTQModel calls Mixtral's w1 gate_proj), it
    stands for a matrix of its size.
    """
    heads = stored(weight_files(checkpoint))
    packed = {name.removesuffix("qweight") for name in heads if name.endswith(".qweight")}
    left: list[Layer] = []
    used: set[str] = set()
    for layer in examine(model).layers:
        stem = layer.name.removesuffix("weight")
        for stored_as in ((stem,), parts_of(stem)):
            if stored_as and packed.issuperset(stored_as):
                used.update(stored_as)
                break
        else:
            left.append(layer)
    bits = gptq_bits(checkpoint) or 4
    spare: Counter[tuple[int, ...]] = Counter()
    for name in packed - used:
        rows, outputs = heads[f"{name}qweight"].shape
        spare[rows * 32 // bits, outputs] += 1
    dense = []
    for layer in left:
        spare[layer.inputs, layer.outputs] -= 1
        if spare[layer.inputs, layer.outputs] < 0:
            dense.append(layer.name)
    return tuple(dense)
