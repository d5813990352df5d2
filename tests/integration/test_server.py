"""A real MLflow server, named by MLFLOW_TRACKING_URI: runs, artifacts and models go through it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment = clean | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
                time.sleep(0.25)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=30)
        log.close()


def test_a_suite_against_a_server(
    server: str, tmp_path: Path, tiny_llama: Path, corpus_file: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    arguments = {
        "preset": "demo",
        "models": tiny_llama,
        "methods": "random,gptq_default",
        "seeds": "1,2",
        "corpus": f"file:{corpus_file}",
        "eval_corpora": f"file:{corpus_file}",
        "n_calibration_samples": 4,
        "seq_len": 64,
        "eval_windows": 4,
    }
    done = subprocess.run(
        [sys.executable, "-m", "entrypoints.suite", *(f"--{k}={v}" for k, v in arguments.items())],
        cwd=here,
        env=clean | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": server},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("colazero").experiment_id
    runs = client.search_runs([experiment], "tags.`colazero.kind` = 'cell'")
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    source = next(run for run in runs if "colazero.source_run" not in run.data.tags)
    (output,) = client.get_run(source.info.run_id).outputs.model_outputs
    names = {file.path for file in client.list_logged_model_artifacts(output.model_id)}
    assert {"sha256.json", "config.json", "model.safetensors"} <= names
    assert list(here.iterdir()) == [], "nothing is written beside the server"
