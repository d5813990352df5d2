"""The suite on Ray: a cluster of several nodes, one of which is killed while it computes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.suite.run import executor_of
from colazero.suite_settings import SuiteConfig

ROOT = Path(__file__).resolve().parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
"""Each node has room for one cell, and Ray's least memory for objects."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of three nodes on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MLFLOW_"):  # else Ray's workers inherit this process's store
                patch.delenv(name)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        made.add_node(**NODE)
        made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()


def start(arguments: dict[str, Any], folder: Path) -> subprocess.Popen[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    store = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.Popen(
        [sys.executable, "-m", "entrypoints.suite", *(f"--{k}={v}" for k, v in arguments.items())],
        cwd=folder,
        env=clean | store,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_a_node_at_work(
    cluster: Any, client: MlflowClient, experiment: str, suite: subprocess.Popen[str]
) -> Run:
    """Once a cell is done, kill a node, not the head, that has begun another; return its run.

    One that was at work at the last look too may be at its end: it would be sent, not repeated.
    """
    others = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    nodes = {node.all_processes["raylet"][0].process.pid: node for node in others}
    at_work: set[tuple[str, int]] = set()
    while suite.poll() is None:
        time.sleep(0.3)
        before = at_work
        cells = client.search_runs([experiment], "tags.`colazero.kind` = 'cell'")
        running = {run.info.run_id: run for run in cells if run.info.status == "RUNNING"}
        at_work = {(run_id, worker_of(run)) for run_id, run in running.items()}
        if not any(run.info.status == "FINISHED" for run in cells):
            continue
        for run in (running[run_id] for run_id, _ in at_work - before):
            if psutil.pid_exists(worker_of(run)):
                raylet = psutil.Process(worker_of(run)).ppid()
                if raylet in nodes:
                    cluster.remove_node(nodes[raylet], allow_graceful=False)
                    return run
    pytest.fail(f"it ended before a node could be killed: {suite.communicate()[0][-3000:]}")


def worker_of(run: Run) -> int:
    return int(run.data.tags["colazero.owner"].split()[-2])


def test_a_node_killed_in_the_middle_costs_no_cell(
    cluster: Any, tmp_path: Path, tiny_llama: Path, tiny_opt: Path, corpus_file: Path
) -> None:
    arguments = {
        "preset": "demo",
        "models": f"{tiny_llama},{tiny_opt}",
        "methods": "random",
        "seeds": "1-3",
        "corpus": f"file:{corpus_file}",
        "eval_corpora": f"file:{corpus_file}",
        "n_calibration_samples": 256,
        "seq_len": 64,
        "eval_windows": 4,
        "device": "cpu",
        "workers": 1,
    }
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("colazero")
    on_ray = {"executor": "ray", "ray_address": cluster.address}
    with start(arguments | on_ray, tmp_path) as suite:
        lost = kill_a_node_at_work(cluster, client, experiment, suite)
        said = suite.communicate(timeout=500)[0]
    assert suite.returncode == 0, said[-3000:]
    assert f"{lost.info.run_name}: the worker on " in said
    assert "it is tried again" in said
    runs = client.search_runs([experiment], "tags.mlflow.parentRunId LIKE '%'")
    names = {f"{s}·random·{m}" for m in ("tiny-llama", "tiny-opt") for s in (1, 2, 3)}
    names |= {f"unquantized·{m}" for m in ("tiny-llama", "tiny-opt")}
    assert sorted(run.info.run_name for run in runs) == sorted(names)
    everything = client.search_runs([experiment])
    assert {run.info.status for run in everything} == {"FINISHED"}
    assert len({worker_of(run) for run in runs}) >= 3, "cells ran side by side"
    one = {"models": tiny_llama, "seeds": 1}
    with start(arguments | one, tmp_path) as here:
        said = here.communicate(timeout=300)[0]
    assert "1 of 1 cells share the results of another run" in said, "the same work, on Ray or here"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"cpus_per_cell": 64}, ["64 CPUs (cpus_per_cell)", "(1 CPUs, 0 GPUs)"]),
        ({"device": "cuda"}, ["1 GPUs (device=cuda)", "(1 CPUs, 0 GPUs)"]),
        ({"device": "cuda:1"}, ["'cuda:1'", "Use device=cuda"]),
    ],
)
def test_what_a_cluster_has_no_room_for_is_refused(
    cluster: Any, given: dict[str, Any], words: list[str]
) -> None:
    import ray

    config = SuiteConfig(executor="ray", ray_address=cluster.address, **given)
    with pytest.raises(UserError) as caught:
        executor_of(config).check(config)
    ray.shutdown()
    for word in words:
        assert word in str(caught.value)


def test_a_suite_on_a_cluster_of_its_own_counts_its_workers(
    tiny_llama: Path, corpus_file: Path
) -> None:
    """`ray_address=local`, by way of the benchmark, which needs to know how many there were."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "suite.py")
    assert spec
    assert spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    share = (os.cpu_count() or 1) / 2
    arguments = {
        "models": tiny_llama,
        "methods": "random",
        "seeds": 1,
        "corpus": f"file:{corpus_file}",
        "eval_corpora": f"file:{corpus_file}",
        "n_calibration_samples": 4,
        "seq_len": 64,
        "eval_windows": 4,
        "device": "cpu",
        "executor": "ray",
        "ray_address": "local",
        "cpus_per_cell": share,
    }
    found = bench.measure([f"--{name}={value}" for name, value in arguments.items()])
    assert found["workers"] == 2
    assert found["quantization"] > 0
    assert 0 < found["elsewhere_share"] < 1
