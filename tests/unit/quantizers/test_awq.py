"""AWQ on tiny models: what it writes and how it is read, and which models it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colazero.blocks.probe import open_sequence
from colazero.errors import UserError
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import Evaluator, evaluate
from colazero.models.fit import examine
from colazero.quantizers import awq
from colazero.quantizers.supported import left_dense, try_model
from colazero.types import CalibrationSet, QuantizationSettings, Text, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, False)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(6, 128), dtype=np.int32), [], {})
TEXT = Text("text", RNG.integers(10, 250, size=(5, 128)), np.arange(5) * 128)


@pytest.mark.parametrize("size", [32, -1])
@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
def test_the_checkpoint_is_awqs_and_what_rode_along_is_what_it_gives(
    family: str, size: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model, out = request.getfixturevalue(family), tmp_path / "checkpoint"
    evaluator, settings = Evaluator([TEXT]), replace(SETTINGS, group_size=size)
    report = awq.quantize(Work(model, CALIBRATION, settings, out, "cpu", evaluator=evaluator))
    tensors, before = load_file(out / "model.safetensors"), load_file(model / "model.safetensors")
    packed = {name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")}
    assert len(packed) == len(report.modules) == (12 if family == "tiny_opt" else 14)
    assert not any(name.endswith("g_idx") for name in tensors)
    assert left_dense(model, out) == ()
    assert examine(out).layers
    norm = next(
        name
        for name in before
        if "layers.0.self_attn_layer_norm.weight" in name
        or ("layers.0.input_layernorm.weight" in name)
    )
    assert not tensors[norm].equal(before[norm]), "it took the scales"
    assert max(row["alpha"] for row in report.modules) > 0
    assert all(row["samples"] == CALIBRATION.windows.size for row in report.modules)
    by_blocks = evaluate(open_sequence(out, "cpu"), [TEXT])[0]
    whole = perplexity(load_dense(out, "cpu"), "text", TEXT.windows, TEXT.starts)
    assert evaluator.perplexities[0].nll.tolist() == by_blocks.nll.tolist() == whole.nll.tolist()
    dense = perplexity(load_dense(model, "cpu"), "text", TEXT.windows, TEXT.starts)
    assert dense.nll.sum() == pytest.approx(whole.nll.sum(), rel=0.01)
    assert dense.nll.tolist() != whole.nll.tolist()
    from transformers import AutoConfig

    read = AutoConfig.from_pretrained(out).quantization_config
    shown = read if isinstance(read, dict) else read.to_dict()
    assert (shown["quant_method"], shown["bits"], shown["group_size"]) == ("awq", 4, size)


def test_moved_scales_change_nothing_but_rounding(tiny_opt: Path) -> None:
    sequence = open_sequence(tiny_opt, "cpu", to_quantize=True)
    fusions = awq.structure(sequence)
    wrong = tuple(replace(one, before=fusions[0].before) for one in fusions)
    assert not awq._computes_the_same(sequence, wrong)


def test_values_that_heads_share_take_no_scales(tiny_llama: Path, tmp_path: Path) -> None:
    report = awq.quantize(Work(tiny_llama, CALIBRATION, SETTINGS, tmp_path / "out", "cpu"))
    alphas = {row["module"]: row["alpha"] for row in report.modules if row["layer"] == 0}
    assert alphas["self_attn.o_proj"] == 0


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma"])
def test_a_model_whose_structure_is_unknown_is_refused(
    kind: str, tokenizer: Any, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.3, 0.9)
    model.half().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"quantizer='awq' does not take model 'mine'.*before which"
    ) as e:
        try_model("awq", "mine", tmp_path, "cpu")
    assert "Use quantizer=onepass" in str(e.value)


def test_layouts_of_awq_that_are_not_gemm_are_not_read(tiny_llama: Path, tmp_path: Path) -> None:
    from colazero.models.files import packed

    quantization = awq.quantization_config(32)
    for changed, bits in (({}, 4), ({"version": "gemv"}, None), ({"zero_point": False}, None)):
        config = {"quantization_config": quantization | changed}
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert (packed(tmp_path) or {}).get("bits") == bits
