"""Round to nearest: every weight to the nearest point of its group's grid, by GPTQModel."""

from __future__ import annotations

import time
from pathlib import Path

from colazero.quantizers import QUANTIZERS
from colazero.quantizers.gptqmodel import contained, fits_in_memory, warm_up
from colazero.types import (
    CalibrationSet,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    Rider,
)


@QUANTIZERS.register("rtn")
def quantize(
    model_dir: Path,
    calibration: CalibrationSet,
    settings: QuantizationSettings,
    out_dir: Path,
    device: str,
    progress: Progress,
    rider: Rider | None = None,
) -> QuantizationReport:
    """Round the model in `model_dir` and write a Hugging Face GPTQ checkpoint to `out_dir`.

    `calibration`, damp and the order of columns play no part. Nothing is scaled or clipped
    beforehand: this is the floor that calibration has to beat.
    """
    warm_up(device)
    model_dir, out_dir = model_dir.absolute(), out_dir.absolute()  # contained() goes elsewhere
    with contained():
        from gptqmodel import GPTQModel
        from gptqmodel.quantization.config import RTNConfig

        config = RTNConfig(
            bits=settings.quant_bits,
            group_size=settings.group_size,
            sym=settings.sym,
            offload_to_disk=not fits_in_memory(model_dir),
        )
        begin = time.perf_counter()
        model = GPTQModel.load(str(model_dir), config, device=device, trust_remote_code=False)
        log = model.quantize(None)
        quantized = time.perf_counter()
        model.save(str(out_dir))
        saved = time.perf_counter()
    rows = log["weight_only_rtn"]
    progress(1, 1)
    modules = [
        {
            "layer": int(row["layer"]),
            "module": row["module"],
            "loss": None,
            "damp": 0.0,
            "rtn_fallback": False,  # here it is what was asked for
            "samples": 0,
        }
        for row in rows
    ]
    return QuantizationReport(quantized - begin, saved - quantized, modules)
