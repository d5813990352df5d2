"""Files that runs left in the store: one is read, a folder of them is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.uri import append_to_uri_path

BARS = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"


def read(run_id: str, name: str) -> Path | None:
    """Return a local copy of a run's artifact; None if the run has none of that name."""
    try:
        with _quiet():
            uri: str = append_to_uri_path(_root(run_id), name)  # type: ignore[no-untyped-call]
            return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError):
        return None


def leave(run_id: str, folder: Path, name: str) -> None:
    """Log all files of `folder` with a run, under the folder `name`; the run may be finished."""
    MlflowClient().log_artifacts(run_id, str(folder), name)


@cache
def _root(run_id: str) -> str:
    """Return where a run's artifacts are: asking anew for each file takes as long as the file."""
    return str(MlflowClient().get_run(run_id).info.artifact_uri)


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off MLflow's progress bars, one a file, as long as it lasts."""
    before = os.environ.get(BARS)
    os.environ[BARS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BARS]
        else:
            os.environ[BARS] = before
