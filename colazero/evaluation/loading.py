"""Any model directory, or a model just quantized → a dense half-precision model to evaluate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from colazero.errors import UserError
from colazero.models import is_quantized
from colazero.models.anatomy import causal_class
from colazero.models.files import weight_files


def eval_dtype(model_dir: Path, device: str) -> Any:
    """Return the torch dtype to evaluate in: the model's own half precision on CUDA, else bfloat16.

    CPUs compute float16 slowly or not at all. Quantized and unquantized models get the same.
    """
    import torch
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(model_dir).dtype
    halves = (torch.float16, torch.bfloat16)
    return own if device != "cpu" and own in halves else torch.bfloat16


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
    dtype = eval_dtype(model_dir, device)
    settings = quantization_settings(model_dir)
    packed = [name.removesuffix("qweight") for name in tensors if name.endswith(".qweight")]
    ending = ("qweight", "qzeros", "scales", "g_idx")
    inside = {prefix + part for prefix in packed for part in ending}
    weights = {name: tensor for name, tensor in tensors.items() if name not in inside}
    for prefix in packed:
        needed = ending if prefix + "g_idx" in tensors else ending[:-1]
        parts = {part: tensors[prefix + part].to(device) for part in needed}
        if "g_idx" in parts:  # layers may have other bits than the configuration's
            settings["bits"] = 32 * len(parts["qweight"]) // len(parts["g_idx"])
        weight = dequantized(**parts, **settings).to(dtype).T.contiguous()
        weights[prefix + "weight"] = weight.cpu()  # else a GPU would hold the model twice
    model_class, config = causal_class(model_dir)
    config.__dict__.pop("quantization_config", None)
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


def quantization_settings(model_dir: Path) -> dict[str, Any]:
    """Return `bits` and `v1` (zero points are stored less one) of a GPTQ checkpoint.

    `checkpoint_format` alone counts: optimum 2.3 writes v1 and `format: gptq_v2`.
    """
    config = json.loads((model_dir / "config.json").read_text()).get("quantization_config")
    if config is None:
        config = json.loads((model_dir / "quantize_config.json").read_text())
    method, form = config.get("quant_method", "gptq"), config.get("checkpoint_format", "gptq")
    if method not in ("gptq", "gptqmodel") or form not in ("gptq", "gptq_v2"):
        raise ValueError(f"quantized by {method!r}, format {form!r}: not GPTQ")
    if config["bits"] not in (2, 3, 4, 8):
        raise ValueError(f"{config['bits']} bits: not 2, 3, 4 or 8")
    return {"bits": config["bits"], "v1": form == "gptq"}


def dequantized(
    qweight: Any, qzeros: Any, scales: Any, g_idx: Any = None, *, bits: int, v1: bool
) -> Any:
    """Return (code − zero point) · scale in float32, [inputs, outputs].

    `qweight`: int32 [inputs · bits / 32, outputs]; `qzeros`: int32 [groups, outputs · bits / 32];
    `scales`: [groups, outputs]; `g_idx`: each input's group, in order where it is None.
    """
    import torch
    from gptqmodel.utils.model_dequant import _correct_gptq_v1_qzeros, unpack_cols

    # GPTQModel's own unpacking, also of the 3 bit zero points that cross word borders.
    zeros = qzeros.cpu()
    if v1 and bits == 3:
        zeros = _correct_gptq_v1_qzeros(zeros, bits)
    elif v1:  # its writer takes 1 from each code of a whole word, borrowing from the next one
        ones = torch.tensor(sum(1 << at for at in range(0, 32, bits)), dtype=torch.int32)
        zeros = zeros + ones
    zeros = unpack_cols(zeros, bits)[:, : scales.shape[1]].to(scales.device, torch.int16)
    codes = _codes(qweight, bits)
    if g_idx is None:
        g_idx = torch.arange(len(codes), device=codes.device) // (len(codes) // len(scales))
    groups = g_idx.int()
    return (codes - zeros[groups]).float() * scales.float()[groups]


def _codes(qweight: Any, bits: int) -> Any:
    """Unpack int32 [inputs · bits / 32, outputs] into [inputs, outputs]."""
    import torch
    from gptqmodel.utils.model_dequant import unpack_rows

    if bits == 3:  # words share codes
        return unpack_rows(qweight.cpu(), bits).to(qweight.device, torch.int16)
    rows, outputs = qweight.shape
    octets = qweight.contiguous().view(torch.uint8).view(rows, outputs, 4).permute(0, 2, 1)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=qweight.device)[:, None]
    return ((octets[:, :, None, :] >> shifts) & (2**bits - 1)).reshape(-1, outputs).short()
