"""A suite: checked, planned and run; no run stays open, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException

from colazero import cell, corpora, models, pipeline
from colazero.errors import UserError, first_line
from colazero.settings import RunConfig
from colazero.store import claims, client, record
from colazero.suite import looks, memory, plan
from colazero.suite.cells import Executor, Place, counted, drawn_order
from colazero.suite.local import LocalExecutor
from colazero.suite.plan import Budget, Finished
from colazero.suite.supervisor import Report, Supervisor
from colazero.suite.worker import Job
from colazero.suite_settings import USUAL_BASELINE, USUAL_PRIMARY, SuiteConfig

log = logging.getLogger(__name__)

SWEEP = "colazero.sweep"
"""The tag of a suite with the settings that it gives several values: name → values, as JSON."""


def executor_of(config: SuiteConfig) -> type[Executor[Any]]:
    """Return the kind of executor that the suite asks for; UserError if Ray is not installed."""
    if config.executor == "local":
        return LocalExecutor
    try:
        from colazero.suite.ray import RayExecutor
    except ImportError:
        raise UserError(
            "executor='ray' needs Ray, which is not installed: pip install -e '.[ray]' in the "
            "project, here and on every machine of the cluster; or use executor=local."
        ) from None
    return RayExecutor


def check(config: SuiteConfig) -> None:
    """Raise UserError, before anything runs, for what would make every cell of a model fail."""
    labels = [models.label(name) for name in config.models]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(
            f"models={','.join(config.models)!r}: several are called {', '.join(twice)}, and so "
            "would their cells be. Run them in suites of their own."
        )
    record.refuse_unkeepable(config, "suite")
    executor = executor_of(config)
    executor.check(config)
    device = executor.place(config).device
    for number, one in enumerate(config.settings()):
        names = (config.methods, config.models) if number == 0 else ((), ())
        pipeline.check(one, *names, device=device)


def with_baseline(config: SuiteConfig) -> SuiteConfig:
    """Return the configuration with its baseline named; log it if it is not the usual one.

    Every analysis of the suite reads it from the suite's parameters.
    """
    named = config.model_copy(update={"baseline": config.second})
    if len(config.methods) > 1:
        if config.baseline == "auto" and named.baseline != USUAL_BASELINE:
            log.info(
                "baseline: %s, the first method named, because %s is not a method of this suite; "
                "baseline=METHOD names another",
                *(named.baseline, USUAL_BASELINE),
            )
        if config.primary == "auto" and USUAL_PRIMARY not in config.methods:
            log.info(
                "no method is the primary one, because %s is not a method of this suite: all "
                "comparisons are exploratory; primary=METHOD names one",
                USUAL_PRIMARY,
            )
    return named


def _log_config(config: SuiteConfig, place: Place) -> None:
    resolved = {"device": place.device, "workers": place.workers}
    if config.until == "settled":
        resolved["looks"] = config.schedule
    record.log_config(config.model_copy(update=resolved))


def run_suite(config: SuiteConfig, suite: str, judge: looks.Judge) -> Report:
    """Run the cells inside the open run `suite`, each in a nested run of its own.

    With until=settled `judge` says after each look which comparisons are settled.

    A model that cannot be fetched, or a cell that fails, is recorded with its reason and the
    suite goes on. Whatever ends this process in order leaves no run open.
    """
    report, begun = Report(), time.monotonic()
    config = with_baseline(config)
    place = executor_of(config).place(config)
    environment = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_EXPERIMENT_ID": client.experiment_of(suite),
        "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": record.as_text(config.system_metrics),
    }
    # Workers import for seconds; meanwhile the suite is planned.
    executor = executor_of(config)(config, place, environment)
    try:
        _log_config(config, place)
        if config.sweep:
            record.set_tags({SWEEP: json.dumps(config.sweep)})
        record.flush()
        _load_corpora(config)
        source = np.random.default_rng(int(suite, 16))
        jobs = [
            job
            for name in config.models
            for job in drawn_order(_jobs(config, name, place.device, suite, report), source)
        ]
        cell.tag_base_model(*{job.model.name: job.model for job in jobs}.values())
        finished = Finished(jobs)
        run, reuse = finished.divide(jobs)
        for line in (*plan.notes(config), *plan.said(finished.why_new(run))):
            log.warning(line)
        jobs, run = _with_room(config, place, jobs, run, suite, report)
        times = finished.times(run)
        log.info(_opening(suite, place, times, jobs, run, reuse))
        log.info(client.where(suite))
        needed = plan.needs(config, place, jobs, run)
        plan.check(needed)
        record.write_now([asdict(need) for need in needed], "needs.json")
        budget = Budget(_hours_left(config, begun), times, [job.name for job in reuse])
        supervisor = Supervisor(config, suite, executor, report, budget)
        if config.until == "settled":
            looks.follow(config, suite, jobs, supervisor.run, judge)
        else:
            supervisor.run(jobs)
        record.set_tags({client.ENDED: "true"})
        record.flush()
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, a closed terminal
        log.warning("interrupted; the same command goes on: finished cells are not run again")
        raise
    finally:
        executor.close()
        _end_open_runs(suite)
    return report


def _opening(
    suite: str,
    place: Place,
    times: dict[str, float | None],
    jobs: Sequence[Job],
    run: Sequence[Job],
    reuse: Sequence[Job],
) -> str:
    """Return how many jobs are to run or to be reused, and how long they may take."""
    known = [seconds for seconds in times.values() if seconds is not None]
    time_left = f"about {counted(max(1, round(sum(known) / place.workers / 60)), 'minute')}"
    if len(known) < len(times):
        time_left = "unknown until the first cells are done"
    cells = counted(sum(job.kind == "cell" for job in run), "cell")
    extra = sum(job.kind != "cell" for job in jobs)
    return (
        f"suite {suite}: {cells} to run, {len(reuse)} to reuse, {extra} without calibration; "
        f"time: {time_left}"
    )


def _hours_left(config: SuiteConfig, begun: float) -> float:
    if config.budget_hours == "none":
        return math.inf
    return config.budget_hours - (time.monotonic() - begun) / 3600


def _end_open_runs(suite: str) -> None:
    try:
        for run in client.children(suite):
            if run.info.status in claims.OPEN:
                claims.end(run.info.run_id, "KILLED", "the suite was interrupted")
    except MlflowException as error:
        log.error("runs stay open, for the next suite to end: %s", first_line(error))


def plan_suite(config: SuiteConfig, expect: plan.Expect, say: Callable[[str], object]) -> None:
    """Log inside the open run what the suite would do, and `say` it in lines.

    expect: how many of the cells it would do until all is settled.
    UserError, after the plan is said, if it cannot be done.
    """
    config = with_baseline(config)
    place = executor_of(config).place(config)
    _log_config(config, place)
    _load_corpora(config)
    jobs = [job for name in config.models for job in plan.usable(config, name, place.device)]
    made = plan.make(config, place, jobs, expect)
    record.write_now(asdict(made), "plan.json")
    record.describe(f"```\n{made.text()}\n```")
    say(made.text())
    plan.refuse_all_left_out(made.left_out, made.cells)
    plan.check(made.needs)


def _load_corpora(config: SuiteConfig) -> None:
    """Raise UserError, before any model is fetched, if a corpus of the suite cannot be loaded."""
    for name in dict.fromkeys((*config.corpus, *config.eval_corpora)):
        corpora.load(name)


def _jobs(
    config: SuiteConfig, model_name: str, device: str, suite: str, report: Report
) -> list[Job]:
    """Return a model's jobs; none, its cells recorded as failed, if it cannot be used."""
    try:
        return plan.usable(config, model_name, device)
    except Exception as error:
        mine = [one for one in config.cells() if one.model == model_name]
        _fail_model(config, mine, error, suite, report)
        return []


