"""Runs opened, and ended with all that was logged of them: sealed, sent, or left to be sent."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import environment
from colazero.errors import UserError, first_line, without_credentials
from colazero.tracking import connecting, launched, names, pages, provenance, publishing, runs
from colazero.tracking.records import Record

NOTE = "mlflow.note.content"
"""The tag that the UI shows as a run's description, in markdown."""
_open: list[Record] = []
"""The records of the runs that are open in this process, the innermost last."""


@contextmanager
def run(
    name: str,
    kind: str,
    run_id: str | None = None,
    later: Callable[[Record], None] | None = None,
) -> Iterator[str]:
    """Open a run and yield its id; under `mlflow run` it is the run that made, else a new one.

    A worker names the `run_id` that its suite has created. `kind` (suite, cell, baseline, select,
    …) becomes the tag `colazero.kind`. What is logged inside goes to the store when the block
    ends, after it is whole on disk. When the block raises, the run ends as FAILED, or KILLED for
    an interrupt, with the reason in the tag `colazero.error`; it stays open for `Claimed`.

    later: takes the sealed record of a run that finished, for `deliver` to send; until then the
    run is RUNNING.
    """
    name, given = names.of_run(name), environment.run_id()
    new_name = None if run_id or given else name
    tags = {"colazero.kind": kind, "colazero.owner": runs.owner()}
    if run_id or not given or not runs.patiently(launched.named_by_user, given):
        tags["mlflow.runName"] = name
    if given and not run_id:  # again: minutes may have passed since `connect`
        launched.refuse_used(runs.patiently(MlflowClient().get_run, given))
    connecting.ignore_overrides()
    opened = runs.patiently(
        mlflow.start_run,
        run_id or given,
        run_name=new_name,
        nested=run_id is not None,
        tags=tags | provenance.environment(),
    )
    if not run_id:
        os.environ.pop("MLFLOW_RUN_ID", None)
    store = without_credentials(mlflow.get_tracking_uri())
    record = Record(opened.info.run_id, store, runs.owner())
    status, kept = "FINISHED", False
    _open.append(record)
    try:
        record.begin()
        yield record.run_id
    except runs.Claimed:
        status = "SCHEDULED"
        raise
    except Exception as error:
        status = "FAILED"
        reason = without_credentials(f"{type(error).__name__}: {error}")
        record.tags["colazero.error"] = reason[:4000]
        raise
    except BaseException as error:  # Ctrl-C, SIGTERM
        status = "KILLED"
        with suppress(MlflowException):
            MlflowClient().set_tag(record.run_id, "colazero.error", _why(error))
        raise
    finally:
        try:
            if status in ("FINISHED", "FAILED"):
                if given:
                    record.tags[NOTE] = pages.with_settings(
                        record.tags.get(NOTE, ""), record.params
                    )
                status, earned = "FAILED", status  # a result that is not in the store is none yet
                _seal(record, earned)
                kept = later is not None and earned == "FINISHED"
                if not kept:
                    deliver(record)
                status = "RUNNING" if kept else earned
            if not kept:
                record.discard()
        finally:
            _open.remove(record)
            with suppress(MlflowException):
                mlflow.end_run(status)
    if later and kept:
        later(record)


def open_record() -> Record:
    """Return the record of the innermost open run."""
    return _open[-1]


def _why(error: BaseException) -> str:
    """Say what ended a run: a signal, told by the exception that it became."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted by Ctrl-C"
    return f"{type(error).__name__}: {error}"


def _seal(record: Record, status: str) -> None:
    """Seal a record; UserError where the disk has no room for it, its numbers sent all the same."""
    try:
        record.seal(status)
    except OSError as error:
        reason = (
            f"{record.folder} cannot be written ({error.strerror}): the files of run "
            f"{record.run_id} are lost. Make room there, or name another folder in COLAZERO_CACHE, "
            "and run it again."
        )
        publishing.leave_reason(record, reason)
        raise UserError(reason) from error


def deliver(record: Record) -> None:
    """Send a sealed record and remove it; UserError, with the record kept, if it is not taken."""
    try:
        runs.patiently(publishing.publish, record)
    except (MlflowException, OSError) as error:
        reason = (
            f"the tracking store {record.store!r} did not take the results of run {record.run_id} "
            f"({first_line(error)}). They are in {record.folder}: the next suite on this "
            "store logs them; `python -m entrypoints.clean` lists them."
        )
        publishing.leave_reason(record, reason)
        raise UserError(reason) from error
    record.discard()


def flush() -> None:
    """Send the values of the open run now instead of when it ends."""
    publishing.send_values(open_record(), MlflowClient().get_run(open_record().run_id))


@contextmanager
def workspace() -> Iterator[Path]:
    """Yield an empty folder from which `log_checkpoint` and `log_files` copy nothing."""
    with tempfile.TemporaryDirectory(dir=_open[-1].workspace()) as folder:
        yield Path(folder)


def active_run_id() -> str:
    """Return the id of the open run."""
    active = mlflow.active_run()
    assert active, "no run is open"
    return str(active.info.run_id)
