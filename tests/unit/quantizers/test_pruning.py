"""Pruned checkpoints: plain weights with zeros, evaluated on the way as they are read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from colazero.blocks.probe import open_sequence
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import Evaluator, evaluate
from colazero.quantizers import QUANTIZERS, WITHOUT_CALIBRATION
from colazero.settings import PRUNING
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Text, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(6, 128), dtype=np.int32), [], {})
TEXT = Text("text", RNG.integers(10, 250, size=(5, 128)), np.arange(5) * 128)


def pruned(
    quantizer: str,
    model: Path,
    out: Path,
    settings: QuantizationSettings = SETTINGS,
    evaluator: Evaluator | None = None,
) -> QuantizationReport:
    windows = CALIBRATION.windows[: 0 if quantizer in WITHOUT_CALIBRATION else None]
    given = replace(CALIBRATION, windows=windows)
    return QUANTIZERS.get(quantizer)(Work(model, given, settings, out, "cpu", evaluator=evaluator))


@pytest.mark.parametrize("quantizer", PRUNING)
@pytest.mark.parametrize(
    ("family", "pattern", "sparsity"),
    [("tiny_llama", "none", 0.5), ("tiny_opt", "none", 0.25), ("tiny_opt", "2:4", 0.5)],
)
def test_the_checkpoint_is_the_model_with_so_many_zeros(
    quantizer: str,
    family: str,
    pattern: str,
    sparsity: float,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    model, out = request.getfixturevalue(family), tmp_path / "checkpoint"
    settings = replace(SETTINGS, pattern=pattern, sparsity=sparsity)
    evaluator = Evaluator([TEXT])
    report = pruned(quantizer, model, out, settings, evaluator)
    before, after = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {
        n: (t.shape, t.dtype) for n, t in after.items()
    }
    rows = {f"layers.{row['layer']}.{row['module']}.weight": row for row in report.modules}
    assert len(rows) == (12 if family == "tiny_opt" else 14)
    for name, weight in after.items():
        row = rows.get(name[name.find("layers.") :])
        if row is None:
            assert weight.equal(before[name]), name
            continue
        share = float((weight == 0).float().mean())
        assert share == pytest.approx(sparsity, abs=0.01), name
        assert row["sparsity"] == share
        if pattern == "2:4":
            assert (weight.view(len(weight), -1, 4) == 0).sum(-1).ge(2).all()
        if quantizer != "sparsegpt":
            assert weight.equal(before[name].where(weight != 0, 0)), "the others stay as they were"
    config = json.loads((model / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == config
    assert not (out / "quantize_config.json").exists()
    by_blocks = evaluate(open_sequence(out, "cpu"), [TEXT])[0]
    whole = perplexity(load_dense(out, "cpu"), "text", TEXT.windows, TEXT.starts)
    assert evaluator.perplexities[0].nll.tolist() == by_blocks.nll.tolist() == whole.nll.tolist()


@pytest.mark.parametrize("quantizer", ["wanda", "sparsegpt"])
def test_calibration_decides_what_becomes_zero(
    quantizer: str, tiny_llama: Path, tmp_path: Path
) -> None:
    pruned(quantizer, tiny_llama, tmp_path / "one")
    pruned("magnitude", tiny_llama, tmp_path / "none")
    one, none = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "none"))
    assert any(not one[name].eq(0).equal(none[name].eq(0)) for name in one)
