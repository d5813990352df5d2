"""Runs that `mlflow run` makes before any of our code is asked: whose they are, their names."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import mlflow
import psutil
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils import name_utils

from colazero.errors import UserError, without_credentials
from colazero.tracking import uris

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
    file = uris.sqlite_file(mlflow.get_tracking_uri())
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
        there = uris.sqlite_file(told)
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
    client = MlflowClient()
    run = client.get_run(run_id)
    if "colazero.kind" in run.data.tags or run.info.status not in OPEN:
        return  # a run of somebody else's
    rename(run_id, name)
    client.set_tag(run_id, "colazero.error", without_credentials(reason))
    client.set_terminated(run_id, status)


def named_by_user(run_id: str) -> bool:
    """Tell whether a run of `mlflow run` has a name (--run-name) that MLflow did not draw."""
    words = str(MlflowClient().get_run(run_id).info.run_name).split("-")
    drawn = (name_utils._GENERATOR_PREDICATES, name_utils._GENERATOR_NOUNS)
    return len(words) != 3 or not all(w in known for w, known in zip(words, drawn, strict=False))


def rename(run_id: str, name: str) -> None:
    """Call a run by a name, but one that its user has named."""
    if not named_by_user(run_id):
        MlflowClient().update_run(run_id, name=name)
