"""Which process does which run, and which processes are alive."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import mlflow
import psutil
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

from colazero.errors import UserError, first_line, without_credentials
from colazero.store import client
from colazero.types import label

log = logging.getLogger(__name__)

SILENT_SEC = 600
"""Seconds without a heartbeat after which a suite on another machine counts as ended."""
UNBEGUN_SEC = 600
"""Seconds after which a run of `mlflow run` counts as abandoned if its program has not begun. If
the program begins later, it opens the run again."""
OPEN = ("RUNNING", "SCHEDULED")
ENTRY_POINTS = ("select", "quantize", "evaluate", "single", "suite", "analyze", "clean")
PROOF = "executor.json"
"""The artifact of a suite that shows its workers that they share its store."""


class Claimed(Exception):
    """Another running process is doing the same work: try again later."""


# --- Processes and their runs.


@lru_cache
def _host() -> str:
    """Return the machine's name, and on Linux the namespace of process ids."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def owner() -> str:
    """Return this process's `MACHINE PID START`, START in seconds since 1970."""
    return f"{_host()} {os.getpid()} {psutil.Process().create_time():.2f}"


def owner_alive(name: str) -> bool | None:
    """Return True if the process that `owner` named runs; None for one on another machine.

    A zombie, as a killed process in a container without an init, counts as ended.
    """
    host, process, start = ["", "0", "0", *name.rsplit(" ", 2)][-3:]
    if host != _host():
        return None
    try:
        found = psutil.Process(int(process))
        same = abs(found.create_time() - float(start)) < 1
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def alive(run: Run, unbegun_sec: float = UNBEGUN_SEC) -> bool:
    """Return True if the process that a run belongs to still exists.

    On another machine, the suite's heartbeat decides. A run without an owner counts as alive,
    unless `mlflow run` created it for a program of ours that did not begin in `unbegun_sec`.
    """
    name = run.data.tags.get(client.OWNER)
    if name is None:
        ours = run.data.tags.get("mlflow.project.entryPoint") in ENTRY_POINTS
        launched = ours and bool({"preset", "suite"} & run.data.params.keys())
        return not launched or time.time() - run.info.start_time / 1000 < unbegun_sec
    here = owner_alive(name)
    if here is not None:
        return here
    parent = run.data.tags.get(client.PARENT)
    suite = client.find_run(parent) if parent else run
    if suite is None or suite.info.status != "RUNNING":
        return False
    return time.time() - float(suite.data.tags.get(client.HEARTBEAT, "inf")) < SILENT_SEC


def abandoned(experiment: str, unbegun_sec: float = UNBEGUN_SEC) -> list[Run]:
    """Return all open runs whose process, and that of their suite, has ended.

    A live suite repeats the cell of a lost worker, or ends its run itself.
    """

    def suite_alive(run: Run) -> bool:
        suite = client.find_run(run.data.tags.get(client.PARENT, ""))
        if suite is None or client.OWNER not in suite.data.tags:
            return False
        return suite.info.status == "RUNNING" and alive(suite)

    homes = client.homes(experiment)
    opened = [run for status in OPEN for run in client.search(homes, status=status)]
    mine = os.environ.get("MLFLOW_RUN_ID")  # this process is about to open it
    others = [run for run in opened if run.info.run_id != mine]
    return [run for run in others if not alive(run, unbegun_sec) and not suite_alive(run)]


def end_abandoned(experiment: str) -> None:
    for run in abandoned(experiment):
        end_as_killed(run, "when a later one looked")


def end_as_killed(run: Run, when: str) -> None:
    reason = "its process was gone"
    if client.OWNER not in run.data.tags:
        reason = "`mlflow run` was gone before it had begun"
        MlflowClient().set_tag(run.info.run_id, client.UNBEGUN, "true")
    end(run.info.run_id, "KILLED", f"{reason} {when}")


def end(run_id: str, status: str, reason: str) -> Run | None:
    """End a run for another process, with a reason. A FINISHED run is returned unchanged."""
    service = MlflowClient()
    run = service.get_run(run_id)
    if run.info.status == "FINISHED":
        return run
    service.set_tag(run_id, client.ERROR, without_credentials(reason))
    service.set_terminated(run_id, status)
    return None


def give_up(run_id: str, reason: str) -> Run | None:
    """Mark a run as FAILED as `end` does, with retries and without raising.

    If the store does not answer, the run stays open until this suite or the next one ends it.
    """
    try:
        return client.patiently(end, run_id, "FAILED", reason)
    except (MlflowException, OSError) as error:
        log.error("run %s stays open (%s): %s", run_id, reason, first_line(error))
        return None


# --- Claims.


def claim(
    tag: str, value: str, run_id: str, *, wider: str = "", more: Mapping[str, str] | None = None
) -> None:
    """Claim the work that `tag` = `value` names; raise Claimed if another live run has claimed it.

    A run whose tag `wider` is `value` has claimed it too: its work includes this. `more`: such tags
    of this run. A run does not wait for runs that do only a part of its work.

    The claim is the tag itself, written before the search: of two runs that claim at the same time,
    at least one sees the other and withdraws. It holds for all processes that use the store, on any
    machine, until the run or its process ends.
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


# --- A suite and its workers.


def heartbeat(suite: str, progress: Mapping[str, float]) -> None:
    """Tag a suite's run with the time and its progress."""
    tags = {client.HEARTBEAT: f"{time.time():.0f}", client.PROGRESS: json.dumps(progress)}
    MlflowClient().log_batch(suite, tags=[RunTag(*item) for item in tags.items()])


