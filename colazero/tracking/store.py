"""The tracking store before anything is written to it: does it answer, is it there, is it whole."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import create_engine

from colazero.errors import UserError, first_line
from colazero.tracking import uris
from colazero.tracking.uris import DATABASE_SERVERS, SERVERS

LOCK_SEC = 10.0
"""How long another process may take to put a store's file in its place."""


def refuse_unshareable(*, several_machines: bool = False) -> None:
    """Raise UserError unless MLFLOW_TRACKING_URI names what several processes can write to.

    That is a server or a database; a database in one file not from `several_machines`.
    """
    uri = mlflow.get_tracking_uri()
    ways = (
        "Name a tracking server (http://HOST:PORT, started with mlflow server) or a database "
        "server (postgresql://…) in MLFLOW_TRACKING_URI"
    )
    if uris.in_memory(uri):
        raise UserError(
            f"the tracking store {uri} is kept in memory, where the workers of a suite cannot "
            f"reach it. {ways}, or a file: sqlite:///mlflow.db."
        )
    if uris.kind(uri) == "sqlite" and several_machines:
        raise UserError(
            f"the tracking store {uri} is a file of this machine, and the suite would run on "
            f"several. {ways}."
        )
    if uris.kind(uri) not in (*SERVERS, *DATABASE_SERVERS, "sqlite"):
        raise UserError(
            f"the tracking store {uri} is neither a server nor a database, and several "
            f"processes write to it. {ways}, or a file: sqlite:///mlflow.db."
        )


def prepare(uri: str) -> None:
    """Make sure that a server answers; create a file's schema, whole or not at all."""
    if uris.kind(uri) in ("http", "https"):
        _check_server(uri)
    elif uris.kind(uri) in DATABASE_SERVERS:
        create_engine(uri).connect().close()  # at once; MLflow would try for minutes
    elif file := uris.sqlite_file(uri):
        _create(file)


def refuse_missing(uri: str) -> None:
    """Raise UserError if a store is a file that is not there: what only reads creates none."""
    file = uris.sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"there is no tracking store: looked for {file.absolute()}. Name the one to read in "
            "MLFLOW_TRACKING_URI, or go to the folder in which the runs were made."
        )


def _check_server(uri: str) -> None:
    """Ask a server as MLflow's client does, with the credentials and certificates it is given."""
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
    """Return what lies at the bottom of a chain of errors, such as `Connection refused`."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return first_line(error)


def _create(file: Path) -> None:
    """Create the schema beside the file and put it there in one step.

    MLflow takes seconds for it, in which a kill, or a second process, would leave a file behind
    that cannot be opened any more.
    """
    if file.is_dir():
        raise UserError(f"the tracking store {file} is a folder; name a file in it.")
    if file.exists() or not file.parent.is_dir():
        return
    if not os.access(file.parent, os.W_OK):  # MLflow would try for minutes
        raise UserError(
            f"the tracking store {file.absolute()} cannot be made: its folder cannot be written. "
            "Name another in MLFLOW_TRACKING_URI, as in sqlite:////FOLDER/mlflow.db."
        )
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        MlflowClient(uris.of_sqlite(draft)).search_experiments(max_results=1)
        _put(draft, file)
    finally:
        for ending in ("", "-journal", "-wal", "-shm"):
            draft.with_name(draft.name + ending).unlink(missing_ok=True)


def _put(draft: Path, file: Path) -> None:
    """Give the draft the file's name unless another process was faster.

    A hard link does both at once. Some file systems have none (exFAT, mounted drives): there the
    file is renamed while a folder, which only one process can create, keeps others from it.
    """
    try:
        os.link(draft, file)
        return
    except FileExistsError:
        return
    except OSError:
        pass
    lock, deadline = file.with_name(f".{file.name}.lock"), time.monotonic() + LOCK_SEC
    while True:
        with suppress(FileExistsError):
            lock.mkdir()
            break
        if file.exists():
            return
        if time.monotonic() > deadline:  # whoever made it was killed just then
            with suppress(OSError):
                lock.rmdir()
        time.sleep(0.05)
    try:
        if not file.exists():
            os.replace(draft, file)
    finally:
        lock.rmdir()


def artifact_folder() -> Path | None:
    """Return where the open run's artifacts are kept; None if that is no local folder."""
    return uris.local_folder(mlflow.get_artifact_uri())


def write_now(value: object, name: str) -> None:
    """Write a JSON artifact of the open run at once; UserError if the store does not take it."""
    try:
        mlflow.log_text(json.dumps(value, indent=1) + "\n", name)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the artifact store {mlflow.get_artifact_uri()} cannot be written: {first_line(error)}"
        ) from error
