"""Records: sealed whole on disk, sent once however often sending is interrupted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import publishing, records, runs, tracking
from colazero.config import RunConfig
from colazero.records import Record

DEAD = f"{runs._host()} 1 0.00"
CALLS = ("log_batch", "log_inputs", "log_artifacts", "create_logged_model", "log_model_artifacts")
CALLS += ("finalize_logged_model", "log_outputs", "set_terminated")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("test")
        yield MlflowClient()
        mlflow.set_tracking_uri(before)


def sealed(client: MlflowClient, folder: Path) -> Record:
    """Seal the record of a run whose process is dead."""
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    run = client.create_run(experiment, tags={"colazero.owner": DEAD}, run_name="cell")
    record = Record(run.info.run_id, mlflow.get_tracking_uri(), DEAD)
    record.begin()
    record.params["seed"] = "42"
    record.add_metrics({"perplexity": 30.5})
    record.datasets.append({"name": "c", "digest": "d", "context": "evaluation", "profile": "{}"})
    record.artifact("result.json").write_text("{}")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    record.add_files(checkpoint, kind="model")
    record.model.update(name="m", base="b")
    record.seal("FINISHED")
    return record


def assert_there_once(client: MlflowClient, run_id: str) -> None:
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "42"}
    assert [m.value for m in client.get_metric_history(run_id, "perplexity")] == [30.5]
    assert len(run.inputs.dataset_inputs) == 1
    assert {f.path for f in client.list_artifacts(run_id)} == {"result.json", "manifest.json"}
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id='{run_id}'")
    assert model.status == "READY"
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert publishing.intact(run)


@pytest.mark.parametrize("broken", CALLS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_sending_that_broke_off_anywhere_is_completed_once(
    store: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    after: bool,
) -> None:
    record = sealed(store, tmp_path)
    real: Callable[..., Any] = getattr(MlflowClient, broken)

    def breaks(*arguments: Any, **named: Any) -> None:
        if after:  # it arrived, and its answer did not
            real(*arguments, **named)
        raise MlflowException("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, breaks)
        with pytest.raises(MlflowException):
            publishing.publish(record)
    publishing.recover(store.get_run(record.run_id).info.experiment_id)
    assert_there_once(store, record.run_id)
    assert not record.folder.exists()


def test_a_record_that_is_not_whole_is_never_sent(store: MlflowClient, tmp_path: Path) -> None:
    cut_off, unsealed = sealed(store, tmp_path), sealed(store, tmp_path)
    (cut_off.folder / "artifacts" / "result.json").write_text("{")
    unsealed.status = ""
    unsealed._write()
    publishing.recover(store.get_run(cut_off.run_id).info.experiment_id)
    for record in (cut_off, unsealed):
        run = store.get_run(record.run_id)
        assert run.info.status == "KILLED"
        assert run.data.params == run.data.metrics == {}
        assert not record.folder.exists()


def test_the_record_of_a_live_process_is_left_alone(store: MlflowClient, tmp_path: Path) -> None:
    with tracking.run("live", "cell") as run_id:
        tracking.log_config(RunConfig())
        publishing.recover(store.get_run(run_id).info.experiment_id)
        assert store.get_run(run_id).info.status == "RUNNING"
        assert records.read(run_id) is not None
    assert store.get_run(run_id).data.params["seed"] == "42"


def test_a_finished_run_with_damaged_files_is_not_reused(
    store: MlflowClient, tmp_path: Path
) -> None:
    record = sealed(store, tmp_path)
    publishing.publish(record)
    run = store.get_run(record.run_id)
    assert publishing.intact(run)
    file = Path(run.info.artifact_uri.removeprefix("file://")) / "result.json"
    file.write_text("{} and more")
    assert not publishing.intact(run)
    file.unlink()
    assert not publishing.intact(run)
    record.discard()


def test_of_two_live_runs_that_do_the_same_work_one_withdraws(store: MlflowClient) -> None:
    with tracking.run("first", "cell") as first:
        runs.claim("colazero.work_key", "k", first)
        other = runs.create_child(first, "second", "cell")
        with pytest.raises(runs.Claimed):
            runs.claim("colazero.work_key", "k", other)
        assert "colazero.work_key" not in store.get_run(other).data.tags
        store.set_tag(first, "colazero.owner", DEAD)
        runs.claim("colazero.work_key", "k", other)  # the dead hold nothing


def test_the_store_is_asked_again_while_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers: list[Any] = [ConnectionError(), MlflowException("503"), "here"]

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert runs.patiently(ask) == "here"
    monkeypatch.setenv("COLAZERO_PATIENCE", "0")
    answers[:] = [MlflowException("503"), MlflowException("503")]
    with pytest.raises(MlflowException):
        runs.patiently(ask)
