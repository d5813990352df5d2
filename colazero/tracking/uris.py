"""URIs of stores, read by SQLAlchemy's and MLflow's own parsers: never by cutting strings."""

from __future__ import annotations

from pathlib import Path

from mlflow.utils.file_utils import local_file_uri_to_path
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

SERVERS = ("http", "https", "databricks")
DATABASE_SERVERS = ("postgresql", "mysql", "mssql")


def kind(uri: str) -> str:
    """Return `postgresql` of `postgresql+psycopg://…`, `http` of `http://…`."""
    return uri.partition(":")[0].partition("+")[0].lower()


def in_memory(uri: str) -> bool:
    """Tell whether a store is a SQLite database that no other process sees."""
    return kind(uri) == "sqlite" and _database(uri) in (None, "", ":memory:")


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store; None for another store, and for one in memory.

    One that SQLite is to read as a URI of its own (`file:…?uri=true`) counts as another.
    """
    name = _database(uri) if kind(uri) == "sqlite" else None
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name)


def of_sqlite(file: Path) -> str:
    """Return the URI of a SQLite file."""
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def local_folder(uri: str) -> Path | None:
    """Return the folder that an artifact URI names; None if it is no folder of this machine."""
    if not uri.startswith(("/", "file:/")):
        return None
    return Path(local_file_uri_to_path(uri))  # type: ignore[no-untyped-call]


def _database(uri: str) -> str | None:
    try:
        return make_url(uri).database
    except ArgumentError:
        return None
