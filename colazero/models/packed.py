"""GPTQ checkpoints: which packed layers are which weight of transformers' model.

Most stand under their module's name, and are the weight turned over. GPTQModel keeps the parts of
some fused layers; GPT-2's `Conv1D` holds its weight as it is packed, [inputs, outputs].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

PACKED = ("qweight", "qzeros", "scales", "g_idx")
"""The tensors that stand for a layer's weight."""
NEEDED = PACKED[:-1]
"""Without `g_idx` the groups are in order."""
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}
"""Fused layers of transformers (Phi-3, GLM) and the parts, outputs after outputs, that GPTQModel
7.6 makes of them."""


@dataclass(frozen=True)
class Packing:
    """The packed layers of a weight, each as its tensors' names begin (`lm_head.`).

    `turned`: the weight is [inputs, outputs].
    """

    layers: tuple[str, ...]
    turned: bool

    def joined(self, parts: Sequence[Any]) -> Any:
        """Return the weight that dequantized layers [inputs, outputs] make."""
        import torch

        whole = parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)
        return (whole if self.turned else whole.T).contiguous()


def packings(model: Any, names: Collection[str]) -> dict[str, Packing]:
    """Return weight → its packed layers, of the tensors `names` in a checkpoint of `model`.

    Names are the checkpoint's, which may leave out what the model puts before its decoder's.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())

    def module(layer: str) -> Any:
        name = layer.removesuffix(".")
        return modules.get(name) or modules.get(f"{model.base_model_prefix}.{name}")

    there = {name.removesuffix("qweight") for name in names if name.endswith(".qweight")}
    found = {}
    for layer in sorted(there):
        whole = fused_of(layer)
        apart = bool(whole) and module(whole) is not None and there.issuperset(parts_of(whole))
        name, layers = (whole, parts_of(whole)) if apart else (layer, (layer,))
        found[f"{name}weight"] = Packing(layers, isinstance(module(name), Conv1D))
    return found


def parts_of(layer: str) -> tuple[str, ...]:
    """Return the parts in which GPTQModel keeps a layer; none of one that it keeps whole."""
    stem, _, last = layer.removesuffix(".").rpartition(".")
    return tuple(f"{stem}.{part}." for part in FUSED.get(last, ()))


def fused_of(layer: str) -> str:
    """Return the layer that one may be a part of; '' if of none."""
    stem, _, last = layer.removesuffix(".").rpartition(".")
    return next((f"{stem}.{fused}." for fused, parts in FUSED.items() if last in parts), "")
