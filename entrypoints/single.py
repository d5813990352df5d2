"""One cell in one run: select, quantize, evaluate. `python -m entrypoints.single --seed=43`."""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.single`, or `colazero single`.")

import time
from typing import TYPE_CHECKING

from colazero.errors import UserError
from colazero.settings import RunConfig
from entrypoints._command_line import fields, main

if TYPE_CHECKING:
    from colazero.cell import Outcome
    from colazero.types import Model

PARAMETERS = tuple(RunConfig.model_fields)
FORCE = (
    "true: compute although a finished run has done the same; false: take over its results. "
    "Default: false"
)
DEFERRED_SEC = 5.0


def run(given: dict[str, str]) -> int:
    from colazero.suite_settings import parse

    given = dict(given)
    force = given.pop("force", "auto")
    if force.lower() not in ("auto", "true", "false"):
        raise UserError(f"force={force!r}: must be true or false.")
    config = parse(RunConfig, given)
    from colazero import devices

    config = config.model_copy(update={"device": devices.take(config.device)})
    from colazero import models, preconditions
    from colazero.store import client, record
    from colazero.store.open import connect

    preconditions.check(config, [config.method], [config.model])
    record.refuse_unkeepable(config, "single")
    connect()
    model = models.fetch(config.model)
    config = preconditions.resolve(config, model)
    preconditions.check_data(config, model)
    run_id, outcome = _done(config, model, reuse=force.lower() != "true")
    for key in ("perplexity", "selection_time_sec", "quant_time_sec", "total_time_sec"):
        print(f"{key}: {outcome.metrics[key]:.6g}")
    if outcome.source_run:
        print(f"results of run {outcome.source_run}, which did the same; force=true repeats it")
    print(f"run: {run_id}\n{client.where(run_id)}")
    return 0


def _done(config: RunConfig, model: Model, *, reuse: bool) -> tuple[str, Outcome]:
    """Do the cell in a run of its own, once no other run is doing the same."""
    from colazero import cell
    from colazero.store import claims, record
    from colazero.suite.progress import stage_bar

    name, run_id = cell.name_of(config, model), None
    while True:
        try:
            with record.run(name, "cell", run_id) as run_id:
                record.write_now(config.model_dump(mode="json"), "settings.json")
                return run_id, cell.run_cell(config, model, stage_bar(name), reuse=reuse)
        except claims.Claimed:
            print("another run is doing the same work; waiting for it (force=true would not)")
            assert run_id
            time.sleep(DEFERRED_SEC * (1 + int(run_id[:2], 16) / 255))  # two in step would for ever


if __name__ == "__main__":
    main(__doc__, fields(PARAMETERS, force=FORCE), run)
