"""A grid of cells: what is to be done, and how it fared, whatever happens to the workers."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import asdict, dataclass, field, replace

from mlflow.exceptions import MlflowException

from colazero import cell, models, pipeline, plan, publishing, runs, store, tracking
from colazero.config import RunConfig, SuiteConfig
from colazero.errors import UserError
from colazero.execution import EXECUTORS, Event, Executor, Job
from colazero.progress import Board

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a cell is begun whose worker is lost. One that fails by itself is not tried again."""
DEFERRED_SEC = 5.0
"""After this time, or once any other is done, a cell is tried again that waits for another run."""
HEARTBEAT_SEC = 30.0


@dataclass
class Report:
    """What came of a suite: cells that are done, and the reasons of those that failed."""

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def check(config: SuiteConfig) -> None:
    """Raise UserError, before anything runs, for what would make every cell of a model fail."""
    labels = [models.label(name) for name in config.models]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise UserError(
            f"models={','.join(config.models)!r}: several are called {', '.join(twice)}, and so "
            "would their cells be. Run them in suites of their own."
        )
    EXECUTORS.get(config.executor)
    pipeline.check(config, config.methods, config.models)


def run_suite(config: SuiteConfig, suite: str) -> Report:
    """Run all cells inside the open run `suite`, each in a nested run of its own.

    A model that cannot be fetched, or a cell that fails, is recorded with its reason and the
    suite goes on. Whatever ends this process in order leaves no run open.
    """
    report = Report()
    experiment = runs.experiment_of(suite)
    tracking.log_config(config)
    tracking.flush()
    publishing.recover(experiment)
    jobs = [job for name in config.models for job in _jobs(config, name, suite, report)]
    needed = plan.needs(config, jobs, len(jobs))
    plan.check(needed)
    store.write_now([asdict(need) for need in needed], "needs.json")
    environment = runs.worker_environment(experiment)
    environment["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = tracking.as_text(config.system_metrics)
    executor = EXECUTORS.get(config.executor)(config, environment)
    try:
        _Supervisor(config, suite, executor, report).run(jobs)
    finally:
        executor.close()
        _end_open_runs(suite)
    return report


def _end_open_runs(suite: str) -> None:
    """End what is still open below a suite that was interrupted: its workers are gone."""
    try:
        for run in runs.children(suite):
            if run.info.status in ("RUNNING", "SCHEDULED"):
                runs.end(run.info.run_id, "KILLED", "the suite was interrupted")
    except MlflowException as error:
        log.error("runs stay open, for the next suite to end: %s", str(error).splitlines()[0])


def plan_suite(config: SuiteConfig) -> str:
    """Log inside the open run what the suite would do; return it in lines.

    UserError if it cannot be done.
    """
    tracking.log_config(config)
    jobs = [job for name in config.models for job in _usable(config, name)]
    made = plan.make(config, jobs)
    store.write_now(made.as_json(), "plan.json")
    tracking.describe(f"```\n{made.text()}\n```")
    plan.check(made.needs)
    return made.text()


def _jobs(config: SuiteConfig, model_name: str, suite: str, report: Report) -> list[Job]:
    """Return a model's baseline and cells; none, all recorded as failed, if it cannot be used."""
    try:
        return _usable(config, model_name)
    except Exception as error:
        mine = [one for one in config.cells() if one.model == model_name]
        _fail_model(model_name, mine, error, suite, report)
        return []


def _usable(config: SuiteConfig, model_name: str) -> list[Job]:
    model = models.fetch(model_name)
    plan.Weights.of(model)
    resolved = [pipeline.resolve(one, model) for one in config.cells() if one.model == model_name]
    pipeline.check_data(resolved[0], model)
    baseline = Job(f"{model.label}__unquantized", "baseline", resolved[0], model)
    return [baseline, *(Job(cell.name_of(one, model), "cell", one, model) for one in resolved)]


def _fail_model(
    name: str, cells: list[RunConfig], error: Exception, suite: str, report: Report
) -> None:
    """Record each cell of a model that cannot be used as a failed run, so that none is missing."""
    log.error("model %s: %s", name, error)
    for one in cells:
        label = f"{models.label(name)}__{one.method}__seed{one.seed}"
        report.failed[label] = str(error)
        run_id = runs.create_child(suite, label, "cell")
        with contextlib.suppress(type(error)), tracking.run(label, "cell", run_id):
            tracking.log_config(one)
            raise error


class _Supervisor:
    """Gives jobs to an executor until none is left, and keeps the record of those it lost."""

    def __init__(self, config: SuiteConfig, suite: str, executor: Executor, report: Report) -> None:
        self._config, self._suite, self._executor, self._report = config, suite, executor, report
        self._waiting: list[Job] = []
        self._running: dict[str, Job] = {}
        self._begun: dict[str, float] = {}
        self._attempts: dict[str, int] = {}
        self._not_before: dict[str, float] = {}
        self._seconds: list[float] = []
        self._last_beat = 0.0

    def run(self, jobs: list[Job]) -> None:
        """Do all jobs."""
        self._waiting = list(jobs)
        self._board = Board(len(jobs))
        try:
            while self._waiting or self._running:
                self._beat()
                self._dispatch()
                for event in self._executor.events(timeout=1.0):
                    self._handle(event)
                self._end_overdue()
        finally:
            self._board.close()
        self._beat(at_once=True)

    def _dispatch(self) -> None:
        now = time.monotonic()
        while True:
            ready = [job for job in self._waiting if self._not_before.get(job.name, 0) <= now]
            job = self._executor.accepts(ready)
            if job is None:
                return
            self._waiting.remove(job)
            if not job.run_id:
                job = replace(job, run_id=self._new_run(job))
            self._running[job.name], self._begun[job.name] = job, now
            self._executor.start(job)

    def _new_run(self, job: Job) -> str:
        return runs.patiently(runs.create_child, self._suite, job.name, job.kind)

    def _handle(self, event: Event) -> None:
        if event.kind == "stage":
            if event.data["stage"] == "select":  # its worker has started up and has begun
                self._begun[event.job] = time.monotonic()
            self._board.stage(event.job, **event.data)
            return
        job = self._running.pop(event.job)
        seconds = time.monotonic() - self._begun[job.name]
        if event.kind == "done":
            self._done(job, seconds, event.data["source_run"])
        elif event.kind == "failed":
            self._failed(job, event.data["reason"])
        elif event.kind == "deferred":
            self._not_before[job.name] = time.monotonic() + DEFERRED_SEC
            self._waiting.append(job)
        else:
            self._lost(job, event.data["reason"])

    def _done(self, job: Job, seconds: float, source_run: str | None) -> None:
        self._not_before.clear()
        if job.kind == "cell":
            self._report.done.append(job.name)
            if source_run:
                self._report.reused.append(job.name)
            else:
                self._seconds.append(seconds)
        how = f"results of run {source_run}" if source_run else f"done in {seconds:.0f} s"
        self._board.ended(job.name, how)
        self._beat(at_once=True)

    def _failed(self, job: Job, reason: str) -> None:
        self._report.failed[job.name] = reason
        self._board.ended(job.name, f"FAILED: {reason}")
        self._beat(at_once=True)

    def _lost(self, job: Job, reason: str) -> None:
        self._attempts[job.name] = self._attempts.get(job.name, 0) + 1
        if self._attempts[job.name] < ATTEMPTS:
            self._waiting.insert(0, job)
            self._board.ended(job.name, f"{reason}; it is tried again", final=False)
        else:
            runs.end(job.run_id, "FAILED", reason)
            self._failed(job, reason)

    def _end_overdue(self) -> None:
        limit = self._config.cell_time_limit
        for job in list(self._running.values()):
            if time.monotonic() - self._begun[job.name] > 60 * limit:
                self._executor.stop(job)
                del self._running[job.name]
                reason = f"not done after cell_time_limit={limit:g} minutes: ended as hung"
                runs.end(job.run_id, "FAILED", reason)
                self._failed(job, reason)

    def _beat(self, *, at_once: bool = False) -> None:
        """Leave a sign of life with the counts every 30 seconds, or `at_once`."""
        if not at_once and time.monotonic() - self._last_beat < HEARTBEAT_SEC:
            return
        self._last_beat = time.monotonic()
        left = [job for job in (*self._waiting, *self._running.values()) if job.kind == "cell"]
        metrics = {
            "cells_done": float(len(self._report.done)),
            "cells_reused": float(len(self._report.reused)),
            "cells_failed": float(len(self._report.failed)),
            "cells_left": float(len(left)),
        }
        if self._seconds:
            mean = sum(self._seconds) / len(self._seconds)
            metrics["seconds_left"] = mean * len(left) / self._config.workers
        try:
            runs.heartbeat(self._suite, metrics)
        except MlflowException as error:
            log.warning("no sign of life could be left on the suite's run: %s", error)
