"""A quantizer that does not take a model says so before any work; what stays dense is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from colazero.errors import UserError
from colazero.models.files import parts_of
from colazero.quantizers.supported import check_model, left_dense, try_model

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MOE = {"head_dim": 16, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32}
FAMILIES: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "phi3": lambda: transformers.Phi3Config(**SHAPE),
    "glm4": lambda: transformers.Glm4Config(**SHAPE, head_dim=16),
    "gptj": lambda: transformers.GPTJConfig(**GPT2, rotary_dim=8),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "mpt": lambda: transformers.MptConfig(vocab_size=64, d_model=32, n_layers=1, n_heads=2),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SHAPE, **MOE, num_experts=4, moe_intermediate_size=32
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(**SHAPE, **MOE, num_local_experts=4),
    "phimoe": lambda: transformers.PhimoeConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2
    ),
    "granitemoe": lambda: transformers.GraniteMoeConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2
    ),
}
TAKEN = {
    "llama": ("onepass", "gptqmodel", "rtn"),
    "phi3": ("onepass", "gptqmodel", "rtn"),
    "glm4": ("onepass", "gptqmodel", "rtn"),
    "gptj": ("onepass", "gptqmodel", "rtn"),
    "gpt2": ("gptqmodel", "rtn"),
    "mpt": ("onepass", "rtn"),
    "qwen3_moe": ("gptqmodel", "rtn"),
    "gpt_oss": (),
    "phimoe": (),
    "granitemoe": (),
}
"""Family → the quantizers that take it."""
REFUSED = [(f, q) for f in FAMILIES for q in TAKEN["llama"] if q not in TAKEN[f]]
ACCEPTED = [(family, quantizer) for family, them in TAKEN.items() for quantizer in them]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives a family's directory, made once."""
    folder = tmp_path_factory.mktemp("families")

    def get(family: str) -> Path:
        if not (folder / family).is_dir():
            model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
            model.save_pretrained(folder / family)
        return folder / family

    return get


@pytest.mark.parametrize(("family", "quantizer"), REFUSED)
def test_what_is_not_taken_is_refused_and_what_takes_it_is_named(
    family: str, quantizer: str, saved: Callable[[str], Path]
) -> None:
    with pytest.raises(UserError) as caught:
        check_model(quantizer, "mine", saved(family))
    said = str(caught.value)
    assert said.startswith(
        f"quantizer={quantizer!r} does not take model 'mine' (model_type {family!r})"
    )
    named = {name for name in ("onepass", "gptqmodel") if f"Use quantizer={name}" in said}
    assert named <= set(TAKEN[family])
    assert named or "No quantizer here does" in said
    assert bool(named) == bool(TAKEN[family])


@pytest.mark.parametrize(("family", "quantizer"), ACCEPTED)
def test_what_is_taken_passes(family: str, quantizer: str, saved: Callable[[str], Path]) -> None:
    check_model(quantizer, "mine", saved(family))


@pytest.mark.parametrize(
    ("quantizer", "config", "words"),
    [
        (
            "onepass",
            lambda: transformers.LlamaConfig(**SHAPE | {"intermediate_size": 80}),
            "layer 'model.layers.0.mlp.gate_proj' is 32 x 80, no multiples of 32. Use "
            "quantizer=gptqmodel, or",
        ),
        (
            "onepass",
            lambda: transformers.BartConfig(
                vocab_size=64, d_model=32, decoder_layers=1, encoder_layers=1, decoder_ffn_dim=64
            ),
            "runs 0 times a pass, not once. No quantizer here does:",
        ),
        (
            "gptqmodel",
            lambda: transformers.OlmoConfig(**SHAPE),
            "GPTQModel does not know this architecture, and would guess its layers. Use "
            "quantizer=onepass, or",
        ),
    ],
)
def test_what_only_the_quantizers_own_code_tells(
    quantizer: str, config: Callable[[], Any], words: str, tmp_path: Path
) -> None:
    model = transformers.AutoModelForCausalLM.from_config(config())
    model.save_pretrained(tmp_path / "odd")
    check_model(quantizer, "odd", tmp_path / "odd")
    with pytest.raises(UserError) as caught:
        try_model(quantizer, "odd", tmp_path / "odd", "cpu")
    assert words in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "phi3", "gptj"])
def test_what_is_taken_passes_when_it_is_tried(family: str, saved: Callable[[str], Path]) -> None:
    for quantizer in TAKEN[family]:
        try_model(quantizer, "mine", saved(family), "cpu")


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_what_a_checkpoint_leaves_dense_is_named(
    family: str, saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """The parts that GPTQModel makes of a fused layer stand for all of it."""
    folder = saved(family)
    matrices = left_dense(folder, folder)
    assert len(matrices) == {"llama": 7, "phi3": 4}[family]
    state = load_file(folder / "model.safetensors")
    *packed, left = sorted(matrices)
    for name in packed:
        state.pop(name)
        prefix = name.removesuffix("weight")
        for stem in parts_of(prefix) or (prefix,):
            state[f"{stem}qweight"] = torch.zeros(4, 8, dtype=torch.int32)
    checkpoint = tmp_path / "c"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text(json.dumps({}))
    save_file(state, checkpoint / "model.safetensors")
    assert left_dense(folder, checkpoint) == (left,)


def test_a_packed_layer_of_another_name_stands_for_a_matrix_of_its_size(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    """GPTQModel calls Mixtral's w1 gate_proj: none of its experts is left dense for that."""
    folder = saved("llama")
    state = load_file(folder / "model.safetensors")
    for name in left_dense(folder, folder):
        outputs, inputs = state.pop(name).shape
        stem = name.removesuffix("weight").replace("mlp.", "experts.0.")
        state[f"{stem}qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(state, tmp_path / "model.safetensors")
    assert left_dense(folder, tmp_path) == ()
    state.pop("model.layers.0.experts.0.down_proj.qweight")
    save_file(state, tmp_path / "model.safetensors")
    assert left_dense(folder, tmp_path) == ("model.layers.0.mlp.down_proj.weight",)
