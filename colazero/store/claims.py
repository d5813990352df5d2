"""Decides which process does which run, and which processes are alive."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlflow
import psutil
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils import name_utils

from colazero import environment
from colazero.errors import UserError, first_line, without_credentials
from colazero.store import client

log = logging.getLogger(__name__)

SILENT_SEC = 600
"""A suite on another machine that gave no sign of life for so long counts as dead."""


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
        return not is_ours(run) or may_begin(run)
    here = owner_alive(name)
    if here is not None:
        return here
    parent = run.data.tags.get("mlflow.parentRunId")
    suite = client.find_run(parent) if parent else run
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
    suite = client.find_run(parent) if parent else None
    return (
        suite is not None
        and suite.info.status == "RUNNING"
        and "colazero.owner" in suite.data.tags
        and alive(suite)
    )


def heartbeat(suite: str, metrics: Mapping[str, float]) -> None:
    """Leave a sign of life on a suite's run: the time, and how far it is."""
    now = time.time()
    values = [Metric(name, value, int(1000 * now), step=0) for name, value in metrics.items()]
    MlflowClient().log_batch(suite, values, tags=[RunTag("colazero.heartbeat", f"{now:.0f}")])


def create_child(suite: str, name: str, kind: str) -> str:
    """Create a run below a suite's, for a worker to open; return its id."""
    service = MlflowClient()
    tags = {"mlflow.parentRunId": suite, "colazero.kind": kind, "colazero.owner": owner()}
    parent = service.get_run(suite)
    created = service.create_run(
        parent.info.experiment_id, tags=resolve_tags() | tags, run_name=name
    )
    return str(created.info.run_id)


