"""Quantize on a calibration set: `python -m entrypoints.quantize --calibration=runs:/ID`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.quantize`, or `colazero quantize`.")

from pathlib import Path

from colazero.settings import SETTINGS, taken_by
from entrypoints._command_line import fields, main, settled

PARAMETERS = taken_by("quantization")
CALIBRATION = (
    "runs:/RUN_ID of a run that selected, or a directory with its calibration/ files. Default: "
    "none, it must be given unless quantizer=rtn"
)


def run(given: dict[str, str]) -> int:
    from colazero.errors import UserError
    from colazero.settings import RunConfig
    from colazero.suite_settings import parse

    source = given["calibration"]
    given = {name: value for name, value in given.items() if name != "calibration"}
    config = parse(RunConfig, given)
    from colazero import devices

    device = devices.take(config.device)
    from colazero import cell, models, pipeline, preconditions
    from colazero.calibration.sets import load_calibration
    from colazero.quantizers import UNQUANTIZED, WITHOUT_CALIBRATION
    from colazero.store import client, fetch, record
    from colazero.store.open import connect
    from colazero.suite.progress import stage_bar

    folder = Path(source)
    if source.startswith("runs:/"):
        connect()
        config = parse(RunConfig, settled(given, fetch.settings(source, _settings(given))))
        if config.quantizer not in WITHOUT_CALIBRATION:  # before the model, maybe gigabytes away
            folder = fetch.fetch_artifacts(source, "calibration")
    config = config.model_copy(update={"device": device})
    preconditions.check(config, [], [config.model])
    record.refuse_unkeepable(config, "quantize")
    if config.quantizer == UNQUANTIZED:
        raise UserError("quantizer='none' leaves nothing to quantize: evaluate the model itself.")
    free = config.quantizer in WITHOUT_CALIBRATION
    if source == "auto" and not free:
        raise UserError("calibration is missing: give runs:/RUN_ID or a directory.")
    connect()
    model = models.fetch(config.model)
    config = preconditions.resolve(config, model)
    if free:
        calibration, about = pipeline.calibrate(config, model)[0], {"method": config.quantizer}
    else:
        calibration, about = load_calibration(folder, model)
    preconditions.check_set(model, pipeline.with_bos(config, model, calibration))
    name = client.run_name("quantize", about["method"], model.label)
    with record.run(name, "quantize") as run_id, record.workspace() as work:
        record.log_params({key: record.as_text(getattr(config, key)) for key in PARAMETERS})
        cell.tag_calibration(calibration)
        record.set_tags(devices.tags(device))
        checkpoint = work / "checkpoint"
        bar = stage_bar(name)("quantize")
        report = pipeline.quantize(config, model, calibration, checkpoint, bar)
        record.log_quantization(report)
        record.keep(config, model, checkpoint, client.run_name(about["method"], model.label))
    rounded = f", {report.rtn_fallbacks} layers rounded" if report.modules else ""
    print(f"quantized in {report.quant_time_sec:.1f} s{rounded}")
    print(f"model: runs:/{run_id}\n{client.where(run_id)}")
    return 0


def _settings(given: dict[str, str]) -> tuple[str, ...]:
    """Return which settings of the run that selected hold here too.

    Those that depend on the model do not if another one is named.
    """
    other = given.get("model", "auto") != "auto"
    mine = [SETTINGS[n] for n in PARAMETERS if n not in ("save_model", "device")]
    return tuple(one.name for one in mine if not (other and one.per_model))


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS, calibration=CALIBRATION), run)
