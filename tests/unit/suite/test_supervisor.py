"""What becomes of jobs whose workers are lost, with an executor that does as it is told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from colazero.settings import RunConfig
from colazero.store import record
from colazero.suite import supervisor
from colazero.suite.plan import Budget
from colazero.suite.supervisor import Report, Supervisor
from colazero.suite.worker import Event, Job
from colazero.suite_settings import SuiteConfig
from colazero.types import Model

Kind = Literal["stage", "computed", "done", "failed", "deferred", "lost"]
DATA: dict[Kind, dict[str, Any]] = {
    "stage": {"stage": "select", "done": 0, "total": 0},
    "computed": {},
    "done": {"source_run": None},
    "lost": {"reason": "the worker was killed"},
}
BEGUN: tuple[Kind, ...] = ("stage", "lost")
NEVER_BEGUN: tuple[Kind, ...] = ("lost",)
DONE: tuple[Kind, ...] = ("stage", "done")


class Told:
    """Does one job at a time; each time it is started, the events are the next of `story`."""

    def __init__(self, story: Sequence[tuple[Kind, ...]]) -> None:
        self.story = list(story)
        self.started: list[Job] = []
        self.before_loss: Callable[[Job], object] = lambda _: None

    def accepts(self, ready: Sequence[Job]) -> Job | None:
        return ready[0] if ready and len(self.started) == self.heard else None

    heard = 0

    def start(self, job: Job) -> None:
        self.started.append(job)

    def events(self, timeout: float) -> list[Event]:
        job, kinds = self.started[-1], self.story.pop(0) if self.story else ()
        self.heard = len(self.started)
        if "lost" in kinds:
            self.before_loss(job)
        return [Event(job.name, kind, DATA[kind]) for kind in kinds]

    def stop(self, job: Job) -> None:
        self.before_loss(job)

    def close(self) -> None:
        pass


@pytest.fixture
def suite(shared_store: MlflowClient) -> Iterator[str]:
    with record.run("suite", "suite") as run_id:
        yield run_id


def run(suite: str, told: Told, count: int = 1, **given: Any) -> Report:
    report = Report()
    model = Model("m", Path("m"), "1")
    jobs = [Job(f"cell{i}", "cell", RunConfig(seed=i), model) for i in range(count)]
    Supervisor(SuiteConfig(**given), suite, told, report).run(jobs)
    return report


def test_a_worker_lost_before_it_began_costs_the_cell_no_attempt(suite: str) -> None:
    told = Told([NEVER_BEGUN] * 3 + [BEGUN, NEVER_BEGUN, DONE])
    assert run(suite, told).done == ["cell0"]
    assert len({job.run_id for job in told.started}) == 1


@pytest.mark.parametrize(
    ("loss", "times"),
    [(BEGUN, supervisor.ATTEMPTS), (NEVER_BEGUN, supervisor.NEVER_BEGUN)],
)
def test_a_cell_that_always_loses_its_worker_fails(
    suite: str, shared_store: MlflowClient, loss: tuple[Kind, ...], times: int
) -> None:
    told = Told([loss] * 9)
    assert run(suite, told).failed == {"cell0": "the worker was killed"}
    assert len(told.started) == times
    assert shared_store.get_run(told.started[0].run_id).info.status == "FAILED"


def test_a_result_that_came_to_the_store_outlives_its_worker(
    suite: str, shared_store: MlflowClient
) -> None:
    told = Told([BEGUN] * supervisor.ATTEMPTS)
    told.before_loss = lambda job: shared_store.set_terminated(job.run_id, "FINISHED")
    report = run(suite, told)
    assert (report.done, report.failed) == (["cell0"], {})
    found = shared_store.get_run(told.started[0].run_id)
    assert found.info.status == "FINISHED"
    assert "colazero.error" not in found.data.tags


def test_an_overdue_cell_whose_result_is_in_the_store_is_done(
    suite: str, shared_store: MlflowClient
) -> None:
    told = Told([("stage",)])
    told.before_loss = lambda job: shared_store.set_terminated(job.run_id, "FINISHED")
    report = run(suite, told, cell_time_limit=1e-9)
    assert (report.done, report.failed) == (["cell0"], {})


def test_a_result_that_is_on_its_way_is_not_hung(suite: str) -> None:
    """The worker that sends it computes another job: it must not be ended."""
    told = Told([("stage", "computed"), ("done",)])
    told.before_loss = lambda _: pytest.fail("its worker was ended")
    report = run(suite, told, cell_time_limit=1e-9)
    assert (report.done, report.failed) == (["cell0"], {})


def test_a_worker_lost_while_it_sent_a_result_is_asked_again_for_it(suite: str) -> None:
    told = Told([("stage", "computed", "lost"), DONE])
    assert run(suite, told).done == ["cell0"]
    assert len({job.run_id for job in told.started}) == 1


@pytest.mark.parametrize("patience", ["0", "30"])
def test_a_store_that_is_away_when_a_cell_is_lost_ends_no_suite(
    suite: str, shared_store: MlflowClient, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    monkeypatch.setenv("COLAZERO_PATIENCE", patience)
    monkeypatch.setattr("time.sleep", lambda _: None)
    real, refusals = MlflowClient.set_terminated, [MlflowException("503"), ConnectionError()]
    if patience == "0":
        refusals *= 10

    def sometimes(*arguments: Any) -> None:
        if refusals:
            raise refusals.pop()
        real(*arguments)

    told = Told([BEGUN, BEGUN, DONE])
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_terminated", sometimes)
        report = run(suite, told, count=2)
    assert report.failed == {"cell0": "the worker was killed"}
    assert report.done == ["cell1"]
    status = shared_store.get_run(told.started[0].run_id).info.status
    assert status == ("FAILED" if patience == "30" else "RUNNING")


def test_no_cell_is_started_that_would_not_end_in_time(
    suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cells take 40 s of 100 here: two end in time, and the third is not begun."""
    clock = [0.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: clock[0])

    class Slow(Told):
        def events(self, timeout: float) -> list[Event]:
            clock[0] += 40
            return super().events(timeout)

    report = Report()
    model = Model("m", Path("m"), "1")
    jobs = [Job(f"cell{i}", "cell", RunConfig(seed=i), model) for i in range(4)]
    jobs += [Job("beside", "baseline", RunConfig(), model)]
    told = Slow([("done",)] * 5)
    budget = Budget(100 / 3600)
    assert not Supervisor(SuiteConfig(), suite, told, report, budget).run(jobs)
    assert report.done == ["cell0", "cell1"]
    assert report.not_started == ["cell2", "cell3"]
    assert [job.name for job in told.started] == ["cell0", "cell1", "beside"]
    run = MlflowClient().get_run(suite)
    assert json.loads(run.data.tags["colazero.progress"])["cells_left"] == 0


