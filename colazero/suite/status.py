"""How a suite is doing, told from its runs by any process that reaches the store."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mlflow.entities import Run

from colazero.errors import UserError
from colazero.store import claims, client, fetch
from colazero.suite.grid import beside, name_of
from colazero.suite_settings import SuiteConfig, parse

STATES = ("done", "running", "waiting", "failed", "lost", "missing", "settled")


@dataclass(frozen=True)
class Line:
    """A cell or a baseline: done, running, waiting for another run, failed, lost or missing.

    Or settled: there need be no run, as its method's comparisons were settled before.
    """

    name: str
    state: str
    more: str = ""


def of_suite(run_id: str) -> list[Line]:
    """Return a line for everything that the suite's grid holds.

    Runs whose process is gone are ended as KILLED on the way. UserError if there is no such suite.
    """
    suite = client.find_run(run_id)
    if suite is None or suite.data.tags.get("colazero.kind") != "suite":
        raise UserError(f"{run_id!r} is no suite's run in this tracking store.")
    claims.bury_the_dead(suite.info.experiment_id)
    found: dict[str, Run] = {}
    for run in sorted(client.children(run_id), key=lambda r: r.info.status == "FINISHED"):
        found[run.info.run_name] = run
    return [
        Line(name, "settled") if settled and name not in found else _line(name, found.get(name))
        for name, settled in _grid(suite).items()
    ]


def _grid(suite: Run) -> dict[str, bool]:
    """Return the names of what a suite may run, and whether a look has shown it unnecessary."""
    stopped = fetch.stopped_at(suite)
    params = suite.data.params
    given = {
        name: params.get(f"resolved.{name}", params.get(name, "auto"))
        for name in SuiteConfig.model_fields
    }
    config = parse(SuiteConfig, {"preset": "demo"} | given)
    found: dict[str, bool] = {}
    for model in config.models:
        ends = stopped.get(model, {})
        mine = [one for one in config.cells() if one.model == model]
        found |= {name: False for one in mine for name in beside(config, one)}
        for one in mine:
            begun = config.seeds[: ends.get(one.method)]
            found[name_of(one, config.sweep)] = one.seed not in begun
    return found


def _line(name: str, run: Run | None) -> Line:
    if run is None:
        return Line(name, "missing")
    tags = run.data.tags
    minutes = (time.time() - run.info.start_time / 1000) / 60
    if run.info.status == "FINISHED":
        source = tags.get("colazero.source_run")
        return Line(name, "done", f"results of run {source}" if source else "")
    if run.info.status == "RUNNING":
        return Line(name, "running", f"since {minutes:.0f} minutes")
    if run.info.status == "SCHEDULED":
        return Line(name, "waiting", "for a run that does the same work")
    state = "lost" if run.info.status == "KILLED" else "failed"
    return Line(name, state, tags.get("colazero.error", ""))


def text(lines: list[Line]) -> str:
    """Return the counts, then the lines of what is still to be done."""
    counts = {state: sum(line.state == state for line in lines) for state in STATES}
    head = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    rest = [line for line in lines if line.state not in ("done", "settled")]
    return "\n".join([head, *(f"{r.state:8} {r.name}  {r.more}".rstrip() for r in rest)])