def _with_room(
    config: SuiteConfig,
    place: Place,
    jobs: list[Job],
    run: list[Job],
    suite: str,
    report: Report,
) -> tuple[list[Job], list[Job]]:
    """Return the jobs without those of models that do not fit here, recorded as failed.

    UserError if none fits.
    """
    left_out = memory.too_large(place, run)
    plan.refuse_all_left_out(left_out, {job.model.name for job in run} - set(left_out))
    for name, why in left_out.items():
        cells = [job.config for job in run if job.model.name == name and job.kind == "cell"]
        error = UserError(f"model {name!r} is left out: {why}.")
        _fail_model(config, cells, error, suite, report)
    lost = {job.name for job in run if job.model.name in left_out}
    left = [job for job in jobs if job.name not in lost]
    models_left = {job.model.name for job in left if job.kind != "baseline"}
    return (
        [job for job in left if job.model.name in models_left],  # no baseline without a cell
        [job for job in run if job.name not in lost],
    )


def _fail_model(
    config: SuiteConfig, cells: Sequence[RunConfig], error: Exception, suite: str, report: Report
) -> None:
    """Record each cell of a model that cannot be used as a failed run."""
    log.error("model %s: %s", cells[0].model, error)
    for one in cells:
        name = cell.name_of(one, config.sweep)
        report.failed[name] = str(error)
        run_id = claims.create_child(suite, name, "cell")
        with contextlib.suppress(type(error)), record.run(name, "cell", run_id):
            record.log_config(one)
            raise error
