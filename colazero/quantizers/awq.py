"""AWQ (Lin et al. 2024, arXiv 2306.00978) block by block: scales, clipping, rounding at 4 bits.

As published, a block is calibrated on what the unquantized blocks before it compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazero.errors import UserError
from colazero.quantizers import QUANTIZERS
from colazero.quantizers.onepass import Solver, by_blocks
from colazero.types import QuantizationReport, Work

if TYPE_CHECKING:
    from colazero.blocks.sequence import Sequence, Stream

UNCLIPPED = ("q_proj", "k_proj")
"""Layers that are not clipped: the product of two of them is what counts."""
TOLERANCE = 0.05
"""How far a block whose scales were moved may be from the block itself, relative."""


@dataclass(frozen=True)
class Fusion:
    """Linear layers with one input, and the module before them that takes the inverse scales."""

    before: str
    layers: tuple[str, ...]


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
STRUCTURES = (
    (  # Llama, Mistral, Qwen
        Fusion("input_layernorm", ATTENTION),
        Fusion("self_attn.v_proj", ("self_attn.o_proj",)),
        Fusion("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        Fusion("mlp.up_proj", ("mlp.down_proj",)),
    ),
    (  # OPT
        Fusion("self_attn_layer_norm", ATTENTION),
        Fusion("self_attn.v_proj", ("self_attn.out_proj",)),
        Fusion("final_layer_norm", ("fc1",)),
        Fusion("fc1", ("fc2",)),
    ),
)


@QUANTIZERS.register("awq")
def quantize(work: Work) -> QuantizationReport:
    """Quantize a model and write a checkpoint in AWQ's GEMM layout, see `onepass.by_blocks`.

    Raise UserError, before any block, if the module before a layer is unknown.
    """
    awq, windows = Awq(work.settings.group_size), len(work.calibration.windows)
    return by_blocks(work, awq, solver_of=Scaler, micro_batches=windows)


class Awq:
    """The method for a group size; `fusions`: the model's, once they are known."""

    def __init__(self, group_size: int) -> None:
        self.group_size, self.quantization = group_size, quantization_config(group_size)
        self.fusions: tuple[Fusion, ...] = ()


class Scaler(Solver):
    """Scales, clips and rounds one block. method: an `Awq`."""

    def __init__(self, sequence: Sequence, index: int, method: Any, _weights: None) -> None:
        super().__init__(sequence, index, method)
        method.fusions = method.fusions or structure(sequence)
        self._fusions, self._group_size = method.fusions, method.group_size

    def solves(self, _name: str) -> bool:
        return False

    def run(self, block: Any, stream: Stream | None) -> None:
        """Give the block its quantized weights, and divide what comes before them by the scales."""
        from colazero.gptq.awq import Activations

        device, weights = self._sequence.device, self._sequence.weights
        firsts = [one.layers[0] for one in self._fusions]
        self._seen = {
            layer: Activations(block.get_submodule(layer).in_features, device) for layer in firsts
        }
        assert stream, "AWQ calibrates"
        self._sequence.observe(self._index, stream, self._seen)
        names = [n for n in block.state_dict() if self._known(n) in weights]
        stored = {name: weights.stored(self._known(name)) for name in names}
        dense = {n: t.to(device).float() if t.is_floating_point() else t for n, t in stored.items()}
        found = {one: self._scales(one, dense) for one in self._fusions}  # of the unscaled weights
        for one, (scales, _) in found.items():
            fuse(dense, one, scales)
        for one, (scales, alpha) in found.items():
            seen = self._seen[one.layers[0]]
            value = seen.hessian.value() / scales / scales[:, None]
            for layer in one.layers:
                self._round(block, layer, dense[f"{layer}.weight"], value, alpha, seen.tokens)
        for name in (name for name in names if not super(Scaler, self).solves(name)):
            saved = dense[name].to(stored[name].dtype)
            self._keep(self._known(name), "", {"": saved})
            kind = block.state_dict()[name].dtype
            block.load_state_dict({name: saved.to(device, kind)}, strict=False, assign=True)

    def _known(self, name: str) -> str:
        return self._sequence.at(self._index, name)

    def _size(self, inputs: int) -> int:
        return inputs if self._group_size == -1 else self._group_size

    def _scales(self, one: Fusion, dense: Mapping[str, Any]) -> tuple[Any, float]:
        """Return the scales of layers with one input and their exponent: ones where none fit."""
        import torch

        from colazero.gptq import awq

        weights = [dense[f"{layer}.weight"] for layer in one.layers]
        seen, inputs = self._seen[one.layers[0]], weights[0].shape[1]
        if len(dense[f"{one.before}.weight"]) != inputs:  # several heads share a value
            return torch.ones(inputs, device=weights[0].device), 0.0
        size = self._size(inputs)
        return awq.find_scales(weights, seen.hessian.value(), seen.magnitudes, size)

    def _round(
        self, block: Any, layer: str, weight: Any, value: Any, alpha: float, tokens: int
    ) -> None:
        from torch import nn

        from colazero.blocks.weights import fingerprint
        from colazero.gptq import awq
        from colazero.gptq.packing import pack_awq
        from colazero.gptq.solving import to_nearest

        known = self._known(f"{layer}.weight")
        size = self._size(weight.shape[1])
        cut = weight if layer.endswith(UNCLIPPED) else awq.clipped(weight, value, size)
        solved = to_nearest(cut, size, awq.BITS, sym=False)
        module = block.get_submodule(layer)
        new = solved.weight(module.weight.dtype)
        module.weight = nn.Parameter(new, requires_grad=False)
        self.solved[known] = fingerprint(new)
        self._keep(known, "weight", pack_awq(solved))
        lost = float(awq.loss(weight, new.float(), value)) / tokens
        row = {"layer": self._index, "module": layer, "loss": lost, "damp": 0.0, "alpha": alpha}
        self.rows.append(row | {"rtn_fallback": False, "samples": tokens})


