"""Workers on this machine: processes that share its threads and GPUs."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from colazero import devices
from colazero.store import open as store
from colazero.suite.cells import Place
from colazero.suite.worker import Event, Job, thread_limits
from colazero.suite_settings import SuiteConfig

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
START = "from colazero.suite.worker import main; main()"
GONE = (EOFError, OSError, pickle.UnpicklingError)
"""Errors of reading from a worker that has ended."""


@dataclass(eq=False)
class _Worker:
    """A process, and this end of its pipe. sending: jobs whose results are being sent."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    job: Job | None = None
    model: str = ""
    sending: set[str] = field(default_factory=set)


class LocalExecutor:
    """One process per worker, started at once; a process that ends is replaced."""

    def __init__(self, config: SuiteConfig, place: Place, environment: Mapping[str, str]) -> None:
        self._place, self._given = place, environment
        self._lost: list[Event] = []
        self._workers = [self._launch(index) for index in range(place.workers)]

    @staticmethod
    def check(config: SuiteConfig) -> None:
        """Raise UserError if this machine has no such device, or the store is not for several."""
        devices.resolve(config.device)
        store.refuse_unshareable()
        cores = os.cpu_count() or 1
        if config.workers > cores:
            log.warning(
                "workers=%d, but this machine has %d CPU cores: more workers than cores compute "
                "slower, not faster",
                *(config.workers, cores),
            )

    @staticmethod
    def place(config: SuiteConfig) -> Place:
        """Return the device of this machine, its GPUs unless one is named, and the workers."""
        gpus = tuple(devices.shared_by(config.device))
        workers = config.workers or max(1, len(gpus))
        return Place(devices.resolve(config.device), workers, gpus)

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        """Return the first job of the model that a free worker has loaded, else the first."""
        loaded = {worker.model for worker in self._workers if worker.job is None}
        if not loaded or not ready:
            return None
        return next((job for job in ready if job.model.name in loaded), ready[0])

    def start(self, job: Job) -> None:
        """Give the job to a free worker, one that has its model loaded if there is one."""
        free = [worker for worker in self._workers if worker.job is None]
        worker = next((w for w in free if w.model == job.model.name), free[0])
        worker.job, worker.model = job, job.model.name
        if self._place.gpus:  # a worker sees one GPU, as its first
            there = job.config.model_copy(update={"device": "cuda:0"})
            job = replace(job, config=there)
        with suppress(OSError):  # the worker is gone: reading from it says so
            worker.pipe.send(job)

    def events(self, timeout: float) -> list[Event]:
        """Wait for an event, then return all that have arrived."""
        events, self._lost = self._lost, []
        readable = wait([worker.pipe for worker in self._workers], 0 if events else timeout)
        for worker in [worker for worker in self._workers if worker.pipe in readable]:
            try:
                while worker.pipe.poll():
                    events += self._heard(worker, worker.pipe.recv())
            except GONE:
                how = _how_it_ended(worker.process.wait())
                names = [*worker.sending, *([worker.job.name] if worker.job else [])]
                events += [Event(name, "lost", {"reason": how}) for name in names]
                self._replace(worker)
        return events

    def stop(self, job: Job) -> None:
        """Kill the worker that computes `job`; another takes its place."""
        worker = next(w for w in self._workers if w.job == job)
        worker.process.kill()
        how = _how_it_ended(worker.process.wait())
        self._lost += [Event(name, "lost", {"reason": how}) for name in worker.sending]
        self._replace(worker)

    def close(self) -> None:
        """Kill all workers and wait until they have ended."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.pipe.close()

    def _heard(self, worker: _Worker, event: Event) -> list[Event]:
        """Update which jobs a worker has, and return the event as a list."""
        if worker.job and event.job == worker.job.name:
            if event.kind == "computed":
                worker.sending.add(event.job)
            if event.kind != "stage":
                worker.job = None
        else:
            worker.sending.discard(event.job)
        return [event]

    def _replace(self, worker: _Worker) -> None:
        worker.pipe.close()
        index = self._workers.index(worker)
        self._workers[index] = self._launch(index)

    def _launch(self, index: int) -> _Worker:
        here, there = Pipe()
        with there:
            process = subprocess.Popen(
                [sys.executable, "-c", START, str(there.fileno())],
                env=self._environment(index),
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what libraries print must not mix with the suite's results
            )
        return _Worker(process, here)

    def _environment(self, index: int) -> dict[str, str]:
        """Return a worker's environment: its threads, and one GPU or none.

        Libraries read it when they are imported.
        """
        environment = {**os.environ, **self._given}
        environment.pop("MLFLOW_RUN_ID", None)  # the suite's own run
        path = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)
        if self._place.workers > 1:
            threads = max(1, (os.cpu_count() or 1) // self._place.workers)
            environment |= thread_limits(threads)
        gpus = self._place.gpus
        return environment | devices.showing(gpus[index % len(gpus)] if gpus else None)


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the worker was killed (SIGKILL; out of memory?)"
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the worker ended {how}"
