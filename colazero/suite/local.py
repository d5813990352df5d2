"""Workers on this machine: processes that share its threads and GPUs."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from colazero import devices
from colazero.store import open as store
from colazero.suite.cells import Executor, Place, Worker
from colazero.suite.worker import Event, Job, thread_limits
from colazero.suite_settings import SuiteConfig

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
START = "from colazero.suite.worker import main; main()"
GONE = (EOFError, OSError, pickle.UnpicklingError)
"""Errors of reading from a worker that has ended."""


@dataclass(eq=False)
class _Worker(Worker):
    """A process, and this end of its pipe. sending: jobs whose results are being sent."""

    process: subprocess.Popen[bytes]
    pipe: Connection
    sending: set[str] = field(default_factory=set)


class LocalExecutor(Executor[_Worker]):
    """One process per worker, started at once; a process that ends is replaced."""

    def __init__(self, config: SuiteConfig, place: Place, environment: Mapping[str, str]) -> None:
        self._place, self._given = place, environment
        self._lost: list[Event] = []
        self._workers = [self._launch(index) for index in range(place.workers)]

    @staticmethod
    def check(config: SuiteConfig) -> None:
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
        gpus = tuple(devices.shared_by(config.device))
        workers = config.workers or max(1, len(gpus))
        return Place(devices.resolve(config.device), workers, gpus)

    def _free(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.job is None]

    def _give(self, worker: _Worker, job: Job) -> None:
        if self._place.gpus:  # a worker sees one GPU, as its first
            there = job.config.model_copy(update={"device": "cuda:0"})
            job = replace(job, config=there)
        with suppress(OSError):  # the worker is gone: reading from it says so
            worker.pipe.send(job)

    def events(self, timeout: float) -> list[Event]:
        events, self._lost = self._lost, []
        readable = wait([worker.pipe for worker in self._workers], 0 if events else timeout)
        for worker in [worker for worker in self._workers if worker.pipe in readable]:
            try:
                while worker.pipe.poll():
                    event = worker.pipe.recv()
                    events.append(event)
                    if worker.job is None or event.job != worker.job.name:
                        worker.sending.discard(event.job)
                    elif event.kind != "stage":
                        worker.job = None
                        if not event.last:
                            worker.sending.add(event.job)
            except GONE:
                events += self._replace(worker, *([worker.job.name] if worker.job else []))
        return events

    def stop(self, job: Job) -> None:
        worker = next(w for w in self._workers if w.job == job)
        worker.process.kill()
        self._lost += self._replace(worker)

    def close(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()
            worker.pipe.close()

    def _replace(self, worker: _Worker, *jobs: str) -> list[Event]:
        """Replace a worker that has ended; return the loss of `jobs` and of what it sent."""
        code = worker.process.wait()
        how = f"ended with exit code {code}"
        if code < 0:
            how = f"ended by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL; out of memory?)"
        worker.pipe.close()
        index = self._workers.index(worker)
        self._workers[index] = self._launch(index)
        reason = {"reason": f"the worker {how}"}
        return [Event(job, "lost", reason) for job in (*worker.sending, *jobs)]

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
