"""Where cells are executed: an executor a file, between the suite's process and its workers.

The suite's process plans, watches and keeps the record straight; it computes nothing itself. An
executor starts a job on a worker that is free, passes on what workers say, and tells when one is
lost. A worker is a process of its own, so that whatever ends it (no memory, an abort in a
library, a kill) costs one attempt at one cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from colazero.registry import Registry
from colazero.settings import RunConfig
from colazero.suite_settings import SuiteConfig
from colazero.types import Model


@dataclass(frozen=True)
class Job:
    """One cell, or one model's unquantized baseline or other control, done in the run `run_id`.

    `config` is resolved; `name` is unique in its suite.
    """

    name: str
    kind: Literal["baseline", "control", "cell"]
    config: RunConfig
    model: Model
    run_id: str = ""


@dataclass(frozen=True)
class Event:
    """What became of a job.

    `stage` (data: stage, done, total), then one of `done` (source_run, perplexity, calibration:
    the digest of its set, each or None), `failed` (reason: its run is ended already), `deferred`
    (another run is doing the same work just now) and `lost` (reason: its worker is gone and its
    run still open). Before `done` there may be `computed`: the result is on its way to the store,
    and the worker free for another job.
    """

    job: str
    kind: Literal["stage", "computed", "done", "failed", "deferred", "lost"]
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Whether no other event of the job follows."""
        return self.kind not in ("stage", "computed")


class Executor(Protocol):
    """Workers for the jobs of one suite. All calls come from one thread."""

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        """Return the one of `ready` that a free worker should do next; None if none is free."""
        ...

    def start(self, job: Job) -> None:
        """Start what `accepts` returned."""
        ...

    def events(self, timeout: float) -> list[Event]:
        """Return what happened, after waiting up to `timeout` seconds for something to."""
        ...

    def stop(self, job: Job) -> None:
        """End the worker that computes `job`, at once; no event of it follows."""
        ...

    def close(self) -> None:
        """End all workers, at once."""
        ...


class ExecutorType(Protocol):
    """What makes an executor of the configuration and the environment that workers need."""

    def __call__(
        self, config: SuiteConfig, device: str, environment: Mapping[str, str], /
    ) -> Executor:
        """Return the executor, its workers starting.

        `config` is resolved; `device` is what the user asked for, which tells a GPU that was named
        from one that was found.
        """
        ...

    def check(self, config: SuiteConfig) -> None:
        """Raise UserError, before anything starts, if cells cannot be executed so."""
        ...

    def resolve(self, config: SuiteConfig) -> SuiteConfig:
        """Return the configuration with the number of workers that there will be, and what each
        computes on: `cpu`, or `cuda:N` as it is seen there."""
        ...


EXECUTORS: Registry[ExecutorType] = Registry("executor", "colazero.suite.execution")
