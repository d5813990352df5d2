"""A quantizer that does not take a model says so before any work; what stays dense is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from colazero.errors import UserError
from colazero.models.files import copy_other_files, parts_of
from colazero.quantizers import QUANTIZERS, gptqmodel
from colazero.quantizers.supported import (
    check_model,
    left_dense,
    refuse_lost_scales,
    try_model,
    why_not,
)
from colazero.types import CalibrationSet, QuantizationSettings, Work

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
            "layer 'model.layers.0.mlp.gate_proj' is 32 x 80, not multiples of 32. Use "
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


MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
MIXED: dict[str, Any] = {
    "granitemoehybrid": lambda: transformers.GraniteMoeHybridConfig(
        **SHAPE | {"num_hidden_layers": 4},
        **MAMBA,
        mamba_n_groups=1,
        layer_types=["attention", "attention", "mamba", "attention"],
        num_local_experts=0,
        num_experts_per_tok=0,
        shared_intermediate_size=64,
    ),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **SHAPE | {"num_hidden_layers": 3},
        hybrid_override_pattern="M*-",
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=1,
        chunk_size=16,
        head_dim=16,
    ),
}
"""Hybrids of types in GPTQModel's list, on which GPTQModel 7.6 raises."""


@pytest.mark.parametrize("family", MIXED)
def test_gptqmodel_is_not_recommended_for_what_it_fails_on(family: str, tmp_path: Path) -> None:
    """Its list of model types is not support: a random model with one block of each kind is run."""
    model = transformers.AutoModelForCausalLM.from_config(MIXED[family]())
    model.save_pretrained(tmp_path / family)
    for quantizer in ("onepass", "gptqmodel"):
        with pytest.raises(UserError, match=f"{quantizer}.*{family}.*No quantizer") as caught:
            try_model(quantizer, "mine", tmp_path / family, "cpu")
    assert "fails on its blocks" in str(caught.value)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe"])
def test_gptqmodel_is_recommended_for_what_it_runs(
    family: str, saved: Callable[[str], Path]
) -> None:
    assert why_not("gptqmodel", saved(family), "cpu") == ""
    assert gptqmodel.why_not(saved(family), "cpu") == ""


@pytest.mark.parametrize(
    ("kinds", "blocks"),
    [(["a"] * 8, 2), (["a", "a", "a", "b", "a", "b", "a", "a"], 4), (list("aaaaaaab"), 8)],
)
def test_a_try_out_has_a_block_of_each_kind(kinds: list[str], blocks: int) -> None:
    kinds = [{"a": "full_attention", "b": "sliding_attention"}[kind] for kind in kinds]
    sizes = SHAPE | {"num_hidden_layers": 8}
    config = transformers.Qwen3Config(**sizes, head_dim=16, layer_types=kinds)
    short = gptqmodel.shortened(config)
    assert short.num_hidden_layers == blocks
    assert short.layer_types == kinds[:blocks]


def test_a_try_out_of_a_model_in_a_wrapper_shortens_its_text() -> None:
    text = SHAPE | {"num_hidden_layers": 6, "head_dim": 16}
    config = transformers.Gemma3Config(text_config=transformers.Gemma3TextConfig(**text).to_dict())
    short = gptqmodel.shortened(config)
    assert short.get_text_config().num_hidden_layers == 6, "the sixth is the first full attention"
    short.get_text_config().layer_types = ["full_attention"] * 6
    assert gptqmodel.shortened(short).get_text_config().num_hidden_layers == 2


@pytest.mark.parametrize("error", [AttributeError, TypeError, KeyError, ValueError, RuntimeError])
def test_what_gptqmodel_raises_is_a_sentence(error: type[Exception], tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"mine.*{error.__name__}.*odd"),
        gptqmodel.failures_explained(tmp_path / "mine"),
    ):
        raise error("odd")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), OSError(28, "full")])
def test_what_the_machine_lacks_is_not_blamed_on_the_model(error: Exception) -> None:
    with pytest.raises(type(error)), gptqmodel.failures_explained(Path("mine")):
        raise error


def packed_with(folder: Path, **layers: list[float]) -> Path:
    """Write a checkpoint whose layers have these scales."""
    folder.mkdir()
    state = {f"{name}.scales": torch.tensor([values]).half() for name, values in layers.items()}
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return folder


GOOD = [1e-3, 1e-6, 6e4, 0.5]


@pytest.mark.parametrize("bad", [0.0, 6e-8, 3e-7, 65_504.0, float("inf"), float("nan")])
def test_scales_that_float16_cannot_hold_are_counted_and_warned_of(
    bad: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert refuse_lost_scales("mine", packed_with(tmp_path / "right", a=GOOD)) == 0
    assert not caplog.records
    some = packed_with(tmp_path / "some", a=GOOD, b=[*GOOD, bad], c=[bad, bad, *GOOD])
    assert refuse_lost_scales("mine", some) == 3
    assert "2 of 6 groups of layer 'c'" in caplog.text
    most = packed_with(tmp_path / "most", a=GOOD, b=[bad, bad, 1.0])
    with pytest.raises(UserError, match=r"'mine'.*2 of 3 groups of layer 'b'.*65,504"):
        refuse_lost_scales("mine", most)


@pytest.mark.parametrize(("by", "quantizer"), [(1e-7, "onepass"), (1e9, "onepass"), (1e-7, "rtn")])
def test_a_layer_of_weights_out_of_range_is_refused(
    by: float, quantizer: str, tiny_llama: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    state = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    state[name] = state[name] * by
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    windows = np.random.default_rng(0).integers(10, 250, size=(2, 64), dtype=np.int32)
    settings = QuantizationSettings(4, 32, False, True, 0.05, False)
    calibration = CalibrationSet(windows, (), {})
    QUANTIZERS.get(quantizer)(Work(model, calibration, settings, tmp_path / "out", "cpu"))
    with pytest.raises(UserError, match=r"'mine'.*model.layers.1.mlp.up_proj.*65,504"):
        refuse_lost_scales("mine", tmp_path / "out")


OTHER_FILES = (
    *("tekken.json", "added_tokens.json", "preprocessor_config.json", "processor_config.json"),
    *("tokenizer.model", "vocab.txt", "chat_template.jinja", "generation_config.json", "LICENSE"),
    *("video_preprocessor_config.json", "source.spm", "additional_chat_templates/tools.jinja"),
)
LEFT = (
    *("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "model.GGUF"),
    *("pytorch_model.bin.index.json", "tf_model.h5", "config.json", ".gitattributes"),
)


def test_every_file_but_weights_is_copied_and_none_is_overwritten(tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    for folder in ("folder", "additional_chat_templates"):
        (model / folder).mkdir(parents=True)
    (model / "folder" / "other.json").write_text("not a part of the model")
    out.mkdir()
    for name in (*OTHER_FILES, *LEFT):
        (model / name).write_text("the model's")
    (out / "LICENSE").write_text("its own")
    copy_other_files(model, out)
    copied = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert copied == set(OTHER_FILES)
    assert (out / "LICENSE").read_text() == "its own"
    assert (out / "tekken.json").read_text() == "the model's"