def create_child(suite: str, name: str, kind: str) -> str:
    """Create a nested run of a suite, for a worker to open; return its id."""
    service = MlflowClient()
    tags = {client.PARENT: suite, client.KIND: kind, client.OWNER: owner()}
    experiment = client.experiment_of(suite)
    created = service.create_run(experiment, tags=resolve_tags() | tags, run_name=name)
    return str(created.info.run_id)


def log_params(run_id: str, params: Mapping[str, str]) -> None:
    MlflowClient().log_batch(run_id, params=[Param(*item) for item in params.items()])


def log_proof(suite: str, about: dict[str, Any]) -> None:
    """Log the artifact of a suite's run that `refuse_unless_shared` looks for."""
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


# --- Results of looks and analyses on a suite's run.

AT_ONCE = 100
"""Tags that MLflow takes in one call; it takes more metrics."""


class Headline(Protocol):
    """The numbers, the verdict and a sentence about one method of a model, or two of them."""

    @property
    def model(self) -> str: ...
    @property
    def methods(self) -> Sequence[str]: ...
    @property
    def numbers(self) -> Mapping[str, float]: ...
    @property
    def verdict(self) -> str: ...
    @property
    def text(self) -> str: ...


def log_results(run_id: str, headlines: Iterable[Headline]) -> None:
    """Log numbers as `result/MODEL.METHOD.mean`, verdicts as tags `verdict.MODEL.A_vs_B`.

    Means and differences come first: MLflow's pages show metrics in the order of logging.
    """
    metrics: dict[str, float] = {}
    tags: list[RunTag] = []
    for line in headlines:
        plain, bracket, setting = line.model.partition(" [")  # a path may be in the latter
        model, *methods = map(client.result_name, (label(plain) + bracket + setting, *line.methods))
        stem = f"{model}.{'_vs_'.join(methods)}"
        metrics |= {f"result.{stem}.{name}": value for name, value in line.numbers.items()}
        if line.verdict:
            tags.append(RunTag(f"verdict.{stem}", line.verdict))
    first = sorted(metrics, key=lambda name: not name.endswith((".mean", ".percent")))
    _log_at_once(run_id, {name: metrics[name] for name in first}, 0, tags)


def log_look(
    suite: str,
    looks: Sequence[int],
    metrics: Mapping[str, float],
    stopped: Mapping[str, Mapping[str, int]],
) -> None:
    """Log a look.

    looks: numbers of seeds of all looks so far; the last is the metrics' step. stopped: model →
    method → number of seeds after which it got no more.
    """
    tags = [RunTag(client.STOPPED, json.dumps(stopped))] if stopped else []
    _log_at_once(suite, metrics, looks[-1], tags)
    # Last: the look is whole then.
    MlflowClient().set_tag(suite, client.LOOKS, ",".join(map(str, looks)))


def _log_at_once(
    run_id: str, metrics: Mapping[str, float], step: int, tags: Sequence[RunTag]
) -> None:
    now = int(1000 * time.time())
    values = [Metric(client.stored_metric(name), v, now, step) for name, v in metrics.items()]
    for start in range(0, max(len(values), len(tags)), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        MlflowClient().log_batch(run_id, values[part], tags=tags[part])


# --- Runs that `mlflow run` creates before our code starts.


def refuse_used(run: Run) -> None:
    """Raise UserError if MLFLOW_RUN_ID names a run whose results this process would overwrite.

    `mlflow run`, or a program that starts this one, names an open run without results of ours. A
    run that was ended because its program had not begun may still begin.
    """
    tags, status = run.data.tags, run.info.status
    if client.KIND not in tags and (status in OPEN or client.UNBEGUN in tags):
        return
    state = status if status not in OPEN else f"in use (kind {tags[client.KIND]})"
    raise UserError(
        f"MLFLOW_RUN_ID={run.info.run_id!r} in the environment: this run "
        f"({run.info.run_name!r}) is {state}, and new results would overwrite it. Unset "
        "MLFLOW_RUN_ID: every run then gets an id of its own."
    )


def end_unbegun(run_id: str, name: str, status: str, reason: str) -> None:
    """End the run that `mlflow run` created for this process, which did not open it."""
    service = MlflowClient()
    run = service.get_run(run_id)
    if client.KIND in run.data.tags or run.info.status not in OPEN:
        return  # somebody else's
    if not named_by_user(str(run.info.run_name)):
        service.update_run(run_id, name=name)
    end(run_id, status, reason)


def named_by_user(name: str) -> bool:
    """Return True if `mlflow run` was given --run-name, or the name is not one that MLflow draws.

    MLflow draws names such as `bold-hawk-12`.
    """
    for process in psutil.Process().parents():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if any(word.partition("=")[0] == "--run-name" for word in words):
            return True
    return not re.fullmatch(r"[a-z]+-[a-z]+-\d{1,3}", name)
