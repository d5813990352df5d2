"""The tracking store: what is refused and how fast, and who may create one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.store import claims, record
from colazero.store.open import _put, connect, prepare, refuse_unshareable

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
        refuse_unshareable()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///mlflow.db", "http://host:5000", "postgresql+psycopg://u@host/db", "databricks"],
)
def test_what_several_processes_can_write_to_is_not(uri: str, use: Callable[[str], None]) -> None:
    use(uri)
    refuse_unshareable()


def test_a_file_is_no_store_for_several_machines(use: Callable[[str], None]) -> None:
    use("sqlite:///mlflow.db")
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        refuse_unshareable(several_machines=True)
    use("http://host:5000")
    refuse_unshareable(several_machines=True)


def test_a_database_server_that_is_away_is_noticed_at_once_and_no_password_shown(
    use: Callable[[str], None],
) -> None:
    use("postgresql://me:secret@127.0.0.1:9/runs")
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"me:.*@127\.0\.0\.1:9/runs") as caught:
        connect()
    assert time.monotonic() - begin < 20
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_a_users_mistake(
    tmp_path: Path, use: Callable[[str], None]
) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    use("sqlite:///mlflow.db")
    with pytest.raises(UserError, match="file is not a database"):
        connect()


@pytest.mark.parametrize("given", [None, "true"])
def test_looking_at_files_shows_no_bars_unless_asked_for(
    given: str | None,
    use: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    variable = "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    monkeypatch.setenv(variable, given or "") if given else monkeypatch.delenv(variable, False)
    use(f"sqlite:///{tmp_path}/mlflow.db")
    connect()
    with record.run("a", "cell") as run_id:
        pass
    capfd.readouterr()
    mlflow.artifacts.load_text(f"runs:/{run_id}/packages.txt")
    assert ("Downloading artifacts" in capfd.readouterr().err) == bool(given)
    os.environ.pop(variable)


def test_a_fresh_sqlite_file_survives_several_processes_that_open_it_at_once(
    tmp_path: Path,
) -> None:
    code = "from colazero.store.open import connect; connect()"
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
        claims.refuse_unless_shared(suite)
    claims.log_proof(suite, {"nodes": []})
    claims.refuse_unless_shared(suite)
    use("sqlite:///two.db")
    with pytest.raises(UserError, match="cannot use the tracking store"):
        claims.refuse_unless_shared(suite)


@pytest.fixture
def server() -> Iterator[str]:
    """HOST:PORT of a server that answers those who know the password, and others with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization", "").startswith("Basic ")
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{made.server_port}"
        made.shutdown()


@pytest.mark.parametrize("who", ["", "user:SECRET@", "user:p%40SECRET@", "SECRET@"])
def test_a_server_that_lives_is_not_called_dead(server: str, who: str) -> None:
    prepare(f"http://{who}{server}")


@pytest.mark.parametrize("who", ["user:SECRET@", "SECRET@"])
def test_of_a_server_that_is_away_no_credentials_are_shown(who: str) -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9.* does not answer") as caught:
        prepare(f"http://{who}127.0.0.1:9")
    assert "SECRET" not in str(caught.value)


def test_a_store_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "draft").write_text("mine")
    _put(tmp_path / "draft", tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "mine"
    (tmp_path / "other").write_text("later")
    _put(tmp_path / "other", tmp_path / "mlflow.db")
    assert (tmp_path / "mlflow.db").read_text() == "mine", "the one that was there first"
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db", "other"}


def test_of_many_that_put_a_store_one_does(tmp_path: Path) -> None:
    seen: list[str] = []

    def put(number: int) -> None:
        draft = tmp_path / f"draft{number}"
        draft.write_text(str(number))
        _put(draft, tmp_path / "mlflow.db")
        seen.append((tmp_path / "mlflow.db").read_text())

    threads = [threading.Thread(target=put, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 1
    assert len(seen) == 20


def test_a_store_is_made_in_a_folder_with_a_space_and_an_umlaut_and_read_from_anywhere(
    tmp_path: Path,
    use: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "my projects" / "Prüfung"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    # as MLflow names the store if nobody does
    use(f"sqlite:///{tmp_path}/my%20projects/Pr%C3%BCfung/mlflow.db?timeout=60")
    with pytest.raises(UserError, match=r"Prüfung/mlflow\.db"):
        connect(reading=True)
    assert list(folder.iterdir()) == []
    connect()
    with record.run("a", "cell"):
        kept = record.artifact_folder()
        assert kept is not None
        assert kept.is_relative_to(folder)
        record.log_json({}, "result.json")
    assert (kept / "result.json").exists()
    assert {file.name for file in folder.iterdir()} == {"mlflow.db", "mlruns"}

    caplog.clear()
    connect()
    assert caplog.text == ""
    (folder / "mlruns").rename(tmp_path / "moved")
    connect()
    assert f"{folder}/mlruns" in caplog.text
    assert "was moved" in caplog.text


@pytest.mark.parametrize("reading", [False, True])
@pytest.mark.parametrize(
    ("name", "what"),
    [("MLFLOW_RUN_ID", "run"), ("MLFLOW_EXPERIMENT_ID", "experiment")],
)
def test_what_the_environment_names_must_be_in_the_store(
    name: str,
    what: str,
    reading: bool,
    use: Callable[[str], None],
    shared_store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(shared_store.tracking_uri)
    for value in ("0123456789abcdef0123456789abcdef", "99", "o'neil/..", "x" * 300):
        monkeypatch.setenv(name, value)
        with pytest.raises(UserError) as caught:
            connect(reading=reading)
        assert str(caught.value).startswith(f"{name}={value!r} in the environment")
        assert f"has no such {what}" in str(caught.value)
    if what == "experiment":
        gone = shared_store.create_experiment(f"deleted {reading}")
        shared_store.delete_experiment(gone)
        monkeypatch.setenv(name, gone)
        with pytest.raises(UserError, match="MLFLOW_EXPERIMENT_ID="):
            connect(reading=reading)


def test_a_cache_that_cannot_be_written_is_told_before_a_run_is_opened(
    use: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use("sqlite:///mlflow.db")
    (tmp_path / "file").touch()
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"file/below.*COLAZERO_CACHE"):
        connect()
    assert {file.name for file in tmp_path.iterdir()} == {"file"}


def test_a_store_that_is_a_folder_or_cannot_be_made_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="is a folder; name a file in it"):
        prepare(f"sqlite:///{tmp_path}")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        prepare(f"sqlite:///{tmp_path}/mlflow.db")
