"""Checkpoints of other libraries evaluate as their own library says they do."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import EVALUATED, TAKEN, make
from test_quantizer import WINDOWS, quantize

from colazero.blocks.probe import open_sequence
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import evaluate
from colazero.models.fit import examine
from colazero.quantizers.supported import left_dense
from colazero.types import CalibrationSet, Text

FOREIGN = os.environ.get("COLAZERO_FOREIGN_CHECKPOINTS")
KINDS = ("auto-gptq", "auto-gptq-desc_act", "auto-gptq-asymmetric", "llm-compressor")


def nll(model: Any, ids: np.ndarray[Any, Any]) -> float:
    return perplexity(model, "c", ids.astype(np.int64), np.zeros(len(ids))).nll_per_token


@pytest.mark.skipif(FOREIGN is None, reason="made by tests/fixtures/foreign_checkpoints.py")
@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_library(kind: str) -> None:
    from safetensors.numpy import load_file

    folder = Path(str(FOREIGN))
    ids = load_file(folder / "windows.safetensors")["input_ids"]
    reference = json.loads((folder / kind / "reference.json").read_text())["nll"]
    found = nll(load_dense(folder / kind, "cpu").float(), ids)
    original = nll(load_dense(folder / "model", "cpu").float(), ids)
    assert found == pytest.approx(reference, rel=1e-5)  # weights are rounded to bfloat16 here
    assert found != pytest.approx(original, rel=1e-6)


@torch._dynamo.config.patch(disable=True)  # half a minute of compiling
def test_a_checkpoint_of_optimum(
    tiny_llama: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimum.gptq import GPTQQuantizer
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("GPTQMODEL_CPU_WORKERS", "2")
    texts = [tokenizer.decode(row) for row in WINDOWS[:4]]
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float16)
    quantizer = GPTQQuantizer(bits=4, group_size=64, dataset=texts, model_seqlen=64)
    quantized = quantizer.quantize_model(model, tokenizer)
    # Held against the model in memory: optimum 2.3 saves format v1 and calls it gptq_v2, so that
    # transformers reads it with every zero point one off.
    reference = nll(quantized, WINDOWS[:2])
    quantizer.save(quantized, str(tmp_path))
    assert nll(load_dense(tmp_path, "cpu"), WINDOWS[:2]) == pytest.approx(reference, rel=1e-4)


@torch._dynamo.config.patch(disable=True)
@pytest.mark.parametrize(
    ("family", "quantizer"),
    [("gpt2", "gptqmodel"), ("phi3", "gptqmodel"), ("glm4", "gptqmodel"), ("gpt2", "rtn")],
)
def test_layers_that_gptqmodel_stores_in_its_own_way(
    family: str, quantizer: str, tokenizer: Any, tmp_path: Path
) -> None:
    """GPT-2's lie the other way round, of fused ones there are the parts: its kernels agree."""
    from gptqmodel import BACKEND, GPTQModel

    model, out = make(tmp_path / "model", *(TAKEN | EVALUATED)[family]), tmp_path / "out"
    tokenizer.save_pretrained(model)
    ids = (WINDOWS[:, :64] % 157 + 3).astype(np.int64)
    calibration = CalibrationSet(ids.astype(np.int32), [], {})
    quantize(model, out, quantizer=quantizer, calibration=calibration)
    assert left_dense(model, out) == ()
    assert set(examine(out).layers) == set(examine(model).layers)
    kernels = GPTQModel.load(str(out), device="cpu", backend=BACKEND.GPTQ_TORCH).model
    found = load_dense(out, "cpu")
    with torch.no_grad():
        logits = [
            one.float()(input_ids=torch.from_numpy(ids)).logits.flatten()
            for one in (kernels, load_dense(out, "cpu"), load_dense(model, "cpu"))
        ]
    theirs, ours, original = logits
    assert (ours - theirs).norm() < 0.2 * (original - theirs).norm()
    text = Text("c", ids, np.zeros(len(ids)))
    by_blocks = evaluate(open_sequence(out, "cpu"), [text])[0].nll_per_token
    assert by_blocks == pytest.approx(nll(found, ids), rel=1e-4)


def test_settings_in_quantize_config_alone(tiny_llama: Path, tmp_path: Path) -> None:
    quantize(tiny_llama, tmp_path / "new")
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new", old)
    config = json.loads((old / "config.json").read_text())
    del config["quantization_config"]
    (old / "config.json").write_text(json.dumps(config))
    (file,) = old.glob("*.safetensors")
    file.rename(old / "gptq_model-4bit-128g.safetensors")  # AutoGPTQ's name for it
    same = nll(load_dense(tmp_path / "new", "cpu"), WINDOWS[:2])
    assert nll(load_dense(old, "cpu"), WINDOWS[:2]) == same
