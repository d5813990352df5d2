"""Runs that `mlflow run` made: when nobody will begin them any more, and what they are called."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero import tracking
from colazero.tracking import launched, runs

TAGS = {"mlflow.project.entryPoint": "suite"}


def made_by_mlflow(store: MlflowClient, minutes_ago: float = 0, **tags: str) -> Run:
    """Return a run as `mlflow run` makes it."""
    begun = int(1000 * (time.time() - 60 * minutes_ago))
    made = store.create_run("0", tags=TAGS | tags, start_time=begun)
    store.log_param(made.info.run_id, "preset", "auto")
    return store.get_run(made.info.run_id)


@pytest.fixture(autouse=True)
def _of_this_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the processes that other tests have started meanwhile."""
    every = psutil.process_iter
    mine = lambda attrs: (p for p in every(attrs) if p.ppid() == os.getpid())  # noqa: E731
    monkeypatch.setattr(launched.psutil, "process_iter", mine)


@pytest.fixture
def a_launcher(tmp_path: Path) -> subprocess.Popen[bytes]:
    """A process whose command line is that of `mlflow run`."""
    script = tmp_path / "mlflow"
    script.write_text("import sys; sys.stdin.read()")
    return subprocess.Popen([sys.executable, str(script), "run", "."], stdin=subprocess.PIPE)


def test_a_run_is_ended_at_once_when_no_mlflow_run_can_have_made_it(
    shared_store: MlflowClient,
) -> None:
    run = made_by_mlflow(shared_store)
    tracking.connect()
    ended = shared_store.get_run(run.info.run_id)
    assert ended.info.status == "KILLED"
    assert "before it had begun" in ended.data.tags["colazero.error"]


def test_a_run_is_left_as_long_as_an_mlflow_run_lives_that_is_older(
    shared_store: MlflowClient, a_launcher: subprocess.Popen[bytes]
) -> None:
    earlier = made_by_mlflow(shared_store, minutes_ago=1)
    time.sleep(0.05)  # its clock ticks in hundredths of a second
    run = made_by_mlflow(shared_store)
    assert launched.may_begin(run)
    assert not launched.may_begin(earlier)
    assert not launched.may_begin(made_by_mlflow(shared_store, minutes_ago=61))
    a_launcher.kill()
    a_launcher.wait()
    assert not launched.may_begin(run)


def test_of_a_server_nobody_knows_where_its_runs_are_made(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_by_mlflow(shared_store)
    monkeypatch.setattr(launched.mlflow, "get_tracking_uri", lambda: "http://elsewhere:5000")
    assert launched.may_begin(run)
    assert not launched.may_begin(made_by_mlflow(shared_store, minutes_ago=61))


def test_nobody_ends_the_run_that_it_is_about_to_open(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = made_by_mlflow(shared_store, minutes_ago=120)
    monkeypatch.setenv("MLFLOW_RUN_ID", mine.info.run_id)
    assert mine.info.run_id not in [run.info.run_id for run in runs.the_dead("0")]
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert mine.info.run_id in [run.info.run_id for run in runs.the_dead("0")]


def test_a_run_of_another_project_is_nobody_elses_business(shared_store: MlflowClient) -> None:
    other = shared_store.create_run("0", tags={"mlflow.project.entryPoint": "main"})
    tracking.connect()
    assert shared_store.get_run(other.info.run_id).info.status == "RUNNING"


def test_only_names_that_mlflow_drew_are_changed(shared_store: MlflowClient) -> None:
    drawn = made_by_mlflow(shared_store)
    assert drawn.info.run_name.count("-") == 2
    assert not launched.named_by_user(drawn.info.run_id)
    named = made_by_mlflow(shared_store, **{"mlflow.runName": "my-own-1"})
    for run, expected in ((drawn, "single·seed=x"), (named, "my-own-1")):
        launched.rename(run.info.run_id, "single·seed=x")
        assert shared_store.get_run(run.info.run_id).info.run_name == expected
