"""Tiny random models of many architectures, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 160,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED = SHAPE | {"intermediate_size": 96, "num_key_value_heads": 2}
GEMMA = GATED | {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

TAKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GATED | {"attention_bias": True}),
    "mistral-window": ("Mistral", GATED | {"sliding_window": 8}),
    "qwen2": ("Qwen2", GATED),
    "qwen2-window": (
        "Qwen2",
        GATED | {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", GATED | {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", GATED | {"head_dim": 16}),
    "gemma2": ("Gemma2", GEMMA | {"final_logit_softcapping": 3.0}),
    "gemma3": ("Gemma3Text", GEMMA | {"num_hidden_layers": 7}),
    "phi3": ("Phi3", GATED),
    "opt": ("OPT", SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "opt-projections": (
        "OPT",
        SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "gpt-neox": ("GPTNeoX", SHAPE | {"intermediate_size": 96}),
    "falcon": ("Falcon", SHAPE),
    "falcon-alibi": ("Falcon", SHAPE | {"alibi": True, "new_decoder_architecture": False}),
    "bloom": ("Bloom", SHAPE),
    "olmo2": ("Olmo2", GATED),
    "granite": ("Granite", GATED | {"residual_multiplier": 0.5, "logits_scaling": 3.0}),
    "smollm3": ("SmolLM3", GATED),
    "stablelm": ("StableLm", GATED),
    "cohere": ("Cohere", GATED | {"logit_scale": 0.25}),
    "gptj": ("GPTJ", {**SHAPE, "n_embd": 64, "n_layer": 3, "n_head": 4, "rotary_dim": 16}),
    "starcoder2": ("Starcoder2", GATED),
    "glm4": ("Glm4", GATED | {"head_dim": 16}),
}
"""Name → (transformers' name of the architecture, its config): run and quantized a block at a time."""

EVALUATED: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", SHAPE),
}
"""Run a block at a time, not quantized: their weights are in no `nn.Linear`."""

WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", GATED | {"num_local_experts": 4}),
    "qwen3-moe": ("Qwen3Moe", GATED | EXPERTS | {"num_experts": 4, "head_dim": 16}),
}
"""Not run a block at a time: their files name the experts' weights in another way."""


def make(folder: Path, architecture: str, values: dict[str, Any]) -> Path:
    """Save a random model whose weights are large enough for its blocks to matter."""
    import torch
    import transformers

    config = getattr(transformers, f"{architecture}Config")(**values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.data.normal_(std=weight.shape[-1] ** -0.5)
            elif "bias" in name:
                weight.data.normal_(std=0.1)
    model.save_pretrained(folder)
    return folder
