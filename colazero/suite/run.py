"""A suite: checked, planned and seen through, whatever ends it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

import numpy as np
from mlflow.exceptions import MlflowException

from colazero import corpora, models, preconditions
from colazero.errors import UserError, first_line
from colazero.settings import RunConfig
from colazero.store import claims, client, record
from colazero.suite import grid, looks, memory, plan
from colazero.suite.budget import Budget
from colazero.suite.execution import EXECUTORS, Job
from colazero.suite.progress import counted
from colazero.suite.supervisor import Report, Supervisor
from colazero.suite_settings import USUAL_BASELINE, USUAL_PRIMARY, SuiteConfig

log = logging.getLogger(__name__)

SWEEP = "colazero.sweep"
"""The tag of a suite with the settings that it gives several values: name → values, as JSON."""


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
    executor = EXECUTORS.get(config.executor)
    executor.check(config)
    first, *others = executor.resolve(config).settings()
    preconditions.check(first, config.methods, config.models, here=False)
    for one in others:
        preconditions.check(one, [], [], here=False)


def with_baseline(config: SuiteConfig) -> SuiteConfig:
    """Return the configuration with its baseline named; say which, where none was and no usual one.

    It is logged so, and every analysis of the suite takes it from there.
    """
    named = config.model_copy(update={"baseline": config.second})
    if len(config.methods) > 1:
        if config.baseline == "auto" and named.baseline != USUAL_BASELINE:
            log.info(
                "baseline: %s, the first method named, for %s is not among them; "
                "baseline=METHOD names another",
                *(named.baseline, USUAL_BASELINE),
            )
        if config.primary == "auto" and USUAL_PRIMARY not in config.methods:
            log.info(
                "no method is the primary one, for %s is not among them: all comparisons are "
                "exploratory; primary=METHOD names one",
                USUAL_PRIMARY,
            )
    return named


def run_suite(config: SuiteConfig, suite: str, judge: looks.Judge) -> Report:
    """Run the cells inside the open run `suite`, each in a nested run of its own.

    With until=settled `judge` says after each look which comparisons are settled.

    A model that cannot be fetched, or a cell that fails, is recorded with its reason and the
    suite goes on. Whatever ends this process in order leaves no run open.
    """
    report, begun = Report(), time.monotonic()
    experiment = client.experiment_of(suite)
    config = with_baseline(config)
    asked, config = config, EXECUTORS.get(config.executor).resolve(config)
    environment = claims.worker_environment(experiment)
    environment["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = record.as_text(config.system_metrics)
    # Workers import for seconds; meanwhile here is planned.
    executor = EXECUTORS.get(config.executor)(config, asked.device, environment)
    try:
        settling = config.until == "settled"
        record.log_config(config.model_copy(update={"looks": config.schedule * settling}))
        if config.sweep:
            record.set_tags({SWEEP: json.dumps(config.sweep)})
        record.flush()
        _load_corpora(config)
        source = np.random.default_rng(int(suite, 16))
        jobs = [
            job
            for name in config.models
            for job in grid.drawn_order(_jobs(config, name, suite, report), source)
        ]
        run, reuse = plan.divide(jobs)
        for line in plan.said(plan.why_new(run)):
            log.info(line)
        jobs, run = _with_room(asked, jobs, run, suite, report)
        for line in _opening(config, suite, run, reuse):
            log.info(line)
        needed = plan.needs(asked, jobs, run)
        plan.check(needed)
        record.write_now([asdict(need) for need in needed], "needs.json")
        budget = _budget(config, run, reuse, begun)
        supervisor = Supervisor(config, suite, executor, report, budget)
        if settling:
            looks.follow(config, suite, jobs, supervisor.run, judge)
        else:
            supervisor.run(jobs)
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, a closed terminal
        log.warning("interrupted; the same command goes on: what is finished is not done again")
        raise
    finally:
        executor.close()
        _end_open_runs(suite)
    return report


def _opening(
    config: SuiteConfig, suite: str, run: Sequence[Job], reuse: Sequence[Job]
) -> list[str]:
    """Say before the first cell what is to be done, how long it may take and where to look."""
    known = plan.times(list({(job.model.name, job.config.method): job for job in run}.values()))
    by_method = {(j.model.name, j.config.method): known.get(j.name) for j in run}
    seconds = [by_method[job.model.name, job.config.method] for job in run]
    told = sum(t for t in seconds if t is not None) / config.workers
    time = f"about {counted(max(1, round(told / 60)), 'minute')}"
    if None in seconds:
        time = "no finished run of these settings tells; the first cells will"
    return [
        f"suite {suite}: {counted(len(run), 'cell')} to run, {len(reuse)} to reuse; time: {time}",
        client.where(suite),
    ]


def _budget(config: SuiteConfig, run: Sequence[Job], reuse: Sequence[Job], begun: float) -> Budget:
    """Count the hours that the suite may take from when it began, by the monotonic clock."""
    if config.budget_hours == "none":
        return Budget(math.inf)
    known = {name: t for name, t in plan.times(run).items() if t is not None}
    left = config.budget_hours - (time.monotonic() - begun) / 3600
    return Budget(left, known, [job.name for job in reuse])


def _end_open_runs(suite: str) -> None:
    """End what is still open below a suite that was interrupted: its workers are gone."""
    try:
        for run in client.children(suite):
            if run.info.status in ("RUNNING", "SCHEDULED"):
                claims.end(run.info.run_id, "KILLED", "the suite was interrupted")
    except MlflowException as error:
        log.error("runs stay open, for the next suite to end: %s", first_line(error))


def plan_suite(config: SuiteConfig, expect: plan.Expect, say: Callable[[str], object]) -> None:
    """Log inside the open run what the suite would do, and `say` it in lines.

    expect: how many of the cells it would do until all is settled.
    UserError, when it was said, if it cannot be done.
    """
    config = with_baseline(config)
    asked, config = config, EXECUTORS.get(config.executor).resolve(config)
    record.log_config(config)
    _load_corpora(config)
    jobs = [job for name in config.models for job in grid.usable(config, name)]
    made = plan.make(asked, jobs, config.workers, expect)
    record.write_now(made.as_json(), "plan.json")
    record.describe(f"```\n{made.text()}\n```")
    say(made.text())
    plan.refuse_all_left_out(made.left_out, made.cells)
    plan.check(made.needs)


def _load_corpora(config: SuiteConfig) -> None:
    """Raise UserError, before any model is fetched, if a corpus of the suite cannot be had."""
    for name in dict.fromkeys((*config.corpus, *config.eval_corpora)):
        corpora.load(name)


def _jobs(config: SuiteConfig, model_name: str, suite: str, report: Report) -> list[Job]:
    """Return a model's jobs; none, its cells recorded as failed, if it cannot be used."""
    try:
        return grid.usable(config, model_name)
    except Exception as error:
        mine = [one for one in config.cells() if one.model == model_name]
        _fail_model(model_name, mine, error, suite, report, config.sweep)
        return []


