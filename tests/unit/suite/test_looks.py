"""Which cells follow from a look, what is logged of it, and that killed suites go on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient

from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.store import client, record
from colazero.store.client import LOOKS
from colazero.suite.cells import drawn_order
from colazero.suite.looks import closed, due, follow
from colazero.suite.worker import Job
from colazero.suite_settings import SuiteConfig
from colazero.types import Model

MODEL = Model("m", Path("m"), "1")
METHODS = ("ours", "good", "bad")


@dataclass(frozen=True)
class Said:
    a: str
    b: str
    verdict: str
    model: str = "m"
    text: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, str]:
        return self.a, self.b


class World:
    """Cells that are done, and a judge to whom `ours` differs from a method after its `ends`."""

    def __init__(self, ends: Mapping[str, int], methods: Sequence[str] = METHODS) -> None:
        self.ends, self.methods = ends, methods
        self.done: list[Job] = []
        self.asked: list[int] = []
        self.most = 10**9

    def do(self, jobs: list[Job], later: int) -> bool:
        fit = jobs[: max(0, self.most - len(self.done))]
        self.done += fit
        self.later = later
        return len(fit) == len(jobs)

    def judge(self, suite: str, seeds: int) -> list[Said]:
        self.asked.append(seeds)
        return [
            Said("ours", b, "different" if self.seeds("ours", b) >= self.ends[b] else "open",
                 numbers={"p_value": 0.01 * seeds}, text=f"ours vs {b}")
            for b in self.methods[1:]
        ]  # fmt: skip

    def seeds(self, a: str, b: str) -> int:
        count = {m: len({j.config.seed for j in self.done if j.config.method == m}) for m in (a, b)}
        return max(count.values())

    def used(self) -> dict[str, list[int]]:
        return {
            m: sorted(j.config.seed for j in self.done if j.config.method == m)
            for m in self.methods
        }


def grid(**given: object) -> tuple[SuiteConfig, list[Job]]:
    config = SuiteConfig.model_validate(
        {"models": "m", "methods": METHODS, "seeds": "1-12", "looks": "4,8", "until": "settled"}
        | given
    )
    beside = Job("m__unquantized", "baseline", RunConfig(model="m"), MODEL)
    cells = [Job(f"{c.method}{c.seed}.{c.replicate}", "cell", c, MODEL) for c in config.cells()]
    return config, [beside, *cells]


@pytest.fixture
def suite(shared_store: MlflowClient) -> Iterator[str]:
    with record.run("suite", "suite") as run_id:
        yield run_id


def test_a_settled_method_gets_no_more_seeds_and_the_others_go_on(suite: str) -> None:
    world = World({"good": 8, "bad": 4})
    config, jobs = grid()
    follow(config, suite, jobs, world.do, world.judge)
    first = list(range(1, 9))
    assert world.used() == {"ours": first, "good": first, "bad": [1, 2, 3, 4]}
    assert world.asked == [4, 8]
    assert world.done[0].kind == "baseline", "what is beside the grid is done first, and once"
    assert sum(job.kind != "cell" for job in world.done) == 1
    run = client.find_run(suite)
    assert run is not None
    assert run.data.tags[LOOKS] == "4,8"
    assert json.loads(run.data.tags[client.STOPPED]) == {"m": {"bad": 4, "good": 8, "ours": 8}}


def test_what_is_never_settled_takes_all_seeds(suite: str) -> None:
    world = World({"good": 99, "bad": 99})
    config, jobs = grid()
    follow(config, suite, jobs, world.do, world.judge)
    assert world.asked == [4, 8, 12]
    assert len(world.done) == len(jobs)
    run = client.find_run(suite)
    assert run is not None
    assert client.STOPPED not in run.data.tags


def test_replicates_of_a_seed_come_before_the_look_at_it(suite: str) -> None:
    world = World({"good": 4, "bad": 4})
    config, jobs = grid(replicates=2)
    follow(config, suite, jobs, world.do, world.judge)
    assert {(j.config.seed, j.config.replicate) for j in world.done if j.kind == "cell"} == {
        (seed, replicate) for seed in (1, 2, 3, 4) for replicate in (1, 2)
    }


def test_the_cells_that_may_follow_are_told(suite: str) -> None:
    world = World({"good": 99, "bad": 4})
    config, jobs = grid(looks="4")
    told = []

    def do(batch: list[Job], later: int) -> bool:
        told.append(later)
        return world.do(batch, later)

    follow(config, suite, jobs, do, world.judge)
    assert told == [3 * 8, 0]


def test_nothing_is_looked_at_before_its_cells_are_done(suite: str) -> None:
    world = World({"good": 99, "bad": 99})
    world.most = 1 + 3 * 5
    config, jobs = grid()
    follow(config, suite, jobs, world.do, world.judge)
    assert world.asked == [4], "the budget ended amid the seeds of the second look"


@pytest.mark.parametrize("most", range(1, 26, 4))
def test_killed_at_any_time_and_begun_again_it_does_what_it_would_have(
    shared_store: MlflowClient, most: int
) -> None:
    """The judge answers from the cells alone, and what is done is taken over."""
    config, jobs = grid()
    undisturbed, killed = World({"good": 8, "bad": 4}), World({"good": 8, "bad": 4})
    killed.most = most
    for world in (undisturbed, killed):
        with record.run("suite", "suite") as run_id:
            follow(config, run_id, jobs, world.do, world.judge)
    again = World({"good": 8, "bad": 4})
    with record.run("suite", "suite") as run_id:
        follow(config, run_id, jobs, again.do, again.judge)
    assert {j.name for j in killed.done} <= {j.name for j in again.done}
    assert again.used() == undisturbed.used()
    assert again.asked == undisturbed.asked


def test_two_machines_that_draw_other_orders_come_to_the_same(shared_store: MlflowClient) -> None:
    config, jobs = grid()
    found = []
    for number in (1, 2):
        world = World({"good": 8, "bad": 4})
        with record.run("suite", "suite") as run_id:
            order = drawn_order(jobs, np.random.default_rng(number))
            follow(config, run_id, order, world.do, world.judge)
        found.append((world.used(), world.asked, [j.name for j in world.done]))
    assert found[0][:2] == found[1][:2]
    assert found[0][2] != found[1][2]


def test_metrics_have_the_seeds_as_their_step_and_names_that_every_store_takes(
    suite: str, caplog: pytest.LogCaptureFixture
) -> None:
    methods = ("ours", "mine.py:choice one")
    world = World({methods[1]: 99}, methods)
    config, jobs = grid(methods=methods, seeds="1-6", looks="3")
    with caplog.at_level("INFO", logger="colazero"):
        follow(config, suite, jobs, world.do, world.judge)
    run = client.find_run(suite)
    assert run is not None
    (name,) = [n for n in run.data.metrics if n.startswith("look/m.ours_vs_mine.py_choice_one-")]
    assert name.endswith(".p_value")
    history = MlflowClient().get_metric_history(suite, name)
    assert [(m.step, m.value) for m in history] == [(3, 0.03), (6, 0.06)]
    told = [m for m in caplog.messages if "ours vs" in m]
    assert told == [
        "look 1 of at most 2, 3 of 6 seeds: ours vs mine.py:choice one",
        "look 2 of at most 2, 6 of 6 seeds: ours vs mine.py:choice one",
    ]


def test_a_look_at_which_nothing_can_be_compared_closes_nothing(suite: str) -> None:
    world = World({"good": 8, "bad": 8})

    def judge(suite: str, seeds: int) -> list[Said]:
        if seeds == 4:
            raise UserError("no cell has a result")
        return world.judge(suite, seeds)

    config, jobs = grid()
    follow(config, suite, jobs, world.do, judge)
    assert world.asked == [8]


def test_a_method_is_closed_when_all_its_comparisons_are_settled() -> None:
    found = [Said("a", "b", "different"), Said("a", "c", "open"), Said("b", "c", "equivalent")]
    assert closed(found) == {("m", "b")}
    assert closed([*found[:1], Said("a", "c", "undefined")]) == {("m", "b")}
    assert closed([Said("a", "b", "different"), Said("a", "b", "open", model="other")]) == {
        ("m", "a"),
        ("m", "b"),
    }
    assert closed([]) == set()


def test_due_keeps_the_order_of_the_jobs() -> None:
    _, jobs = grid()
    found = due(reversed(jobs), [2, 1], {("m", "good")})
    assert [j.name for j in found] == ["bad2.1", "bad1.1", "ours2.1", "ours1.1"]


def test_the_tag_is_plain_json(suite: str) -> None:
    world = World({"good": 4, "bad": 4})
    config, jobs = grid()
    follow(config, suite, jobs, world.do, world.judge)
    run = client.find_run(suite)
    assert run is not None
    assert json.loads(run.data.tags["colazero.stopped"]) == {
        "m": dict.fromkeys(("ours", "good", "bad"), 4)
    }
