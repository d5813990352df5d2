"""Choose a calibration set and log it: `python -m entrypoints.select --method=random --seed=43`."""

from __future__ import annotations

from entrypoints._command_line import described, main

PARAMETERS = ("model", "corpus", "method", "seed", "n_calibration_samples", "seq_len")


def run(given: dict[str, str]) -> int:
    from colazero.config import RunConfig, parse

    config = parse(RunConfig, given)
    from colazero import cell, models, pipeline, tracking

    pipeline.check(config, [config.method], [config.model])
    tracking.connect()
    with tracking.run(f"select__{config.method}__seed{config.seed}", "select") as run_id:
        model = models.fetch(config.model)
        calibration, seconds = pipeline.calibrate(config, model)
        tracking.log_params({name: tracking.as_text(getattr(config, name)) for name in PARAMETERS})
        cell.log_calibration(config, model, calibration, seconds)
    n, seq_len = calibration.windows.shape
    print(f"{n} windows of {seq_len} tokens, digest {calibration.digest}, {seconds:.2f} s")
    print(f"calibration set: runs:/{run_id}")
    return 0


if __name__ == "__main__":
    main(__doc__, described(PARAMETERS), run)
