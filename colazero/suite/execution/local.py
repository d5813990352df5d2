"""Workers on this machine: processes among which its threads, and its GPUs, are divided."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from colazero import devices
from colazero.store.open import refuse_unshareable
from colazero.suite.execution import EXECUTORS, Event, Job
from colazero.suite.execution.worker import thread_limits, to_event, to_line
from colazero.suite_settings import SuiteConfig

ROOT = Path(__file__).resolve().parents[3]


@dataclass(eq=False)
class _Worker:
    process: subprocess.Popen[str]
    job: Job | None = None
    model: str = ""
    sending: set[str] = field(default_factory=set)


@EXECUTORS.register("local")
class LocalExecutor:
    """`config.workers` processes on this machine, started at once and again when one is lost."""

    def __init__(self, config: SuiteConfig, device: str, environment: Mapping[str, str]) -> None:
        self._config, self._given, self._gpus = config, environment, gpus(device)
        self._said: queue.SimpleQueue[tuple[_Worker, Event | None]] = queue.SimpleQueue()
        self._workers = [self._launch(index) for index in range(config.workers)]

    @staticmethod
    def check(config: SuiteConfig) -> None:
        """Raise UserError if this machine has no such device, or the store is not for several."""
        devices.resolve(config.device)
        refuse_unshareable()

    @staticmethod
    def resolve(config: SuiteConfig) -> SuiteConfig:
        """Say which device of this machine `device` means."""
        return config.model_copy(update={"device": devices.resolve(config.device)})

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        """Return the first job of the model that a free worker has loaded, else the first."""
        free = [worker for worker in self._workers if worker.job is None]
        if not free or not ready:
            return None
        return next(
            (job for worker in free for job in ready if job.model.name == worker.model), ready[0]
        )

    def start(self, job: Job) -> None:
        """Give the job to a free worker, one that has its model loaded if there is one."""
        free = [worker for worker in self._workers if worker.job is None]
        worker = next((w for w in free if w.model == job.model.name), free[0])
        worker.job, worker.model = job, job.model.name
        assert worker.process.stdin
        try:
            worker.process.stdin.write(to_line(_there(job)))
            worker.process.stdin.flush()
        except BrokenPipeError:
            pass  # it is gone, and its last event will say so

    def events(self, timeout: float) -> list[Event]:
        """Wait for the first event, then take all that are there."""
        found: list[Event] = []
        try:
            said = self._said.get(timeout=timeout)
            while True:
                found += self._understand(*said)
                said = self._said.get_nowait()
        except queue.Empty:
            return found

    def stop(self, job: Job) -> None:
        """Kill the worker that computes `job`; another takes its place."""
        worker = next(w for w in self._workers if w.job == job)
        worker.job = None
        worker.process.kill()
        self._replace(worker)

    def close(self) -> None:
        """Kill all workers and wait until they are gone."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()

    def _understand(self, worker: _Worker, event: Event | None) -> list[Event]:
        """Keep account of who is free; `event` None means that the worker's process ended."""
        job = worker.job
        if event is None:
            if worker in self._workers:
                self._replace(worker)
            lost = [*worker.sending, *([job.name] if job else [])]
            return [Event(name, "lost", {"reason": _how_it_ended(worker)}) for name in lost]
        if job and event.job == job.name:
            if event.kind == "computed":
                worker.sending.add(job.name)
            if event.kind != "stage":
                worker.job = None
            return [event]
        if event.job not in worker.sending:
            return []  # of a job that was stopped
        worker.sending.remove(event.job)
        return [event]

    def _replace(self, worker: _Worker) -> None:
        index = self._workers.index(worker)
        self._workers[index] = self._launch(index)

    def _launch(self, index: int) -> _Worker:
        process = subprocess.Popen(
            [sys.executable, "-m", "colazero.suite.execution.worker"],
            env=self._environment(index),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        worker = _Worker(process)
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout
        for line in worker.process.stdout:
            if line.endswith("\n"):  # else it was killed while it wrote
                self._said.put((worker, to_event(line)))
        worker.process.wait()
        self._said.put((worker, None))

    def _environment(self, index: int) -> dict[str, str]:
        """Return a worker's environment. Thread counts are read when libraries are imported."""
        threads = max(1, (os.cpu_count() or 1) // self._config.workers)
        environment = {**os.environ, **self._given}
        environment.pop("MLFLOW_RUN_ID", None)  # that is the suite's own run
        path = os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{path}{os.pathsep}{ROOT}" if path else str(ROOT)
        if self._config.workers > 1:
            environment |= thread_limits(threads)
        return environment | self._gpu(index)

    def _gpu(self, index: int) -> dict[str, str]:
        """Show each worker one GPU, in turn where several are divided, or none: see `devices`."""
        return devices.showing(self._gpus[index % len(self._gpus)] if self._gpus else None)


def gpus(device: str) -> list[int]:
    """Return the numbers of the GPUs among which workers are divided if `device` is asked for."""
    resolved = devices.resolve(device)
    if resolved == "cpu":
        return []
    if device in ("auto", "cuda"):
        return list(range(len(devices.cards())))
    return [int(resolved.partition(":")[2])]


def _there(job: Job) -> Job:
    """Return a job as its worker sees it, whose one GPU is `cuda:0`."""
    if job.config.device == "cpu":
        return job
    return replace(job, config=job.config.model_copy(update={"device": "cuda:0"}))


def _how_it_ended(worker: _Worker) -> str:
    code = worker.process.returncode
    if code == -signal.SIGKILL:
        return "the worker was killed (SIGKILL; out of memory?)"
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    return f"the worker ended {how}"
