"""What a model does not take is said before anything is computed, for every way to it."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from colazero import models, pipeline
from colazero.errors import UserError
from colazero.models import fit
from colazero.settings import RunConfig
from colazero.types import CalibrationSet, Model

SAFE = "model.safetensors"


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model directory that a test may spoil."""
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_llama, tmp_path / "copy"))


@pytest.fixture
def config(corpus_file: Path) -> RunConfig:
    name = f"file:{corpus_file}"
    shape = {"n_calibration_samples": 2, "seq_len": 64, "eval_windows": 2}
    return RunConfig(corpus=name, eval_corpora=(name,), method="random", device="cpu", **shape)


def edited(folder: Path, **values: object) -> Model:
    """Write values into a model's config.json and return the model."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    models.fetch.cache_clear()
    return models.fetch(str(folder))


def spoiled(folder: Path, name: str, value: float) -> Model:
    """Put `value` into a place of a weight."""
    state = load_file(folder / SAFE)
    state[name].view(-1)[-1] = value
    save_file(state, folder / SAFE, {"format": "pt"})
    return edited(folder)


def a_set(seq_len: int, token: int = 7) -> CalibrationSet:
    return CalibrationSet(np.full((2, seq_len), token, dtype=np.int32), (), {})


Ask = Callable[[RunConfig, Model], object]
EVERYWHERE: dict[str, Ask] = {
    "single and suite": pipeline.check_data,
    "select": pipeline.calibrate,
    "evaluate": pipeline.check_evaluation,
    "quantize": lambda config, model: pipeline.check_set(model, a_set(config.seq_len)),
}


@pytest.mark.parametrize("ask", EVERYWHERE.values(), ids=EVERYWHERE)
def test_windows_beyond_the_positions(copy: Path, config: RunConfig, ask: Ask) -> None:
    model = edited(copy, max_position_embeddings=63)
    with pytest.raises(UserError, match=r"seq_len=64 .* 63"):
        ask(config, model)
    ask(config, edited(copy, max_position_embeddings=64))


@pytest.mark.parametrize("ask", EVERYWHERE.values(), ids=EVERYWHERE)
def test_ids_without_an_embedding(copy: Path, config: RunConfig, ask: Ask) -> None:
    """A model cut to a smaller vocabulary than its tokenizer's."""
    state, rows = load_file(copy / SAFE), 20
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = state[name][:rows].clone()
    save_file(state, copy / SAFE, {"format": "pt"})
    model = edited(copy, vocab_size=rows)
    if ask is EVERYWHERE["quantize"]:
        ask = lambda config, model: pipeline.check_set(model, a_set(64, rows))  # noqa: E731
    with pytest.raises(UserError, match=rf"\b{rows - 1}\b"):
        ask(config, model)


def test_a_tokenizer_that_is_larger_but_writes_no_such_id_passes(
    copy: Path, config: RunConfig
) -> None:
    """Many models have a padding token beyond their embedding, which no text becomes."""
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_special_tokens({"pad_token": "<|nobody-writes-this|>"})
    tokenizer.save_pretrained(copy)
    pipeline.check_data(config, edited(copy))


@pytest.mark.parametrize("seq_len", [257, 2048])
def test_windows_that_are_too_long_are_refused_with_the_longest(copy: Path, seq_len: int) -> None:
    with pytest.raises(UserError, match=f"seq_len={seq_len}.*seq_len=256"):
        fit.refuse_long_windows(edited(copy, max_position_embeddings=256), seq_len)


@pytest.mark.parametrize("ask", ["single and suite", "evaluate", "quantize"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers(copy: Path, config: RunConfig, ask: str, value: float) -> None:
    model = spoiled(copy, "model.layers.1.mlp.up_proj.weight", value)
    with pytest.raises(UserError, match=r"1 weights .*layers\.1\.mlp\.up_proj"):
        EVERYWHERE[ask](config, model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_type_are_looked_at(copy: Path, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in load_file(copy / SAFE).items()}
    save_file(state, copy / SAFE, {"format": "pt"})
    fit.refuse_not_finite(edited(copy))
    with pytest.raises(UserError, match="NaN"):
        fit.refuse_not_finite(spoiled(copy, "model.norm.weight", float("nan")))


def test_a_mask_that_no_model_uses_may_be_infinite(copy: Path) -> None:
    state = load_file(copy / SAFE)
    state["model.mask"] = torch.full((4,), float("-inf"))
    save_file(state, copy / SAFE, {"format": "pt"})
    fit.refuse_not_finite(edited(copy))


def test_weights_are_looked_at_once(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = edited(copy)
    fit.refuse_not_finite(model)
    monkeypatch.setattr(fit, "_not_finite", None)
    fit.refuse_not_finite(model)


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors"])
def test_a_quantized_model_is_refused_before_anything_is_chosen(
    copy: Path, config: RunConfig, method: str
) -> None:
    file = copy / "config.json"
    settings = {"quant_method": method, "bits": 4}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": settings}))
    model = Model("m", copy, "0")
    for ask in (pipeline.resolve, lambda _, model: pipeline.check_set(model, a_set(64))):
        with pytest.raises(UserError, match=r"model '.*quantized"):
            ask(config, model)


def test_a_quantizer_that_cuts_windows_is_found_out(
    copy: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from colazero.quantizers import QUANTIZERS
    from colazero.types import QuantizationReport

    def half(*_: object) -> QuantizationReport:
        row = {"rtn_fallback": False, "damp": 0.0}
        return QuantizationReport(1.0, 1.0, [row | {"samples": s} for s in (12, 64)])

    assert "gptqmodel" in QUANTIZERS.names()
    monkeypatch.setitem(QUANTIZERS._implementations, "gptqmodel", half)
    model = edited(copy)
    resolved = pipeline.resolve(config.model_copy(update={"quantizer": "gptqmodel"}), model)
    with pytest.raises(RuntimeError, match=r"64 .*128 tokens"):
        pipeline.quantize(resolved, model, a_set(64), copy / "out", lambda *_: None)


def test_looking_at_weights_needs_no_memory_for_them(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 8192, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=32, num_attention_heads=32, num_key_value_heads=1, **sizes)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        state = LlamaForCausalLM(config).half().state_dict()
    header, end = {}, 0
    for name, tensor in state.items():
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
    assert end > 2**30
    head = json.dumps(header).encode()
    with (tmp_path / SAFE).open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + end)  # zeros, without a byte on the disk
    program = (
        "import re, sys, torch\n"
        "from pathlib import Path\n"
        "from colazero.models import fit\n"
        "def memory(name):\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    return int(re.search(rf'{name}:\\s+(\\d+)', status)[1]) / 2**20\n"
        "before = memory('VmRSS')\n"
        "assert fit._not_finite(Path(sys.argv[1])) == []\n"
        "print(memory('VmHWM') - before)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.7
