"""Records: sealed whole on disk, sent once however often sending is interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.store import claims, client, provenance, publish, record
from colazero.store.publish import Record
from colazero.types import Model

DEAD = f"{claims._host()} 1 0.00"
ELSEWHERE = "another-machine/pid:[1] 7 0.00"
CALLS = ("log_batch", "log_inputs", "log_artifacts", "create_logged_model", "log_model_artifacts")
CALLS += ("finalize_logged_model", "log_outputs", "set_terminated")


@pytest.fixture
def store(shared_store: MlflowClient) -> MlflowClient:
    return shared_store


def sealed(
    client: MlflowClient, folder: Path, owner: str = DEAD, suite: str | None = None
) -> Record:
    """Seal the record of a run whose process is dead, or on another machine."""
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    tags = {"colazero.owner": owner} | ({"mlflow.parentRunId": suite} if suite else {})
    run = client.create_run(experiment, tags=tags, run_name="cell")
    kept = Record(run.info.run_id, mlflow.get_tracking_uri(), owner)
    kept.begin()
    kept.params["seed"] = "42"
    kept.add_metrics({"perplexity": 30.5})
    kept.datasets.append({"name": "c", "digest": "d", "context": "evaluation", "profile": "{}"})
    kept.artifact("result.json").write_text("{}")
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    kept.add_files(checkpoint, kind="model")
    kept.model.update(name="m", base="b")
    kept.seal("FINISHED")
    return kept


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
    assert publish.intact(run)


@pytest.mark.parametrize("broken", CALLS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_sending_that_broke_off_anywhere_is_completed_once(
    store: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    after: bool,
) -> None:
    kept = sealed(store, tmp_path)
    real: Callable[..., Any] = getattr(MlflowClient, broken)

    def breaks(*arguments: Any, **named: Any) -> None:
        if after:  # it arrived, and its answer did not
            real(*arguments, **named)
        raise MlflowException("the connection broke")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, broken, breaks)
        with pytest.raises(MlflowException):
            publish.publish(kept)
    publish.recover(store.get_run(kept.run_id).info.experiment_id)
    assert_there_once(store, kept.run_id)
    assert not kept.folder.exists()


def test_a_record_with_a_name_that_the_store_refuses_is_sent_under_another(
    store: MlflowClient, tmp_path: Path
) -> None:
    kept = sealed(store, tmp_path)
    kept.model.update(name="tiny-0.1b__mymod:last__seed1")  # as earlier versions sealed it
    kept.seal("FINISHED")
    publish.recover(store.get_run(kept.run_id).info.experiment_id)
    assert_there_once(store, kept.run_id)


def test_a_run_whose_results_the_store_refuses_has_their_numbers_and_the_reason(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise MlflowException("Invalid model name", error_code=INVALID_PARAMETER_VALUE)

    def cell() -> None:
        with record.run("refused", "cell"):
            record.log_metrics({"perplexity": 30.5})
            record.log_checkpoint(tmp_path, {}, "a", "b")

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "create_logged_model", refuses)
        with pytest.raises(UserError, match=r"entrypoints.clean"):
            cell()
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    (refused,) = store.search_runs([experiment], "attributes.run_name = 'refused'")
    run_id = refused.info.run_id
    run = store.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics == {"perplexity": 30.5}
    assert "Invalid model name" in run.data.tags["colazero.error"]
    store.set_tag(run_id, "colazero.owner", DEAD)
    kept = publish.read_record(run_id)
    assert kept is not None
    kept.owner = DEAD
    kept._write()
    publish.recover(run.info.experiment_id)
    run = store.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "colazero.error" not in run.data.tags
    assert [m.value for m in store.get_metric_history(run_id, "perplexity")] == [30.5]


@pytest.mark.parametrize("kind", ["model", "artifacts"])
def test_the_umask_decides_who_can_read_a_runs_files(
    kind: str, store: MlflowClient, tmp_path: Path
) -> None:
    folder = tmp_path / "from a library"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").chmod(0o600)
    (tmp_path / "plain").write_text("")
    kept = Record("a-run", mlflow.get_tracking_uri(), DEAD)
    kept.begin()
    kept.add_files(folder, kind=kind)
    mode = (kept.folder / kind / "model.safetensors").stat().st_mode
    assert mode == (tmp_path / "plain").stat().st_mode
    kept.discard()


def test_a_record_that_is_not_whole_is_never_sent(store: MlflowClient, tmp_path: Path) -> None:
    cut_off, unsealed = sealed(store, tmp_path), sealed(store, tmp_path)
    (cut_off.folder / "artifacts" / "result.json").write_text("{")
    unsealed.status = ""
    unsealed._write()
    publish.recover(store.get_run(cut_off.run_id).info.experiment_id)
    for kept in (cut_off, unsealed):
        run = store.get_run(kept.run_id)
        assert run.info.status == "KILLED"
        assert run.data.params == run.data.metrics == {}
        assert not kept.folder.exists()


def test_the_record_of_a_live_process_is_left_alone(store: MlflowClient, tmp_path: Path) -> None:
    with record.run("live", "cell") as run_id:
        record.log_config(RunConfig())
        publish.recover(store.get_run(run_id).info.experiment_id)
        assert store.get_run(run_id).info.status == "RUNNING"
        assert publish.read_record(run_id) is not None
    assert store.get_run(run_id).data.params["seed"] == "42"


def test_a_finished_run_with_damaged_files_is_not_reused(
    store: MlflowClient, tmp_path: Path
) -> None:
    kept = sealed(store, tmp_path)
    publish.publish(kept)
    run = store.get_run(kept.run_id)
    assert publish.intact(run)
    file = Path(run.info.artifact_uri.removeprefix("file://")) / "result.json"
    file.write_text("{} and more")
    assert not publish.intact(run)
    file.unlink()
    assert not publish.intact(run)
    kept.discard()


def test_a_finished_run_takes_no_second_result(store: MlflowClient, tmp_path: Path) -> None:
    kept = sealed(store, tmp_path)
    store.log_metric(kept.run_id, "perplexity", 30.5)  # another worker did it, and all of it
    store.set_terminated(kept.run_id, "FINISHED")
    publish.recover(store.get_run(kept.run_id).info.experiment_id)
    assert len(store.get_metric_history(kept.run_id, "perplexity")) == 1
    assert store.get_run(kept.run_id).info.status == "FINISHED"
    assert not kept.folder.exists()


def test_a_record_that_cannot_be_sent_keeps_no_suite_from_starting(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, other = sealed(store, tmp_path), sealed(store, tmp_path)
    experiment = store.get_run(refused.run_id).info.experiment_id
    real = MlflowClient.log_artifacts

    def refuses(client: MlflowClient, run_id: str, folder: str) -> None:
        if run_id == refused.run_id:
            raise requests.HTTPError("507 Insufficient Storage")
        real(client, run_id, folder)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", refuses)
        publish.recover(experiment)
    assert_there_once(store, other.run_id)
    assert refused.folder.exists()
    publish.recover(experiment)
    assert_there_once(store, refused.run_id)


def test_a_record_from_another_machine_is_sent_once_its_suite_gives_no_sign_of_life(
    store: MlflowClient, tmp_path: Path
) -> None:
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    tags = {"colazero.owner": ELSEWHERE, "colazero.heartbeat": f"{time.time():.0f}"}
    suite = store.create_run(experiment, tags=tags).info.run_id
    kept = sealed(store, tmp_path, ELSEWHERE, suite)
    publish.recover(experiment)
    assert store.get_run(kept.run_id).info.status == "RUNNING"
    assert kept.folder.exists()
    store.set_tag(suite, "colazero.heartbeat", f"{time.time() - 3600:.0f}")
    publish.recover(experiment)
    assert_there_once(store, kept.run_id)
    assert not kept.folder.exists()
    assert store.get_run(suite).info.status == "KILLED"


@pytest.mark.parametrize("call", ["list_artifacts", "list_logged_model_artifacts"])
@pytest.mark.parametrize("error", [MlflowException("503"), requests.HTTPError("503")])
def test_files_are_not_damaged_because_the_store_is_away(
    store: MlflowClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    error: Exception,
) -> None:
    kept = sealed(store, tmp_path)
    publish.publish(kept)
    kept.discard()
    run = store.get_run(kept.run_id)

    def away(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, away)
        with pytest.raises(type(error)):
            publish.intact(run)
    assert publish.intact(run)


def test_a_run_without_its_manifest_is_not_reused(store: MlflowClient, tmp_path: Path) -> None:
    kept = sealed(store, tmp_path)
    publish.publish(kept)
    kept.discard()
    run = store.get_run(kept.run_id)
    manifest = Path(run.info.artifact_uri.removeprefix("file://")) / "manifest.json"
    manifest.write_text("{")
    assert not publish.intact(run)
    manifest.unlink()
    assert not publish.intact(run)


def test_a_lost_cell_of_a_living_suite_is_left_to_it(store: MlflowClient) -> None:
    with record.run("suite", "suite") as suite:
        experiment = store.get_run(suite).info.experiment_id
        lost = claims.create_child(suite, "lost", "cell")
        store.set_tag(lost, "colazero.owner", DEAD)
        claims.end_abandoned(experiment)
        assert store.get_run(lost).info.status == "RUNNING"
        assert "colazero.error" not in store.get_run(lost).data.tags
        store.set_tag(suite, "colazero.owner", DEAD)
        claims.end_abandoned(experiment)
        assert store.get_run(lost).info.status == "KILLED"


def test_a_run_that_is_finished_is_never_ended_otherwise(store: MlflowClient) -> None:
    with record.run("done", "cell") as done:
        pass
    left = claims.end(done, "FAILED", "lost")
    assert left is not None
    run = store.get_run(done)
    assert run.info.status == "FINISHED"
    assert "colazero.error" not in run.data.tags


def test_of_two_live_runs_that_do_the_same_work_one_withdraws(store: MlflowClient) -> None:
    with record.run("first", "cell") as first:
        claims.claim("colazero.work_key", "k", first)
        other = claims.create_child(first, "second", "cell")
        with pytest.raises(claims.Claimed):
            claims.claim("colazero.work_key", "k", other)
        assert "colazero.work_key" not in store.get_run(other).data.tags
        store.set_tag(first, "colazero.owner", DEAD)
        claims.claim("colazero.work_key", "k", other)  # the dead hold nothing


def test_the_store_is_asked_again_while_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    answers: list[Any] = [ConnectionError(), MlflowException("503"), "here"]

    def ask() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert client.patiently(ask) == "here"
    monkeypatch.setenv("COLAZERO_PATIENCE", "0")
    answers[:] = [MlflowException("503"), MlflowException("503")]
    with pytest.raises(MlflowException):
        client.patiently(ask)


def test_a_checkpoint_is_hashed_once_and_copied_not_at_all(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    own = publish.file_digest

    def counted(file: Path) -> str:
        read.append(file.name)
        return own(file)

    def never(*_: object) -> None:
        raise AssertionError("it was copied on its way to the kept")

    for module in (publish, provenance):
        monkeypatch.setattr(module, "file_digest", counted)
    model = Model("m", Path("m"), "1")
    with record.run("cell", "cell") as run_id:
        with record.workspace() as work:
            checkpoint = work / "checkpoint"
            checkpoint.mkdir()
            (checkpoint / "model.safetensors").write_bytes(b"weights")
            with monkeypatch.context() as patch:  # the store makes the one copy, later
                patch.setattr(publish.shutil, "copyfile", never)
                record.keep(RunConfig(), model, checkpoint, "name")
        kept = record.open_record()
        folder = kept.folder
        kept.seal("FINISHED")
        assert kept.files["model/model.safetensors"][1] == own(
            folder / "model" / "model.safetensors"
        )
        assert kept.whole()
        assert read.count("model.safetensors") == 2, "for the digest, and by whole() just now"
    assert not folder.exists()
    assert store.get_run(run_id).info.status == "FINISHED"


def test_the_digest_of_a_file_that_had_to_be_copied_is_not_believed(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_file_system(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(publish.os, "link", other_file_system)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    kept = Record("a-run", mlflow.get_tracking_uri(), DEAD)
    kept.begin()
    kept.add_files(tmp_path, kind="model", digests={"model.safetensors": "0" * 64})
    kept.seal("FINISHED")
    assert kept.whole()
    kept.discard()
