"""Any model directory, or a model just quantized → a dense half-precision model to evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colazero.blocks.weights import eval_dtype, quantization_settings
from colazero.errors import UserError
from colazero.models import is_quantized
from colazero.models.files import NEEDED, PACKED, packings, weight_files
from colazero.models.fit import causal_class


def load_dense(model_dir: Path, device: str) -> Any:
    """Load a model directory, quantized by whomever or not, as a dense model in evaluation mode.

    UserError if it cannot be loaded.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    try:
        if is_compressed(model_dir):
            return _decompressed(model_dir, device)
        if is_quantized(model_dir):
            tensors: dict[str, Any] = {}
            for file in weight_files(model_dir):
                tensors |= load_file(file)
            return dense(tensors, model_dir, device)
        dtype = eval_dtype(model_dir, device)
        model, loading = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        _complete(loading)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model directory {str(model_dir)!r} cannot be loaded: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval()


def is_compressed(model_dir: Path) -> bool:
    """Tell whether the checkpoint is llm-compressor's (compressed-tensors)."""
    config = json.loads((model_dir / "config.json").read_text()).get("quantization_config") or {}
    return bool(config.get("quant_method") == "compressed-tensors")


def _decompressed(model_dir: Path, device: str) -> Any:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    model, loading = AutoModelForCausalLM.from_pretrained(
        model_dir,
        dtype=eval_dtype(model_dir, device),
        quantization_config=CompressedTensorsConfig(run_compressed=False),
        trust_remote_code=False,
        output_loading_info=True,
    )
    _complete(loading)
    return model.to(device).eval()


def dense(tensors: Mapping[str, Any], model_dir: Path, device: str) -> Any:
    """Return a dense model of a GPTQ checkpoint's tensors; `model_dir` has its configuration.

    The packed layers are dequantized once: the products of their dense weights are what a GPTQ
    kernel computes, and several times faster than the portable kernels. ValueError if the
    checkpoint is of another kind, KeyError if it is incomplete.
    """
    import torch

    from colazero.gptq import dequantize

    dtype = eval_dtype(model_dir, device)
    settings = quantization_settings(model_dir)
    model_class, config = causal_class(model_dir)
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        packed = packings(model_class(config), tensors)
    inside = {layer + part for one in packed.values() for layer in one.layers for part in PACKED}
    weights = {name: tensor for name, tensor in tensors.items() if name not in inside}

    def dequantized(layer: str) -> Any:
        parts = {p: tensors[layer + p].to(device) for p in NEEDED}
        if f"{layer}g_idx" in tensors:
            parts["g_idx"] = tensors[f"{layer}g_idx"].to(device)
        own = dict(settings)
        if "g_idx" in parts:  # layers may have other bits than the configuration's
            own["bits"] = 32 * len(parts["qweight"]) // len(parts["g_idx"])
        return dequantize(**parts, **own).to(dtype)

    for name, packing in packed.items():
        weight = packing.joined([dequantized(layer) for layer in packing.layers])
        weights[name] = weight.cpu()  # else a GPU would hold the model twice
    model, loading = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    _complete(loading)
    return model.to(device).eval()


def _complete(loading: Mapping[str, Any]) -> None:
    """Raise KeyError for weights that were not there: transformers makes random ones of them."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise KeyError(f"{len(missing)} weights are missing, {missing[0]!r} among them")
