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
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from colazero.errors import UserError, first_line

SQLITE = "sqlite:///"
SERVERS = ("http", "https", "databricks")
DATABASE_SERVERS = ("postgresql", "mysql", "mssql")


def refuse_unshareable(*, several_machines: bool = False) -> None:
    """Raise UserError unless MLFLOW_TRACKING_URI names what several processes can write to.

    That is a server or a database; a database in one file not from `several_machines`.
    """
    uri = mlflow.get_tracking_uri()
    ways = (
        "Name a tracking server (http://HOST:PORT, started with mlflow server) or a database "
        "server (postgresql://…) in MLFLOW_TRACKING_URI"
    )
    if _in_memory(uri):
        raise UserError(
            f"the tracking store {uri} is kept in memory, where the workers of a suite cannot "
            f"reach it. {ways}, or a file: sqlite:///mlflow.db."
        )
    if _kind(uri) == "sqlite" and several_machines:
        raise UserError(
            f"the tracking store {uri} is a file of this machine, and the suite would run on "
            f"several. {ways}."
        )
    if _kind(uri) not in (*SERVERS, *DATABASE_SERVERS, "sqlite"):
        raise UserError(
            f"the tracking store {shown(uri)} is neither a server nor a database, and several "
            f"processes write to it. {ways}, or a file: sqlite:///mlflow.db."
        )


def prepare(uri: str) -> None:
    """Make sure that a server answers; create a file's schema, whole or not at all."""
    if uri.startswith(("http://", "https://")):
        _check_server(uri)
    elif _kind(uri) in DATABASE_SERVERS:
        create_engine(uri).connect().close()  # at once; MLflow would try for minutes
    elif uri.startswith(SQLITE) and not _in_memory(uri):
        _create(Path(uri.removeprefix(SQLITE)))


def shown(uri: str) -> str:
    """Return a store's URI as it may be shown: without a password."""
    try:
        return make_url(uri).render_as_string(hide_password=True)
    except ArgumentError:
        return uri


def _kind(uri: str) -> str:
    """Return `postgresql` of `postgresql+psycopg://…`."""
    return uri.partition(":")[0].partition("+")[0]


def _in_memory(uri: str) -> bool:
    return uri in ("sqlite:", "sqlite://", "sqlite:///", "sqlite:///:memory:")


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
            f"the artifact store {mlflow.get_artifact_uri()} cannot be written: {first_line(error)}"
        ) from error
