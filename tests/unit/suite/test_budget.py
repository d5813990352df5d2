"""What a job may take, by what such jobs took, and what starts whatever it takes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from colazero.settings import RunConfig
from colazero.suite import plan as budget
from colazero.suite import run as suite
from colazero.suite.plan import Budget
from colazero.suite.worker import Job
from colazero.suite_settings import SuiteConfig
from colazero.types import Model

MODEL = Model("m", Path("m"), "1")


def job(method: str = "random", seed: int = 1, kind: str = "cell", model: str = "m") -> Job:
    config = RunConfig(model=model, method=method, seed=seed)
    return Job(f"{model}__{method}__{seed}", kind, config, MODEL)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(budget.time, "monotonic", lambda: now[0])
    return now


def test_without_a_limit_all_fits() -> None:
    own = Budget()
    own.took(job(), math.inf)
    assert Budget().fits(job())


def test_the_longest_of_a_method_is_what_its_next_may_take(clock: list[float]) -> None:
    own = Budget(1.0)
    for seconds in (100.0, 300.0, 200.0):
        own.took(job(), seconds)
    assert own.expected(job(seed=9)) == 300
    clock[0] += 3299
    assert own.fits(job(seed=9))
    clock[0] += 2
    assert not own.fits(job(seed=9))


def test_finished_runs_tell_until_the_suite_has_times_of_its_own() -> None:
    own = Budget(1.0, {"m__random__1": 50.0})
    assert own.expected(job()) == 50
    own.took(job(seed=2), 20.0)
    assert own.expected(job()) == 20


def test_other_methods_of_the_model_tell_where_nothing_else_does() -> None:
    own = Budget(1.0)
    assert own.expected(job()) == 0
    own.took(job("cola_zero"), 70.0)
    own.took(job("cola_zero", model="larger"), 900.0)
    assert own.expected(job()) == 70


def test_what_costs_nothing_starts_after_the_end(clock: list[float]) -> None:
    own = Budget(1.0, free=["m__random__1"])
    clock[0] += 7200
    assert own.fits(job())
    assert own.fits(job(kind="baseline", seed=5))
    assert not own.fits(job(seed=2))


def test_the_hours_count_from_the_start_of_the_suite(
    clock: list[float],
) -> None:
    """What came before the first cell counts, such as the download of a model."""
    own = Budget(suite._hours_left(SuiteConfig(budget_hours=1), begun=clock[0] - 3000))
    assert own.fits(job(seed=2))
    clock[0] += 599
    assert own.fits(job(seed=2))
    clock[0] += 2
    assert not own.fits(job(seed=2))
