"""What the executor of this machine knows of its workers: what they compute, and what they send."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from colazero.settings import RunConfig
from colazero.suite.cells import Place
from colazero.suite.local import LocalExecutor
from colazero.suite.worker import Event, Job
from colazero.suite_settings import SuiteConfig
from colazero.types import Model

WORKER = """
import sys
from multiprocessing.connection import Connection
from colazero.suite.worker import Event
pipe = Connection(int(sys.argv[1]))
while True:
    for kind in pipe.recv().config.model.split("+"):
        name, _, kind = kind.rpartition(":")
        if kind == "die":
            sys.exit(3)
        pipe.send(Event(name, kind))
"""
"""Says of jobs what a job's model tells it to say: `a:computed+b:done`."""


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalExecutor]:
    real = subprocess.Popen

    def popen(command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        return real([sys.executable, "-c", WORKER, command[-1]], **given)

    monkeypatch.setattr(subprocess, "Popen", popen)
    found = LocalExecutor(SuiteConfig(workers=1, device="cpu"), Place("cpu", 1), {})
    yield found
    found.close()


def job(name: str, says: str) -> Job:
    config: Any = RunConfig(model=says)
    return Job(name, "cell", config, Model("m", Path("m"), "1"), "1")


def hear(executor: LocalExecutor, count: int) -> list[tuple[str, str]]:
    found: list[Event] = []
    while len(found) < count:
        found += executor.events(timeout=60)
    return [(event.job, event.kind) for event in found]


def do(executor: LocalExecutor, work: Job) -> None:
    assert executor.accepts([work]) is work
    executor.start(work)


def test_a_worker_that_sends_a_result_takes_another_job(executor: LocalExecutor) -> None:
    do(executor, job("a", "a:stage+a:computed"))
    assert hear(executor, 2) == [("a", "stage"), ("a", "computed")]
    do(executor, job("b", "b:stage+a:done+b:computed+b:done"))
    assert executor.accepts([job("c", "c:done")]) is None
    assert hear(executor, 4)[1:] == [("a", "done"), ("b", "computed"), ("b", "done")]
    assert executor.accepts([job("c", "c:done")]) is not None


def test_a_worker_that_dies_loses_what_it_sent_and_what_it_computed(
    executor: LocalExecutor,
) -> None:
    do(executor, job("a", "a:computed"))
    hear(executor, 1)
    do(executor, job("b", "b:stage+x:die"))
    assert sorted(hear(executor, 3)) == [("a", "lost"), ("b", "lost"), ("b", "stage")]
    do(executor, job("a", "a:done"))
    assert hear(executor, 1) == [("a", "done")]


def test_a_job_that_is_stopped_takes_along_the_result_that_its_worker_sent(
    executor: LocalExecutor,
) -> None:
    do(executor, job("a", "a:computed"))
    hear(executor, 1)
    hung = job("b", "b:stage")
    do(executor, hung)
    hear(executor, 1)
    executor.stop(hung)
    assert hear(executor, 1) == [("a", "lost")]
    do(executor, job("a", "a:done"))
    assert hear(executor, 1) == [("a", "done")]


def test_workers_are_as_patient_as_the_suite(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_PATIENCE", "7")
    assert executor._environment(0)["COLAZERO_PATIENCE"] == "7"
