"""The cells of a suite: which there are, in which order they run, and their state.

The suite's process plans, supervises and records, and computes nothing. An executor gives jobs to
workers, each in a process of its own: if a worker ends (out of memory, killed, an abort in a
library), one attempt at one cell is lost.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import mlflow
import numpy as np
from mlflow.entities import Run

from colazero import cell, models
from colazero.errors import UserError
from colazero.quantizers import UNQUANTIZED
from colazero.settings import SETTINGS, RunConfig
from colazero.store import claims, client
from colazero.suite.worker import Event, Job
from colazero.suite_settings import SuiteConfig, parse

ROUNDING = {name for name, one in SETTINGS.items() if "rtn" in one.quantizers}
"""The settings that decide the result of rounding to nearest."""
STATES = ("done", "running", "waiting", "failed", "lost", "missing", "settled")


@dataclass(frozen=True)
class Place:
    """Where the cells of a suite are computed: its `device` and `workers`, resolved.

    device: `cpu`, or `cuda:N` as a worker sees it. gpus: numbers of the GPUs of this machine among
    which its workers are divided. here: whether workers run on this machine.
    """

    device: str
    workers: int
    gpus: tuple[int, ...] = ()
    here: bool = True


@dataclass(eq=False, kw_only=True)
class Worker:
    """A worker: the job that it computes, if any, and the model that it has loaded."""

    job: Job | None = None
    model: str = ""


W = TypeVar("W", bound=Worker)


class Executor(ABC, Generic[W]):
    """Workers for the jobs of one suite. All calls come from one thread."""

    @abstractmethod
    def __init__(self, config: SuiteConfig, place: Place, environment: Mapping[str, str]) -> None:
        """Begin to start the workers, in this environment."""

    @staticmethod
    @abstractmethod
    def check(config: SuiteConfig) -> None:
        """Raise UserError if cells cannot be executed with these settings."""

    @staticmethod
    @abstractmethod
    def place(config: SuiteConfig) -> Place:
        """Return where the cells will be computed."""

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        """Return the job of `ready` that a free worker should do next; None if none is free.

        That is the first job of a model that such a worker has loaded, or else the first.
        """
        loaded = {worker.model for worker in self._free()}
        if not loaded or not ready:
            return None
        return next((job for job in ready if job.model.name in loaded), ready[0])

    def start(self, job: Job) -> None:
        """Give a job to a free worker, one that has its model loaded if there is one."""
        free = self._free()
        worker = next((worker for worker in free if worker.model == job.model.name), free[0])
        worker.job, worker.model = job, job.model.name
        self._give(worker, job)

    @abstractmethod
    def _free(self) -> list[W]: ...

    @abstractmethod
    def _give(self, worker: W, job: Job) -> None: ...

    @abstractmethod
    def events(self, timeout: float) -> list[Event]:
        """Wait up to `timeout` seconds for an event; return all that came."""

    @abstractmethod
    def stop(self, job: Job) -> None:
        """End the worker that computes `job`, at once; no event of the job follows."""

    @abstractmethod
    def close(self) -> None:
        """End all workers, at once."""


def counted(number: int, what: str) -> str:
    """Return a number with its noun: `1 cell`, `2 cells`."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def title(config: SuiteConfig, preset: str) -> str:
    """Return a suite's name: time, preset and models, as in `11-25 14:30·demo·smollm2-135m`."""
    first, *others = [models.label(name) for name in config.models]
    more = f" and {len(others)} more" if others else ""
    return client.run_name(time.strftime("%m-%d %H:%M"), Path(preset).stem, first + more)


