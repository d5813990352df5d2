"""A tracking server that answers 500, refuses, dies and returns, each while a cell is being logged.

`OUTAGE_SEC=600 python -m pytest tests/integration/test_outages.py` keeps it away for 10 minutes.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parents[2]
OUTAGE_SEC = float(os.environ.get("OUTAGE_SEC", "30"))
"""How long the server stays dead; it refuses, and answers 500, for 4 seconds each."""


class Server:
    """A real MLflow server that can be killed and started again on its port and its files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._folder}/server.db"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        with (self._folder / "server.log").open("a") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(480):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).close()
                return
            except OSError:
                assert self._process.poll() is None
                time.sleep(0.25)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Proxy(ThreadingHTTPServer):
    """Passes requests on to the server, but for the outages, each begun by a model being logged."""

    daemon_threads = True

    def __init__(self, server: Server) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.server = server
        self.outages = ["500", "403", "dead"]
        self.mode, self.until = "pass", 0.0
        self.refused = {"500": 0, "403": 0, "dead": 0}
        self.lock = threading.Lock()

    def mode_for(self, method: str, path: str) -> str:
        """Return what to do with a request; the first of a model's begins the next outage."""
        with self.lock:
            if time.monotonic() > self.until:
                self.mode = "pass"
            if self.mode == "pass" and method == "POST" and path.endswith("/logged-models"):
                self.begin_outage()
            if self.mode != "pass":
                self.refused[self.mode] += 1
            return self.mode

    def begin_outage(self) -> None:
        if not self.outages:
            return
        self.mode = self.outages.pop(0)
        self.until = time.monotonic() + (OUTAGE_SEC if self.mode == "dead" else 4)
        if self.mode == "dead":
            self.server.kill()
            self.until += 3600  # until it is up again

            def up_again() -> None:
                self.server.start()
                self.until = 0.0

            threading.Timer(OUTAGE_SEC, up_again).start()


class Handler(BaseHTTPRequestHandler):
    def handle_one(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy: Any = self.server
        mode = proxy.mode_for(self.command, self.path.partition("?")[0])
        if mode == "dead":
            self.close_connection = True
            return
        if mode != "pass":
            self.send_response(int(mode))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        there = http.client.HTTPConnection("127.0.0.1", proxy.server.port)
        there.request(self.command, self.path, body, dict(self.headers))
        answer = there.getresponse()
        content = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    server = Server(tmp_path)
    proxy = Proxy(server)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield proxy
    proxy.shutdown()
    server.kill()


def test_results_reach_a_server_that_was_away_once(
    proxy: Proxy, tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    settings = {
        "preset": "demo",
        "models": tiny_llama,
        "methods": "random",
        "seeds": "42-44",
        "corpus": f"file:{corpus_file}",
        "eval_corpora": f"file:{corpus_file}",
        "n_calibration_samples": 4,
        "seq_len": 64,
        "eval_windows": 4,
        "device": "cpu",
        "workers": 1,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{proxy.server_port}",
        "COLAZERO_CACHE": str(tmp_path / "cache"),
    }
    command = [sys.executable, "-m", "entrypoints.suite"]
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in settings.items())],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert proxy.outages == []
    assert all(count > 0 for count in proxy.refused.values()), "each outage was felt"
    client = MlflowClient(f"http://127.0.0.1:{proxy.server.port}")
    experiment = client.get_experiment_by_name("colazero").experiment_id
    runs = client.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    cells = [run for run in runs if run.data.tags["colazero.kind"] == "cell"]
    assert sorted(run.data.params["seed"] for run in cells) == ["42", "43", "44"]
    for run in cells:
        assert len(client.get_metric_history(run.info.run_id, "perplexity")) == 1
        (model,) = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
        assert model.status == "READY"
        names = {file.path for file in client.list_logged_model_artifacts(model.model_id)}
        assert {"sha256.json", "config.json", "model.safetensors"} <= names
    assert list((tmp_path / "cache" / "records").iterdir()) == []
