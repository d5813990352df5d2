"""The page for Python, typed in from top to bottom after a suite: each snippet that can run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
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


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    clean |= {"PYTHONPATH": str(ROOT), "GPTQMODEL_CPU_WORKERS": "2"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_page_for_python_runs_from_top_to_bottom(suite: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    for snippet in snippets:
        compile(snippet, PAGE.name, "exec")
    mine = [one for one in snippets if not one.startswith(ELSEWHERE)]
    assert len(mine) >= len(snippets) - 1
    script = "\n".join(mine).replace("RUN_ID", (suite / "suite.txt").read_text())
    (suite / "typed.py").write_text(script)
    done = python(suite, "typed.py")
    assert done.returncode == 0, done.stderr[-3000:]
    for word in ("gptq_default", "random", "random vs gptq_default"):
        assert word in done.stdout
    assert (suite / "elsewhere" / "config.json").exists()
