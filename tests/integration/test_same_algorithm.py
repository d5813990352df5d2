"""One pass and GPTQModel are one algorithm: the codes of a model's first block are the same.

Each layer has as many inputs as a block of columns and a group, so that GPTQModel's scales come
from weights that all errors have reached; they are rounded to float16 when found, as ours are.
Both compute in float32. After the first block, roundings of the one and the other make two draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import make
from safetensors.torch import load_file

from colazero.quantizers.gptqmodel import contained
from colazero.quantizers.onepass import quantize
from colazero.types import CalibrationSet, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 128, False, True, 0.05, False)
WINDOWS = np.random.default_rng(0).integers(3, 800, size=(16, 128), dtype=np.int32)
SHAPE = {
    "vocab_size": 800,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GATED = SHAPE | {"intermediate_size": 128, "num_key_value_heads": 4}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": GATED,
    "OPT": SHAPE | {"ffn_dim": 128, "word_embed_proj_dim": 128},
    "Qwen3": GATED | {"head_dim": 32},
    "Gemma3Text": GATED | {"head_dim": 32, "query_pre_attn_scalar": 32},
    "Phi3": GATED,
}


def by_gptqmodel(model: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contained():
        from gptqmodel import GPTQModel, QuantizeConfig
        from gptqmodel.quantization.quantizer import Quantizer

        found = Quantizer.find_params

        def in_half(self: Any, *args: Any, **kwargs: Any) -> None:
            found(self, *args, **kwargs)
            self.scale = self.scale.half().float()

        monkeypatch.setattr(Quantizer, "find_params", in_half)
        config = QuantizeConfig(
            bits=4, group_size=128, damp_percent=0.05, act_group_aware=False, offload_to_disk=False
        )
        loaded = GPTQModel.load(str(model), config, device="cpu", dtype=torch.float32)
        rows = [{"input_ids": torch.from_numpy(window)[None].long()} for window in WINDOWS]
        loaded.quantize(rows, batch_size=len(rows))
        loaded.save(str(out))


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers of Phi-3 that GPTQModel takes apart."""


def codes(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the codes of the first block's layers, those apart put together as they were."""
    tensors = load_file(checkpoint / "model.safetensors")
    found = {k: v for k, v in tensors.items() if "layers.0." in k and k.endswith("qweight")}
    for whole, parts in FUSED.items():
        apart = [key for part in parts for key in found if f".{part}." in key]
        if "phi3" in checkpoint.parent.name and apart:
            name = apart[0].replace(parts[0], whole)
            found[name] = torch.cat([found.pop(key) for key in apart], dim=1)
    octets = {key: value.contiguous().view(torch.uint8) for key, value in found.items()}
    return {key: torch.stack([value & 15, value >> 4]) for key, value in octets.items()}


@pytest.mark.parametrize("architecture", MODELS)
def test_the_codes_of_the_first_block_are_gptqmodels(
    architecture: str, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / architecture.lower()
    model = make(folder / "model", architecture, MODELS[architecture])
    tokenizer.save_pretrained(model)
    monkeypatch.setattr("colazero.blocks.probe.eval_dtype", lambda *_: torch.float32)
    windows = CalibrationSet(WINDOWS, [], {})
    quantize(Work(model, windows, SETTINGS, folder / "ours", "cpu"))
    by_gptqmodel(model, folder / "theirs", monkeypatch)
    ours, theirs = codes(folder / "ours"), codes(folder / "theirs")
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 4
    same = torch.cat([(ours[key] == theirs[key]).flatten() for key in ours])
    assert same.float().mean() >= 0.999
