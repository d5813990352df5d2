"""A Ray executor's account of its workers, without a cluster."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from colazero.store import claims, record
from colazero.suite import ray as on_ray
from colazero.suite.cells import Place
from colazero.suite.ray import RayExecutor
from colazero.suite_settings import SuiteConfig

ray = pytest.importorskip("ray")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The nodes of a cluster, as a list to change: `a` and `b`, each with room for one cell."""
    there = [
        {"NodeID": name, "NodeManagerAddress": name, "Resources": {"CPU": 1.0}} for name in "ab"
    ]

    def ready(_: RayExecutor, node: str, where: str) -> on_ray._Worker:
        return on_ray._Worker(f"actor on {node}", node, where, says=None, ready=True)

    monkeypatch.setattr(on_ray, "nodes", lambda: list(there))
    monkeypatch.setattr(RayExecutor, "_launch", ready)
    monkeypatch.setattr(record, "active_run_id", lambda: "suite")
    monkeypatch.setattr(claims, "log_proof", lambda *_: None)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    return there


def executor() -> RayExecutor:
    return RayExecutor(SuiteConfig(executor="ray", device="cpu"), Place("cpu", 2, here=False), {})


def test_a_free_worker_whose_node_is_gone_gets_no_cell(nodes: list[dict[str, Any]]) -> None:
    made, job = executor(), SimpleNamespace(model=SimpleNamespace(name="model"))
    jobs: Any = [job]
    gone = nodes.pop()
    assert made.accepts(jobs) is job
    assert [worker.node for worker in made._free()] == ["a"]
    nodes.pop()
    assert made.accepts(jobs) is None
    nodes.append(gone)
    made._fill()
    assert [worker.node for worker in made._free()] == ["b"]


def test_a_worker_at_work_is_left_to_tell_of_its_loss_itself(nodes: list[dict[str, Any]]) -> None:
    made = executor()
    at_work: Any = made._workers[0]
    at_work.job = object()
    nodes.clear()
    made._fill()
    assert made._workers == [at_work]


def test_workers_get_the_patience_of_the_suite(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"COLAZERO_PATIENCE": "7", "COLAZERO_PATIENCE_X": "1", "MLFLOW_TRACKING_TOKEN": "t"}
    for name, value in (given | {"OTHER": "x", "MLFLOW_RUN_ID": "suite"}).items():
        monkeypatch.setenv(name, value)
    setting = executor()._setting
    assert given.items() <= setting.items()
    assert not {"OTHER", "MLFLOW_RUN_ID"} & setting.keys()
