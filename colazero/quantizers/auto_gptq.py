"""GPTQ by AutoGPTQ 0.7.1, GPTQModel's predecessor, in the environment of backends/auto_gptq."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from colazero.errors import UserError
from colazero.models.files import copy_other_files
from colazero.quantizers import QUANTIZERS
from colazero.types import QuantizationReport, Work

PROJECT = Path(__file__).resolve().parents[2] / "backends" / "auto_gptq"


@QUANTIZERS.register("auto-gptq")
def quantize(work: Work) -> QuantizationReport:
    """Quantize in a nested MLflow project; the checkpoint has AutoGPTQ's format (v1).

    The seconds are the nested process's own: they exclude building its environment and starting it.
    The report has no rows, because AutoGPTQ's log per module stays in its process.
    """
    from safetensors.numpy import save_file

    settings, out_dir = work.settings, work.out_dir
    with tempfile.TemporaryDirectory() as folder:
        windows = Path(folder) / "windows.safetensors"
        # safetensors writes an array's memory without regard to its strides.
        save_file({"input_ids": np.ascontiguousarray(work.calibration.windows)}, windows)
        parameters = {
            "model": str(work.model_dir.absolute()),
            "calibration": str(windows),
            "out": str(out_dir.absolute()),
            "bits": str(settings.quant_bits),
            "group_size": str(settings.group_size),
            "desc_act": str(settings.desc_act).lower(),
            "sym": str(settings.sym).lower(),
            "damp_percent": str(settings.damp_percent),
            "device": work.device,
        }
        run_project(PROJECT, "quantize", parameters)
    copy_other_files(work.model_dir, out_dir)
    seconds = json.loads((out_dir / "seconds.json").read_text())
    (out_dir / "seconds.json").unlink()
    work.progress(1, 1)
    return QuantizationReport(seconds["quant_time_sec"], seconds["save_time_sec"], [])


def run_project(project: Path, entry_point: str, parameters: Mapping[str, str]) -> None:
    """Run another MLflow project as a nested run, in an environment of its own.

    UserError if no tool here can build one, or if the project fails.
    """
    import mlflow
    from mlflow.exceptions import ExecutionException, MlflowException
    from mlflow.utils.process import ShellCommandException

    manager = next((name for name in ("uv", "conda") if shutil.which(name)), None)
    if manager is None:
        raise UserError(f"{project.name} needs an environment of its own: install uv (or conda).")
    try:
        mlflow.projects.run(  # type: ignore[no-untyped-call]
            str(project), entry_point, parameters=dict(parameters), env_manager=manager
        )
    except (MlflowException, ExecutionException, ShellCommandException) as error:
        raise UserError(f"the project {project} failed: {error}") from error