def extra_runs(config: SuiteConfig, one: RunConfig) -> dict[str, str]:
    """Return the runs besides the grid for a cell's model and setting: name → quantizer.

    The unquantized model runs once per evaluation setting, a control once per rounding setting.
    """
    label = models.label(one.model)
    follows = {"seq_len"} if config.eval_seq_len == "auto" else set()
    plain = cell.setting_of(one, [name for name in config.sweep if name in follows])
    rounded = cell.setting_of(one, [name for name in config.sweep if name in follows | ROUNDING])
    controls = {client.run_name(name, *rounded, label): name for name in config.controls}
    return {client.run_name("unquantized", *plain, label): UNQUANTIZED} | controls


def drawn_order(jobs: Sequence[Job], source: np.random.Generator) -> list[Job]:
    """Return a model's jobs with the methods in an order drawn anew for each seed and replicate.

    If the machine slows down, all methods are affected alike (randomized complete blocks). If the
    suite stops early, all methods have about as many seeds.
    """
    blocks: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        if job.kind == "cell":
            blocks.setdefault((job.config.replicate, job.config.seed), []).append(job)
    first = [job for job in jobs if job.kind != "cell"]
    return first + [
        block[i] for _, block in sorted(blocks.items()) for i in source.permutation(len(block))
    ]


@dataclass(frozen=True)
class State:
    """The state of a cell or a control: one of STATES, and details.

    `settled`: it does not run, because its method's comparisons were settled before.
    """

    name: str
    state: str
    more: str = ""


def states(run_id: str) -> list[State]:
    """Return the state of every run of a suite, from the store.

    Runs whose process has ended are marked KILLED. UserError if there is no such suite.
    """
    suite = client.find_run(run_id)
    if suite is None or suite.data.tags.get("colazero.kind") != "suite":
        raise UserError(
            f"status={run_id!r}: not the run id of a suite in the tracking store "
            f"{mlflow.get_tracking_uri()}. A suite prints its run id when it begins."
        )
    claims.end_abandoned(suite.info.experiment_id)
    runs: dict[str, Run] = {}
    for run in sorted(client.children(run_id), key=lambda r: r.info.status == "FINISHED"):
        runs[run.info.run_name] = run
    return [
        State(name, "settled") if settled and name not in runs else _state(name, runs.get(name))
        for name, settled in _grid(suite).items()
    ]


def _grid(suite: Run) -> dict[str, bool]:
    """Return the names of all runs of a suite, and whether a look has made each unnecessary."""
    stopped: dict[str, dict[str, int]] = json.loads(suite.data.tags.get(client.STOPPED, "{}"))
    params = client.params_of(suite)
    given = {name: params.get(name, "auto") for name in SuiteConfig.model_fields}
    config = parse(SuiteConfig, {"preset": "demo"} | given)
    grid: dict[str, bool] = {}
    for model in config.models:
        ends = stopped.get(model, {})
        mine = [one for one in config.cells() if one.model == model]
        grid |= {name: False for one in mine for name in extra_runs(config, one)}
        for one in mine:
            begun = config.seeds[: ends.get(one.method)]
            grid[cell.name_of(one, config.sweep)] = one.seed not in begun
    return grid


def _state(name: str, run: Run | None) -> State:
    if run is None:
        return State(name, "missing")
    tags = run.data.tags
    if run.info.status == "FINISHED":
        source = tags.get("colazero.source_run")
        return State(name, "done", f"results of run {source}" if source else "")
    if run.info.status == "RUNNING":
        minutes = (time.time() - run.info.start_time / 1000) / 60
        return State(name, "running", f"for {minutes:.0f} minutes")
    if run.info.status == "SCHEDULED":
        return State(name, "waiting", "for a run that does the same work")
    state = "lost" if run.info.status == "KILLED" else "failed"
    return State(name, state, tags.get("colazero.error", ""))


def text(lines: list[State]) -> str:
    """Return the counts, then a line for each cell that is neither done nor settled."""
    counts = {state: sum(line.state == state for line in lines) for state in STATES}
    head = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    rest = [line for line in lines if line.state not in ("done", "settled")]
    return "\n".join([head, *(f"{r.state:8} {r.name}  {r.more}".rstrip() for r in rest)])
