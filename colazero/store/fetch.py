"""Reads what other runs logged: files, settings, finished work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero.errors import UserError, first_line
from colazero.store import client, publish, record


def find_finished(tag: str, value: str) -> Run | None:
    """Return the latest FINISHED run with this tag that did the work itself and is intact."""

    def latest() -> Run | None:
        experiments = client.homes(client.experiment_of(record.active_run_id()))
        done = client.search(experiments, tags={tag: value}, status="FINISHED")
        own = (run for run in done if client.SOURCE not in run.data.tags)
        return next(filter(publish.intact, own), None)

    return client.patiently(latest)


def older_version(logged: Mapping[str, str], finished: Iterable[Run]) -> str:
    """Return why a finished cell of these parameters is not reused, if an older version logged it.

    Such a cell has the values of all parameters that both versions know. '' if there is none.
    """
    for run in finished:
        params = client.params_of(run)
        named = {"method", "seed"} <= params.keys()
        if named and all(params.get(name, value) == value for name, value in logged.items()):
            commit = run.data.tags.get("colazero.git_commit", "unknown")[:7]
            lacks = ", ".join(name for name in logged if name not in params)
            without = f", which has no {lacks}" if lacks else ""
            return f"an older version logged it (commit {commit}{without})"
    return ""


def find(uri: str) -> Run:
    """Return the run that `runs:/RUN_ID` names, or that logged a model in MLflow's registry.

    UserError if there is none.
    """
    registered = uri.startswith("models:/")
    run_id = _source_of(uri) if registered else uri.removeprefix("runs:/").strip("/").split("/")[0]
    run = client.find_run(run_id)
    if run is None:
        raise UserError(
            f"{uri} cannot be used: the tracking store {mlflow.get_tracking_uri()} has no such run."
        )
    return run


def _source_of(uri: str) -> str:
    """Return the id of the run that logged `models:/NAME/VERSION`, `models:/NAME@ALIAS` or
    `models:/MODEL_ID`; UserError if the registry has no such model, or if no run logged it.
    """
    store, name = MlflowClient(), uri.removeprefix("models:/")
    try:
        model_id: str | None = name
        source = ""
        if "@" in name or "/" in name:
            get = store.get_model_version_by_alias if "@" in name else store.get_model_version
            model, _, which = name.rpartition("@" if "@" in name else "/")
            version = get(model, which)
            model_id, source = version.model_id, version.run_id or ""
        if model_id:
            source = store.get_logged_model(model_id).source_run_id or source
    except MlflowException as error:
        raise UserError(
            f"{uri} cannot be used: {first_line(error).rstrip('.')}. Give models:/NAME/VERSION, "
            f"models:/NAME@ALIAS or runs:/RUN_ID of the tracking store {mlflow.get_tracking_uri()}."
        ) from error
    if not source:
        raise UserError(f"{uri} cannot be used: no run logged it. Name the model's directory.")
    return source


def settings(uri: str, names: Iterable[str]) -> dict[str, str]:
    """Return the resolved parameters that a run has, as a command line would give them.

    Paths of the user's own files are as that run received them.
    """
    params = client.params_of(find(uri))
    return {name: params[name] for name in names if name in params}


def fetch_artifacts(uri: str, what: str) -> Path:
    """Resolve `runs:/RUN_ID` to a local folder with its `what` (`calibration` or `model`).

    A run that took over another's results leads to its source. Raise UserError if the run has no
    such artifact or it was deleted.
    """
    run = find(uri)
    source = run.data.tags.get(client.SOURCE)
    if source:
        run = find(f"runs:/{source}")
    outputs = run.outputs.model_outputs if run.outputs else []
    there = f"runs:/{run.info.run_id}/{what}"
    if what == "model":
        if not outputs or client.FREED in run.data.tags:
            raise UserError(f"{uri} has no quantized model: {_why_no_model(run)}")
        there = f"models:/{outputs[0].model_id}"
    elif (reason := _why_no_set(run)) is not None:
        raise UserError(f"{uri} has no calibration set: {reason}")
    try:
        return Path(mlflow.artifacts.download_artifacts(there))
    except (MlflowException, OSError) as error:
        raise UserError(
            f"{uri} cannot be used as {what}: {first_line(error)} (looked in the tracking store "
            f"{mlflow.get_tracking_uri()} and its files at {run.info.artifact_uri})."
        ) from error


def _why_no_model(run: Run) -> str:
    tags, params, kind = run.data.tags, client.params_of(run), run.data.tags.get(client.KIND)
    if kind == "suite":
        if params.get("save_model") == "none":
            return "it is a suite that was run with save_model=none, so its cells have no models."
        return f"it is a suite. Name one of its cells: {_cells(run)}."
    if kind == "baseline" or params.get("quantizer") == "none":
        return f"it is the unquantized model. Evaluate that itself: model={params.get('model')}."
    if kind == "select":
        return "it chose a calibration set. Quantize on it first: quantize, calibration=runs:/…"
    if kind in ("evaluate", "analysis", "plan"):
        return f"it is a run of kind {kind}, which quantizes nothing."
    if run.info.status != "FINISHED":
        return f"it is {run.info.status} ({tags.get(client.ERROR, 'no reason is known')})."
    if client.FREED in tags:
        return "it was removed to make room. Run the cell again with force=true."
    if client.CHECKPOINT_PATH in tags:
        return f"it is not in the store but in a folder: model={tags[client.CHECKPOINT_PATH]}."
    return f"it was run with save_model={params.get('save_model')}."


def _why_no_set(run: Run) -> str | None:
    kind, quantizer = run.data.tags.get(client.KIND), client.params_of(run).get("quantizer")
    if kind == "suite":
        return f"it is a suite. Name one of its cells: {_cells(run)}."
    if kind == "baseline" or quantizer == "none":
        return "it is the unquantized model, which was evaluated as it is."
    if quantizer in ("rtn", "magnitude"):
        return f"quantizer={quantizer} needs none."
    if kind in ("quantize", "evaluate", "analysis", "plan"):
        return f"it is a run of kind {kind}. Name a run of select, single or a suite's cell."
    return None


def _cells(suite: Run) -> str:
    """Name the first three cells of a suite."""
    cells = [r for r in client.children(suite.info.run_id) if r.data.tags[client.KIND] == "cell"]
    named = [f"runs:/{run.info.run_id} ({run.info.run_name})" for run in reversed(cells)]
    more = [f"and {len(named) - 3} more"] if len(named) > 3 else []
    return ", ".join([*named[:3], *more]) or "it has none yet"


def read_json(run: Run, name: str) -> Any:
    """Return the contents of a run's JSON artifact; None if it is missing or unreadable."""
    try:
        return json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}"))
    except (MlflowException, OSError, ValueError):
        return None
