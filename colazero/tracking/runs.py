"""Runs that several processes share: who does which, who is still alive, who goes first."""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import mlflow
import psutil
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from colazero import environment
from colazero.errors import UserError, first_line, without_credentials
from colazero.tracking import launched
from colazero.tracking.searching import homes, search

log = logging.getLogger(__name__)

SILENT_SEC = 600
"""A suite on another machine that gave no sign of life for so long counts as dead."""


PERMANENT = (
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"),
    *("BAD_REQUEST", "INVALID_STATE"),
)
"""MLflow's error codes that no waiting will cure."""

REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
"""What a file system says that no waiting will cure."""

T = TypeVar("T")

PROOF = "executor.json"
"""The artifact of a suite by which its workers know that they share its store."""


class Claimed(Exception):
    """Another live run is doing the same work just now: try again later."""


@lru_cache
def _host() -> str:
    """Name the machine, and on Linux the space in which process ids mean anything."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def owner() -> str:
    """Return this process's `MACHINE PID START`, START in seconds since 1970."""
    return f"{_host()} {os.getpid()} {psutil.Process().create_time():.2f}"


def owner_alive(name: str) -> bool | None:
    """Tell whether the process that `owner` named so exists; None for one on another machine."""
    host, process, start = ["", "0", "0", *name.rsplit(" ", 2)][-3:]
    if host != _host():
        return None
    try:
        return abs(psutil.Process(int(process)).create_time() - float(start)) < 1
    except psutil.NoSuchProcess:
        return False


def alive(run: Run) -> bool:
    """Tell whether the process that a run belongs to still exists.

    For one on another machine: whether its suite gave a sign of life lately. A run without an
    owner is not ours to judge and counts as alive, unless `mlflow run` made it for a program that
    does not begin.
    """
    name = run.data.tags.get("colazero.owner")
    if name is None:
        return not launched.is_ours(run) or launched.may_begin(run)
    here = owner_alive(name)
    if here is not None:
        return here
    parent = run.data.tags.get("mlflow.parentRunId")
    suite = get(parent) if parent else run
    if suite is None or suite.info.status != "RUNNING":
        return False
    return time.time() - float(suite.data.tags.get("colazero.heartbeat", "inf")) < SILENT_SEC


def cared_for(run: Run) -> bool:
    """Tell whether an open run is somebody's: its process lives, or that of the suite above it.

    A suite that lives tries the cell of a lost worker again, or ends its run itself.
    """
    if alive(run):
        return True
    parent = run.data.tags.get("mlflow.parentRunId")
    suite = get(parent) if parent else None
    return (
        suite is not None
        and suite.info.status == "RUNNING"
        and "colazero.owner" in suite.data.tags
        and alive(suite)
    )


