"""What may go and what must stay: models, records, open runs, the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.store import claims, client, fetch, publish, record
from colazero.store.publish import Record
from entrypoints import clean

DEAD = f"{claims._host()} 1 0.00"


@pytest.fixture
def store(
    shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    return shared_store


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(**given: str) -> tuple[int, str]:
        code = clean.run({"what": "auto", "suite": "auto", "do": "auto"} | given)
        return code, capsys.readouterr().out

    return run


def cell(suite: str, name: str, folder: Path, *, size: int = 7, **tags: str) -> str:
    """Do a cell below a suite that keeps a model of `size` bytes."""
    folder = folder / "checkpoint"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(b"w" * size)
    run_id = claims.create_child(suite, name, "cell")
    with record.run(name, "cell", run_id):
        record.set_tags({"colazero.key": name} | tags)
        record.log_params({"model": "tiny", "save_model": "artifact"})
        record.log_json({}, "result.json")
        if "colazero.source_run" not in tags:
            record.log_checkpoint(folder, {}, name, "tiny")
    return run_id


def suite_run(store: MlflowClient, name: str) -> str:
    """Create a suite's run, which is open."""
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    return str(store.create_run(experiment, tags={client.KIND: "suite"}, run_name=name).info.run_id)


def files_of(store: MlflowClient, run_id: str) -> list[Path]:
    (output,) = store.get_run(run_id).outputs.model_outputs
    try:
        model = store.get_logged_model(output.model_id)
    except mlflow.exceptions.MlflowException:
        return []
    return sorted(Path(model.artifact_location).rglob("*.safetensors"))


