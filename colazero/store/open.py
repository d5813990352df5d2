"""Connect to the tracking store, and create it if necessary."""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError

from colazero import environment
from colazero.errors import UserError, first_line
from colazero.store import claims, client, publish

log = logging.getLogger(__name__)

SQLITE = b"SQLite format 3\0"
"""The first bytes of a SQLite database; an empty file is one too."""


def connect(*, reading: bool = False) -> None:
    """Make sure that the tracking store answers, and create it and the experiment if need be.

    They must exist before several processes write. Raise UserError within seconds if a server does
    not answer, if MLFLOW_RUN_ID or MLFLOW_EXPERIMENT_ID names what does not exist, or if that run
    is in use. `publish.recover` then sends and ends what dead processes left. With `reading`,
    create nothing, and raise UserError if there is no store.
    """
    client.ignore_overrides()
    uri = mlflow.get_tracking_uri()
    # `patiently` waits for every kind of store.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    # One bar per small file would not help.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        if reading:
            refuse_missing(uri)
        else:
            publish.refuse_unwritable()
        prepare(uri)
        experiment = _given(uri, reading)
        if experiment is None and not reading:
            name = environment.experiment_name() or client.EXPERIMENT
            experiment = mlflow.set_experiment(name)
        if experiment is None:
            MlflowClient().search_experiments(max_results=1)
        else:
            _warn_of_missing_files(experiment)
            if not reading:
                client.describe_experiment(experiment)
                publish.recover(experiment.experiment_id)
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        hint = ""
        if "filesystem tracking backend" in str(error):  # a folder, or a URI that is misspelled
            raise UserError(
                f"the tracking store {uri!r} cannot be used: MLflow no longer writes to folders. "
                "Give a database (sqlite:////path/mlflow.db) or a server (http://HOST:5000)."
            ) from error
        if getattr(error, "error_code", "") == "UNAUTHENTICATED":
            hint = " Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        raise UserError(
            f"the tracking store {uri!r} cannot be used: {first_line(error)}{hint}"
        ) from error


def _given(uri: str, reading: bool) -> Experiment | None:
    """Return the experiment that the environment names, by a run in it or by its id."""
    service = MlflowClient()
    run_id, experiment_id = environment.run_id(), environment.experiment_id()
    if run_id is not None:
        run = client.find_run(run_id)
        if run is None or run.info.lifecycle_stage != "active":
            raise _no_such("MLFLOW_RUN_ID", run_id, "run", uri)
        if not reading:
            claims.refuse_used(run)
        return service.get_experiment(run.info.experiment_id)
    if experiment_id is None:
        return None
    try:
        experiment = service.get_experiment(experiment_id)
        if experiment.lifecycle_stage == "active":
            return experiment
    except MlflowException as error:
        if error.error_code not in client.PERMANENT:
            raise
    raise _no_such("MLFLOW_EXPERIMENT_ID", experiment_id, "experiment", uri)


def _no_such(variable: str, value: str, what: str, uri: str) -> UserError:
    return UserError(
        f"{variable}={value!r} in the environment: the tracking store {uri} has no such {what}. "
        f"Unset {variable}, or name the store that has it in MLFLOW_TRACKING_URI."
    )


def _warn_of_missing_files(experiment: Experiment) -> None:
    """Warn if an experiment's files are not where the store says: it keeps whole paths."""
    folder = client.local_folder(experiment.artifact_location)
    if folder is None or folder.exists():
        return
    done = client.search([experiment.experiment_id], status="FINISHED")
    if any(client.MANIFEST in run.data.tags for run in done):
        log.warning(
            "the files of experiment %s should be in %s, which does not exist. If the store was "
            "moved, move them back, or make a link to where they are now. Without them no "
            "finished run can be reused.",
            *(experiment.name, folder),
        )


