"""Quantize on a calibration set: `python -m entrypoints.quantize --calibration=runs:/ID`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from entrypoints._command_line import described, main

QUANTIZATION = ("quant_bits", "group_size", "desc_act", "sym", "damp_percent", "act_group_aware")
PARAMETERS = ("model", "bos", *QUANTIZATION, "quantizer", "save_model", "device")
CALIBRATION = "runs:/RUN_ID of a run that selected, or a directory with its calibration/ files"


def run(given: dict[str, str]) -> int:
    from colazero.config import RunConfig, parse
    from colazero.errors import UserError

    source = given.pop("calibration")
    config = parse(RunConfig, given)
    from colazero import cell, models, pipeline, tracking
    from colazero.calibration import files as calibration_files
    from colazero.quantizers import UNQUANTIZED, WITHOUT_CALIBRATION
    from colazero.suite.progress import stage_bar
    from colazero.tracking import fetching

    pipeline.check(config, [], [config.model])
    if config.quantizer == UNQUANTIZED:
        raise UserError("quantizer='none' leaves nothing to quantize: evaluate the model itself.")
    free = config.quantizer in WITHOUT_CALIBRATION
    if source == "auto" and not free:
        raise UserError("calibration is missing: give runs:/RUN_ID or a directory.")
    tracking.connect()
    folder = Path(source)
    if source.startswith("runs:/") and not free:  # before the model, which may be gigabytes away
        folder = fetching.fetch_artifacts(source, "calibration")
    model = models.fetch(config.model)
    config = pipeline.resolve(config, model)
    if free:
        calibration, about = pipeline.calibrate(config, model)[0], {"method": config.quantizer}
    else:
        calibration, about = calibration_files.load_calibration(folder, model)
    pipeline.check_set(model, pipeline.with_bos(config, model, calibration))
    name = f"quantize__{model.label}"
    with tracking.run(name, "quantize") as run_id, tempfile.TemporaryDirectory() as work:
        tracking.log_params({key: tracking.as_text(getattr(config, key)) for key in PARAMETERS})
        cell.tag_calibration(calibration)
        checkpoint = Path(work) / "checkpoint"
        bar = stage_bar(name)("quantize")
        report = pipeline.quantize(config, model, calibration, checkpoint, bar)
        tracking.log_quantization(report)
        cell.keep_checkpoint(config, model, checkpoint, f"{model.label}-{about['method']}")
    rounded = f", {report.rtn_fallbacks} layers rounded" if report.modules else ""
    print(f"quantized in {report.quant_time_sec:.1f} s{rounded}")
    print(f"model: runs:/{run_id}")
    return 0


if __name__ == "__main__":
    main(__doc__, described(PARAMETERS, calibration=CALIBRATION), run)
