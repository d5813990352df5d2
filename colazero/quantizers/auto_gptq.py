"""GPTQ by AutoGPTQ 0.7.1, GPTQModel's predecessor, in the environment of backends/auto_gptq."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from colazero.quantizers import QUANTIZERS
from colazero.types import (
    CalibrationSet,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    Rider,
)

PROJECT = Path(__file__).resolve().parents[2] / "backends" / "auto_gptq"
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "*.jinja")


@QUANTIZERS.register("auto-gptq")
def quantize(
    model_dir: Path,
    calibration: CalibrationSet,
    settings: QuantizationSettings,
    out_dir: Path,
    device: str,
    progress: Progress,
    rider: Rider | None = None,
) -> QuantizationReport:
    """Quantize as a nested MLflow project; the checkpoint has AutoGPTQ's format (v1).

    The seconds are its own: building its environment and starting it are no part of them. Its log
    by module does not leave its process: the report has none.
    """
    from safetensors.numpy import save_file

    from colazero.quantizers import nested

    with tempfile.TemporaryDirectory() as folder:
        windows = Path(folder) / "windows.safetensors"
        # safetensors writes an array's memory, whatever its strides.
        save_file({"input_ids": np.ascontiguousarray(calibration.windows)}, windows)
        parameters = {
            "model": str(model_dir.absolute()),
            "calibration": str(windows),
            "out": str(out_dir.absolute()),
            "bits": str(settings.quant_bits),
            "group_size": str(settings.group_size),
            "desc_act": str(settings.desc_act).lower(),
            "sym": str(settings.sym).lower(),
            "damp_percent": str(settings.damp_percent),
            "device": device,
        }
        nested.run_project(PROJECT, "quantize", parameters)
    for file in (f for kind in TOKENIZER for f in model_dir.glob(kind)):
        shutil.copy(file, out_dir / file.name)
    seconds = json.loads((out_dir / "seconds.json").read_text())
    (out_dir / "seconds.json").unlink()
    progress(1, 1)
    return QuantizationReport(seconds["quant_time_sec"], seconds["save_time_sec"], [])