def test_a_suites_models_go_but_those_that_others_have_taken_over(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    with record.run("suite", "suite") as suite:
        mine, shared = cell(suite, "mine", tmp_path), cell(suite, "shared", tmp_path)
        cell(suite, "same", tmp_path, **{"colazero.source_run": mine})
    with record.run("later", "suite") as later:
        cell(later, "shared", tmp_path, **{"colazero.source_run": shared})
    code, said = call(what="models", suite=suite)
    assert code == 0
    assert "mine: m-" in said
    assert f"suite {later}" in said
    assert "models " in said.splitlines()[-3]
    assert "nothing was removed" in said
    assert files_of(store, mine)

    code, said = call(what="models", suite=suite, do="remove")
    assert code == 1, "one stays"
    assert said.count(": removed") == 1
    assert not files_of(store, mine)
    assert files_of(store, shared)
    assert publish.intact(store.get_run(mine)), "its numbers are still reused"
    with pytest.raises(UserError, match="force=true"):
        fetch.fetch_artifacts(f"runs:/{mine}", "model")
    assert call(what="models", suite=suite)[1].count("m-") == 1
    with pytest.raises(UserError, match=mine):
        call(what="models", suite=mine)
    assert f"--suite={suite},{later}" in said
    code, said = call(what="models", suite=f"{suite},{later}", do="remove")
    assert code == 0
    assert said.count(": removed") == 1
    assert not files_of(store, shared)


def test_all_takers_are_named_at_once_and_dead_suites_are_not(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    """After a crash: what is printed removes everything in one call."""

    def suite(name: str, status: str, taken: list[str]) -> tuple[str, str]:
        run_id = suite_run(store, name)
        for source in taken:
            cell(run_id, f"again in {name}", tmp_path, **{"colazero.source_run": source})
        own = cell(run_id, f"own of {name}", tmp_path)
        if status != "RUNNING":
            claims.end(run_id, status, "")
        return run_id, own

    first, one = suite("first", "FINISHED", [])
    killed, _ = suite("killed", "KILLED", [one])
    failed, _ = suite("failed", "FAILED", [one])
    second, two = suite("second", "FINISHED", [one])
    third, three = suite("third", "FINISHED", [two])
    running, _ = suite("running", "RUNNING", [one])
    code, said = call(what="models", suite=first, do="remove")
    assert code == 1
    assert all(taker in said for taker in (second, third, running))
    assert not any(taker in said for taker in (killed, failed))
    (line,) = [line for line in said.splitlines() if line.startswith("to remove all of these")]
    assert files_of(store, one)
    suites = line.rpartition("--suite=")[2]
    code, said = call(what="models", suite=suites, do="remove")
    assert code == 0
    assert not any(files_of(store, each) for each in (one, two, three))


@pytest.mark.parametrize("status", ["KILLED", "FAILED"])
def test_a_dead_suite_keeps_no_model(
    status: str, store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    with record.run("suite", "suite") as suite:
        mine = cell(suite, "mine", tmp_path)
    dead = suite_run(store, "dead")
    cell(dead, "mine", tmp_path, **{"colazero.source_run": mine})
    claims.end(dead, status, "its process was gone")
    assert call(what="models", suite=suite, do="remove")[0] == 0
    assert not files_of(store, mine)


def test_sums_are_given_per_suite_and_in_all(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    made = {}
    for name, count in (("small", 1), ("large", 3)):
        with record.run(name, "suite") as suite:
            for number in range(count):
                cell(suite, f"{number}", tmp_path, size=1_000_000)
        made[name] = suite
    _, said = call(what="models", suite=",".join(made.values()))
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert f"models 1.0 MB 1 of suite {made['small']} (small)" in lines
    assert f"models 3.0 MB 3 of suite {made['large']} (large)" in lines
    assert "models 4.0 MB 4 in all" in lines


def test_all_models_are_listed_with_how_they_may_go(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    with record.run("suite", "suite") as suite:
        kept = cell(suite, "kept", tmp_path)
    for given in ({}, {"what": "models"}):
        code, said = call(**given)
        assert code == 0
        (line,) = [line for line in said.splitlines() if suite in line]
        assert line == f"models          0.0 MB  1 of suite {suite} (suite)"
        assert "--what=models --suite=RUN_ID --do=remove" in said
    code, said = call(what="models", do="remove")
    assert (code, said) == (0, "")
    assert files_of(store, kept)


def test_models_of_deleted_runs_go(store: MlflowClient, tmp_path: Path, call: Any) -> None:
    with record.run("suite", "suite") as suite:
        gone, kept = cell(suite, "gone", tmp_path), cell(suite, "kept", tmp_path)
    before = files_of(store, gone)
    store.delete_run(gone)
    code, said = call(what="models", do="remove")
    assert code == 0
    assert said.count(": removed") == 1
    assert before
    assert not any(file.exists() for file in before)
    assert files_of(store, kept)


def test_a_deleted_runs_model_stays_where_another_has_its_results(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    with record.run("suite", "suite") as suite:
        shared = cell(suite, "shared", tmp_path)
    with record.run("later", "suite") as later:
        taker = cell(later, "shared", tmp_path, **{"colazero.source_run": shared})
    kept = files_of(store, shared)
    store.delete_run(shared)
    code, said = call(what="models", do="remove")
    assert code == 1
    assert f"stays, its results are also those of suite {later}" in said
    assert taker
    assert all(file.exists() for file in kept)
    store.delete_run(taker)
    assert call(what="models", do="remove")[0] == 0
    assert kept
    assert not any(file.exists() for file in kept)


def test_to_name_a_suite_is_to_mean_its_models_alone(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    with record.run("suite", "suite") as suite:
        cell(suite, "mine", tmp_path)
    with record.run("other", "suite") as other:
        gone = cell(other, "gone", tmp_path)
    kept = files_of(store, gone)
    store.delete_run(gone)
    code, said = call(what="models", suite=suite, do="remove")
    assert code == 0
    assert said.count(": removed") == 1
    assert kept
    assert all(file.exists() for file in kept), "a deleted run may be restored"


def test_the_experiment_of_mlflow_run_is_looked_through(
    store: MlflowClient, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with record.run("suite", "suite") as suite:
        cell(suite, "thesis", tmp_path)
    thesis = store.get_run(suite).info.experiment_id
    elsewhere = store.create_experiment("elsewhere")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", thesis)
    assert suite in call(what="models")[1]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", elsewhere)
    assert suite not in call(what="models")[1]
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "nowhere")
    with pytest.raises(UserError, match=r"nowhere.*MLFLOW_EXPERIMENT_NAME"):
        call(what="models")


def test_records_are_listed_sent_and_removed(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    def left(name: str, owner: str, status: str) -> Record:
        experiment = mlflow.get_experiment_by_name("test").experiment_id
        run = store.create_run(experiment, tags={"colazero.owner": owner}, run_name=name)
        record = Record(run.info.run_id, mlflow.get_tracking_uri(), owner)
        record.begin()
        record.add_metrics({"perplexity": 30.5})
        record.model.update(name=f"tiny-0.1b:{name}", base="b")
        (tmp_path / "checkpoint").mkdir(exist_ok=True)
        (tmp_path / "checkpoint" / "model.safetensors").write_bytes(b"weights")
        record.add_files(tmp_path / "checkpoint", kind="model")
        if status:
            record.seal(status)
        return record

    sealed, unsealed = left("sealed", DEAD, "FINISHED"), left("unsealed", DEAD, "")
    live = left("live", claims.owner(), "FINISHED")
    code, said = call(what="records")
    assert code == 0
    assert said.count("results that no store has yet") == 2
    assert "not whole" in said
    code, said = call(what="records", do="send")
    assert said.count(": sent") == 1
    run = store.get_run(sealed.run_id)
    assert (run.info.status, run.data.metrics["perplexity"]) == ("FINISHED", 30.5)
    assert publish.read_record(sealed.run_id) is None
    code, said = call(what="records", do="remove")
    assert code == 1
    assert publish.read_record(unsealed.run_id) is None
    assert publish.read_record(live.run_id) is not None, "its process is at work"
    code, said = call(what="cache")
    live.discard()


def test_open_runs_of_dead_processes_are_ended(store: MlflowClient, call: Any) -> None:
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    dead = store.create_run(experiment, tags={"colazero.owner": DEAD}).info.run_id
    alive = store.create_run(experiment, tags={"colazero.owner": claims.owner()}).info.run_id
    strange = store.create_run(experiment).info.run_id
    assert dead in call(what="running")[1]
    assert store.get_run(dead).info.status == "RUNNING"
    call(what="running", do="remove")
    assert store.get_run(dead).info.status == "KILLED"
    assert store.get_run(alive).info.status == store.get_run(strange).info.status == "RUNNING"
    for run_id in (alive, strange):
        store.set_terminated(run_id)


def test_the_cache_goes_but_not_under_a_run_at_work(
    store: MlflowClient, tmp_path: Path, call: Any
) -> None:
    part = tmp_path / "cache" / "tokens"
    part.mkdir(parents=True)
    (part / "a.npy").write_bytes(b"x" * 2_000_000)
    with record.run("at work", "cell"):
        code, said = call(what="cache", do="remove")
        assert code == 1
        assert "a run is using it" in said
    assert "2.0 MB" in call(what="cache")[1]
    assert part.exists()
    assert call(what="cache", do="remove")[0] == 0
    assert not part.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"do": "remove"}, "what, one or more of models, records"),
        ({"do": "delete"}, "remove"),
        ({"what": "modles"}, "Did you mean 'models'?"),
        ({"do": "send", "what": "models"}, "what=records"),
    ],
)
def test_what_is_unclear_removes_nothing(given: dict[str, str], words: str, call: Any) -> None:
    with pytest.raises(UserError) as caught:
        call(**given)
    assert words in str(caught.value)
