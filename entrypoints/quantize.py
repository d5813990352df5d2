"""Quantize on a calibration set: `python -m entrypoints.quantize --calibration=runs:/ID`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.quantize`, or `colazero quantize`.")

from pathlib import Path

from colazero.errors import UserError
from colazero.quantizers import UNQUANTIZED, WITHOUT_CALIBRATION
from colazero.settings import SETTINGS, RunConfig, taken_by
from entrypoints._session import fields, main, stage_bar, start

PARAMETERS = taken_by("quantization")
CALIBRATION = (
    "runs:/RUN_ID of a run of `select`, `single` or a suite's cell, models:/NAME/VERSION or "
    "models:/NAME@ALIAS of a model made with a set, or a directory with the files of its "
    "calibration/. Default: none, it must be given unless the quantizer takes none (rtn, magnitude)"
)


def run(given: dict[str, str]) -> int:
    source = given["calibration"]
    given = {name: value for name, value in given.items() if name != "calibration"}
    other_model = given.get("model", "auto") != "auto"
    mine = [SETTINGS[name] for name in PARAMETERS if name not in ("save_model", "device")]
    inherited = [one.name for one in mine if not (other_model and one.per_model)]
    folders = [Path(source)]

    def fetched(config: RunConfig) -> None:
        from colazero.store import fetch

        if config.quantizer not in WITHOUT_CALIBRATION:
            folders.append(fetch.fetch_artifacts(source, "calibration"))

    asked = start(given, source=source, inherited=inherited, fetched=fetched, keeps="quantize")
    from colazero import cell, devices, models, pipeline
    from colazero.calibration.sets import load_calibration
    from colazero.store import client, record

    if asked.quantizer == UNQUANTIZED:
        raise UserError("quantizer='none' leaves nothing to quantize: evaluate the model itself.")
    if source == "auto" and asked.quantizer not in WITHOUT_CALIBRATION:
        raise UserError(
            "calibration is missing: give --calibration=runs:/RUN_ID, which select prints, or a "
            "directory."
        )
    model = models.fetch(asked.model)
    config = pipeline.resolve(asked, model)
    if config.quantizer in WITHOUT_CALIBRATION:
        calibration, about = pipeline.calibrate(config, model)[0], {"method": config.quantizer}
    else:
        calibration, about = load_calibration(folders[-1], model)
    pipeline.check_set(model, pipeline.with_bos(config, model, calibration))
    name = client.run_name("quantize", about["method"], model.label)
    with record.run(name, "quantize") as run_id, record.workspace() as work:
        record.log_config(config, PARAMETERS)
        cell.tag_calibration(calibration)
        record.set_tags(devices.tags(config.device))
        cell.tag_base_model(model)
        checkpoint = work / "checkpoint"
        bar = stage_bar(name)("quantize")
        report = pipeline.quantize(config, model, calibration, checkpoint, bar)
        record.log_quantization(report)
        record.keep(config, model, checkpoint, client.run_name(about["method"], model.label))
    rounded = f", {report.rtn_fallbacks} layers rounded" if report.modules else ""
    print(f"quantized in {report.quant_time_sec:.1f} s{rounded}")
    print(f"model: runs:/{run_id}\n{client.where(run_id)}")
    return 0


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS, calibration=CALIBRATION), run)
