"""A model, a method, a folder and a store with names that others' rules forbid, all of the way."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero.store.client import metrics_of

ROOT = Path(__file__).resolve().parents[2]
MYMOD = """
import numpy as np
from colazero.types import Selection
from colazero.selection import windows_at

def last(pool, n, seq_len, rng):
    first = len(pool.tokens) - n * seq_len
    return Selection(windows_at(pool, first + np.arange(n) * seq_len, seq_len))
"""
PASSWORD = "SECRET-of-nobody"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("o'neil") / "my projects" / "Prüfung"


@pytest.fixture(scope="module")
def project(folder: Path) -> Path:
    """A copy of this project in a folder with a space, an umlaut and a quote in its path."""
    for room in ("colazero", "entrypoints", "analysis"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("MLproject", "conda.yaml"):
        shutil.copy(ROOT / file, folder / file)
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path, tiny_llama: Path, corpus_file: Path) -> list[str]:
    """A suite of `tiny-0.1b` with a method of one's own, evaluated on two files of one name."""
    model = folder.parent / "tiny-0.1b"
    shutil.copytree(tiny_llama, model)
    (folder.parent / "modules").mkdir()
    (folder.parent / "modules" / "mymod.py").write_text(MYMOD)
    long = folder.parent / "/".join(["a_long_name_of_a_folder_" * 6] * 4)
    for place in (folder.parent / "one", long):
        place.mkdir(parents=True)
        shutil.copy(corpus_file, place / "my.corpus.txt")
    corpora = [f"file:{place / 'my.corpus.txt'}" for place in (folder.parent / "one", long)]
    return [
        *("preset=demo", f"models={model}", "methods=mymod:last", "seeds=1", "device=cpu"),
        *("n_calibration_samples=4", "seq_len=64", "eval_windows=4", "workers=1"),
        *(f"corpus={corpora[0]}", f"eval_corpora={','.join(corpora)}"),
    ]


def call(command: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        command, cwd=folder, env=environment | more, capture_output=True, text=True, check=False
    )


def arguments(settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "entrypoints.suite", *(f"--{setting}" for setting in settings)]


def the_cell(client: MlflowClient) -> Run:
    """Return the cell that did the work, after a look at all that names made of it."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments)
    assert {run.info.status for run in runs} == {"FINISHED"}
    (cell,) = (
        run
        for run in runs
        if run.data.tags.get("colazero.kind") == "cell"
        and "colazero.source_run" not in run.data.tags
    )
    assert cell.info.run_name == "1·mymod:last·tiny-0.1b"
    named = sorted(name for name in metrics_of(cell) if name.startswith("perplexity."))
    assert len(named) == 2
    assert all(name.startswith("perplexity.my_corpus-") for name in named)
    files = {file.path for file in client.list_artifacts(cell.info.run_id, "evaluation")}
    assert files == {
        f"evaluation/windows_{name.removeprefix('perplexity.')}.parquet" for name in named
    }
    (output,) = cell.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert str(model.status) == "READY"
    assert model.name.startswith("1__mymod_last__tiny-0_1b-")
    return cell


def test_readmes_command_in_such_a_folder_and_python_finds_what_it_did(
    project: Path, settings: list[str], tmp_path: Path
) -> None:
    modules = {"PYTHONPATH": str(project.parent / "modules")}
    command = ["mlflow", "run", ".", "-e", "suite", "--env-manager", "local"]
    command += [word for setting in settings for word in ("-P", setting)]
    done = call(command, project, **modules)
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    cell = the_cell(client)

    for beside in ("my.yaml", "notes.py", "mlflow.db-journal"):
        (project / beside).touch()
    again = call(arguments(settings), project, **modules)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "1 of 1 cells share the results of another run" in again.stdout
    assert the_cell(client).info.run_id == cell.info.run_id
    suite = again.stdout.partition("suite run: ")[2].split()[0]
    experiment = client.get_experiment(client.get_run(suite).info.experiment_id)
    assert experiment.name == "colazero"

    pipeline = project / "colazero" / "pipeline.py"
    pipeline.write_text(pipeline.read_text() + "\nCHANGED = True\n")
    plan = call([*arguments(settings), "--plan=true"], project, **modules)
    assert "1 cell to run" in plan.stdout
    assert "the source of colazero/pipeline.py differs" in plan.stdout

    path = {"PYTHONPATH": str(project)}
    told = call([*arguments([])[:3], f"--status={suite}"], tmp_path, **path)
    assert told.returncode == 2
    assert f"{tmp_path}/mlflow.db" in told.stderr
    assert list(tmp_path.iterdir()) == [], "who only reads creates nothing"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """HOST:PORT of a tracking server that serves artifacts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--serve-artifacts", "--artifacts-destination", str(tmp_path / "artifacts")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=clean | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=log,
        stderr=log,
        process_group=0,
    )
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.25)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)
        log.close()


def test_a_server_with_a_password_in_its_uri_takes_it_and_nobody_sees_the_password(
    server: str, folder: Path, settings: list[str], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    path = {"PYTHONPATH": os.pathsep.join([str(folder.parent / "modules"), str(ROOT)])}
    store = {"MLFLOW_TRACKING_URI": f"http://me:{PASSWORD}@{server}"}
    done = call(arguments(settings), here, **path, **store)
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(f"http://{server}")
    the_cell(client)
    assert PASSWORD not in done.stdout + done.stderr
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert PASSWORD not in "".join(map(str, (run.to_dictionary() for run in runs)))
    assert list(here.iterdir()) == []
