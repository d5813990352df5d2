"""What GPTQModel would store under names of its own is refused; what stays dense is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from colazero.errors import UserError
from colazero.quantizers.readable import check_readable, left_dense

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
MOE = {"head_dim": 16, "num_experts_per_tok": 2}
ODD = {
    "phi3": transformers.Phi3Config(**SHAPE),
    "glm": transformers.GlmConfig(**SHAPE, head_dim=16),
    "glm4": transformers.Glm4Config(**SHAPE, head_dim=16),
    "gpt2": transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2),
    "gpt_oss": transformers.GptOssConfig(**SHAPE, **MOE, num_local_experts=4),
    "phimoe": transformers.PhimoeConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
}
PLAIN = {
    "llama": transformers.LlamaConfig(**SHAPE),
    "qwen2": transformers.Qwen2Config(**SHAPE),
    "qwen3_moe": transformers.Qwen3MoeConfig(**SHAPE, **MOE, num_experts=4),
    "gptj": transformers.GPTJConfig(vocab_size=64, n_embd=32, n_layer=1, n_head=2, rotary_dim=8),
}


def saved(folder: Path, config: Any) -> Path:
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("quantizer", ["gptqmodel", "rtn"])
@pytest.mark.parametrize("family", ODD)
def test_what_could_not_be_read_back_is_refused(
    family: str, quantizer: str, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "m", ODD[family])
    with pytest.raises(UserError, match=r"could not be read back.*onepass"):
        check_readable(quantizer, "m", folder)
    check_readable("onepass", "m", folder)


@pytest.mark.parametrize("family", PLAIN)
def test_what_has_transformers_names_passes(family: str, tmp_path: Path) -> None:
    check_readable("gptqmodel", "m", saved(tmp_path / "m", PLAIN[family]))


def test_what_a_checkpoint_leaves_dense_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", PLAIN["llama"])
    assert len(left_dense(folder, folder)) == 7
    state = load_file(folder / "model.safetensors")
    for name in [n for n in state if "_proj" in n and "up_proj" not in n]:
        outputs, inputs = state.pop(name).shape
        prefix = name.removesuffix("weight")
        state[prefix + "qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
    checkpoint = tmp_path / "c"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({}))
    save_file(state, checkpoint / "model.safetensors")
    assert left_dense(folder, checkpoint) == ("model.layers.0.mlp.up_proj.weight",)
