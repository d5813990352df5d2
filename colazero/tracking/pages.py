"""Where a run is in MLflow's pages, and what a person reads there."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import mlflow
from mlflow.tracking import MlflowClient

LOCAL = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows what is in a file or in a database, unless it is told another port."""


def of_run(run_id: str) -> str:
    """Return the address of a run's page, in the view for machine learning.

    Without that, MLflow 3.17 opens the one for language model applications.
    """
    experiment = MlflowClient().get_run(run_id).info.experiment_id
    uri, server = urlsplit(mlflow.get_tracking_uri()), LOCAL
    if uri.scheme in ("http", "https"):  # nobody's name and password
        server = f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}{uri.path}".rstrip("/")
    return address(server, experiment, run_id)


def address(server: str, experiment: str, run_id: str) -> str:
    """Return where a server shows a run."""
    return f"{server}/#/experiments/{experiment}/runs/{run_id}?workflowType=machine_learning"


def with_settings(markdown: str, params: Mapping[str, str]) -> str:
    """Return a description with the parameters below as they were resolved.

    MLflow's own list of them shows what `mlflow run` was given, `auto` for most, in their place.
    """
    if not params:
        return markdown
    rows = [f"| {name} | {value.replace('|', '&#124;')} |" for name, value in params.items()]
    return "\n".join([markdown, "", "| parameter | as resolved |", "| --- | --- |", *rows]).strip()


def where(run_id: str) -> str:
    """Say where a run can be looked at, and what must be running for that."""
    page = of_run(run_id)
    return f"page: {page}" + (" (while mlflow ui runs)" if page.startswith(LOCAL) else "")
