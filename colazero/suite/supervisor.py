"""Gives the jobs of a suite to workers until all are done, whatever happens to the workers."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlflow.exceptions import MlflowException
from tqdm import tqdm

from colazero.store import claims, client
from colazero.store.record import params_of
from colazero.suite.cells import Executor
from colazero.suite.plan import Budget
from colazero.suite.worker import Event, Job, of_run
from colazero.suite_settings import SuiteConfig

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""How often a cell is begun if its worker ends. A cell that fails by itself is not repeated."""
NEVER_BEGUN = 5
"""How often a cell is given to a worker that ends before the cell begins. Then the suite ends."""
DEFERRED_SEC = 5.0
"""Seconds after which a cell that waits for another run is tried again: once to twice this, or as
soon as another cell is done."""
HEARTBEAT_SEC = 30.0


class Display:
    """A suite's progress in the terminal: how many cells are done, and the stage of each.

    If stderr is not a terminal, there is only one line per finished cell.
    """

    def __init__(self, total: int) -> None:
        self._live = sys.stderr.isatty()
        self._total, self._ended = total, 0
        form = "cells: {n_fmt}/{total_fmt} |{bar}| {elapsed}"  # each line says the time left
        self._all = tqdm(total=total, bar_format=form, disable=not self._live)
        self._bars: dict[str, Any] = {}

    def stage(self, name: str, stage: str, done: int, total: int) -> None:
        """Show how far a cell's stage is."""
        if not self._live:
            return
        if name not in self._bars:
            self._bars[name] = tqdm(leave=False)
        bar = self._bars[name]
        bar.bar_format = "  {desc} {percentage:3.0f} % |{bar}|" if total else "  {desc}"
        bar.set_description_str(f"{name}: {stage}", refresh=False)
        bar.total, bar.n = total or None, done
        bar.refresh()

    def ended(self, name: str, how: str, *, final: bool = True) -> None:
        """Remove a cell's line and say how it ended; not `final` if it will be tried again."""
        if name in self._bars:
            self._bars.pop(name).close()
        if final:
            self._ended += 1
            self._all.update()
        words = f"{name}: {how} ({self._ended} of {self._total})"
        if self._live:
            tqdm.write(words, file=sys.stderr)
        else:
            log.info(words)

    def close(self) -> None:
        """Remove all lines."""
        for bar in (*self._bars.values(), self._all):
            bar.close()


@dataclass
class Report:
    """The cells of a suite that are done, reused, failed (with reasons) or not started in time."""

    done: list[str] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    not_started: list[str] = field(default_factory=list)


