"""When memory runs out, smaller micro-batches are run, down to one window, before a cell fails."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from colazero import models
from colazero.blocks import lockstep as memory
from colazero.blocks import sequence as blocks_sequence
from colazero.blocks.lockstep import halved
from colazero.blocks.probe import open_sequence
from colazero.blocks.sequence import Sequence
from colazero.evaluation.through_blocks import Evaluator, evaluate, references
from colazero.quantizers import onepass
from colazero.types import CalibrationSet, QuantizationReport, QuantizationSettings, Text, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(8, 64), dtype=np.int32), [], {})
Limit = Callable[[int, str], list[int]]
"""(windows, layer's name) → how many came there at once, each time; see `room_for`."""
TEXT = Text("text", RNG.integers(10, 250, size=(9, 64)), np.arange(9) * 64)


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Let each collection of garbage, one per time that memory runs out, skip what is here now."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def room_for(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Return what lets a layer of each block compute so many windows at once, or none of more."""

    def limit(windows: int, layer: str) -> list[int]:
        seen: list[int] = []
        own = torch.nn.Linear.forward

        def forward(module: Any, x: Any) -> Any:
            if getattr(module, "called", "") == layer:
                seen.append(len(x))
                if len(x) > windows:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return own(module, x)

        begun = Sequence.__init__

        def named(sequence: Sequence, *args: Any) -> None:
            begun(sequence, *args)
            for block in sequence.blocks:
                for name, module in block.named_modules():
                    module.called = name.rpartition(".")[2]
            seen.clear()

        monkeypatch.setattr(torch.nn.Linear, "forward", forward)
        monkeypatch.setattr(Sequence, "__init__", named)
        return seen

    return limit


def quantized(model: Path, out: Path) -> tuple[QuantizationReport, Evaluator]:
    evaluator = Evaluator([TEXT])
    report = onepass.quantize(Work(model, CALIBRATION, SETTINGS, out, "cpu", evaluator=evaluator))
    return report, evaluator


@pytest.mark.parametrize(("windows", "used"), [(9, 8), (4, 4), (3, 2), (1, 1)])
def test_evaluation_takes_fewer_windows_at_once(
    windows: int,
    used: int,
    tiny_llama: Path,
    room_for: Limit,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = evaluate(open_sequence(tiny_llama, "cpu"), [TEXT])[0]
    seen = room_for(windows, "down_proj")
    evaluator = Evaluator([TEXT])
    sequence = open_sequence(tiny_llama, "cpu")
    seen.clear()
    with caplog.at_level(logging.WARNING):
        evaluator.begin(sequence)
        for index in range(len(sequence)):
            with sequence.filled(index):
                evaluator.advance(index)
        evaluator.finish()
    assert evaluator.windows_at_once == used
    tried = sum(size > windows for size in seen)
    assert tried == len(caplog.records) <= 3, "once a size, not once a block"
    assert evaluator.perplexities[0].nll == pytest.approx(plain.nll, rel=1e-2)
    assert evaluator.perplexities[0].nll[0] == plain.nll[0], "it is by itself in any case"


@pytest.mark.parametrize("layer", ["q_proj", "down_proj"])
@pytest.mark.parametrize(("windows", "used"), [(8, 8), (2, 2), (1, 1)])
def test_onepass_takes_fewer_windows_at_once(
    layer: str,
    windows: int,
    used: int,
    tiny_llama: Path,
    tmp_path: Path,
    room_for: Limit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 8 * 64)
    before, _ = quantized(tiny_llama, tmp_path / "before")
    room_for(windows, layer)
    report, evaluator = quantized(tiny_llama, tmp_path / "after")
    assert (report.windows_at_once, evaluator.windows_at_once) == (used, min(used, 8))
    assert [(row["layer"], row["module"]) for row in report.modules] == [
        (row["layer"], row["module"]) for row in before.modules
    ]
    assert {row["samples"] for row in report.modules} == {CALIBRATION.windows.size}
    losses = [[row["loss"] for row in one.modules] for one in (before, report)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_windows_that_do_not_fit_before_the_first_block_are_halved_too(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, _ = quantized(tiny_llama, tmp_path / "plain")

    record = blocks_sequence.record

    def limited(model: Any, blocks: Any, ids: Any, *more: Any) -> Any:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return record(model, blocks, ids, *more)

    monkeypatch.setattr(blocks_sequence, "record", limited)
    report, evaluator = quantized(tiny_llama, tmp_path / "limited")
    assert plain.windows_at_once == 8
    assert report.windows_at_once == 2
    assert np.isfinite(evaluator.perplexities[0].perplexity)


def test_batches_that_ended_before_memory_ran_out_are_not_run_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last batch fails behind the block's last layer, when others have left the block."""
    monkeypatch.setattr(onepass, "TOKENS_PER_BATCH", 2 * 64)
    before, plain = quantized(tiny_llama, tmp_path / "before")
    own, failed = Sequence.run_block, []

    def run_block(sequence: Sequence, index: int, stream: Any, part: slice) -> None:
        hidden = stream.hidden[part].clone()
        own(sequence, index, stream, part)
        if part == slice(6, 8) and index == 0 and not failed:
            stream.hidden[part] = hidden
            failed.append(part)
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Sequence, "run_block", run_block)
    report, evaluator = quantized(tiny_llama, tmp_path / "after")
    assert failed
    assert report.windows_at_once == 1
    assert [row["loss"] for row in report.modules if row["layer"] == 0] == [
        row["loss"] for row in before.modules if row["layer"] == 0
    ]
    assert evaluator.perplexities[0].nll == pytest.approx(plain.perplexities[0].nll, rel=0.02)


def test_one_window_that_does_not_fit_is_an_error(
    tiny_llama: Path, tmp_path: Path, room_for: Limit
) -> None:
    room_for(0, "o_proj")
    with pytest.raises(torch.OutOfMemoryError):
        quantized(tiny_llama, tmp_path / "out")


@pytest.mark.parametrize(
    ("said", "recognised"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasGemmEx(...)`", True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        (
            "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnSpotrf(...)`",
            True,
        ),
        ("CUDA error: out of memory", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_memory_that_runs_out_in_a_library_is_recognised(said: str, recognised: bool) -> None:
    raising = Mock(side_effect=RuntimeError(said))
    if recognised:
        assert memory.run_if_fits(raising, 2) is False
    with pytest.raises(RuntimeError, match=r"CU|mat1"):
        memory.run_if_fits(raising, 1 if recognised else 2)


@pytest.mark.parametrize("where", ["quantization", "evaluation", "unquantized", "nowhere"])
def test_a_result_whose_batches_were_halved_says_so(
    where: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLAZERO_CACHE", str(tmp_path / "cache"))
    own, failed, now = Sequence.run_block, [], ["unquantized"]

    def run_block(sequence: Sequence, index: int, stream: Any, part: slice) -> None:
        stage = {8: "quantization", 9: now[0]}.get(len(stream.ids), "the probe")
        if stage == where and part.stop - part.start > 1 and not failed:
            failed.append(stage)
            raise RuntimeError("CUDA error: out of memory")
        own(sequence, index, stream, part)

    monkeypatch.setattr(Sequence, "run_block", run_block)
    model = models.fetch(str(tiny_llama))
    known = references(model, "cpu", [TEXT])
    now[0] = "evaluation"
    evaluator = Evaluator([TEXT], known)
    work = Work(tiny_llama, CALIBRATION, SETTINGS, tmp_path / "q", "cpu", evaluator=evaluator)
    report = onepass.quantize(work)
    assert report.halved is (where == "quantization")
    assert evaluator.perplexities[0].halved is (where in ("evaluation", "unquantized"))
    again = references(model, "cpu", [TEXT])[0]
    assert again.halved is False, "what was halved is not kept for others"


def test_what_is_nearly_as_large_as_the_largest_is_halved_too() -> None:
    parts = [slice(0, 1), slice(1, 9), slice(9, 14), slice(14, 18)]
    assert halved(parts) == [
        *(slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 12), slice(12, 14), slice(14, 18)),
    ]
    assert halved([slice(0, 1), slice(1, 2)]) == [slice(0, 1), slice(1, 2)]


@pytest.mark.parametrize(
    ("then", "given_back", "full"),
    [([30.0], 0, False), ([20.0, 40.0], 1, False), ([20.0, 20.0], 1, True)],
    ids=["enough", "enough when what was freed is given back", "too little"],
)
def test_what_was_freed_is_given_back_before_anything_leaves(
    then: list[float], given_back: int, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, calls = iter([100.0, *then]), []
    monkeypatch.setattr(memory, "free", lambda _: next(found))
    monkeypatch.setattr(memory, "give_back_freed", lambda: calls.append(1))
    assert memory.Headroom("cpu").full() is full
    assert len(calls) == given_back


def test_what_a_thread_freed_goes_back_to_the_system() -> None:
    script = """
import threading, psutil, torch
from colazero.blocks.lockstep import give_back_freed
def resident(): return psutil.Process().memory_info().rss / 2**20
def work():
    big = [torch.ones(2**20) for _ in range(60)]  # 4 MiB each
    held.append(torch.ones(2**16))  # lies above them in this thread's heap
    del big
held, before = [], resident()
for _ in range(2):  # the first mappings that are freed raise glibc's own threshold
    thread = threading.Thread(target=work); thread.start(); thread.join()
kept = resident() - before
give_back_freed()
print(kept, resident() - before)
thread = threading.Thread(target=work); thread.start(); thread.join()
give_back_freed()  # what a heap had free before is used again, and is freed into it again
print(resident() - before)
work()  # in the main thread, whose heap has no place for them
print(resident() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    kept, after, again, by_itself = map(float, done.stdout.split())
    assert kept > 100
    assert after < 20
    assert again < 20
    assert by_itself < 20
