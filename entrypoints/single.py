"""One cell in one run: select, quantize, evaluate. `python -m entrypoints.single --seed=43`."""

from __future__ import annotations

from colazero.config import RunConfig
from entrypoints._command_line import described, main

PARAMETERS = tuple(RunConfig.model_fields)


def run(given: dict[str, str]) -> int:
    from colazero.config import parse

    config = parse(RunConfig, given)
    from colazero import cell, models, pipeline, tracking
    from colazero.suite.progress import stage_bar

    pipeline.check(config, [config.method], [config.model])
    tracking.connect()
    model = models.fetch(config.model)
    config = pipeline.resolve(config, model)
    pipeline.check_data(config, model)
    name = cell.name_of(config, model)
    with tracking.run(name, "cell") as run_id:
        outcome = cell.run_cell(config, model, stage_bar(name), reuse=False)
    for key in ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec"):
        print(f"{key}: {outcome.metrics[key]:.6g}")
    print(f"run: {run_id}")
    return 0


if __name__ == "__main__":
    main(__doc__, described(PARAMETERS), run)
