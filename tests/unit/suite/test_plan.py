"""What a suite needs: of what is left to do, on this machine; and how a plan divides the cells."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from colazero import devices, reuse, selection
from colazero.errors import UserError
from colazero.settings import canonical_key
from colazero.store import client, record
from colazero.suite import memory, plan
from colazero.suite import run as suite
from colazero.suite.cells import Place, drawn_order
from colazero.suite.local import LocalExecutor
from colazero.suite.worker import Job
from colazero.suite_settings import SuiteConfig

GIVEN = {
    "methods": "gptq_default,random",
    "seeds": "1-3",
    "n_calibration_samples": 4,
    "seq_len": 64,
    "eval_windows": 4,
    "device": "cpu",
}


class Suite:
    """A suite that is not run: its configuration as given, its jobs, and which are finished."""

    def __init__(self, model: Path, corpus: Path, patch: pytest.MonkeyPatch, **more: Any) -> None:
        data = {"models": str(model), "corpus": f"file:{corpus}", "eval_corpora": f"file:{corpus}"}
        self.config = SuiteConfig.model_validate(GIVEN | data | more)
        device = {"cpu": "cpu"}.get(self.config.device, "cuda:0")
        self.jobs = plan.usable(self.config, str(model), device)
        here = self.config.executor == "local"
        self.place = Place(device, self.config.workers, here=here)
        if here:
            self.place = suite.executor_of(self.config).place(self.config)
        self.finished: dict[str, Any] = {}
        self.searches = 0
        patch.setattr(record, "active_run_id", lambda: "suite")
        patch.setattr(client, "experiment_of", lambda _: "1")
        patch.setattr(client, "homes", lambda _: ["1"])
        patch.setattr(client, "search", self.search)
        patch.setattr(record, "artifact_folder", lambda: model)

    def search(self, *_: Any, tags: dict[str, str], **__: Any) -> list[Any]:
        """Return the finished runs of a model, as a search of the store does."""
        self.searches += 1
        return [run for run in self.finished.values() if tags.items() <= run.data.tags.items()]

    def finish(self, *names: str, **more: str) -> None:
        for job in self.jobs:
            if short(job) in names:
                tags = {"colazero.key": reuse.key_of(job.config, job.model)}
                tags |= {"colazero.config": canonical_key(job.config), "colazero.kind": "cell"}
                tags |= {plan.REVISION: job.model.revision} | more
                params = {name: record.as_text(value) for name, value in job.config}
                data = SimpleNamespace(tags=tags, params=params, metrics={"total_time_sec": 60.0})
                info = SimpleNamespace(run_id=job.name)
                self.finished[job.name] = SimpleNamespace(data=data, info=info)

    def divided(self) -> list[list[str]]:
        return [[short(job) for job in part] for part in plan.Finished(self.jobs).divide(self.jobs)]

    def needs(self, what: str) -> float:
        """Return the bytes needed of disk or memory."""
        run, _ = plan.Finished(self.jobs).divide(self.jobs)
        needed = plan.needs(self.config, self.place, self.jobs, run)
        return plan.GB * sum(need.needed for need in needed if need.what.startswith(what))


def short(job: Job) -> str:
    """Return `random 1` for a cell, `rtn` for a control."""
    return " ".join(reversed(job.name.split("·")[:-1]))


@pytest.fixture
def a_suite(tiny_llama: Path, corpus_file: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda **more: Suite(tiny_llama, corpus_file, monkeypatch, **more)


def test_only_what_is_not_finished_runs(a_suite: Any) -> None:
    new = a_suite(controls="rtn")
    cells = [f"{method} {seed}" for method in ("gptq_default", "random") for seed in (1, 2, 3)]
    assert new.divided() == [["rtn", *cells], []]
    done = ["rtn", "gptq_default 1", "random 2"]
    new.finish(*done)
    assert new.divided() == [[cell for cell in cells if cell not in done], done]


def test_each_seed_and_replicate_is_a_block_of_all_methods_in_an_order_of_its_own(
    a_suite: Any,
) -> None:
    jobs = a_suite(methods="gptq_default,random,stratified", seeds="1-9", replicates="2").jobs
    drawn = drawn_order(jobs, np.random.default_rng(0))
    assert sorted(job.name for job in drawn) == sorted(job.name for job in jobs)
    assert drawn[0].kind == "baseline"
    cells = [job.config for job in drawn[1:]]
    blocks = [cells[first : first + 3] for first in range(0, len(cells), 3)]
    assert [(one.replicate, one.seed) for one, *_ in blocks] == [
        (replicate, seed) for replicate in (1, 2) for seed in range(1, 10)
    ]
    assert all(len({one.method for one in block}) == 3 for block in blocks)
    assert len({tuple(one.method for one in block) for block in blocks}) > 3


def test_several_values_of_a_setting_are_in_the_names_and_beside_the_grid_where_they_count(
    a_suite: Any,
) -> None:
    new = a_suite(quant_bits="3,4", seq_len="32,64", controls="rtn", methods="random", seeds="1,2")
    label = new.jobs[0].model.label
    names = [job.name.replace(f"·{label}", "") for job in new.jobs]
    settings = [(bits, length) for bits in (3, 4) for length in (32, 64)]
    cells = [
        f"{seed}·random·quant_bits{bits}·seq_len{length}"
        for bits, length in settings
        for seed in (1, 2)
    ]
    rounded = [f"rtn·quant_bits{bits}·seq_len{length}" for bits, length in settings]
    assert sorted(names) == sorted([*cells, *rounded, "unquantized·seq_len32", *names[2:3]])
    assert names[2] == "unquantized·seq_len64"
    for job in new.jobs:
        one = job.config
        assert f"·seq_len{one.seq_len}·" in job.name
        assert job.kind == "baseline" or f"·quant_bits{one.quant_bits}·" in job.name
    by_bits = {
        one.quant_bits: memory.Weights.of(new.jobs[0].model) for one in new.config.settings()
    }
    each = sum(weights.quantized(bits) for bits, weights in by_bits.items())
    kept = 4 * each + 2 * each  # two lengths, two seeds; two lengths, rounded
    at_work = by_bits[4].quantized(4)
    hidden = 4 * (32 + 64) * 128 * (4 if devices.cpu_dtype("cpu") == "float32" else 2)
    assert new.needs("disk") == pytest.approx(kept + 2 * at_work + hidden)
    tokens = [
        need for need in plan.needs(new.config, new.place, new.jobs, []) if need.unit == "tokens"
    ]
    assert [need.needed for need in tokens] == [4 * 64]


def test_tokens_needed_are_listed_by_way_of_writing_conversations(a_suite: Any) -> None:
    new = a_suite(chat="auto,plain")
    names = [need.what for need in plan.needs(new.config, new.place, new.jobs, [])]
    assert [part for name in names for part in name.split(", ") if part.startswith("chat=")] == [
        "chat=auto",
        "chat=plain",
    ]


def test_what_an_edited_method_did_before_is_not_reused(
    a_suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = a_suite(methods="random", seeds="1")
    new.finish("random 1")
    assert new.divided() == [[], ["random 1"]]
    monkeypatch.setattr(selection, "source_digest", lambda _: "edited")
    assert new.divided() == [["random 1"], []]


@pytest.mark.parametrize(
    ("workers", "finished", "checkpoints"),
    [
        # kept for ever; at work in the cache, and on the way from there
        (2, [], 6 + 4),
        (2, ["gptq_default 1", "gptq_default 2", "gptq_default 3", "random 1", "random 2"], 1 + 1),
        (2, [f"{m} {s}" for m in ("gptq_default", "random") for s in (1, 2, 3)], 0),
        (9, [], 6 + 6),
    ],
)
def test_disk_is_needed_for_what_is_left(
    a_suite: Any, workers: int, finished: list[str], checkpoints: int
) -> None:
    new = a_suite(workers=workers)
    new.finish(*finished)
    one = memory.Weights.of(new.jobs[0].model).quantized(4)
    # 4 windows of 64 tokens, 128 numbers each
    hidden = 4 * 64 * 128 * (4 if devices.cpu_dtype("cpu") == "float32" else 2)
    assert new.needs("disk") == pytest.approx(checkpoints * one + (hidden if checkpoints else 0))


def test_a_pruned_checkpoint_needs_as_much_disk_as_the_model(a_suite: Any) -> None:
    new = a_suite(executor="ray", workers=50, device="cuda", quantizer="wanda")
    assert new.needs("disk") == pytest.approx(6 * memory.Weights.of(new.jobs[0].model).dense)


def test_workers_elsewhere_need_nothing_of_this_machine(a_suite: Any) -> None:
    new = a_suite(executor="ray", workers=50, device="cuda")
    one = memory.Weights.of(new.jobs[0].model).quantized(4)
    assert new.jobs[0].config.device == "cuda:0"
    assert new.needs("disk") == pytest.approx(6 * one)
    assert new.needs("memory") == new.needs("CUDA memory") == 0
    new.config = new.config.model_copy(update={"save_model": "local"})
    assert new.needs("disk") == 0


def test_a_plan_asks_this_machine_for_no_device_of_others(
    a_suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    new = a_suite(executor="ray", device="cuda", workers=2)
    new.finish("random 1")
    made = plan.make(new.config, new.place, new.jobs, lambda *_: {})
    assert (len(made.run), len(made.reuse)) == (5, 1)
    assert made.seconds == 5 * 60 / 2


def test_a_plan_asks_the_store_once_however_many_cells_there_are(a_suite: Any) -> None:
    new = a_suite(seeds="1-30")
    new.finish("random 1", "random 2")
    plan.make(new.config, new.place, new.jobs, lambda *_: {})
    assert new.searches == 1


def test_a_finished_cell_of_the_method_says_how_long_the_next_takes(a_suite: Any) -> None:
    new = a_suite()
    new.finish("random 1")
    run, _ = plan.Finished(new.jobs).divide(new.jobs)
    new.finished[new.jobs[-1].name] = new.finished.popitem()[1]
    times = plan.Finished(new.jobs).times(run)
    assert set(times.values()) == {60.0}
    assert set(plan.Finished(a_suite(seq_len=32).jobs).times(run).values()) == {None}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"seeds": "5"}, ["seeds=5 ", "seeds=1-5"]),
        ({"seeds": "42"}, ["seeds=42 ", "seeds=1-42"]),
        ({"eval_windows": 1}, ["eval_windows=1"]),
        ({"seeds": "5", "methods": "random"}, []),
        ({}, []),
    ],
)
def test_a_plan_says_what_the_suite_cannot_find(given: dict[str, Any], words: list[str]) -> None:
    said = " ".join(plan.notes(SuiteConfig.model_validate(GIVEN | given)))
    assert bool(said) == bool(words)
    for word in words:
        assert word in said


def test_a_plan_until_settled_says_how_many_cells_are_expected_and_the_most(
    a_suite: Any,
) -> None:
    asked = []

    def expect(*given: Any) -> dict[str, float]:
        asked.append(given)
        return {"where nothing differs": 0.9, "where all does": 0.45}

    new = a_suite(seeds="1-20", looks="5,10", until="settled")
    made = plan.make(new.config, new.place, new.jobs, expect)
    assert asked == [(2, (5, 10, 20))]
    assert made.most == 40
    assert "about 36 of these cells, 40 at most, where nothing differs" in made.text()
    assert "about 18 of these cells, 40 at most, where all does" in made.text()
    fixed = a_suite(seeds="1-20")
    assert "at most" not in plan.make(fixed.config, fixed.place, fixed.jobs, expect).text()
    assert len(asked) == 1


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    card = devices.Card("H", "9.0", "570.1", 10**12, 10**12)
    monkeypatch.setattr(devices, "seen", lambda: devices.Seen((card,) * 4))

    def opened(*_: object) -> None:
        raise AssertionError("the suite's process opened a GPU")

    for name in ("init", "_lazy_init", "mem_get_info", "is_available", "device_count"):
        monkeypatch.setattr(torch.cuda, name, opened)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(("device", "on_one"), [("auto", 1), ("cuda", 1), ("cuda:0", 4)])
def test_gpu_memory_is_for_the_workers_that_share_one(
    a_suite: Any, device: str, on_one: int
) -> None:
    new = a_suite(workers=4, device=device)
    job = new.jobs[-1]
    room = memory.of_cell(job.config, job.model, free=10**12)
    assert room.full > room.least > memory.CONTEXT + memory.Weights.of(job.model).block * 2
    assert new.needs("CUDA memory") == pytest.approx(on_one * room.least)
    assert room.main > memory.LIBRARIES_CUDA
    assert new.needs("memory") == 4 * room.main


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "workers", "at_once", "said"),
    [
        ("auto", None, 4, "4 cells at once on 4 GPUs"),
        ("cuda", None, 4, "4 cells at once on 4 GPUs"),
        ("cuda:2", None, 1, "1 cell at once on 1 GPU"),
        ("cpu", None, 1, "1 cell at once"),
        ("auto", 1, 1, "3 of 4 GPUs stay idle, as workers=1"),
        ("auto", 8, 8, "8 cells at once on 4 GPUs"),
    ],
)
def test_every_gpu_is_used_unless_workers_says_otherwise(
    a_suite: Any, device: str, workers: int | None, at_once: int, said: str
) -> None:
    new = a_suite(device=device, **({"workers": workers} if workers else {}))
    assert new.place.workers == at_once
    assert said in plan.cells_at_once(new.place)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("device", "before", "shown"),
    [
        ("auto", None, ["0", "1", "2", "3"]),
        ("cuda", "7,5,3,1", ["7", "5", "3", "1"]),
        ("cuda:0", None, ["0"] * 4),
        ("cuda:1", "7,5,3,1", ["5"] * 4),
        ("cpu", None, [""] * 4),
    ],
)
def test_every_worker_sees_one_gpu_in_turn_or_the_one_that_is_named_or_none(
    a_suite: Any,
    device: str,
    before: str | None,
    shown: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The executor is made as a suite makes it, from what the device was resolved to."""
    local: Any = LocalExecutor
    found: list[str] = []

    def launch(executor: Any, index: int) -> None:
        environment = executor._environment(index)
        assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
        assert environment["PYTORCH_ALLOC_CONF"] == devices.ALLOCATOR
        found.append(environment["CUDA_VISIBLE_DEVICES"])
        if index == 3:
            raise InterruptedError

    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)  # GPTQModel's import sets it
    if before:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    new = a_suite(workers=4, device=device)
    monkeypatch.setattr(local, "_launch", launch)
    for module, name in (
        (record, "log_config"),
        (record, "flush"),
        (client, "experiment_of"),
        (record, "write_now"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    with pytest.raises(InterruptedError):
        suite.run_suite(new.config, "suite", lambda *_: [])
    assert found == shown


def test_every_worker_counts_in_main_memory(a_suite: Any) -> None:
    new = a_suite(workers=3)
    job = new.jobs[-1]
    room = memory.of_cell(job.config, job.model, free=0.0)
    hidden = 2 * 128 * (4 + 4) * 64
    assert room.least == room.full == 0
    assert room.main > memory.Weights.of(job.model).block * 2 + hidden
    assert new.needs("memory") == pytest.approx(3 * room.main)


def test_what_a_cell_needs_depends_on_what_it_does(a_suite: Any) -> None:
    new = a_suite(device="cuda:0", executor="ray")
    job = new.jobs[-1]

    def room(free: float = 10**12, **more: Any) -> memory.Room:
        return memory.of_cell(job.config.model_copy(update=more), job.model, free)

    weights, one = memory.Weights.of(job.model), room()
    idle = memory.LIBRARIES_CUDA + 2 * memory.page_locked(2.0 * weights.block)
    assert one.main == idle, "hidden states are on the GPU"
    hidden = 2 * 128 * (4 + 4) * 64
    assert room(free=0).main == idle + memory.page_locked(hidden), "else in main memory"
    assert room(quantizer="gptqmodel").main == idle + weights.dense
    many = {"n_calibration_samples": 10**6}
    assert room(**many).least == one.least
    assert room(**many).full > one.full + 10**10
    assert room(quantizer="none").least < one.least
    for whole in ({"do_downstream": True}, {"method": "cola"}):
        assert room(**whole).least == memory.CONTEXT + max(
            weights.dense, one.least - memory.CONTEXT
        )
    assert weights.outside + 2 * weights.block == weights.layers + weights.others


@pytest.mark.usefixtures("four_gpus")
def test_models_that_do_not_fit_are_left_out_by_name_and_the_others_run(
    a_suite: Any, tiny_opt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = a_suite(device="cuda", workers=2)
    other = new.config.model_copy(update={"models": (str(tiny_opt),)})
    jobs = [*new.jobs, *plan.usable(other, str(tiny_opt), "cuda:0")]
    own = memory.of_cell
    large = jobs[-1].model.name

    def of_cell(config: Any, model: Any, free: float) -> memory.Room:
        room = own(config, model, free)
        return memory.Room(2e12, 2e12, 1.0) if model.name == large else room

    monkeypatch.setattr(memory, "of_cell", of_cell)
    failed: dict[str, str] = {}
    monkeypatch.setattr(
        suite,
        "_fail_model",
        lambda _, cells, error, *__: failed.update({cells[0].model: str(error)}),
    )
    run, _ = plan.Finished(jobs).divide(jobs)
    left, to_run = suite._with_room(new.config, new.place, jobs, run, "suite", suite.Report())
    assert {job.model.name for job in left} == {new.jobs[0].model.name}
    assert len(to_run) == 6
    assert list(failed) == [large]
    assert "at least 2,000.0 GB on H, which has 1,000.0 GB free" in failed[large]
    said = plan.make(new.config, new.place, jobs, lambda *_: {}).text()
    assert f"model {large} is left out: a cell needs at least 2,000.0 GB on H" in said
    assert f"a cell of {new.jobs[0].model.name} needs at least 0.8 GB on the GPU" in said
    with pytest.raises(UserError, match="no model of the suite has room here"):
        suite._with_room(new.config, new.place, jobs[-7:], run[-6:], "suite", suite.Report())
