"""A process that does one job after another; models and tokens stay loaded in between.

It reads jobs from a pipe and writes events to it. It ends when the suite's process closes the pipe
or ends. Heavy libraries are imported after signals are ignored.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from colazero import devices
from colazero.errors import UserError, log_discreetly
from colazero.settings import Resolved
from colazero.types import Model, Progress

if TYPE_CHECKING:
    from mlflow.entities import Run

    from colazero.store.publish import Record


@dataclass(frozen=True)
class Job:
    """A cell, an unquantized model or another control, to be done in the run `run_id`.

    `name` is unique in the suite.
    """

    name: str
    kind: Literal["baseline", "control", "cell"]
    config: Resolved
    model: Model
    run_id: str = ""


@dataclass(frozen=True)
class Event:
    """A message about a job.

    `stage` (data: stage, done, total), then one of `done` (source_run, perplexity, digest of its
    calibration set, each or None), `failed` (reason; its run is ended), `deferred` (another run is
    doing the same work) and `lost` (reason; its worker has ended and its run is open). Before
    `done` there may be `computed`: the result is being sent to the store, and the worker is free.
    """

    job: str
    kind: Literal["stage", "computed", "done", "failed", "deferred", "lost"]
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def last(self) -> bool:
        """Return True if this is the job's last event."""
        return self.kind not in ("stage", "computed")


Send = Callable[[Event], None]


class Sender:
    """Sends results in a thread while the worker computes the next; at most one result waits."""

    def __init__(self) -> None:
        self._last: threading.Thread | None = None

    def begin(self, send: Callable[[], None]) -> None:
        """Call `send` in a thread, after the previous call has ended."""
        if self._last:
            self._last.join()
        self._last = threading.Thread(target=send, name="send", daemon=True)
        self._last.start()


def run_job(job: Job, send: Send, sender: Sender) -> None:
    """Do `job` inside its run and send its events; errors end the run, not the worker.

    `sender` sends its result to the store while the worker does another job. The worker has then
    released the memory of this one.
    """
    from colazero.store import record

    sealed: list[Record] = []
    outcome = _done(job, send, sealed)
    devices.release()
    if not sealed:
        send(outcome)
        return

    def deliver() -> None:
        try:
            record.deliver(sealed[0])
            last = outcome
        except Exception as error:
            last = failed(job, error)
        send(last)

    sender.begin(deliver)
    send(Event(job.name, "computed"))


def failed(job: Job, error: BaseException) -> Event:
    """Log an error that is not a user's; return it as the job's last event."""
    if not isinstance(error, UserError):
        logging.getLogger(__name__).error("%s failed", job.name, exc_info=error)
    return Event(job.name, "failed", {"reason": f"{type(error).__name__}: {error}"})


def _done(job: Job, send: Send, sealed: list[Record]) -> Event:
    """Do a job; append its record to `sealed` if it is to be sent."""
    from colazero import cell
    from colazero.store import claims, client, publish, record

    def show(stage: str) -> Progress:
        def progress(done: int, total: int) -> None:
            send(Event(job.name, "stage", {"stage": stage, "done": done, "total": total}))

        progress(0, 0)
        return progress

    send(Event(job.name, "stage", {"stage": "select", "done": 0, "total": 0}))
    work = cell.run_baseline if job.kind == "baseline" else cell.run_cell
    try:
        over = client.patiently(publish.settle, job.run_id)
        if over is None:
            with record.run(job.name, job.kind, job.run_id, sealed.append):
                outcome = work(job.config, job.model, show, reuse=True)
            data = {
                "source_run": outcome.source_run,
                "perplexity": outcome.metrics.get("perplexity"),
                "calibration": outcome.calibration or None,
            }
        elif over.info.status == "FINISHED":
            data = of_run(over)
        else:  # it had failed by itself before its worker was lost
            return Event(job.name, "failed", {"reason": over.data.tags["colazero.error"]})
    except claims.Claimed:
        return Event(job.name, "deferred")
    except Exception as error:
        event = failed(job, error)
        _let_go(error)
        return event
    return Event(job.name, "done", data)


def of_run(run: Run) -> dict[str, Any]:
    """Return the data of a `done` event from a finished run."""
    tags = run.data.tags
    return {
        "source_run": tags.get("colazero.source_run"),
        "perplexity": run.data.metrics.get("perplexity"),
        "calibration": tags.get("colazero.calibration_digest"),
    }


def _let_go(error: BaseException | None) -> None:
    """Clear the frames of an error and its causes, which keep tensors alive."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def thread_limits(threads: int) -> dict[str, str]:
    """Return the environment variables that limit a worker to so many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    gptqmodel = {"GPTQMODEL_CPU_WORKERS": str(max(2, min(12, threads // 2)))}
    return dict.fromkeys(names, str(threads)) | gptqmodel


def main() -> None:
    """Do the jobs from the pipe whose file descriptor is the first argument."""
    if sys.platform == "linux":  # die with the suite, even while a library holds the GIL
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    for number in (signal.SIGINT, signal.SIGHUP):  # the suite's process answers them
        signal.signal(number, signal.SIG_IGN)
    log_discreetly(bars=False)  # the suite shows the progress
    pipe = Connection(int(sys.argv[1]))
    jobs: SimpleQueue[Job] = SimpleQueue()
    lock = threading.Lock()

    def read() -> None:
        try:
            while True:
                jobs.put(pipe.recv())
        except (EOFError, OSError):
            os._exit(1)  # the suite's process is gone

    def send(event: Event) -> None:
        with lock:
            pipe.send(event)

    threading.Thread(target=read, daemon=True).start()
    import colazero.cell  # noqa: F401  (seconds, while the suite's process is still planning)

    sender = Sender()
    while True:
        run_job(jobs.get(), send, sender)