def patiently(call: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call, and while the store is away or refuses, call again for up to COLAZERO_PATIENCE minutes.

    `call` must do no harm when it is repeated. What the store will never take is raised at once.
    """
    patience = environment.patience()
    deadline, pause = time.monotonic() + patience, 1.0
    while True:
        try:
            return call(*arguments, **named)
        except (MlflowException, OSError) as error:
            for_good = getattr(error, "error_code", "") in PERMANENT or (
                isinstance(error, OSError) and error.errno in REFUSED
            )
            if for_good or time.monotonic() > deadline:
                raise
            if pause == 1:
                log.warning(
                    "the tracking store refuses; it is asked again for %.0f minutes: %s",
                    patience / 60,
                    first_line(error),
                )
        time.sleep(pause)
        pause = min(2 * pause, 15.0)


def heartbeat(suite: str, metrics: Mapping[str, float]) -> None:
    """Leave a sign of life on a suite's run: the time, and how far it is."""
    now = time.time()
    values = [Metric(name, value, int(1000 * now), step=0) for name, value in metrics.items()]
    MlflowClient().log_batch(suite, values, tags=[RunTag("colazero.heartbeat", f"{now:.0f}")])


def create_child(suite: str, name: str, kind: str) -> str:
    """Create a run below a suite's, for a worker to open; return its id."""
    client = MlflowClient()
    tags = {"mlflow.parentRunId": suite, "colazero.kind": kind, "colazero.owner": owner()}
    parent = client.get_run(suite)
    created = client.create_run(
        parent.info.experiment_id, tags=resolve_tags() | tags, run_name=name
    )
    return str(created.info.run_id)


def log_params(run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters of a run that another process works on."""
    values = [Param(name, value) for name, value in params.items()]
    MlflowClient().log_batch(run_id, params=values)


def children(suite: str) -> list[Run]:
    """Return all runs below a suite's."""
    return list(search([experiment_of(suite)], tags={"mlflow.parentRunId": suite}))


def end(run_id: str, status: str, reason: str) -> Run | None:
    """End a run whose process cannot do it: with its reason in the tag `colazero.error`.

    One that is FINISHED, its result having come to the store all the same, is left as it is and
    returned.
    """
    client = MlflowClient()
    run = client.get_run(run_id)
    if run.info.status == "FINISHED":
        return run
    client.set_tag(run_id, "colazero.error", without_credentials(reason))
    client.set_terminated(run_id, status)
    return None


def give_up(run_id: str, reason: str) -> Run | None:
    """End a run as FAILED, or return it, as `end` does, but with patience and without raising.

    If the store stays away the run stays open, for the suite's end or the next suite to end.
    """
    try:
        return patiently(end, run_id, "FAILED", reason)
    except (MlflowException, OSError) as error:
        log.error("run %s stays open (%s): %s", run_id, reason, first_line(error))
        return None


def the_dead(experiment: str) -> list[Run]:
    """Return all open runs that nobody cares for."""
    opened = [
        run
        for status in ("RUNNING", "SCHEDULED")
        for run in search(homes(experiment), status=status)
    ]
    mine = environment.run_id()  # to be opened by this process
    return [run for run in opened if run.info.run_id != mine and not cared_for(run)]


def bury_the_dead(experiment: str) -> list[str]:
    """End as KILLED all open runs that nobody cares for; return their names."""
    dead = the_dead(experiment)
    for run in dead:
        begun = "colazero.owner" in run.data.tags
        if not begun:
            MlflowClient().set_tag(run.info.run_id, launched.UNBEGUN, "true")
        reason = "its process was gone" if begun else "`mlflow run` was gone before it had begun"
        end(run.info.run_id, "KILLED", f"{reason} when a later one looked")
    return [str(run.info.run_name) for run in dead]


def claim(
    tag: str, value: str, run_id: str, *, wider: str = "", more: Mapping[str, str] | None = None
) -> None:
    """Claim the work that `tag` = `value` stands for; Claimed if another live run has it.

    So has one whose tag `wider` is `value`: its work includes this. Such tags are written by a
    run as `more`, with its claim; it waits for no run that does only a part of its work.

    The claim is the tag itself, written before anybody looks: of two runs that claim at once, at
    least one sees the other and withdraws, so never do both go on. It holds for all processes
    that use one store, on whatever machine, until the run ends or its process dies.
    """
    client = MlflowClient()
    mine = {tag: value, **(more or {})}
    client.log_batch(run_id, tags=[RunTag(*item) for item in mine.items()])
    experiments = homes(experiment_of(run_id))
    for name in filter(None, (tag, wider)):
        held = search(experiments, tags={name: value}, status="RUNNING")
        if any(run.info.run_id != run_id and alive(run) for run in held):
            for given in mine:
                client.delete_tag(run_id, given)
            raise Claimed


def get(run_id: str) -> Run | None:
    """Return a run; None if the store has none of this id."""
    try:
        return MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code in PERMANENT:
            return None
        raise


def finished_times(experiment: str, params: Mapping[str, str]) -> dict[str, list[float]]:
    """Return method → total_time_sec of the finished cells of an experiment with these params."""
    times: dict[str, list[float]] = {}
    cells = {"colazero.kind": "cell"}
    for run in search(homes(experiment), tags=cells, params=params, status="FINISHED"):
        if "colazero.source_run" not in run.data.tags:
            seconds = run.data.metrics.get("total_time_sec")
            if seconds is not None:
                times.setdefault(run.data.params["method"], []).append(seconds)
    return times


def experiment_of(run_id: str) -> str:
    """Return the id of the experiment that a run is in."""
    return str(MlflowClient().get_run(run_id).info.experiment_id)


def worker_environment(experiment: str) -> dict[str, str]:
    """Return what lets another process find the store and the experiment, and be as patient."""
    patience = {k: v for k, v in os.environ.items() if k == "COLAZERO_PATIENCE"}
    store = {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_ID": experiment}
    return store | patience


def leave_proof(suite: str, about: dict[str, Any]) -> None:
    """Leave, as an artifact of the suite's run, what `refuse_unless_shared` looks for."""
    MlflowClient().log_dict(suite, about, PROOF)


def refuse_unless_shared(suite: str) -> None:
    """Raise UserError unless this process sees the suite's run, and its artifacts, in the store."""
    uri = mlflow.get_tracking_uri()
    try:
        names = [file.path for file in MlflowClient().list_artifacts(suite)]
    except (MlflowException, OSError) as error:
        raise UserError(f"it cannot use the tracking store {uri!r}: {first_line(error)}") from error
    if PROOF not in names:
        raise UserError(
            f"it sees no artifacts of the suite: the store {uri!r} keeps them where this machine "
            "has no access. Use `mlflow server --serve-artifacts`, a bucket or a shared folder."
        )
