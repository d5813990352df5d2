"""Files that runs left in the store: windows, items and selections are read, reports are left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.uri import append_to_uri_path
from numpy.typing import NDArray

T = TypeVar("T")
# One bar per small file would not help.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


def read(run_id: str, name: str) -> Path | None:
    """Return a local copy of a run's artifact; None if the run has none of that name."""
    try:
        uri: str = append_to_uri_path(_root(run_id), name)  # type: ignore[no-untyped-call]
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri))
    except (MlflowException, OSError):
        return None


@cache
def _root(run_id: str) -> str:
    """Return where a run's artifacts are. Asking again for each file would double the time."""
    return str(MlflowClient().get_run(run_id).info.artifact_uri)


def leave(run_id: str, folder: Path, name: str) -> None:
    """Log all files of `folder` with a run, under the folder `name`; the run may be finished."""
    MlflowClient().log_artifacts(run_id, str(folder), name)


def _parsed(run_id: str, name: str, parse: Callable[[Path], T]) -> T | None:
    """Return what a run's artifact holds; None without it, or if it cannot be parsed."""
    file = read(run_id, name)
    try:
        return None if file is None else parse(file)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_windows(run_id: str, corpus: str) -> pd.DataFrame | None:
    """Read a run's windows of a corpus, in order of the text; None if it logged none.

    Columns: start (first token in the text), nll (summed over the window, nats), tokens
    (predicted), and where the run measured its distance from the unquantized model: kl (summed,
    nats) and agreed (tokens whose most likely next token is the same).
    """
    found = _parsed(run_id, f"evaluation/windows_{corpus}.parquet", pd.read_parquet)
    return found if found is not None and {"start", "nll", "tokens"} <= set(found.columns) else None


def read_items(run_id: str) -> pd.DataFrame | None:
    """Read a run's items: task, doc_id, doc_hash, target, response, metrics; None without any."""
    name = "evaluation/downstream.jsonl.gz"
    return _parsed(run_id, name, lambda file: pd.read_json(file, lines=True))


def read_pieces(run_id: str) -> NDArray[np.int64] | None:
    """Return [pieces, 3]: document, first token and the one behind the last, counted in the
    document's tokens; None if the run did not log them."""

    def parse(file: Path) -> NDArray[np.int64]:
        selection = json.loads(file.read_text(encoding="utf-8"))
        return np.array(selection["notes"]["pieces"], dtype=np.int64)

    found = _parsed(run_id, "calibration/selection.json", parse)
    return found if found is not None and found.ndim == 2 and found.shape[1] == 3 else None
