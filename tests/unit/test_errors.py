"""Messages: no credentials in any of them, and all else as it was."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from colazero.errors import DiscreetFormatter, UserError, first_line, without_credentials

ROOT = Path(__file__).resolve().parents[2]

URIS = [
    "postgresql://me:SECRET@host:5432/runs",
    "postgresql+psycopg://me:SECRET@host/runs?sslmode=require",
    "http://user:SECRET@127.0.0.1:5000",
    "https://SECRET@host/path",
    "http://:SECRET@host",
    "mysql+pymysql://me:S/EC@RET@host/runs".replace("S/EC@RET", "a/SECRET@b"),
    "mssql://me:12SECRET@host",
    "postgresql://host/runs?user=me&password=SECRET",
    "https://host/x?access_token=SECRET&y=1",
    "s3://bucket?aws_secret_access_key=SECRET",
    "postgresql://host/runs?password=a'SECRET&b=1",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3DSECRET%3BUID%3Dme",
]


@pytest.mark.parametrize("uri", URIS)
def test_no_message_shows_credentials(uri: str) -> None:
    for text in (uri, f"the store {uri!r} is away", f"Max retries: {uri}/api/2.0, and more"):
        for shown in (without_credentials(text), str(UserError(text)), first_line(OSError(text))):
            assert "SECRET" not in shown
            assert "***" in shown
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "at %s", (uri,), None)
    assert "SECRET" not in DiscreetFormatter("%(message)s").format(record)


@pytest.mark.parametrize("password", ["12345", "pa'geheim", "pa geheim", 'a"b', "12/34", "1@2"])
@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_a_password_of_whatever_is_hidden_that_the_environment_has(
    scheme: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"{scheme}://me:{password}@127.0.0.1:9/x"
    if scheme != "http" or "/" not in password:  # which no web address has in a password
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        shown = without_credentials(f"the tracking server {uri} does not answer")
        assert shown == f"the tracking server {scheme}://me:***@127.0.0.1:9/x does not answer"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    if password.isdigit():
        assert password not in without_credentials(f"{uri} is away")


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5000/a@b is no file",
        "sqlite:////home/a@b/mlflow.db?timeout=60",
        "http://host:5000",
        "postgresql://me@host/runs",
        "model org/name@revision, seeds: 1@2",
        "method mymod:last, mail a@b.org",
        "s3://bucket/path",
    ],
)
def test_what_is_no_credential_stays(text: str) -> None:
    assert without_credentials(text) == text


def test_no_file_shows_a_stores_uri_but_in_an_error_of_ours_or_discreetly() -> None:
    """Logs and tracebacks go through `DiscreetFormatter`; other errors, prints and tags do not."""
    asked = {"get_tracking_uri", "get_artifact_uri", "artifact_uri"}
    careless = []
    for file in [f for room in ("colazero", "entrypoints", "analysis") for f in _files(room)]:
        for node in ast.walk(ast.parse(file.read_text())):
            words = ast.unparse(node) if isinstance(node, ast.Raise | ast.Call) else ""
            shows = isinstance(node, ast.Raise) or words.startswith(("print(", "set_tags("))
            safe = "UserError" in words or "RunsError" in words or "without_credentials" in words
            if shows and not safe and any(name in words for name in asked):
                careless.append(f"{file.name}: {words}")
    assert careless == []


def _files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))
