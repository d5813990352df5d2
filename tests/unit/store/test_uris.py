"""URIs of stores as SQLAlchemy and MLflow read them, and values in searches whatever they hold."""

from __future__ import annotations

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from colazero.store import claims, client
from colazero.store.client import search


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:///mlflow.db", "mlflow.db"),
        ("sqlite:////a/my projects/Prüfung/mlflow.db", "/a/my projects/Prüfung/mlflow.db"),
        ("sqlite:////a/my%20projects/Pr%C3%BCfung/mlflow.db", "/a/my projects/Prüfung/mlflow.db"),
        ("sqlite:///q.db?timeout=60", "q.db"),
        ("sqlite+pysqlite:///q.db", "q.db"),
        ("sqlite:///file:q.db?mode=rwc&uri=true", None),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///:memory:?cache=shared", None),
        ("postgresql://me@host/runs", None),
        ("http://host:5000", None),
        ("./mlruns", None),
    ],
)
def test_the_file_of_a_store(uri: str, file: str | None) -> None:
    found = client.sqlite_file(uri)
    assert (None if found is None else str(found)) == file
    assert client.in_memory(uri) == (":memory:" in uri or uri == "sqlite://")
    if found is not None:
        assert client.sqlite_file(client.sqlite_uri(found)) == found


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/a/my projects/1", "/a/my projects/1"),
        ("file:///a/my%20projects/Pr%C3%BCfung", "/a/my projects/Prüfung"),
        ("file:/a/b", "/a/b"),
        ("mlflow-artifacts:/1", None),
        ("s3://bucket/1", None),
    ],
)
def test_the_folder_of_artifacts(uri: str, folder: str | None) -> None:
    found = client.local_folder(uri)
    assert (None if found is None else str(found)) == folder


def test_runs_are_found_whatever_signs_a_value_holds(shared_store: MlflowClient) -> None:
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    values = ["o'neil", 'say "so"', "o'n\"x", "back\\slash", "50%_", "Prüfung", "a`b", "UP", "up"]
    values += ["x' or '1' = '1", "x' and params.model = 'up"]
    for value in values:
        run = shared_store.create_run(experiment, tags={"about": value})
        claims.log_params(run.info.run_id, {"model": value})
    for value in values:
        (by_param,) = search([experiment], params={"model": value})
        (by_tag,) = search([experiment], tags={"about": value}, status="RUNNING")
        assert by_param.data.params["model"] == by_tag.data.tags["about"] == value
    assert list(search([experiment], params={"model": "other"})) == []
