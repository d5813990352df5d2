"""The way to the store: it answers, and what the environment names is there.

Whoever connects in order to read creates nothing.
"""

from __future__ import annotations

import logging
import os

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from colazero import environment
from colazero.errors import UserError, first_line
from colazero.tracking import launched, publishing, records, runs, store, uris
from colazero.tracking.searching import EXPERIMENT, HOMES, search

log = logging.getLogger(__name__)


OVERRIDES = (
    *("MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID"),
    *("MLFLOW_ENABLE_ASYNC_LOGGING", "MLFLOW_TRUNCATE_LONG_VALUES"),
)
"""Variables of MLflow's that change whether and how values reach the store."""


def ignore_overrides() -> None:
    """Unset what would send our values elsewhere: an active model, asynchronous logging.

    MLflow adds every metric to the model that `MLFLOW_ACTIVE_MODEL_ID` or
    `mlflow.set_active_model` names, whoever's it is. Asynchronous logging hides errors.
    """
    ignored = [name for name in OVERRIDES if os.environ.pop(name, None) is not None]
    if model := mlflow.get_active_model_id():
        mlflow.clear_active_model()
        ignored.append(f"the active model {model}")
    if ignored:
        log.warning("ignored, as it changes what MLflow records: %s", ", ".join(ignored))


def connect(*, reading: bool = False) -> None:
    """Make sure that the tracking store answers, and create it and the experiment if need be.

    They must exist before several processes write. UserError within seconds if a server does not
    answer, or if MLFLOW_RUN_ID or MLFLOW_EXPERIMENT_ID names what is not there. Under `mlflow run`
    its run and experiment are kept. What processes left that are gone is put right: see
    `publishing.recover`. `reading`: nothing is created; UserError if there is no store.
    """
    ignore_overrides()
    uri = mlflow.get_tracking_uri()
    # A server that is away is our own patience's business, which also covers other stores.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    try:
        if reading:
            store.refuse_missing(uri)
        else:
            records.refuse_unwritable()
        store.prepare(uri)
        experiment = _given(uri, reading)
        if experiment is None and not reading:
            name = environment.experiment_name() or EXPERIMENT
            experiment = mlflow.set_experiment(name)
        if experiment is None:
            MlflowClient().search_experiments(max_results=1)
        else:
            _say_where_it_looks(experiment)
            if not reading:
                publishing.recover(experiment.experiment_id)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        hint = ""
        if getattr(error, "error_code", "") == "UNAUTHENTICATED":
            hint = " Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        raise UserError(
            f"the tracking store {uri!r} cannot be used: {first_line(error)}{hint}"
        ) from error


def _given(uri: str, reading: bool) -> Experiment | None:
    """Return the experiment that the environment names, by a run in it or by its id."""
    client = MlflowClient()
    run_id, experiment_id = environment.run_id(), environment.experiment_id()
    if run_id is not None:
        run = runs.get(run_id)
        if run is None or run.info.lifecycle_stage != "active":
            raise _no_such("MLFLOW_RUN_ID", run_id, "run", uri)
        if not reading:
            launched.refuse_used(run)
        experiment = client.get_experiment(run.info.experiment_id)
        if experiment.name == HOMES[1]:
            log.info(
                "this run is in MLflow's experiment %s, as `mlflow run` was given none; runs of "
                "`python -m entrypoints.NAME` are in %s. What is finished in either is reused. "
                "With --experiment-name %s it would be there too.",
                *(experiment.name, EXPERIMENT, EXPERIMENT),
            )
        return experiment
    if experiment_id is None:
        return None
    try:
        experiment = client.get_experiment(experiment_id)
        if experiment.lifecycle_stage == "active":
            return experiment
    except MlflowException as error:
        if error.error_code not in runs.PERMANENT:
            raise
    raise _no_such("MLFLOW_EXPERIMENT_ID", experiment_id, "experiment", uri)


def _no_such(variable: str, value: str, what: str, uri: str) -> UserError:
    return UserError(
        f"{variable}={value!r} in the environment: the tracking store {uri} has no such {what}. "
        f"Unset {variable}, or name the store that has it in MLFLOW_TRACKING_URI."
    )


def _say_where_it_looks(experiment: Experiment) -> None:
    """Warn if an experiment's files are not where the store says: it keeps whole paths."""
    folder = uris.local_folder(experiment.artifact_location)
    if folder is None or folder.exists():
        return
    done = search([experiment.experiment_id], status="FINISHED")
    if any("colazero.manifest" in run.data.tags for run in done):
        log.warning(
            "the files of experiment %s are looked for in %s, and there is no such folder. If the "
            "store was moved, put them back there, or leave a link to where they are now: without "
            "them no finished run can be reused.",
            *(experiment.name, folder),
        )
