from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.store import claims, client, fetch, provenance, publish, record
from colazero.store.open import connect


@pytest.fixture
def store(
    tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_store, tmp_path / "mlflow.db")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("test")
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


def test_resolved_values_stand_beside_what_mlflow_logged_first(store: MlflowClient) -> None:
    with mlflow.start_run() as active:
        mlflow.log_params({"seed": "auto", "damp_percent": "1e-2", "method": "random"})
    with record.run("again", "cell", active.info.run_id) as run_id:
        record.log_config(RunConfig(method="random", seed=43, damp_percent=0.01))
    params = store.get_run(run_id).data.params
    assert params["seed"] == "auto"
    assert params["resolved.seed"] == "43"
    assert params["resolved.damp_percent"] == "0.01"
    assert params["method"] == "random"
    assert "resolved.method" not in params
    assert params["sym"] == "true"
    assert params["downstream_tasks"] == "arc_easy,hellaswag,piqa,winogrande"


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("too bad"), "FAILED", "ValueError: too bad"),
        (KeyboardInterrupt(), "KILLED", "interrupted by Ctrl-C"),
        (SystemExit(143), "KILLED", "SystemExit: 143"),
    ],
)
def test_an_error_ends_the_run_with_its_reason(
    store: MlflowClient, error: BaseException, status: str, reason: str
) -> None:
    with (
        pytest.raises(type(error)),
        record.run("parent", "suite") as parent,
        record.run("child", "cell", claims.create_child(parent, "child", "cell")) as child,
    ):
        raise error
    for run_id in (parent, child):
        found = store.get_run(run_id)
        assert found.info.status == status
        assert found.data.tags["colazero.error"] == reason


def test_finished_runs_are_found_by_tag_but_not_those_that_only_took_over(
    store: MlflowClient,
) -> None:
    with record.run("done", "cell") as done:
        record.set_tags({"colazero.key": "k"})
    with record.run("copy", "cell"):
        record.set_tags({"colazero.key": "k", "colazero.source_run": done})
    with contextlib.suppress(ValueError), record.run("failed", "cell"):
        record.set_tags({"colazero.key": "k"})
        raise ValueError
    with record.run("now", "cell"):
        found = fetch.find_finished("colazero.key", "k")
        assert found is not None
        assert found.info.run_id == done
        assert fetch.find_finished("colazero.key", "other") is None


def test_a_source_is_found_behind_any_number_of_runs_that_took_it_over(
    store: MlflowClient,
) -> None:
    tags = {"colazero.key": "k"}
    with record.run("done", "cell") as done:
        record.set_tags(tags)
    experiment = store.get_run(done).info.experiment_id
    for _ in range(25):
        taker = store.create_run(experiment, tags=tags | {"colazero.source_run": done})
        store.set_terminated(taker.info.run_id, "FINISHED")
    with record.run("now", "cell"):
        found = fetch.find_finished("colazero.key", "k")
    assert found is not None
    assert found.info.run_id == done