def test_the_cells_of_later_looks_are_left(suite: str) -> None:
    report = Report()
    job = Job("cell0", "cell", RunConfig(), Model("m", Path("m"), "1"))
    assert Supervisor(SuiteConfig(), suite, Told([DONE]), report).run([job], later=7)
    tags = MlflowClient().get_run(suite).data.tags
    assert json.loads(tags["colazero.progress"])["cells_left"] == 7


def test_in_a_log_file_a_cell_is_one_line_with_its_perplexity_and_what_is_left(
    suite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATA, "done", {"perplexity": 36.2991, "calibration": "1a2b"})
    with caplog.at_level(logging.INFO, logger="colazero.suite"):
        run(suite, Told([DONE] * 3), 3)
    first, second, third = (record.message for record in caplog.records)
    assert first == "cell0: perplexity 36.299, done in 0 s, about 1 min left (1 of 3)"
    assert second.startswith("cell1: perplexity 36.299, same set as cell0, in another order, done")
    assert "left" not in third
    assert third.endswith("(3 of 3)")


def test_what_another_run_did_or_another_setting_has_is_no_other_order(
    suite: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"perplexity": 36.2991, "calibration": "1a2b", "source_run": "a run"}
    monkeypatch.setitem(DATA, "done", done)
    with caplog.at_level(logging.INFO, logger="colazero.suite"):
        run(suite, Told([DONE] * 2), 2)
    monkeypatch.setitem(DATA, "done", done | {"source_run": None})
    model = Model("m", Path("m"), "1")
    settings = [RunConfig(quant_bits=bits) for bits in (3, 4)]
    jobs = [Job(f"bits{one.quant_bits}", "cell", one, model) for one in settings]
    with caplog.at_level(logging.INFO, logger="colazero.suite"):
        config = SuiteConfig(quant_bits=(3, 4))
        Supervisor(config, suite, Told([DONE] * 2), Report()).run(jobs)
    assert len(caplog.records) == 4
    assert not any("in another order" in record.message for record in caplog.records)
