"""The page for Python, typed in from top to bottom after a suite: each snippet that can run."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guide" / "python.md"
ELSEWHERE = "# needs "
"""How a snippet begins that needs what this environment lacks."""


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path, corpus_file: Path) -> Path:
    """A folder with the store of a suite; its run's id is in `suite.txt`."""
    folder = tmp_path_factory.mktemp("typed")
    corpus = f"file:{corpus_file}"
    given = {
        "models": tiny_llama,
        "methods": "gptq_default,random",
        "seeds": "1,2",
        "preset": "demo",
    }
    given |= {"corpus": corpus, "eval_corpora": corpus, "seq_len": 64, "eval_windows": 4}
    given |= {"n_calibration_samples": 4, "device": "cpu", "workers": 1, "group_size": 32}
    done = python(folder, "-m", "entrypoints.suite", *(f"--{k}={v}" for k, v in given.items()))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "suite.txt").write_text(done.stdout.rpartition("suite run: ")[2].split()[0])
    return folder


def clean_environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])  # as if activated
    return kept | {"PYTHONPATH": str(ROOT), "PATH": path, "GPTQMODEL_CPU_WORKERS": "2"}


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def typed(suite: Path) -> subprocess.CompletedProcess[str]:
    """All snippets of the page that run here, typed in one after the other."""
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    for snippet in snippets:
        compile(snippet, PAGE.name, "exec")
    mine = [one for one in snippets if not one.startswith(ELSEWHERE)]
    assert len(mine) >= len(snippets) - 1
    script = "\n".join(mine).replace("RUN_ID", (suite / "suite.txt").read_text())
    (suite / "typed.py").write_text(script)
    return python(suite, "typed.py")


def test_the_page_for_python_runs_from_top_to_bottom(
    suite: Path, typed: subprocess.CompletedProcess[str]
) -> None:
    assert typed.returncode == 0, typed.stderr[-3000:]
    for word in ("gptq_default", "random", "random vs gptq_default"):
        assert word in typed.stdout
    assert (suite / "elsewhere" / "config.json").exists()


def test_the_registered_champion_is_served_as_the_page_says(
    suite: Path, typed: subprocess.CompletedProcess[str]
) -> None:
    assert typed.returncode == 0, typed.stderr[-3000:]
    page = PAGE.read_text(encoding="utf-8")
    (serve,) = re.findall(r"^mlflow (models serve .*)$", page, flags=re.M)
    (asked,) = re.findall(
        r"^curl localhost:5000(/\S+) -H '([^']+)' -d '([^']+)'$", page, flags=re.M
    )
    path, header, body = asked
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", *shlex.split(serve), "--port", str(port)]
    with (suite / "server.txt").open("w") as log:
        server = subprocess.Popen(
            command, cwd=suite, env=clean_environment(), stdout=log, stderr=log
        )
    try:
        answer = post(f"http://127.0.0.1:{port}{path}", header, body, server)
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
    (text,) = json.loads(answer)["predictions"]
    assert text.startswith(json.loads(body)["inputs"][0])


def post(address: str, header: str, body: str, server: subprocess.Popen[bytes]) -> bytes:
    """Return the answer of a server that may still be starting."""
    request = urllib.request.Request(address, body.encode(), dict([header.split(": ", 1)]))
    for _ in range(300):
        assert server.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                found: bytes = answer.read()
                return found
        except urllib.error.HTTPError:
            raise
        except OSError:
            time.sleep(1)
    raise TimeoutError(address)
