"""A model's tensors are those that its configuration asks for, or it is refused before any work."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from colazero import models
from colazero.errors import UserError
from colazero.models import fit as module
from colazero.models.files import parts_of
from colazero.models.fit import Layer, examine
from colazero.quantizers import supported

SAFE = "model.safetensors"
Change = Callable[[dict[str, torch.Tensor]], object]

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 80,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 80}
"""What is set for every family; a configuration leaves alone what it does not know."""

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SHAPE),
    "tied": lambda: transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: transformers.Qwen3Config(**SHAPE, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**SHAPE, head_dim=16),
    "phi3": lambda: transformers.Phi3Config(**SHAPE, pad_token_id=0),
    "glm4": lambda: transformers.Glm4Config(**SHAPE, head_dim=16, pad_token_id=0),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt_bigcode": lambda: transformers.GPTBigCodeConfig(**GPT2),
    "gptj": lambda: transformers.GPTJConfig(**GPT2, rotary_dim=8),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=80,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
    ),
    "mpt": lambda: transformers.MptConfig(
        vocab_size=96, d_model=32, n_heads=2, n_layers=2, max_seq_len=80
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=96, hidden_size=32, n_layer=2, n_head=2, seq_length=80
    ),
    "xglm": lambda: transformers.XGLMConfig(
        vocab_size=96,
        d_model=32,
        ffn_dim=64,
        num_layers=2,
        attention_heads=2,
        max_position_embeddings=80,
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **SHAPE, head_dim=16, moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **SHAPE, num_local_experts=4, num_experts_per_tok=2
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **SHAPE, head_dim=16, num_local_experts=4, num_experts_per_tok=2
    ),
}


def saved(folder: Path, config: Any) -> Path:
    """Save a model of random weights as transformers does."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def changed(folder: Path, change: Change) -> Path:
    """Change the tensors of a directory."""
    state = load_file(folder / SAFE)
    change(state)
    save_file(state, folder / SAFE, {"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def _nothing_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    models.fetch.cache_clear()


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    """A model directory that a test may spoil."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_model_of_any_family_passes(family: str, tmp_path: Path) -> None:
    found = examine(saved(tmp_path / "m", FAMILIES[family]()))
    assert found.unused == ()
    assert found.rows == 96
    assert found.positions == 80, "under whatever name the configuration has it"


@pytest.mark.parametrize("family", ["tied", "phi3", "gpt2", "opt", "qwen3_moe", "gpt_oss"])
def test_each_single_tensor_is_missed_by_name(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", FAMILIES[family]())
    state = load_file(folder / SAFE)
    names = [name for name in state if ".1." not in name.partition("experts")[0]]
    for name in names:
        rest = {other: tensor for other, tensor in state.items() if other != name}
        save_file(rest, folder / SAFE, {"format": "pt"})
        with pytest.raises(UserError) as caught:
            examine(folder)
        assert repr(name) in str(caught.value)


def test_an_expert_that_is_missing_whole_is_missed(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", FAMILIES["qwen3_moe"]())
    changed(folder, lambda s: [s.pop(name) for name in list(s) if "0.mlp.experts.3." in name])
    with pytest.raises(UserError, match=r"\d+ weights .*config\.json"):
        examine(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("model.norm.weight"), "'model.norm.weight'"),
        (lambda s: s.pop("model.embed_tokens.weight"), "'model.embed_tokens.weight'"),
        (
            lambda s: s.update({"model.norm.weight": torch.zeros(64)}),
            "1 weights do not have the shapes",
        ),
        (
            lambda s: s.update({"lm_head.weight": s["lm_head.weight"][:-1].clone()}),
            "'lm_head.weight'",
        ),
        (
            lambda s: s.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}),
            "'model.layers.0.self_attn.q_proj.bias'",
        ),
        (
            lambda s: s.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(256, 128)}),
            "'model.layers.2.mlp.up_proj.weight'",
        ),
        (lambda s: [s.update({f"x.{k}": s.pop(k)}) for k in list(s)], "21 of its weights"),
    ],
)
@pytest.mark.parametrize("way", ["safetensors", "odd name", "bin"])
def test_what_does_not_fit_is_refused_whichever_way_it_comes(
    copy: Path, change: Change, words: str, way: str
) -> None:
    changed(copy, change)
    if way == "odd name":
        (copy / SAFE).rename(copy / "weights.safetensors")
    if way == "bin":
        torch.save(load_file(copy / SAFE), copy / "pytorch_model.bin")
        (copy / SAFE).unlink()
    with pytest.raises(UserError) as caught:
        models.fetch(str(copy))
    assert words in str(caught.value)


def test_what_no_model_needs_is_told_and_passes(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed(copy, lambda s: s.update({"model.rotary.inv_freq": torch.zeros(4)}))
    assert examine(copy).unused == ("model.rotary.inv_freq",)
    assert "1 tensors are not used, 'model.rotary.inv_freq'" in caplog.text


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_that_is_the_embedding_may_be_stored_or_not(tmp_path: Path, tied: bool) -> None:
    folder = saved(tmp_path / "m", FAMILIES["tied" if tied else "llama"]())
    state = load_file(folder / SAFE)
    assert ("lm_head.weight" in state) is not tied
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / SAFE, {"format": "pt"})
    assert examine(folder).unused == ()


def test_layers_are_counted_with_experts_and_turned_ones(tmp_path: Path) -> None:
    inputs = {f: {x.inputs for x in examine(saved(tmp_path / f, FAMILIES[f]())).layers}
              for f in ("llama", "gpt2", "qwen3_moe", "gpt_oss", "mixtral", "xglm")}  # fmt: skip
    assert inputs == {
        "llama": {32, 64},
        "gpt2": {32, 128},
        "qwen3_moe": {32, 48},
        "gpt_oss": {32, 64},
        "mixtral": {32, 64},
        "xglm": {32, 64},
    }
    turned = next(x for x in examine(tmp_path / "gpt2").layers if "c_fc" in x.name)
    name = "transformer.h.0.mlp.c_fc"
    assert turned == Layer(f"{name}.weight", "conv1d", 32, 128, name)


def test_an_expert_decides_which_group_size_fits(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", FAMILIES["qwen3_moe"]())
    with pytest.raises(UserError, match="group_size=32 "):
        supported.resolve_group_size(32, supported.layer_inputs(folder))


def test_what_is_found_does_not_depend_on_what_was_imported(tmp_path: Path) -> None:
    """GPTQModel puts classes of its own in the place of transformers'."""
    folders = [saved(tmp_path / f, FAMILIES[f]()) for f in ("qwen3_moe", "gpt2", "phi3")]
    code = f"""
import gptqmodel
from pathlib import Path
from colazero.models.fit import examine
for folder in {[str(f) for f in folders]!r}:
    print([(x.name, x.kind, x.inputs) for x in examine(Path(folder)).layers])
"""
    environment = {"COLAZERO_CACHE": str(tmp_path / "other"), "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    here = [str([(x.name, x.kind, x.inputs) for x in examine(f).layers]) for f in folders]
    assert done.stdout.splitlines()[-3:] == here


def test_a_gptq_checkpoint_has_the_weights_that_it_packs(copy: Path) -> None:
    def pack(state: dict[str, torch.Tensor]) -> None:
        prefix = "model.layers.0.mlp.up_proj."
        outputs, inputs = state.pop(prefix + "weight").shape
        state[prefix + "qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
        state[prefix + "qzeros"] = torch.zeros(2, outputs // 8, dtype=torch.int32)
        state[prefix + "scales"] = torch.zeros(2, outputs, dtype=torch.float16)
        state[prefix + "bias"] = torch.zeros(outputs)  # AutoGPTQ stores it where there is none

    changed(copy, pack)
    config = json.loads((copy / "config.json").read_text())
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    assert len(examine(copy).layers) == 14
    changed(copy, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UserError, match=r"'model.layers.1.mlp.up_proj.weight'"):
        examine(copy)


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "glm4"])
def test_a_checkpoint_of_gptqmodel_has_the_weights_of_the_model(
    family: str, tmp_path: Path
) -> None:
    """Of GPT-2 turned over, and of fused layers the parts, each of which may be missing."""
    folder = saved(tmp_path / "m", FAMILIES[family]())
    layers = examine(folder).layers

    def pack(state: dict[str, torch.Tensor]) -> None:
        for layer in layers:
            state.pop(layer.name)
            prefix = layer.name.removesuffix("weight")
            parts = parts_of(prefix) or (prefix,)
            for part in parts:
                outputs = layer.outputs // len(parts)
                state[f"{part}qweight"] = torch.zeros(layer.inputs // 8, outputs, dtype=torch.int32)
                state[f"{part}qzeros"] = torch.zeros(1, outputs // 8, dtype=torch.int32)
                state[f"{part}scales"] = torch.zeros(1, outputs, dtype=torch.float16)

    changed(folder, pack)
    config = json.loads((folder / "config.json").read_text())
    quantized = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantized}))
    assert sorted(map(str, examine(folder).layers)) == sorted(map(str, layers))
    last = [name for name in load_file(folder / SAFE) if name.endswith(("scales", "qweight"))][-1]
    changed(folder, lambda state: state.pop(last))
    with pytest.raises(UserError, match="missing"):
        examine(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "nobody-knows"},
        {"model_type": "bert"},
        {"model_type": "t5"},
        {"model_type": "llama", "num_hidden_layers": "two"},
        {"model_type": "llama", "num_attention_heads": 0},
        {"model_type": ["llama"]},
    ],
    ids=str,
)
def test_a_configuration_that_makes_no_model_is_told(copy: Path, config: dict[str, Any]) -> None:
    before = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(before | config))
    with pytest.raises(UserError) as caught:
        models.fetch(str(copy))
    assert "\n" not in str(caught.value)


