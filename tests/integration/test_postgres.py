"""Past one machine: PostgreSQL behind a tracking server that asks for a password and serves files.

Both are real, thrown away afterwards, and listen on loopback only.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
POSTGRES = INSTALLED[-1].parent if INSTALLED else None
USER, PASSWORD = "researcher", secrets.token_urlsafe(12)

LAST = """
import numpy as np
from colazero.types import Selection
from colazero.selection import windows_at

def last(pool, n, seq_len, rng):
    first = len(pool.tokens) - n * seq_len
    return Selection(windows_at(pool, first + np.arange(n) * seq_len, seq_len))
"""

pytestmark = pytest.mark.skipif(
    POSTGRES is None, reason="PostgreSQL is not installed (apt-get install postgresql)"
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def as_postgres(*command: str | Path) -> None:
    """Run a program of PostgreSQL's, which refuses to be run by root."""
    who = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    subprocess.run([*who, *map(str, command)], check=True, cwd="/", stdout=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The URI of an empty database in a PostgreSQL of its own."""
    assert POSTGRES
    # Not below pytest's folder, which only its owner can enter.
    folder = Path(f"/tmp/colazero-postgres-{os.getpid()}")
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    port = free_port()
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    data = folder / "data"
    try:
        as_postgres(POSTGRES / "initdb", "-D", data, "-U", "mlflow", "-A", "trust", "--no-sync")
        as_postgres(
            *(POSTGRES / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        )
        yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            as_postgres(POSTGRES / "pg_ctl", "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on it, with basic authentication, that serves artifacts."""
    folder = tmp_path_factory.mktemp("server")
    auth = folder / "auth.ini"
    auth.write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {USER}\nadmin_password = {PASSWORD}\n"
        "auth_cache_ttl_seconds = 600\n"
    )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", database, "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")} | {
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    log = folder / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=stream, stderr=stream, process_group=0
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(480):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.25)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def run_here(
    module: str, arguments: list[str], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-m", f"entrypoints.{module}", *arguments],
        cwd=folder,
        env=clean | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_three_workers_on_a_server_with_postgresql_and_everything_read_back(
    server: str,
    tmp_path: Path,
    tiny_llama: Path,
    corpus_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    model = tmp_path / "tiny-0.1b"  # names in which MLflow takes no dot and no colon
    shutil.copytree(tiny_llama, model)
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "mymod.py").write_text(LAST)
    arguments = {
        "preset": "demo",
        "models": model,
        "methods": "random,gptq_default,mymod:last",
        "seeds": "1-3",
        "corpus": f"file:{corpus_file}",
        "eval_corpora": f"file:{corpus_file}",
        "n_calibration_samples": 4,
        "seq_len": 64,
        "eval_windows": 4,
        "workers": 3,
        "device": "cpu",
    }
    grid = [f"--{name}={value}" for name, value in arguments.items()]
    known = {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": PASSWORD}
    known["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(tmp_path / "modules")])
    path = known["PYTHONPATH"]
    refused = run_here("suite", grid, here, MLFLOW_TRACKING_URI=server, PYTHONPATH=path)
    assert refused.returncode == 2, "no password, no suite"
    assert "MLFLOW_TRACKING_USERNAME" in refused.stderr
    done = run_here("suite", grid, here, MLFLOW_TRACKING_URI=server, **known)
    assert done.returncode == 0, done.stderr[-3000:]
    assert list(here.iterdir()) == [], "nothing is written beside the server"

    with pytest.raises(MlflowException):
        MlflowClient(server).search_experiments()
    for name, value in known.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mlflow.tracking._tracking_service.utils, "_tracking_uri", server)
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("colazero").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    cells = [run for run in runs if run.data.tags["colazero.kind"] == "cell"]
    assert sorted((run.data.params["method"], run.data.params["seed"]) for run in cells) == [
        (method, seed) for method in ("gptq_default", "mymod:last", "random") for seed in "123"
    ]
    assert len({run.data.tags["colazero.owner"] for run in cells}) == 3, "three workers took part"
    originals = [run for run in cells if "colazero.source_run" not in run.data.tags]
    assert len(originals) == 9, "one set in three orders is three cells"
    for run in originals:
        read_back(client, run, tmp_path)
    (suite,) = [run for run in runs if run.data.tags["colazero.kind"] == "suite"]
    analysed = run_here(
        "analyze", [f"--suite={suite.info.run_id}"], here, MLFLOW_TRACKING_URI=server, **known
    )
    assert analysed.returncode == 0, analysed.stderr[-3000:]
    analysis = re.search(r"report: .*/runs/(\w+)/artifacts/", analysed.stdout)[1]
    names = {file.path for file in client.list_artifacts(analysis, "analysis")}
    assert "analysis/report.html" in names


def read_back(client: MlflowClient, run: Run, folder: Path) -> None:
    """Hold a cell's numbers, calibration set and checkpoint against each other."""
    from safetensors.numpy import load_file

    from colazero.store import provenance
    from colazero.types import CalibrationSet

    result = json.loads(Path(client.download_artifacts(run.info.run_id, "result.json")).read_text())
    assert result["perplexity"] == pytest.approx(run.data.metrics["perplexity"])
    calibration = Path(client.download_artifacts(run.info.run_id, "calibration"))
    windows = load_file(calibration / "windows.safetensors")["input_ids"]
    assert windows.shape == (4, 64)
    digest = CalibrationSet(windows, [], {}).digest
    assert digest == run.data.tags["colazero.calibration_digest"]
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    checkpoint = Path(mlflow.artifacts.download_artifacts(f"models:/{output.model_id}"))
    manifest = json.loads((checkpoint / "sha256.json").read_text())
    there = provenance.manifest(checkpoint)  # with MLflow's own files besides
    assert {name: there.get(name) for name in manifest} == manifest
    assert provenance.weights_digest(manifest) == run.data.tags["colazero.checkpoint_digest"]