def fuse(dense: dict[str, Any], one: Fusion, scales: Any) -> None:
    for layer in one.layers:
        dense[f"{layer}.weight"] = dense[f"{layer}.weight"] * scales
    for part in ("weight", "bias"):
        name = f"{one.before}.{part}"
        if name in dense and len(dense[name]) == len(scales):
            dense[name] = dense[name] / (scales[:, None] if dense[name].dim() == 2 else scales)


def structure(sequence: Sequence) -> tuple[Fusion, ...]:
    """Return which module comes before which linear layers in each block.

    UserError if the blocks have other layers than the known structures, or if a block computes
    something else once scales are moved from layers to what is taken to come before them.
    """
    from colazero.blocks.probe import linears

    fusions = next(
        (
            one
            for one in STRUCTURES
            if all(
                set(linears(block)) == {layer for part in one for layer in part.layers}
                for block in sequence.blocks
            )
        ),
        None,
    )
    if fusions is None or not _computes_the_same(sequence, fusions):
        raise UserError(
            "it is not known which module comes before which layer of its blocks: AWQ is "
            "supported for blocks like those of Llama and OPT"
        )
    return fusions


def _computes_the_same(sequence: Sequence, fusions: tuple[Fusion, ...]) -> bool:
    """Return True if moving random scales leaves what the first block adds to its input."""
    import numpy as np
    import torch

    ids = np.arange(32).reshape(2, 16) % sequence.model.config.get_text_config().vocab_size
    streams = [sequence.begin(ids, 2) for _ in range(2)]
    before, draw = streams[0].hidden.clone(), torch.Generator().manual_seed(0)
    with sequence.filled(0, ahead=False) as block:
        sequence.advance(0, streams[0])
        moved = {name: tensor.float() for name, tensor in block.state_dict().items()}
        for one in fusions:
            if f"{one.before}.weight" not in moved:
                return False
            inputs = moved[f"{one.layers[0]}.weight"].shape[1]
            if len(moved[f"{one.before}.weight"]) == inputs:
                scales = torch.rand(inputs, generator=draw).to(sequence.device) * 1.5 + 0.5
                fuse(moved, one, scales)
        same = {name: moved[name].to(tensor.dtype) for name, tensor in block.state_dict().items()}
        block.load_state_dict(same, assign=True)
        sequence.advance(0, streams[1])
    added = [(stream.hidden - before).float() for stream in streams]
    return float((added[0] - added[1]).norm()) < TOLERANCE * float(added[0].norm())


def why_not(folder: Path, device: str) -> str:
    """Return why AWQ does not support a model that can be quantized by blocks; '' if it does."""
    from colazero.blocks.probe import open_sequence

    try:
        structure(open_sequence(folder, device, to_quantize=True))
    except UserError as refused:
        return str(refused)
    return ""


def quantization_config(group_size: int) -> dict[str, Any]:
    from colazero import __version__

    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": group_size,
        "zero_point": True,
        "modules_to_not_convert": None,
        "meta": {"quantizer": [f"colazero:{__version__}"]},
    }