def test_no_limit_is_none(tmp_path: Path) -> None:
    config = transformers.BloomConfig(vocab_size=96, hidden_size=32, n_layer=1, n_head=2)
    assert examine(saved(tmp_path / "m", config)).positions is None


def test_a_model_is_examined_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = examine(copy)

    def never(*_: object) -> None:
        raise AssertionError("it was examined again")

    monkeypatch.setattr(module, "_examined", never)
    assert examine(copy) == found
    changed(copy, lambda state: state.pop("model.norm.weight"))
    with pytest.raises(AssertionError, match="examined again"):
        examine(copy)


@pytest.mark.parametrize("kind", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_a_weight_that_is_no_real_number_is_refused(copy: Path, kind: torch.dtype) -> None:
    state = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    state[name] = state[name].to(kind)
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"'{name}' .*F64, F32"):
        examine(copy)


def test_a_weight_that_is_there_under_two_names_is_refused(copy: Path) -> None:
    state = load_file(copy / "model.safetensors")
    state["layers.0.mlp.up_proj.weight"] = 2 * state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"'layers.0.mlp.up_proj.weight'"):
        examine(copy)


# --- whose layers decide: those in the decoder's blocks, whatever the files call them

TOWER = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1,
         "num_attention_heads": 2, "image_size": 28, "patch_size": 14}  # fmt: skip