def refuse_unshareable(*, several_machines: bool = False) -> None:
    """Raise UserError unless MLFLOW_TRACKING_URI names what several processes can write to.

    That is a server or a database; a database in one file not from `several_machines`.
    """
    uri = mlflow.get_tracking_uri()
    ways = (
        "Name a tracking server (http://HOST:PORT, started with mlflow server) or a database "
        "server (postgresql://…) in MLFLOW_TRACKING_URI"
    )
    if client.in_memory(uri):
        raise UserError(
            f"the tracking store {uri} is kept in memory, where the workers of a suite cannot "
            f"reach it. {ways}, or a file: sqlite:///mlflow.db."
        )
    if client.store_kind(uri) == "sqlite" and several_machines:
        raise UserError(
            f"the tracking store {uri} is a file of this machine, and the suite would run on "
            f"several. {ways}."
        )
    if client.store_kind(uri) not in (*client.SERVERS, *client.DATABASE_SERVERS, "sqlite"):
        raise UserError(
            f"the tracking store {uri} is neither a server nor a database, and several "
            f"processes write to it. {ways}, or a file: sqlite:///mlflow.db."
        )


def prepare(uri: str) -> None:
    """Make sure that a server answers; create a file's schema, whole or not at all."""
    if client.store_kind(uri) in ("http", "https"):
        _check_server(uri)
    elif client.store_kind(uri) in client.DATABASE_SERVERS:
        create_engine(uri).connect().close()  # at once; MLflow would try for minutes
    elif file := client.sqlite_file(uri):
        _create(file)


def refuse_missing(uri: str) -> None:
    """Raise UserError if the store is a file that does not exist: reading creates none."""
    file = client.sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"the tracking store {file.absolute()} does not exist. Name the one to read in "
            "MLFLOW_TRACKING_URI, or go to the folder in which the runs were made."
        )


def _check_server(uri: str) -> None:
    """Ask a server as MLflow's client does, with its credentials and certificates."""
    try:
        how = {"max_retries": 0, "timeout": 5, "raise_on_status": False}
        known = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        http_request(known, "/health", "GET", **how)  # type: ignore[no-untyped-call]
    except (MlflowException, OSError, ValueError) as error:
        raise UserError(
            f"the tracking server {uri} does not answer ({_reason(error)}). Start "
            "it (mlflow server), or set MLFLOW_TRACKING_URI to one that runs; without it the "
            "results go to ./mlflow.db."
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first cause in a chain of errors, such as `Connection refused`."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return first_line(error)


def _create(file: Path) -> None:
    """Create the schema in a draft and rename it in one step.

    MLflow takes seconds for a schema. A kill or a second process meanwhile would leave a file that
    cannot be opened any more.
    """
    if file.is_dir():
        raise UserError(f"the tracking store {file} is a folder; name a file in it.")
    if file.exists():
        with file.open("rb") as stream:
            begins = stream.read(len(SQLITE))
        if begins and begins != SQLITE:  # MLflow would try for minutes
            raise UserError(
                f"the tracking store {file.absolute()} cannot be used: the file is not a database. "
                "Name another in MLFLOW_TRACKING_URI, as in sqlite:////FOLDER/mlflow.db."
            )
    if file.exists() or not file.parent.is_dir():
        return
    if not os.access(file.parent, os.W_OK):  # MLflow would try for minutes
        raise UserError(
            f"the tracking store {file.absolute()} cannot be made: its folder cannot be written. "
            "Name another in MLFLOW_TRACKING_URI, as in sqlite:////FOLDER/mlflow.db."
        )
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        MlflowClient(client.sqlite_uri(draft)).search_experiments(max_results=1)
        _put(draft, file)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            draft.with_name(draft.name + ending).unlink(missing_ok=True)


def _put(draft: Path, file: Path) -> None:
    """Give the draft the file's name unless another process was faster.

    A lock on the folder lets one process at a time do it. SQLite itself needs locks there.
    """
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        if not file.exists():
            os.replace(draft, file)
    finally:
        os.close(folder)
