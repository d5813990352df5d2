"""The real SmolLM2 on the real corpus: quantized, it lies between the original and rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from colazero import models, pipeline
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.settings import RunConfig
from colazero.suite_settings import parse


def round_to_nearest(model: Any, group_size: int, bits: int) -> None:
    """Round the blocks' linear weights to a symmetric grid, group by group, without calibration."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and ".layers." in name:
            weight = layer.weight.data.float()
            groups = weight.view(weight.shape[0], -1, group_size)
            scale = groups.abs().amax(dim=-1, keepdim=True) * 2 / (2**bits - 1)
            codes = torch.clamp(
                torch.round(groups / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            )
            layer.weight.data = (codes * scale).view_as(weight).to(layer.weight.dtype)


def test_gptq_lies_between_the_original_and_rounding(tmp_path: Path) -> None:
    config = parse(RunConfig, {"method": "random", "device": "cpu", "eval_windows": "8"})
    model = models.fetch(config.model)
    config = pipeline.resolve(config, model)
    assert config.group_size == 64
    calibration, _ = pipeline.calibrate(config, model)
    evaluator = pipeline.evaluator(config, model)
    report = pipeline.quantize(
        config, model, calibration, tmp_path / "q", lambda *_: None, evaluator
    )
    assert len(report.modules) == 210
    evaluation = pipeline.evaluate(config, model, tmp_path / "q", lambda *_: None, evaluator)
    assert pipeline.verify(config, model, tmp_path / "q", evaluation)[1] == "bits"
    quantized = evaluation.perplexities[0]

    dense = load_dense(model.path, "cpu")
    text = pipeline.evaluation_text(model, "sotu", 512, 8)
    windows, starts = text.windows, text.starts
    original = perplexity(dense, "sotu", windows, starts)
    round_to_nearest(dense, 64, 4)
    rounded = perplexity(dense, "sotu", windows, starts)

    assert 25 < original.perplexity < 36, "a real language model on real text"
    assert original.perplexity * 1.02 < quantized.perplexity
    # 37.90 against 41.94 where it was measured, 10 % less; half of that is left to other machines.
    assert quantized.perplexity < rounded.perplexity * 0.955
    assert np.array_equal(original.starts, quantized.starts)
    assert original.digest == quantized.digest
