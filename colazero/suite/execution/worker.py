"""A process that does one job after another; models and tokens stay loaded in between.

`python -m colazero.suite.execution.worker` reads a job a line from stdin and writes an event a line
to stdout, both JSON. It ends when stdin does: when the suite's process is gone, however it went.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from colazero import devices
from colazero.errors import DiscreetFormatter, UserError
from colazero.settings import RunConfig
from colazero.suite.execution import Event, Job
from colazero.suite.execution.sending import Sender
from colazero.types import Model, Progress

if TYPE_CHECKING:
    from mlflow.entities import Run

    from colazero.cell import Outcome
    from colazero.store.publish import Record

Send = Callable[[Event], None]


def run_job(job: Job, send: Send, sender: Sender) -> None:
    """Do `job` inside its run and send what becomes of it; errors end the run, not the worker.

    Its result goes to the store by `sender`, while the worker does another job. By then it holds
    nothing of this one, and no memory of its GPU that is free.
    """
    sealed: list[Record] = []
    outcome = _done(job, send, sealed)
    devices.release()
    if not sealed:
        send(outcome)
        return
    (record,) = sealed
    sender.begin(lambda: send(_delivered(record, outcome)))
    send(Event(job.name, "computed"))


def _delivered(sealed: Record, outcome: Event) -> Event:
    """Send a sealed sealed to the store; return what became of its job."""
    from colazero.store import record

    try:
        record.deliver(sealed)
    except Exception as error:
        if not isinstance(error, UserError):
            logging.getLogger(__name__).exception("%s could not be sent", outcome.job)
        return _failed(outcome.job, error)
    return outcome


def _failed(job: str, error: Exception) -> Event:
    return Event(job, "failed", {"reason": f"{type(error).__name__}: {error}"})


def _done(job: Job, send: Send, sealed: list[Record]) -> Event:
    """Do a job; its record, if it has one to be sent, goes to `sealed`."""
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
                data = _told(work(job.config, job.model, show, reuse=True))
        elif over.info.status == "FINISHED":
            data = of_run(over)
        else:  # it had failed by itself before its worker was lost
            return Event(job.name, "failed", {"reason": over.data.tags["colazero.error"]})
    except claims.Claimed:
        return Event(job.name, "deferred")
    except Exception as error:
        if not isinstance(error, UserError):
            logging.getLogger(__name__).exception("%s failed", job.name)
        _let_go(error)
        return _failed(job.name, error)
    return Event(job.name, "done", data)


def _told(outcome: Outcome) -> dict[str, Any]:
    """Return what is told of a job that is done."""
    perplexity = outcome.metrics.get("perplexity")
    found = {"source_run": outcome.source_run, "perplexity": perplexity}
    return found | {"calibration": outcome.calibration or None}


def of_run(run: Run) -> dict[str, Any]:
    """Return what `done` tells of a job, from its finished run."""
    tags = run.data.tags
    return {
        "source_run": tags.get("colazero.source_run"),
        "perplexity": run.data.metrics.get("perplexity"),
        "calibration": tags.get("colazero.calibration_digest"),
    }


def _let_go(error: BaseException | None) -> None:
    """Clear the frames that an error and its causes went through, whoever still holds it."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def to_line(value: Job | Event) -> str:
    """Write a job or an event as one line of JSON."""
    return json.dumps(asdict(value), default=_plain) + "\n"


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, RunConfig) else str(value)


def to_job(line: str) -> Job:
    """Read what `to_line` wrote of a job."""
    read = json.loads(line)
    model = Model(read["model"]["name"], Path(read["model"]["path"]), read["model"]["revision"])
    return Job(**read | {"config": RunConfig(**read["config"]), "model": model})


def to_event(line: str) -> Event:
    """Read what `to_line` wrote of an event."""
    return Event(**json.loads(line))


@contextmanager
def _own_channel() -> Iterator[Send]:
    """Yield what sends events to the stdout that this process was given; prints go to stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(event: Event) -> None:
        with lock:
            channel.write(to_line(event))

    with channel:
        yield send


def _read_jobs(jobs: SimpleQueue[Job]) -> None:
    for line in sys.stdin:
        jobs.put(to_job(line))
    os._exit(1)  # the suite's process is gone


def thread_limits(threads: int) -> dict[str, str]:
    """Return the environment of a worker that is to use so many threads and no more."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    gptqmodel = {"GPTQMODEL_CPU_WORKERS": str(max(2, min(12, threads // 2)))}
    return dict.fromkeys(names, str(threads)) | gptqmodel


def quieten() -> None:
    """Let a worker say no more than warnings, and draw no bars: the suite shows its progress.

    torchao and torch warn of other machines' kernels and of their own future.
    """
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    handler = logging.StreamHandler()
    handler.setFormatter(DiscreetFormatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def die_with_parent() -> None:
    """Have Linux kill this process when its parent dies, even while a library holds the GIL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def main() -> None:
    """Do the jobs that come on stdin."""
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGHUP):  # for the suite's process to answer
        signal.signal(number, signal.SIG_IGN)
    quieten()
    jobs: SimpleQueue[Job] = SimpleQueue()
    sender = Sender()
    with _own_channel() as send:
        threading.Thread(target=_read_jobs, args=(jobs,), daemon=True).start()
        import colazero.cell  # noqa: F401  (seconds, while the suite's process is still planning)

        while True:
            run_job(jobs.get(), send, sender)


if __name__ == "__main__":
    main()