TEXT = SHAPE | {"hidden_size": 48, "head_dim": 16, "intermediate_size": 96, "vocab_size": 112}


def with_tower(family: str) -> Any:
    """Return the configuration of a model that looks at pictures, of a small tower."""
    if family == "gemma3":
        text = transformers.Gemma3TextConfig(**TEXT, sliding_window=8).to_dict()
        tower = TOWER | {"model_type": "siglip_vision_model"}
        tokens = {"image_token_index": 96, "boi_token_index": 97, "eoi_token_index": 98}
        return transformers.Gemma3Config(
            text_config=text, vision_config=tower, mm_tokens_per_image=4, **tokens
        )
    text = transformers.Gemma4TextConfig(
        **TEXT, global_head_dim=16, num_kv_shared_layers=0, hidden_size_per_layer_input=0,
        sliding_window=8, layer_types=["sliding_attention", "full_attention"],
    ).to_dict()  # fmt: skip
    tower = TOWER | {"num_key_value_heads": 2, "head_dim": 12}
    return transformers.Gemma4Config(
        text_config=text, vision_config=tower, audio_config=None, image_token_id=96
    )


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_a_vision_tower_decides_nothing(family: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", with_tower(family))
    names = {layer.name for layer in examine(folder).layers}
    assert len(names) == 14
    assert not [name for name in names if "vision" in name]
    assert supported.layer_inputs(folder) == {48, 32, 96}
    assert supported.resolve_group_size("auto", supported.layer_inputs(folder)) == 16
    with pytest.raises(UserError, match="group_size=128"):
        supported.resolve_group_size(128, supported.layer_inputs(folder))


def test_gptqmodel_is_asked_for_the_layers_that_it_takes(tmp_path: Path) -> None:
    """Gemma 3n has layers of two inputs in its blocks, which are not in GPTQModel's tree."""
    config = transformers.Gemma3nTextConfig(
        **TEXT, vocab_size_per_layer_input=112, hidden_size_per_layer_input=16, laurel_rank=16,
        altup_num_inputs=2, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    folder = saved(tmp_path / "m", config)
    assert 2 in supported.layer_inputs(folder)
    taken = supported.layer_inputs(folder, "gptqmodel")
    assert {48, 96} <= taken
    assert 2 not in taken
    assert supported.resolve_group_size("auto", taken) == 16


def test_a_model_without_a_layer_to_quantize_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examine(copy)
    monkeypatch.setattr(supported, "examine", lambda _: replace(found, layers=()))
    with pytest.raises(UserError, match="quantizer='"):
        supported.layer_inputs(copy)
    assert supported.layer_inputs(copy, "none") == set()


@pytest.mark.parametrize(
    ("family", "field"),
    [("glm4_moe", "num_nextn_predict_layers"), ("llama", "num_mtp_layers")],
)
@pytest.mark.parametrize("blocks", [1, 2])
def test_declared_blocks_that_predict_further_tokens_are_not_used(
    tmp_path: Path, family: str, field: str, blocks: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = FAMILIES["llama"]()
    if family == "glm4_moe":
        config = transformers.Glm4MoeConfig(
            **SHAPE, head_dim=16, moe_intermediate_size=32, n_routed_experts=4,
            num_experts_per_tok=2, first_k_dense_replace=2, n_shared_experts=1,
        )  # fmt: skip
    folder = saved(tmp_path / "m", config)

    def add(state: dict[str, torch.Tensor]) -> None:
        for more in range(2, 2 + blocks):
            for name in [name for name in state if ".layers.1." in name]:
                state[name.replace(".1.", f".{more}.")] = state[name].clone()

    changed(folder, add)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {field: 0}))
    with pytest.raises(UserError, match=r"model\.layers\.2\."):
        examine(folder)
    (folder / "config.json").write_text(json.dumps(settings | {field: blocks}))
    found = examine(folder)
    assert found.unused
    assert all(name.split(".")[2] >= "2" for name in found.unused)
    assert "tensors are not used" in caplog.text
    (folder / "config.json").write_text(json.dumps(settings | {field: blocks - 1}))
    with pytest.raises(UserError, match=rf"model\.layers\.{1 + blocks}\."):
        examine(folder)


@pytest.mark.parametrize("family", ["Bart", "MBart", "Pegasus", "Marian"])
def test_an_encoder_decoder_is_refused_for_what_it_is(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(
        d_model=32, encoder_layers=1, decoder_layers=3, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, vocab_size=96,
        pad_token_id=1, decoder_start_token_id=1,
    )  # fmt: skip
    kind = "MarianMTModel" if family == "Marian" else f"{family}ForConditionalGeneration"
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "whole")
    with pytest.raises(UserError, match="encoder-decoder"):
        examine(tmp_path / "whole")
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(tmp_path / "decoder")
    assert examine(tmp_path / "decoder").layers
