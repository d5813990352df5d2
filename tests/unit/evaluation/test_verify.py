"""A checkpoint is compared with what was evaluated: one window's bits, or else its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from colazero import gptq, models, pipeline
from colazero.evaluation.through_blocks import Evaluator
from colazero.quantizers.onepass import quantize
from colazero.settings import RunConfig
from colazero.types import (
    CalibrationSet,
    Evaluation,
    Model,
    QuantizationReport,
    QuantizationSettings,
    Work,
)

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(4, 64), dtype=np.int32), [], {})
Cell = tuple[RunConfig, Model, Path, QuantizationReport, Evaluation]


def cell(original: Path, corpus: Path, out: Path) -> Cell:
    """Quantize and evaluate a model as a cell does."""
    names = {"corpus": f"file:{corpus}", "eval_corpora": (f"file:{corpus}",)}
    config = RunConfig(model=str(original), device="cpu", seq_len=64, eval_windows=3, **names)
    model = models.fetch(str(original))
    evaluator = Evaluator(pipeline.evaluation_texts(config, model))
    report = quantize(Work(original, CALIBRATION, SETTINGS, out, "cpu", evaluator=evaluator))
    return config, model, out, report, Evaluation(evaluator.perplexities)


def one_bit_off(evaluation: Evaluation) -> Evaluation:
    """Return an evaluation whose first window differs by rounding, as another kernel's may."""
    first = evaluation.perplexities[0]
    nll = first.nll.copy()
    nll[0] = np.nextafter(nll[0], 0)
    return replace(evaluation, perplexities=[replace(first, nll=nll)])


def test_rounding_that_differs_is_accepted_where_all_weights_are_the_same(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, model, out, report, evaluation = cell(tiny_llama, corpus_file, tmp_path / "q")
    seconds, same = pipeline.verify(config, model, out, evaluation, report.solved)
    assert (seconds > 0, same, caplog.records) == (True, "bits", [])
    _, same = pipeline.verify(config, model, out, one_bit_off(evaluation), report.solved)
    assert same == "weights"
    assert str(evaluation.perplexities[0].nll[0]) in caplog.text


def test_a_weight_that_changed_on_the_way_to_the_disk_is_named(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    config, model, out, report, evaluation = cell(tiny_llama, corpus_file, tmp_path / "q")
    name = "model.layers.1.mlp.up_proj"
    state = load_file(out / "model.safetensors")
    state[f"{name}.qweight"][3, 5] ^= 1 << 9
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RuntimeError, match=rf"1 weights .*'{name}\.weight'"):
        pipeline.verify(config, model, out, one_bit_off(evaluation), report.solved)


def test_a_weight_that_was_packed_wrongly_is_found_too(
    tiny_llama: Path, corpus_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = gptq.pack

    def swapped(solved: Any, bits: int) -> dict[str, torch.Tensor]:
        packed = pack(solved, bits)
        return packed | {"scales": packed["scales"].flip(-1)}

    monkeypatch.setattr(gptq, "pack", swapped)
    config, model, out, report, evaluation = cell(tiny_llama, corpus_file, tmp_path / "q")
    with pytest.raises(RuntimeError, match=f"{len(report.solved)} weights"):
        pipeline.verify(config, model, out, evaluation, report.solved)