def log_params(run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters of a run that another process works on."""
    values = [Param(name, value) for name, value in params.items()]
    MlflowClient().log_batch(run_id, params=values)


def end(run_id: str, status: str, reason: str) -> Run | None:
    """End a run whose process cannot do it: with its reason in the tag `colazero.error`.

    One that is FINISHED, its result having come to the store all the same, is left as it is and
    returned.
    """
    service = MlflowClient()
    run = service.get_run(run_id)
    if run.info.status == "FINISHED":
        return run
    service.set_tag(run_id, "colazero.error", without_credentials(reason))
    service.set_terminated(run_id, status)
    return None


def give_up(run_id: str, reason: str) -> Run | None:
    """End a run as FAILED, or return it, as `end` does, but with patience and without raising.

    If the store stays away the run stays open, for the suite's end or the next suite to end.
    """
    try:
        return client.patiently(end, run_id, "FAILED", reason)
    except (MlflowException, OSError) as error:
        log.error("run %s stays open (%s): %s", run_id, reason, first_line(error))
        return None


def the_dead(experiment: str) -> list[Run]:
    """Return all open runs that nobody cares for."""
    opened = [
        run
        for status in ("RUNNING", "SCHEDULED")
        for run in client.search(client.homes(experiment), status=status)
    ]
    mine = environment.run_id()  # to be opened by this process
    return [run for run in opened if run.info.run_id != mine and not cared_for(run)]


def bury_the_dead(experiment: str) -> list[str]:
    """End as KILLED all open runs that nobody cares for; return their names."""
    dead = the_dead(experiment)
    for run in dead:
        begun = "colazero.owner" in run.data.tags
        if not begun:
            MlflowClient().set_tag(run.info.run_id, UNBEGUN, "true")
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
    service = MlflowClient()
    mine = {tag: value, **(more or {})}
    service.log_batch(run_id, tags=[RunTag(*item) for item in mine.items()])
    experiments = client.homes(client.experiment_of(run_id))
    for name in filter(None, (tag, wider)):
        held = client.search(experiments, tags={name: value}, status="RUNNING")
        if any(run.info.run_id != run_id and alive(run) for run in held):
            for given in mine:
                service.delete_tag(run_id, given)
            raise Claimed


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


ENTRY_POINTS = ("select", "quantize", "evaluate", "single", "suite", "analyze", "clean")


BEGINS_SEC = 3600
"""So long `mlflow run` may build an environment before the program in it begins."""


OPEN = ("RUNNING", "SCHEDULED")


UNBEGUN = "colazero.unbegun"
"""The tag of a run that was ended because no program had begun it."""


DEFAULT_STORE = "sqlite:///mlflow.db"
"""What MLflow takes if nothing names a store."""


def is_ours(run: Run) -> bool:
    """Tell whether `mlflow run` made a run for a program of this project, and not of another."""
    ours = run.data.tags.get("mlflow.project.entryPoint") in ENTRY_POINTS
    return ours and bool({"preset", "suite"} & run.data.params.keys())


def may_begin(run: Run) -> bool:
    """Tell whether the program may still begin that `mlflow run` has made a run for.

    Interrupted before it starts that program, `mlflow run` leaves the run open and nobody to end
    it. In an hour at most it is there (environments are built). Where the store is a file, the
    `mlflow run` is a process of this machine that writes to it, older than its run. A run that is
    ended too early is opened again by its program.
    """
    begun = run.info.start_time / 1000
    if time.time() - begun > BEGINS_SEC:
        return False
    file = client.sqlite_file(mlflow.get_tracking_uri())
    if file is None:
        return True
    processes = psutil.process_iter(["cmdline", "create_time"])
    older = (p for p in processes if (p.info["create_time"] or 0) <= begun)
    return any(_launches(p.info["cmdline"]) and _writes_to(p, file) for p in older)


def _launches(command: list[str] | None) -> bool:
    """Tell whether a command line is `mlflow run …` or `python -m mlflow run …`."""
    words = [os.path.basename(word) for word in command or []]
    return ("mlflow", "run") in pairwise(words)


def _writes_to(process: psutil.Process, file: Path) -> bool:
    """Tell whether a store is the one that a `mlflow run` was told, if that can be known."""
    try:
        told = process.environ().get("MLFLOW_TRACKING_URI") or DEFAULT_STORE
        there = client.sqlite_file(told)
        return there is not None and (Path(process.cwd(), there)).resolve() == file.resolve()
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


def refuse_used(run: Run) -> None:
    """Raise UserError if MLFLOW_RUN_ID names a run whose results this process would overwrite.

    `mlflow run`, or a program that starts this one, names an open run that holds no results of
    ours. A run that was ended because nobody began it (tag UNBEGUN) may still begin.
    """
    tags, status = run.data.tags, run.info.status
    if "colazero.kind" not in tags and (status in OPEN or UNBEGUN in tags):
        return
    state = status if status not in OPEN else f"in use (kind {tags['colazero.kind']})"
    raise UserError(
        f"MLFLOW_RUN_ID={run.info.run_id!r} in the environment: this run "
        f"({run.info.run_name!r}) is {state}, and new results would overwrite it. Unset "
        "MLFLOW_RUN_ID: every run then gets an id of its own."
    )


def end_unbegun(run_id: str, name: str, status: str, reason: str) -> None:
    """End the run that `mlflow run` made for this process, which did not open it."""
    service = MlflowClient()
    run = service.get_run(run_id)
    if "colazero.kind" in run.data.tags or run.info.status not in OPEN:
        return  # a run of somebody else's
    rename(run_id, name)
    service.set_tag(run_id, "colazero.error", without_credentials(reason))
    service.set_terminated(run_id, status)


def named_by_user(run_id: str) -> bool:
    """Tell whether a run of `mlflow run` has a name (--run-name) that MLflow did not draw."""
    words = str(MlflowClient().get_run(run_id).info.run_name).split("-")
    drawn = (name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS)
    return len(words) != 3 or not all(w in known for w, known in zip(words, drawn, strict=False))


def rename(run_id: str, name: str) -> None:
    """Call a run by a name, but one that its user has named."""
    if not named_by_user(run_id):
        MlflowClient().update_run(run_id, name=name)
