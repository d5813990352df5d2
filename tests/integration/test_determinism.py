"""The same configuration gives the same bytes, whatever the process, its threads and its state."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colazero.selection import METHODS

SELECT_ALL = """
import hashlib, random, sys, tempfile
from pathlib import Path
import numpy as np, torch
model_path, corpus, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(number)
from colazero import corpora, models, pipeline
from colazero.calibration.sets import load_calibration, save_calibration
from colazero.settings import RunConfig
from colazero.selection import METHODS
model = models.fetch(model_path)
given = {"corpus": corpus, "eval_corpora": (corpus,), "n_calibration_samples": 16, "seq_len": 128}
given |= {"device": "cpu", "proxy_model": model_path}
for method in METHODS.names():
    for seed_all in (random.seed, np.random.seed, torch.manual_seed):
        seed_all(number)
    calibration, _ = pipeline.calibrate(RunConfig(**given, method=method, seed=42), model)
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder)
        save_calibration(files, calibration, model, corpora.load(corpus), {})
        found = [hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files.iterdir())]
    print("DIGESTS", method, *found)
"""
PROCESSES = {1: "0", 2: "1", 8: "random"}
"""Threads → hash seed; each process starts with an empty cache and another random state."""


@pytest.fixture(scope="module")
def digests(
    tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, list[str]]]:
    """Return, for each number of threads and each method, the digests of its calibration files."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "RAYON")
    running = {}
    for threads, hash_seed in PROCESSES.items():
        own = {f"{library}_NUM_THREADS": str(threads) for library in libraries}
        own |= {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        own |= {"COLAZERO_CACHE": str(tmp_path_factory.mktemp("cache"))}
        running[threads] = subprocess.Popen(
            [sys.executable, "-c", SELECT_ALL, tiny_llama, f"file:{corpus_file}", str(threads)],
            env=os.environ | own,
            stdout=subprocess.PIPE,
            text=True,
        )
    found = {}
    for threads, process in running.items():
        out, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        lines = [line.split() for line in out.splitlines() if line.startswith("DIGESTS")]
        found[threads] = {method: files for _, method, *files in lines}
    return found


@pytest.mark.parametrize("method", METHODS.names())
def test_the_same_bytes_at_one_two_and_eight_threads(
    method: str, digests: dict[int, dict[str, list[str]]]
) -> None:
    first, *others = (digests[threads][method] for threads in PROCESSES)
    assert len(first) == 2, "windows.safetensors and selection.json"
    assert others == [first, first]
