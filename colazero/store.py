"""The tracking store before anything is written to it: does it answer, is it there, is it whole."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import runs
from colazero.errors import UserError

SQLITE = "sqlite:///"


def prepare(uri: str) -> None:
    """Make sure that a server answers; create a file's schema, whole or not at all."""
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif uri.startswith(SQLITE):
        _create(Path(uri.removeprefix(SQLITE)))


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=5):
            pass
    except urllib.error.HTTPError:
        pass  # it answers, and whether it lets us in the client will tell
    except (OSError, ValueError) as error:
        raise UserError(
            f"the tracking server {uri} does not answer ({getattr(error, 'reason', error)}). Start "
            "it (mlflow server), or set MLFLOW_TRACKING_URI to one that runs; without it the "
            "results go to ./mlflow.db."
        ) from error


def _create(file: Path) -> None:
    """Create the schema beside the file and put it there in one step.

    MLflow takes seconds for it, in which a kill, or a second process, would leave a file behind
    that cannot be opened any more.
    """
    if file.exists() or not file.parent.is_dir():
        return
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        MlflowClient(f"{SQLITE}{draft}").search_experiments(max_results=1)
        with suppress(FileExistsError):  # another process was faster
            os.link(draft, file)
    finally:
        draft.unlink(missing_ok=True)


def artifact_folder() -> Path | None:
    """Return where the open run's artifacts are kept; None if that is no local folder."""
    uri = mlflow.get_artifact_uri()
    return Path(uri.removeprefix("file://")) if uri.startswith(("/", "file:/")) else None


def write_now(value: object, name: str) -> None:
    """Write a JSON artifact of the open run at once; UserError if the store does not take it."""
    try:
        mlflow.log_text(json.dumps(value, indent=1) + "\n", name)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the artifact store {mlflow.get_artifact_uri()} cannot be written: "
            f"{runs.first_line(error)}"
        ) from error
