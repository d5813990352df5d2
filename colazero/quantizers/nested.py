"""Another MLflow project, run from within a run of this one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.utils.process import ShellCommandException

from colazero.errors import UserError


def run_project(project: Path, entry_point: str, parameters: Mapping[str, str]) -> None:
    """Run another MLflow project as a nested run, in an environment of its own.

    UserError if nothing here can build one, or if it fails.
    """
    manager = next((name for name in ("uv", "conda") if shutil.which(name)), None)
    if manager is None:
        raise UserError(f"{project.name} needs an environment of its own: install uv (or conda).")
    try:
        mlflow.projects.run(  # type: ignore[no-untyped-call]
            str(project), entry_point, parameters=dict(parameters), env_manager=manager
        )
    except (MlflowException, ExecutionException, ShellCommandException) as error:
        raise UserError(f"the project {project} failed: {error}") from error
