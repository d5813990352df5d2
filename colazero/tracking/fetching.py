"""What other runs have logged, fetched from the store as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero.errors import UserError, first_line


def fetch_artifacts(uri: str, what: str) -> Path:
    """Resolve `runs:/RUN_ID` to a local folder with its `what` (`calibration` or `model`).

    UserError if there is no such run or it has none. A run that shares another's results is
    followed to its source.
    """
    run_id = uri.removeprefix("runs:/").strip("/").split("/")[0]
    client = MlflowClient()
    try:
        found = client.get_run(run_id)
        source = found.data.tags.get("colazero.source_run")
        if source:
            found = client.get_run(source)
        if what == "calibration":
            return Path(mlflow.artifacts.download_artifacts(f"runs:/{found.info.run_id}/{what}"))
        outputs = found.outputs.model_outputs if found.outputs else []
        if outputs:
            return Path(mlflow.artifacts.download_artifacts(f"models:/{outputs[0].model_id}"))
        raise UserError(
            f"{uri} has no model: it was run with save_model={_param(found, 'save_model')}."
        )
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri} cannot be used as {what}: {first_line(error)} (tracking store "
            f"{mlflow.get_tracking_uri()})."
        ) from error


def read_json(run: Run, name: str) -> Any:
    """Return what a run's JSON artifact holds; None if it has none that can be read."""
    try:
        return json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}"))
    except (MlflowException, OSError, ValueError):
        return None


def _param(run: Run, name: str) -> str:
    params = run.data.params
    return str(params.get(f"resolved.{name}", params.get(name, "unknown")))