class Supervisor:
    """Gives jobs to an executor until none is left, and records the jobs that workers lose."""

    def __init__(
        self,
        config: SuiteConfig,
        suite: str,
        executor: Executor[Any],
        report: Report,
        budget: Budget | None = None,
    ) -> None:
        self._config, self._suite, self._executor, self._report = config, suite, executor, report
        self._budget = budget or Budget()
        self._later = 0
        self._waiting: list[Job] = []
        self._running: dict[str, Job] = {}
        self._begun: dict[str, float] = {}
        self._computed: dict[str, float] = {}
        self._at_work: set[str] = set()
        self._attempts: Counter[str] = Counter()
        self._never_begun: Counter[str] = Counter()
        self._not_before: dict[str, float] = {}
        self._seconds: list[float] = []
        self._at_once = 1
        self._sets: dict[tuple[Any, ...], str] = {}
        self._last_beat = 0.0

    def run(self, jobs: list[Job], later: int = 0) -> bool:
        """Run the jobs that fit the time budget; return True if none was skipped.

        later: how many cells may follow in another call.
        """
        self._waiting, self._later = list(jobs), later
        self._display = Display(len(jobs))
        try:
            while self._waiting or self._running:
                self._beat()
                self._dispatch()
                for event in self._executor.events(timeout=1.0):
                    self._handle(event)
                self._end_overdue()
        finally:
            self._display.close()
        self._beat(at_once=True)
        return not self._report.not_started

    def _skip_late_jobs(self) -> None:
        late = [job for job in self._waiting if not self._budget.fits(job)]
        for job in late:
            self._waiting.remove(job)
            self._report.not_started.append(job.name)
            self._display.ended(job.name, "not started: it would not end in time")

    def _dispatch(self) -> None:
        now = time.monotonic()
        while True:
            self._skip_late_jobs()
            ready = [job for job in self._waiting if self._not_before.get(job.name, 0) <= now]
            job = self._executor.accepts(ready)
            if job is None:
                return
            self._waiting.remove(job)
            if not job.run_id:
                job = replace(job, run_id=self._new_run(job))
            self._running[job.name], self._begun[job.name] = job, now
            self._at_work.discard(job.name)
            self._at_once = max(self._at_once, len(self._running) - len(self._computed))
            self._executor.start(job)

    def _new_run(self, job: Job) -> str:
        """Create a job's run with the parameters that name it, in case its worker never reports."""
        run_id = client.patiently(claims.create_child, self._suite, job.name, job.kind)
        params = {"model": job.config.model, "method": "unquantized"}
        if job.kind != "baseline":
            params["method"] = job.config.method
            params |= params_of(job.config, [*self._config.sweep, "seed"])
        client.patiently(claims.log_params, run_id, params)
        return run_id

    def _handle(self, event: Event) -> None:
        if event.kind == "stage":
            self._at_work.add(event.job)
            if event.data["stage"] == "select":  # its worker has started up and has begun
                self._begun[event.job] = time.monotonic()
            self._display.stage(event.job, **event.data)
            return
        seconds = time.monotonic() - self._begun[event.job]
        if not event.last:
            self._computed[event.job] = seconds
            self._at_work.discard(event.job)  # a worker lost from here on is not this cell's fault
            self._display.stage(event.job, "send", 0, 0)
            return
        job = self._running.pop(event.job)
        seconds = self._computed.pop(job.name, seconds)
        if event.kind == "done":
            self._done(job, seconds, event.data)
        elif event.kind == "failed":
            self._failed(job, event.data["reason"])
        elif event.kind == "deferred":
            if job.name not in self._not_before:
                self._display.ended(job.name, "waits for a run that does the same", final=False)
            # Equal waits would let two suites withdraw from each other again and again.
            share = 1 + int(job.run_id[:2], 16) / 255
            self._not_before[job.name] = time.monotonic() + DEFERRED_SEC * share
            self._waiting.append(job)
        else:
            self._lost(job, event.data["reason"])

    def _done(self, job: Job, seconds: float, data: Mapping[str, Any]) -> None:
        source_run = data.get("source_run")
        self._not_before.clear()
        if job.kind == "cell":
            self._report.done.append(job.name)
            if source_run:
                self._report.reused.append(job.name)
            else:
                self._seconds.append(seconds)
                self._budget.took(job, seconds)
        how = f"results of run {source_run}" if source_run else f"done in {seconds:.0f} s"
        left = self._seconds_left()
        more = [f"about {max(1, round(left / 60)):,} min left"] if left else []
        self._display.ended(job.name, ", ".join([*self._result(job, data), how, *more]))
        self._beat(at_once=True)

    def _result(self, job: Job, data: Mapping[str, Any]) -> list[str]:
        """Return the perplexity in words, and which cell had the same calibration set before."""
        found, digest = [], data.get("calibration")
        if data.get("perplexity") is not None:
            found.append(f"perplexity {data['perplexity']:.3f}")
        if job.kind == "cell" and digest:
            setting = [getattr(job.config, name) for name in self._config.sweep]
            first = self._sets.setdefault((job.model.name, *setting, digest), job.name)
            if first != job.name and not data.get("source_run"):  # else it may be in the same order
                found.append(f"same set as {first}, in another order")
        return found

    def _failed(self, job: Job, reason: str) -> None:
        self._report.failed[job.name] = reason
        self._display.ended(job.name, f"FAILED: {reason}")
        self._beat(at_once=True)

    def _lost(self, job: Job, reason: str) -> None:
        begun = job.name in self._at_work
        losses, most = (self._attempts, ATTEMPTS) if begun else (self._never_begun, NEVER_BEGUN)
        losses[job.name] += 1
        if losses[job.name] < most:
            self._waiting.insert(0, job)
            self._display.ended(job.name, f"{reason}; it is tried again", final=False)
        else:
            self._give_up(job, reason)

    def _give_up(self, job: Job, reason: str) -> None:
        """End the run of a job whose worker is gone, unless its result is in the store."""
        run = claims.give_up(job.run_id, reason)
        if run is None:
            self._failed(job, reason)
        else:
            self._done(job, time.monotonic() - self._begun[job.name], of_run(run))

    def _end_overdue(self) -> None:
        limit, now = self._config.cell_time_limit, time.monotonic()
        for job in list(self._running.values()):
            if job.name not in self._computed and now - self._begun[job.name] > 60 * limit:
                self._executor.stop(job)
                del self._running[job.name]
                reason = f"not done after cell_time_limit={limit:g} minutes: ended as hung"
                self._give_up(job, reason)

    def _beat(self, *, at_once: bool = False) -> None:
        """Log a heartbeat with the counts every 30 seconds, or `at_once`."""
        if not at_once and time.monotonic() - self._last_beat < HEARTBEAT_SEC:
            return
        self._last_beat = time.monotonic()
        metrics = {
            "cells_done": float(len(self._report.done)),
            "cells_reused": float(len(self._report.reused)),
            "cells_failed": float(len(self._report.failed)),
            "cells_left": float(self._cells_left()),
        }
        seconds = self._seconds_left()
        if seconds is not None:
            metrics["seconds_left"] = seconds
        try:
            claims.heartbeat(self._suite, metrics)
        except (MlflowException, OSError) as error:
            log.warning("the heartbeat of the suite could not be logged: %s", error)

    def _cells_left(self) -> int:
        here = [job for job in (*self._waiting, *self._running.values()) if job.kind == "cell"]
        return len(here) + self._later

    def _seconds_left(self) -> float | None:
        """Estimate from the cells so far; None before the first one is done."""
        if not self._seconds:
            return None
        mean = sum(self._seconds) / len(self._seconds)
        return mean * self._cells_left() / self._at_once
