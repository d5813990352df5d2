"""One cell in one run: select, quantize, evaluate. `python -m entrypoints.single --seed=43`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.single`, or `colazero single`.")

import time

from colazero.settings import CELL, SETTINGS
from entrypoints._session import fields, flag, main, stage_bar, start

PARAMETERS = tuple(sorted(SETTINGS, key=lambda name: name not in CELL))
FORCE = (
    "true: compute even if a finished run has done the same; false: reuse its results. "
    "Default: false"
)
DEFERRED_SEC = 5.0


def run(given: dict[str, str]) -> int:
    force = flag(given, "force")
    asked = start(given, selects=True, keeps="single")
    from colazero import cell, models, pipeline
    from colazero.store import claims, client, record

    model = models.fetch(asked.model)
    config = pipeline.resolve(asked, model)
    pipeline.check_data(config, model)
    name, run_id, outcome = cell.name_of(config), "", None
    while outcome is None:
        try:
            with record.run(name, "cell", run_id or None) as run_id:
                record.write_now(config.model_dump(mode="json"), "settings.json")
                bars = stage_bar(name)
                outcome = cell.run_cell(config, model, bars, reuse=not force)
        except claims.Claimed:
            print("another run is doing the same work: waiting for it (force=true does not wait)")
            time.sleep(DEFERRED_SEC * (1 + int(run_id[:2], 16) / 255))  # differs between two runs
    for key in ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec"):
        print(f"{key}: {outcome.metrics[key]:.6g}")
    if outcome.source_run:
        print(f"results of run {outcome.source_run}, which did the same; force=true computes anew")
    print(f"run: {run_id}\n{client.where(run_id)}")
    return 0


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS, force=FORCE), run)
