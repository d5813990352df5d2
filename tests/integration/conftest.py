"""What a small suite is given, and a store for the suites of one file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest


@pytest.fixture(scope="module")
def grid(tiny_llama: Path, corpus_file: Path) -> dict[str, str]:
    """Return what `entrypoints.suite` is given for three methods and two seeds."""
    corpus = f"file:{corpus_file}"
    return {
        "preset": "demo",
        "models": str(tiny_llama),
        "methods": "gptq_default,random,cola_zero",
        "seeds": "42,43",
        "corpus": corpus,
        "eval_corpora": corpus,
        "n_calibration_samples": "4",
        "seq_len": "128",
        "eval_windows": "6",
        "device": "cpu",
        "workers": "1",
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store of its own, which is the current directory meanwhile."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("colazero")
        yield folder
        mlflow.set_tracking_uri(before)
