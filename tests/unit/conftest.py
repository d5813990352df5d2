"""A tracking store that the tests of one file share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a store with its schema and nothing else, to be copied: a schema takes seconds.

    Experiments that a test makes keep their artifacts below the current directory.
    """
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments(max_results=1)
    return file


@pytest.fixture(scope="module")
def shared_store(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> Iterator[MlflowClient]:
    """A store in a file of its own, with an experiment `test`."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("test")
        yield MlflowClient()
        mlflow.set_tracking_uri(before)
