"""Runs that several processes share: who does which, who is still alive, who goes first."""

from __future__ import annotations

import os
import socket
import time
from functools import lru_cache

import mlflow
import psutil
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.tracking.context.registry import resolve_tags

SILENT_SEC = 600
"""A suite on another machine that gave no sign of life for so long counts as dead."""


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


def alive(run: Run) -> bool:
    """Tell whether the process that a run belongs to still exists.

    For one on another machine: whether its suite gave a sign of life lately. A run without an
    owner is not ours to judge and counts as alive.
    """
    host, _, process = run.data.tags.get("colazero.owner", "").rpartition(" ")[0].rpartition(" ")
    if not host:
        return True
    if host == _host():
        start = float(run.data.tags["colazero.owner"].rpartition(" ")[2])
        try:
            return abs(psutil.Process(int(process)).create_time() - start) < 1
        except psutil.NoSuchProcess:
            return False
    parent = run.data.tags.get("mlflow.parentRunId")
    suite = MlflowClient().get_run(parent) if parent else run
    if suite.info.status != "RUNNING":
        return False
    return time.time() - float(suite.data.tags.get("colazero.heartbeat", "inf")) < SILENT_SEC


def heartbeat(suite: str) -> None:
    """Leave a sign of life on a suite's run."""
    MlflowClient().set_tag(suite, "colazero.heartbeat", f"{time.time():.0f}")


def create_child(suite: str, name: str, kind: str) -> str:
    """Create a run below a suite's, for a worker to open; return its id."""
    client = MlflowClient()
    tags = {"mlflow.parentRunId": suite, "colazero.kind": kind, "colazero.owner": owner()}
    parent = client.get_run(suite)
    created = client.create_run(
        parent.info.experiment_id, tags=resolve_tags() | tags, run_name=name
    )
    return str(created.info.run_id)


def children(suite: str) -> list[Run]:
    """Return all runs below a suite's."""
    client = MlflowClient()
    experiment = client.get_run(suite).info.experiment_id
    return _search(experiment, f"tags.mlflow.parentRunId = '{suite}'")


def end(run_id: str, status: str, reason: str) -> None:
    """End a run whose process cannot do it: with its reason in the tag `colazero.error`."""
    client = MlflowClient()
    client.set_tag(run_id, "colazero.error", reason)
    client.set_terminated(run_id, status)


def bury_the_dead(experiment: str) -> list[str]:
    """End as KILLED all open runs of an experiment whose process is gone; return their names."""
    opened = [
        run
        for status in ("RUNNING", "SCHEDULED")
        for run in _search(experiment, f"attributes.status = '{status}'")
    ]
    dead = [run for run in opened if not alive(run)]
    for run in dead:
        end(run.info.run_id, "KILLED", "its process was gone when a later suite looked")
    return [str(run.info.run_name) for run in dead]


def claim(tag: str, value: str, run_id: str) -> None:
    """Claim the work that `tag` = `value` stands for; Claimed if another live run has it.

    The claim is the tag itself, written before anybody looks: of two runs that claim at once, at
    least one sees the other and withdraws, so never do both go on. It holds for all processes
    that use one store, on whatever machine, until the run ends or its process dies.
    """
    client = MlflowClient()
    client.set_tag(run_id, tag, value)
    experiment = client.get_run(run_id).info.experiment_id
    rivals = _search(experiment, f"tags.`{tag}` = '{value}' and attributes.status = 'RUNNING'")
    if any(rival.info.run_id != run_id and alive(rival) for rival in rivals):
        client.delete_tag(run_id, tag)
        raise Claimed


def _search(experiment: str, condition: str) -> list[Run]:
    client, token = MlflowClient(), None
    found: list[Run] = []
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def worker_environment(suite: str) -> dict[str, str]:
    """Return what lets another process find the store and the experiment."""
    experiment = MlflowClient().get_run(suite).info.experiment_id
    return {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "MLFLOW_EXPERIMENT_ID": experiment}
