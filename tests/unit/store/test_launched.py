"""Runs that `mlflow run` made: when nobody will begin them any more, and what they are called."""

from __future__ import annotations

import time
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.utils.name_utils import _generate_random_name

from colazero.errors import UserError
from colazero.store import claims, record
from colazero.store.open import connect

TAGS = {"mlflow.project.entryPoint": "suite"}


def own_experiment(store: MlflowClient) -> str:
    """Return the experiment that this process has chosen, in which alone it may open runs."""
    mlflow.set_experiment("test")
    return str(store.get_experiment_by_name("test").experiment_id)


def made_by_mlflow(
    store: MlflowClient, minutes_ago: float = 0, experiment: str = "0", **tags: str
) -> Run:
    """Return a run as `mlflow run` makes it."""
    begun = int(1000 * (time.time() - 60 * minutes_ago))
    made = store.create_run(experiment, tags=TAGS | tags, start_time=begun)
    store.log_param(made.info.run_id, "preset", "auto")
    return store.get_run(made.info.run_id)


def test_a_run_that_no_program_began_is_ended_after_a_while(shared_store: MlflowClient) -> None:
    minutes = claims.UNBEGUN_SEC / 60
    old, young = (made_by_mlflow(shared_store, age) for age in (minutes + 1, minutes - 1))
    connect()
    ended = shared_store.get_run(old.info.run_id)
    assert ended.info.status == "KILLED"
    assert "before it had begun" in ended.data.tags["colazero.error"]
    assert shared_store.get_run(young.info.run_id).info.status == "RUNNING"
    assert young.info.run_id in [run.info.run_id for run in claims.abandoned("0", 0)]
    shared_store.set_terminated(young.info.run_id)


def test_nobody_ends_the_run_that_it_is_about_to_open(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = made_by_mlflow(shared_store, minutes_ago=120)
    monkeypatch.setenv("MLFLOW_RUN_ID", mine.info.run_id)
    assert mine.info.run_id not in [run.info.run_id for run in claims.abandoned("0")]
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert mine.info.run_id in [run.info.run_id for run in claims.abandoned("0")]


def test_a_run_of_another_project_is_nobody_elses_business(shared_store: MlflowClient) -> None:
    other = shared_store.create_run("0", tags={"mlflow.project.entryPoint": "main"})
    connect()
    assert shared_store.get_run(other.info.run_id).info.status == "RUNNING"


def test_only_names_that_mlflow_drew_are_changed(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def renamed(**tags: str) -> str:
        run_id = made_by_mlflow(shared_store, **tags).info.run_id
        claims.end_unbegun(run_id, "single·seed=x", "FAILED", "a mistake")
        return str(shared_store.get_run(run_id).info.run_name)

    assert all(not claims.named_by_user(_generate_random_name()) for _ in range(100))
    assert renamed() == "single·seed=x"
    assert renamed(**{"mlflow.runName": "My-own-1"}) == "My-own-1"
    launcher = SimpleNamespace(cmdline=lambda: ["mlflow", "run", ".", "--run-name", "my-own-1"])
    monkeypatch.setattr("psutil.Process.parents", lambda _: [launcher])
    assert renamed(**{"mlflow.runName": "my-own-1"}) == "my-own-1"


def used(store: MlflowClient, status: str, **tags: str) -> str:
    """Return the id of a run that an earlier command of ours has opened."""
    run_id: str = made_by_mlflow(store, **{"colazero.kind": "cell"}, **tags).info.run_id
    store.log_metric(run_id, "perplexity", 20.0)
    store.set_terminated(run_id, status) if status != "RUNNING" else None
    return run_id


@pytest.mark.parametrize("kind", ["cell", "select", "suite", "analysis"])
@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED"])
def test_a_run_that_was_used_is_not_written_to_again(
    status: str, kind: str, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = used(shared_store, status)
    before = shared_store.get_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(UserError, match=f"MLFLOW_RUN_ID.*{run_id}"):
        connect()
    with pytest.raises(UserError, match=f"MLFLOW_RUN_ID.*{run_id}"), record.run("new", kind):
        record.log_metrics({"perplexity": 30.0})
    claims.end_unbegun(run_id, "new", "FAILED", "a later command's mistake")
    connect(reading=True)
    after = shared_store.get_run(run_id)
    assert (after.info.run_name, after.info.status) == (before.info.run_name, status)
    assert after.data.to_dictionary() == before.data.to_dictionary()


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_of_another_program_that_has_ended_is_left_alone(
    status: str, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = shared_store.create_run("0").info.run_id
    shared_store.set_terminated(run_id, status)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(UserError, match=status):
        connect()


def test_an_open_run_that_a_notebook_names_is_taken_once(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = shared_store.create_run(own_experiment(shared_store)).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    connect()
    with record.run("first", "cell") as opened:
        record.log_metrics({"perplexity": 20.0})
    assert opened == run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with pytest.raises(UserError, match=run_id):
        connect()


def test_a_run_that_was_ended_before_its_program_began_is_opened_again(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = own_experiment(shared_store)
    run_id = made_by_mlflow(shared_store, 120, experiment).info.run_id
    claims.end_abandoned(experiment)
    assert shared_store.get_run(run_id).info.status == "KILLED"
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    connect()
    with record.run("late", "cell") as opened:
        pass
    assert opened == run_id
    assert shared_store.get_run(run_id).info.status == "FINISHED"
    assert "colazero.error" not in shared_store.get_run(run_id).data.tags