@pytest.mark.parametrize("call", ["get_run", "search_runs", "list_artifacts"])
def test_looking_for_a_source_waits_for_a_store_that_is_away(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with record.run("done", "cell") as done:
        record.set_tags({"colazero.key": "k"})
        record.log_json({}, "result.json")
    real, refusals = getattr(MlflowClient, call), [ConnectionError(), MlflowException("503")]

    def sometimes(*arguments: Any, **named: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return real(*arguments, **named)

    with record.run("now", "cell"), monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, sometimes)
        found = fetch.find_finished("colazero.key", "k")
    assert refusals == []
    assert found is not None
    assert found.info.run_id == done


def test_the_reason_of_a_failed_attempt_goes_when_the_next_succeeds(store: MlflowClient) -> None:
    with record.run("suite", "suite") as suite:
        run_id = claims.create_child(suite, "cell", "cell")
        claims.end(run_id, "KILLED", "its process was gone")
        assert store.get_run(run_id).data.tags["colazero.error"] == "its process was gone"
        with record.run("cell", "cell", run_id):
            pass
    assert "colazero.error" not in store.get_run(run_id).data.tags


def test_a_dirty_tree_is_marked_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    def state() -> dict[str, str]:
        provenance.git_state.cache_clear()
        return provenance.git_state()

    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    assert state()["colazero.git_commit"] == "unknown"
    git("init", "-q")
    git("config", "user.email", "a@example.org")
    git("config", "user.name", "a")
    (tmp_path / "f.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "first")
    assert state()["colazero.git_dirty"] == "false"
    (tmp_path / "f.py").write_text("x = 2\n")
    second = state()["colazero.git_dirty"]
    (tmp_path / "f.py").write_text("x = 3\n")
    third = state()["colazero.git_dirty"]
    (tmp_path / "g.py").write_text("y = 1\n")
    fourth = state()["colazero.git_dirty"]
    (tmp_path / "g.py").write_text("y = 2\n")
    fifth = state()["colazero.git_dirty"]
    assert len({"false", second, third, fourth, fifth}) == 5
    git("stash", "-u", "-q")
    assert state()["colazero.git_dirty"] == "false"
    provenance.git_state.cache_clear()


def test_a_result_that_the_store_does_not_take_stays_on_disk_and_is_not_finished(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise MlflowException("no room")

    monkeypatch.setenv("COLAZERO_PATIENCE", "0")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", refuses)
        with (
            pytest.raises(UserError, match=r"entrypoints.clean"),
            record.run("a", "cell") as run_id,
        ):
            record.log_json({}, "result.json")
    run = store.get_run(run_id)
    assert run.info.status == "FAILED"
    store.set_tag(run_id, "colazero.owner", f"{claims.owner().rsplit(' ', 2)[0]} 1 0.00")
    kept = publish.read_record(run_id)
    assert kept is not None
    kept.owner = f"{claims.owner().rsplit(' ', 2)[0]} 1 0.00"  # as if this process were gone
    kept.seal("FINISHED")
    publish.recover(run.info.experiment_id)
    assert store.get_run(run_id).info.status == "FINISHED"
    assert "result.json" in {file.path for file in store.list_artifacts(run_id)}


def test_json_is_never_written_with_nan(store: MlflowClient) -> None:
    with record.run("a", "cell"), pytest.raises(ValueError, match="not JSON compliant"):
        record.log_json({"a": float("nan")}, "a.json")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_file_system_that_refuses_for_good_is_not_asked_again(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("it was waited for"))

    def refuse() -> None:
        raise OSError(number, os.strerror(number))

    with pytest.raises(OSError, match=os.strerror(number)):
        client.patiently(refuse)


def test_a_disk_without_room_for_the_record_loses_no_numbers(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publish.Record, "seal", full)
    with (
        pytest.raises(UserError, match=r"\(No space left on device.*COLAZERO_C"),
        record.run("cell", "cell") as run_id,
    ):
        record.log_metrics({"perplexity": 30.5})
    run = store.get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {"perplexity": 30.5})
    assert "No space left" in run.data.tags["colazero.error"]


@pytest.mark.parametrize(
    "variable", ["MLFLOW_ACTIVE_MODEL_ID", "_MLFLOW_ACTIVE_MODEL_ID", "mlflow.set_active_model"]
)
@pytest.mark.parametrize("exists", [True, False])
def test_an_active_model_gets_none_of_our_numbers(
    variable: str, exists: bool, store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.get_experiment_by_name("test").experiment_id
    model_id = "m-" + 32 * "0"
    if exists:
        model_id = store.create_logged_model(experiment, name="somebody_elses").model_id
    mlflow.clear_active_model()
    if variable.startswith("mlflow"):
        if exists:
            mlflow.set_active_model(model_id=model_id)
    else:
        monkeypatch.setenv(variable, model_id)
    with record.run("mine", "cell") as run_id:
        record.log_metrics({"perplexity": 20.0})
        record.flush()
    assert store.get_run(run_id).data.metrics["perplexity"] == 20.0
    assert variable not in os.environ
    if exists:
        assert not store.get_logged_model(model_id).metrics


@pytest.mark.parametrize(
    ("variable", "value"),
    [("MLFLOW_ENABLE_ASYNC_LOGGING", "true"), ("MLFLOW_TRUNCATE_LONG_VALUES", "false")],
)
def test_variables_that_change_how_values_are_sent_are_ignored_and_named(
    variable: str,
    value: str,
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(variable, value)
    connect()
    assert variable not in os.environ
    assert variable in caplog.text