def _with_room(
    asked: SuiteConfig, jobs: list[Job], run: list[Job], suite: str, report: Report
) -> tuple[list[Job], list[Job]]:
    """Return the jobs without those of models that have no room here, recorded as failed.

    UserError if none has.
    """
    left_out = memory.too_large(asked, run)
    plan.refuse_all_left_out(left_out, {job.model.name for job in run} - set(left_out))
    for name, why in left_out.items():
        cells = [job.config for job in run if job.model.name == name and job.kind == "cell"]
        error = UserError(f"model {name!r} is left out: {why}.")
        _fail_model(name, cells, error, suite, report, asked.sweep)
    lost = {job.name for job in run if job.model.name in left_out}
    left = [job for job in jobs if job.name not in lost]
    models_left = {job.model.name for job in left if job.kind != "baseline"}
    return (
        [job for job in left if job.model.name in models_left],  # no baseline without a cell
        [job for job in run if job.name not in lost],
    )


def _fail_model(
    name: str,
    cells: list[RunConfig],
    error: Exception,
    suite: str,
    report: Report,
    sweep: Collection[str] = (),
) -> None:
    """Record each cell of a model that cannot be used as a failed run, so that none is missing."""
    log.error("model %s: %s", name, error)
    for one in cells:
        label = grid.name_of(one, sweep)
        report.failed[label] = str(error)
        run_id = claims.create_child(suite, label, "cell")
        with contextlib.suppress(type(error)), record.run(label, "cell", run_id):
            record.log_config(one)
            raise error
