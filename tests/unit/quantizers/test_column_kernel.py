"""Which loop over columns a quantizer ran is told, and a slow one on a GPU warned of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from colazero.quantizers import gptqmodel, onepass
from colazero.store import record
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)


def row(kernel: str, fallback: bool = False) -> dict[str, Any]:
    return {"kernel": kernel, "rtn_fallback": fallback, "damp": 0.05, "samples": 1}


def test_a_run_has_a_tag_of_its_column_kernel(shared_store: MlflowClient) -> None:
    rows = [row("triton"), row("torch", fallback=True)]
    with record.run("cell", "cell") as run_id:
        record.log_quantization(QuantizationReport(1.0, 1.0, rows))
    assert shared_store.get_run(run_id).data.tags["colazero.column_kernel"] == "triton"


def test_several_are_named_and_none_where_nobody_tells() -> None:
    assert QuantizationReport(1.0, 1.0, [row("torch"), row("numba")]).column_kernel == "numba,torch"
    silent = {name: value for name, value in row("").items() if name != "kernel"}
    assert QuantizationReport(1.0, 1.0, [silent]).column_kernel == ""


def test_onepass_tells(tiny_llama: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(10, 250, size=(2, 64), dtype=np.int32)
    calibration = CalibrationSet(windows, [], {})
    report = onepass.quantize(Work(tiny_llama, calibration, SETTINGS, tmp_path / "out", "cpu"))
    assert report.column_kernel == "numba"


@pytest.mark.parametrize("nvcc", [None, "/usr/local/cuda/bin/nvcc"])
def test_gptqmodel_without_its_extension_is_warned_of(
    nvcc: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gptqmodel.quantization import gptq_cuda

    monkeypatch.setattr(shutil, "which", lambda _: nvcc)
    monkeypatch.setattr(gptq_cuda, "block_update_available", lambda: False)
    assert gptqmodel.column_kernel("cuda:0") == "torch"
    assert ("nvcc did not compile it" if nvcc else "nvcc is not installed") in caplog.text
    caplog.clear()
    monkeypatch.setattr(gptq_cuda, "block_update_available", lambda: True)
    assert gptqmodel.column_kernel("cuda:0") == "cuda"
    assert gptqmodel.column_kernel("cpu") == "torch"
    assert not caplog.records
