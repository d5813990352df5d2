"""Files that runs left in the store: windows, items and selections are read, reports are left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.uri import append_to_uri_path
from numpy.typing import NDArray

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
    """Return where a run's artifacts are. Asking again for each file would double the time."""
    return str(MlflowClient().get_run(run_id).info.artifact_uri)


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off MLflow's progress bars, one per file, inside the block."""
    before = os.environ.get(BARS)
    os.environ[BARS] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[BARS]
        else:
            os.environ[BARS] = before


def read_windows(run_id: str, corpus: str) -> pd.DataFrame | None:
    """Read a run's windows of a corpus, in order of the text; None if it logged none.

    Columns: start (first token in the text), nll (summed over the window, nats), tokens
    (predicted), and where the run measured its distance from the unquantized model: kl (summed,
    nats) and agreed (tokens whose most likely next token is the same).
    """
    file = read(run_id, f"evaluation/windows_{corpus}.parquet")
    try:
        found = None if file is None else pd.read_parquet(file)
    except (OSError, ValueError):
        return None
    if found is None or not {"start", "nll", "tokens"} <= set(found.columns):
        return None
    return found


def read_items(run_id: str) -> pd.DataFrame | None:
    """Read a run's items: task, doc_id, doc_hash, target, response, metrics; None without any."""
    file = read(run_id, "evaluation/downstream.jsonl.gz")
    try:
        return None if file is None else pd.read_json(file, lines=True)
    except (OSError, ValueError):
        return None


def read_pieces(run_id: str) -> NDArray[np.int64] | None:
    """Return [pieces, 3]: document, first token and the one behind the last, counted in the
    document's tokens; None if the run did not log them."""
    file = read(run_id, "calibration/selection.json")
    try:
        about = {} if file is None else json.loads(file.read_text(encoding="utf-8"))
        found = np.array(about["notes"]["pieces"], dtype=np.int64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.ndim == 2 and found.shape[1] == 3 else None
