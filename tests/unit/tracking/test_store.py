"""The tracking store: what is refused and how fast, and who may create one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from colazero import tracking
from colazero.errors import UserError
from colazero.tracking import runs, store

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Return what names a store, in a folder of the test's own, as long as the test runs."""
    monkeypatch.chdir(tmp_path)
    before = mlflow.get_tracking_uri()
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)
    yield mlflow.set_tracking_uri
    mlflow.set_tracking_uri(before)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("sqlite://", ["in memory", "sqlite:///mlflow.db"]),
        ("sqlite:///:memory:", ["in memory", "http://HOST:PORT"]),
        ("file:./mlruns", ["file:./mlruns", "neither a server nor a database"]),
        ("./mlruns", ["neither a server nor a database", "postgresql://"]),
    ],
)
def test_what_several_processes_cannot_write_to_is_refused(
    uri: str, words: list[str], use: Callable[[str], None]
) -> None:
    use(uri)
    with pytest.raises(UserError) as caught:
        store.refuse_unshareable()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///mlflow.db", "http://host:5000", "postgresql+psycopg://u@host/db", "databricks"],
)
def test_what_several_processes_can_write_to_is_not(uri: str, use: Callable[[str], None]) -> None:
    use(uri)
    store.refuse_unshareable()


def test_a_file_is_no_store_for_several_machines(use: Callable[[str], None]) -> None:
    use("sqlite:///mlflow.db")
    with pytest.raises(UserError, match="a file of this machine"):
        store.refuse_unshareable(several_machines=True)
    use("http://host:5000")
    store.refuse_unshareable(several_machines=True)


def test_a_database_server_that_is_away_is_noticed_at_once_and_no_password_shown(
    use: Callable[[str], None],
) -> None:
    use("postgresql://me:secret@127.0.0.1:9/runs")
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"me:.*@127\.0\.0\.1:9/runs") as caught:
        tracking.connect()
    assert time.monotonic() - begin < 20
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_users_mistake(
    tmp_path: Path, use: Callable[[str], None]
) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    use("sqlite:///mlflow.db")
    with pytest.raises(UserError, match="file is not a database"):
        tracking.connect()


def test_a_fresh_sqlite_file_survives_several_processes_that_open_it_at_once(
    tmp_path: Path,
) -> None:
    code = "from colazero import tracking; tracking.connect()"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": "sqlite:///mlflow.db"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_experiment_by_name("colazero") is not None


def test_a_worker_with_another_store_is_refused(tmp_path: Path, use: Callable[[str], None]) -> None:
    use("sqlite:///one.db")
    client = MlflowClient()
    where = (tmp_path / "artifacts").as_uri()
    suite = client.create_run(client.create_experiment("x", where)).info.run_id
    with pytest.raises(UserError, match="sees no artifacts of the suite"):
        runs.refuse_unless_shared(suite)
    runs.leave_proof(suite, {"nodes": []})
    runs.refuse_unless_shared(suite)
    use("sqlite:///two.db")
    with pytest.raises(UserError, match="cannot use the tracking store"):
        runs.refuse_unless_shared(suite)
