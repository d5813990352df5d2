"""Any model directory → a dense half-precision model, ready to be evaluated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from colazero.errors import UserError
from colazero.models import is_quantized
from colazero.quantizers.gptqmodel import contained


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

    GPTQ layers are dequantized once: their products with dense weights are what a GPTQ kernel
    computes, and several times faster than the portable kernels. UserError if it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    dtype = eval_dtype(model_dir, device)
    try:
        if is_quantized(model_dir):
            return _dequantized(model_dir, dtype, device)
        model = AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=dtype, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"model directory {str(model_dir)!r} cannot be loaded: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model.to(device).eval()


def _dequantized(model_dir: Path, dtype: Any, device: str) -> Any:
    import torch
    from torch import nn

    model_dir = model_dir.absolute()  # contained() goes elsewhere
    with contained():
        from gptqmodel import BACKEND, GPTQModel

        wrapper = GPTQModel.load(
            str(model_dir),
            device=device,
            backend=BACKEND.GPTQ_TORCH,
            dtype=dtype,
            trust_remote_code=False,
        )
    model = wrapper.model
    packed = [(name, m) for name, m in model.named_modules() if hasattr(m, "qweight")]
    with torch.no_grad():
        for name, layer in packed:
            # The class's own method: the instance's is wrapped for torch.compile.
            weight = type(layer).dequantize_weight(layer).T.to(dtype)
            outputs, inputs = weight.shape
            dense = nn.Linear(inputs, outputs, bias=layer.bias is not None, device="meta")
            dense.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            if layer.bias is not None:
                dense.bias = nn.Parameter(layer.bias.to(dtype), requires_grad=False)
            model.set_submodule(name, dense)
    return model.to(device).eval()
