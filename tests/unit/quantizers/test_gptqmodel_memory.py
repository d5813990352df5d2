"""GPTQModel gets fewer windows at once where memory runs out, down to one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from colazero.quantizers import gptqmodel
from colazero.types import CalibrationSet, QuantizationSettings, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
SET = CalibrationSet(np.zeros((8, 64), dtype=np.int32), [], {})


@pytest.mark.parametrize(("most", "tried"), [(8, [8]), (3, [8, 4, 2]), (1, [8, 4, 2, 1])])
def test_half_as_many_windows_are_tried(
    most: int, tried: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    class Model:
        model = SimpleNamespace(config=LlamaConfig(num_hidden_layers=1))

        def quantize(self, rows: list[Any], batch_size: int) -> dict[str, Any]:
            found.append(batch_size)
            if batch_size > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return {"gptq": []}

        def save(self, folder: str) -> None:
            assert folder == str(tmp_path / "out")

    monkeypatch.setattr(gptqmodel, "warm_up", lambda _: None)
    monkeypatch.setattr(gptqmodel, "_load", lambda *_: Model())
    told = gptqmodel.quantize(Work(tmp_path, SET, SETTINGS, tmp_path / "out", "cpu"))
    assert found == tried
    assert told.windows_at_once == tried[-1]
