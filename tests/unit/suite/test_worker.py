"""What a worker does with a job whose run has a history, and with a cell that another one does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

import mlflow
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero import cell, models, reuse
from colazero.settings import RunConfig
from colazero.store import claims, publish, record
from colazero.store.publish import Record
from colazero.suite.ray import Remote
from colazero.suite.worker import Event, Job, Sender, run_job
from colazero.types import CalibrationSet, Model

MODEL = Model("m", Path("m"), "1")
DONE = {"perplexity": 30.5, "calibration": None}


@pytest.fixture
def job(shared_store: MlflowClient) -> Iterator[Job]:
    with record.run("suite", "suite") as suite:
        run_id = claims.create_child(suite, "cell", "cell")
        yield Job("cell", "cell", RunConfig(), MODEL, run_id)


def left_sealed(job: Job, status: str) -> Record:
    """Seal the record of a job's run as a worker did that was lost then."""
    record = Record(job.run_id, mlflow.get_tracking_uri(), claims.owner())
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
    run_job(job, said.append, Sender())
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


def computing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let cells be computed at once, each with its seed as perplexity; return whose were."""
    computed: list[str] = []

    def compute(config: RunConfig, *_: object, **__: object) -> cell.Outcome:
        record.log_metrics({"perplexity": config.seed})
        computed.append(record.active_run_id())
        return cell.Outcome(record.active_run_id(), {"perplexity": config.seed})

    monkeypatch.setattr(cell, "run_cell", compute)
    return computed


def jobs(suite: str, count: int) -> list[Job]:
    return [
        Job(
            f"cell{i}", "cell", RunConfig(seed=i), MODEL, claims.create_child(suite, f"{i}", "cell")
        )
        for i in range(count)
    ]


def test_the_next_job_is_computed_while_a_result_is_sent_and_no_more(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, real = computing(monkeypatch), publish.publish
    may_send, said = threading.Semaphore(0), SimpleQueue[Event]()

    def slowly(record: Record) -> None:
        assert may_send.acquire(timeout=60)
        real(record)

    monkeypatch.setattr(publish, "publish", slowly)
    three = jobs(record.active_run_id(), 3)

    def work() -> None:
        sender = Sender()
        for each in three:
            run_job(each, said.put, sender)

    def next_end() -> tuple[str, str]:
        while (event := said.get(timeout=60)).kind == "stage":
            pass
        return event.job, event.kind

    threading.Thread(target=work, daemon=True).start()
    assert next_end() == ("cell0", "computed")
    while len(computed) < 2:
        pass
    assert said.get(timeout=60).kind == "stage"
    assert said.empty()  # the second waits on the disk, and its worker for it
    status = [shared_store.get_run(each.run_id).info.status for each in three]
    assert status == ["RUNNING", "RUNNING", "RUNNING"]
    may_send.release(3)
    told = [next_end() for _ in range(5)]
    assert {name for name, kind in told if kind == "done"} == {"cell0", "cell1", "cell2"}
    for seed, each in enumerate(three):
        run = shared_store.get_run(each.run_id)
        assert (run.info.status, run.data.metrics) == ("FINISHED", {"perplexity": seed})


def test_a_result_that_the_store_does_not_take_while_others_are_computed_is_kept(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing(monkeypatch)
    monkeypatch.setenv("COLAZERO_PATIENCE", "0")
    two, said, real = jobs(record.active_run_id(), 2), list[Event](), publish.publish

    def not_the_first(record: Record) -> None:
        if record.run_id == two[0].run_id:
            raise MlflowException("no room")
        real(record)

    sender = Sender()
    with monkeypatch.context() as patch:
        patch.setattr(publish, "publish", not_the_first)
        for each in two:
            run_job(each, said.append, sender)
        sender.begin(lambda: None)
    last = {event.job: event for event in said if event.last}
    assert (last["cell0"].kind, last["cell1"].kind) == ("failed", "done")
    assert "did not take the results" in last["cell0"].data["reason"]
    run = shared_store.get_run(two[0].run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {"perplexity": 0})
    assert "no room" in run.data.tags["colazero.error"]
    found = publish.settle(two[0].run_id)
    assert found is not None
    assert found.info.status == "FINISHED"
    assert "colazero.error" not in found.data.tags


def test_whatever_keeps_a_model_from_a_ray_node_is_told(
    job: Job, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: str) -> NoReturn:
        raise OSError("No space left on device")

    monkeypatch.setattr(models, "fetch", full)
    told = list(Remote({}, Path.cwd()).do(job))
    assert told == [Event("cell", "failed", {"reason": "OSError: No space left on device"})]
    run = shared_store.get_run(job.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["colazero.error"] == "OSError: No space left on device"


def test_a_cell_waits_for_one_that_does_the_same_work_and_downstream_tasks(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = CalibrationSet(np.zeros((1, 8), dtype=np.int32), (), {})
    monkeypatch.setattr(cell, "work_context", lambda *_: {})
    monkeypatch.setattr(reuse, "work_context", lambda *_: {})
    monkeypatch.setattr(reuse, "method_context", lambda _: {})
    monkeypatch.setattr(cell, "_select", lambda *_: (chosen, {"selection_time_sec": 1.0}))
    monkeypatch.setattr(cell, "work_key", lambda config, *_: f"downstream {config.do_downstream}")
    monkeypatch.setattr(cell.supported, "try_model", lambda *_: None)
    quantized: list[bool] = []
    plain = RunConfig(seed=43)

    def run_plain() -> cell.Outcome:
        with record.run("plain", "cell", job.run_id):
            return cell.run_cell(plain, MODEL, lambda _: lambda *_: None, reuse=True)

    def quantize(config: RunConfig, *_: Any) -> dict[str, float]:
        quantized.append(config.do_downstream)
        if config.do_downstream:  # while this is at work, the other comes
            with pytest.raises(claims.Claimed):
                run_plain()
        digest = {f"colazero.{name}_digest": "d" for name in ("calibration", "order", "checkpoint")}
        record.set_tags(digest)
        metrics = {"quant_time_sec": 1.0, "perplexity": 30.5, "downstream.mine": 0.5}
        record.log_metrics(metrics)
        return metrics

    monkeypatch.setattr(cell, "_quantize_and_evaluate", quantize)
    both = RunConfig(seed=42, do_downstream=True)
    suite = record.active_run_id()
    with record.run("both", "cell", claims.create_child(suite, "both", "cell")) as source:
        cell.run_cell(both, MODEL, lambda _: lambda *_: None, reuse=True)
    assert run_plain().source_run == source
    assert quantized == [True]
