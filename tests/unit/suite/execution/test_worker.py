"""What a worker does with a job whose run has a history, and with a cell that another one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from colazero import cell, models, tracking
from colazero.config import RunConfig
from colazero.interfaces import CalibrationSet, Model
from colazero.suite.execution import Event, Job
from colazero.suite.execution.ray_actor import Remote
from colazero.suite.execution.worker import run_job
from colazero.tracking import runs
from colazero.tracking.records import Record

MODEL = Model("m", Path("m"), "1")
DONE = {"perplexity": 30.5, "calibration": None}


@pytest.fixture
def job(shared_store: MlflowClient) -> Iterator[Job]:
    with tracking.run("suite", "suite") as suite:
        run_id = runs.create_child(suite, "cell", "cell")
        yield Job("cell", "cell", RunConfig(), MODEL, run_id)


def left_sealed(job: Job, status: str) -> Record:
    """Seal the record of a job's run as a worker did that was lost then."""
    record = Record(job.run_id, mlflow.get_tracking_uri(), runs.owner())
    record.begin()
    record.add_metrics({"perplexity": 30.5})
    record.tags["colazero.source_run" if status == "FINISHED" else "colazero.error"] = "it"
    record.seal(status)
    return record


def outcome(job: Job, monkeypatch: pytest.MonkeyPatch) -> Event:
    """Run a job that must not be done again; return how it ended."""

    def again(*_: object, **__: object) -> NoReturn:
        pytest.fail("it was done again")

    monkeypatch.setattr(cell, "run_cell", again)
    said: list[Event] = []
    run_job(job, said.append)
    return said[-1]


@pytest.mark.parametrize("left", [False, True], ids=["no record", "a record on this node"])
def test_a_run_that_is_finished_is_not_done_again(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, left: bool
) -> None:
    shared_store.log_metric(job.run_id, "perplexity", 30.5)
    shared_store.set_terminated(job.run_id, "FINISHED")
    record = left_sealed(job, "FINISHED") if left else None
    assert outcome(job, monkeypatch) == Event("cell", "done", DONE | {"source_run": None})
    assert shared_store.get_run(job.run_id).info.status == "FINISHED"
    assert len(shared_store.get_metric_history(job.run_id, "perplexity")) == 1
    assert record is None or not record.folder.exists()


def test_a_sealed_result_is_sent_and_not_computed_again(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = left_sealed(job, "FINISHED")
    assert outcome(job, monkeypatch) == Event("cell", "done", DONE | {"source_run": "it"})
    run = shared_store.get_run(job.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"perplexity": 30.5})
    assert not record.folder.exists()


def test_a_sealed_failure_is_a_failure(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_sealed(job, "FAILED")
    assert outcome(job, monkeypatch) == Event("cell", "failed", {"reason": "it"})
    assert shared_store.get_run(job.run_id).info.status == "FAILED"


def test_whatever_keeps_a_model_from_a_ray_node_is_told(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> NoReturn:
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "fetch", full)
    told = list(Remote.do(Remote.__new__(Remote), job))
    assert told == [Event("cell", "failed", {"reason": "OSError: No space left on device"})]
    run = shared_store.get_run(job.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["colazero.error"] == "OSError: No space left on device"


def test_a_cell_waits_for_one_that_does_the_same_work_and_downstream_tasks(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = CalibrationSet(np.zeros((1, 8), dtype=np.int32), (), {})
    monkeypatch.setattr(cell, "work_context", lambda *_: {})
    monkeypatch.setattr(cell, "method_context", lambda _: {})
    monkeypatch.setattr(cell, "_select", lambda *_: (chosen, {"selection_time_sec": 1.0}))
    monkeypatch.setattr(cell, "work_key", lambda config, *_: f"downstream {config.do_downstream}")
    monkeypatch.setattr(cell.supported, "try_model", lambda *_: None)
    quantized: list[bool] = []
    plain = RunConfig(seed=43)

    def run_plain() -> cell.Outcome:
        with tracking.run("plain", "cell", job.run_id):
            return cell.run_cell(plain, MODEL, lambda _: lambda *_: None, reuse=True)

    def quantize(config: RunConfig, *_: Any) -> dict[str, float]:
        quantized.append(config.do_downstream)
        if config.do_downstream:  # while this is at work, the other comes
            with pytest.raises(runs.Claimed):
                run_plain()
        digest = {f"colazero.{name}_digest": "d" for name in ("calibration", "order", "checkpoint")}
        tracking.set_tags(digest)
        metrics = {"quant_time_sec": 1.0, "perplexity": 30.5, "downstream.mine": 0.5}
        tracking.log_metrics(metrics)
        return metrics

    monkeypatch.setattr(cell, "_quantize_and_evaluate", quantize)
    both = RunConfig(seed=42, do_downstream=True)
    suite = tracking.active_run_id()
    with tracking.run("both", "cell", runs.create_child(suite, "both", "cell")) as source:
        cell.run_cell(both, MODEL, lambda _: lambda *_: None, reuse=True)
    assert run_plain().source_run == source
    assert quantized == [True]
