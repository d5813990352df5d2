"""A grid of cells: the unquantized baseline of each model, then every cell, whatever fails."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tqdm import tqdm

from colazero import cell, models, pipeline, tracking
from colazero.config import RunConfig, SuiteConfig
from colazero.errors import UserError
from colazero.interfaces import Progress
from colazero.models import Model

log = logging.getLogger(__name__)


@dataclass
class Report:
    """What came of a suite: cells that are done, and the reasons of those that failed."""

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def stage_bar(cell_name: str) -> cell.Show:
    """Return what shows a bar with the time left for each stage of a cell."""

    def show(stage: str) -> Progress:
        bar = tqdm(desc=f"  {cell_name}: {stage}", leave=False, unit="step", position=1)

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done >= total:
                bar.close()

        return progress

    return show


def check(config: SuiteConfig) -> None:
    """Raise UserError, before anything runs, for what would make every cell of a model fail."""
    labels = [models.label(name) for name in config.models]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(
            f"models={','.join(config.models)!r}: several are called {', '.join(twice)}, and so "
            "would their cells be. Run them in suites of their own."
        )
    pipeline.check(config, config.methods, config.models)


def run_suite(config: SuiteConfig) -> Report:
    """Run all cells inside the open parent run, each in a nested run of its own.

    A model that cannot be fetched, or a cell that fails, is recorded with its reason and the
    suite goes on.
    """
    report = Report()
    tracking.log_config(config)
    cells = config.cells()
    bar = tqdm(total=len(cells), desc="cells", unit="cell", position=0)
    for name in config.models:
        mine = [c for c in cells if c.model == name]
        try:
            model = models.fetch(name)
            resolved = [pipeline.resolve(c, model) for c in mine]
            pipeline.check_data(resolved[0], model)
        except Exception as error:
            _fail_model(name, mine, error, report)
            bar.update(len(mine))
            continue
        _baseline(resolved[0], model, report)
        for one in resolved:
            _cell(one, model, report)
            bar.update()
    bar.close()
    tracking.log_metrics(
        {
            "cells_done": len(report.done),
            "cells_reused": len(report.reused),
            "cells_failed": len(report.failed),
        }
    )
    return report


def _fail_model(name: str, cells: list[RunConfig], error: Exception, report: Report) -> None:
    """Record each cell of a model that cannot be used as a failed run, so that none is missing."""
    log.error("model %s: %s", name, error)
    for one in cells:
        label = f"{models.label(name)}__{one.method}__seed{one.seed}"
        report.failed[label] = str(error)
        try:
            with tracking.run(label, "cell", nested=True):
                tracking.log_config(one)
                raise error
        except type(error):
            continue


def _baseline(config: RunConfig, model: Model, report: Report) -> None:
    name = f"{model.label}__unquantized"
    try:
        with tracking.run(name, "baseline", nested=True):
            cell.run_baseline(config, model, stage_bar(name), reuse=True)
    except Exception as error:
        _failed(name, error, report)


def _cell(config: RunConfig, model: Model, report: Report) -> None:
    name = cell.name_of(config, model)
    try:
        with tracking.run(name, "cell", nested=True):
            outcome = cell.run_cell(config, model, stage_bar(name), reuse=True)
    except Exception as error:
        _failed(name, error, report)
    else:
        report.done.append(name)
        if outcome.source_run:
            report.reused.append(name)


def _failed(name: str, error: Exception, report: Report) -> None:
    report.failed[name] = f"{type(error).__name__}: {error}"
    if isinstance(error, UserError):
        log.error("%s: %s", name, error)
    else:
        log.exception("%s failed", name)
