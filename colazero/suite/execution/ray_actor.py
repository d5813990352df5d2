"""What runs inside a Ray actor: one job after another, as in a worker process of one's own."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from colazero.errors import UserError
from colazero.suite.execution import Event, Job
from colazero.suite.execution.sending import Sender
from colazero.suite.execution.worker import Send, quieten, run_job


class Remote:
    """A worker on whatever machine Ray started it: one job computing, others being sent."""

    def __init__(self, environment: Mapping[str, str], directory: Path) -> None:
        """Set the environment, before torch is imported, and go where the suite was started.

        On a machine that has no such directory, relative names of files mean nothing.
        """
        os.environ.update(environment)
        quieten()
        with suppress(OSError):
            os.chdir(directory)
        self._sender = Sender()

    def begin(self, suite: str, versions: Mapping[str, str]) -> str | None:
        """Import what cells need; return why this machine must not do any, or None if it may.

        `versions` are those of the suite's process: with others results would not compare.
        """
        import colazero.cell  # noqa: F401
        from colazero.store import claims, provenance

        mine = provenance.environment()
        other = [f"{k} {mine.get(k)}, not {v}" for k, v in versions.items() if mine.get(k) != v]
        if other:
            return f"its libraries differ from those of the suite's process: {'; '.join(other)}"
        try:
            claims.refuse_unless_shared(suite)
        except UserError as error:
            return str(error)
        return None

    def do(self, job: Job) -> Iterator[Event]:
        """Do a job and yield its events as they come."""
        said: SimpleQueue[Event] = SimpleQueue()

        def work() -> None:
            try:
                run_job(_with_model_here(job), said.put, self._sender)
            except BaseException as error:  # else no event comes, and nobody learns why
                _fail(job, error, said.put)

        threading.Thread(target=work, daemon=True).start()
        last = False
        while not last:
            event = said.get()
            last = event.last
            yield event


def _with_model_here(job: Job) -> Job:
    """Return the job with a model that is on this machine, fetched if it is not."""
    from colazero import models

    if job.model.path.is_dir():
        return job
    model = models.fetch(job.model.name)
    if model.revision != job.model.revision:
        raise UserError(
            f"model {model.name!r} is another one on this machine (revision {model.revision}) than "
            f"where the suite was started ({job.model.revision})."
        )
    return replace(job, model=model)


def _fail(job: Job, error: BaseException, send: Send) -> None:
    from colazero.store import claims

    if not isinstance(error, UserError):
        logging.getLogger(__name__).error("%s failed", job.name, exc_info=error)
    reason = f"{type(error).__name__}: {error}"
    claims.give_up(job.run_id, reason)
    send(Event(job.name, "failed", {"reason": reason}))
