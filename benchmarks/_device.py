"""Checks of a device's arithmetic, and counts of what a cell asks of a device.

`check` compares the codes of whole layers with plain torch's. `count` runs a cell twice: on the
make-believe device of the tests, for launches, host synchronisations and bytes copied, and on the
CPU for calls of Python functions.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from benchmarks._harness import timed

ROOT = Path(__file__).resolve().parent.parent
SECONDS = {
    "launches": 6e-6,
    "syncs": 2e-5,
    "bytes_up": 1 / 4e9,
    "bytes_ahead": 1 / 2e10,
    "bytes_down": 1 / 3e9,
    "python_calls": 1e-7,
}
"""Assumed seconds per unit: a launch, a synchronisation, a byte of pageable memory each way over
PCIe, one of page-locked memory that nothing waits for, a Python call.
They turn counts into an order of magnitude; nobody measured them here."""


def check(device: str, layers: Any, results: Any, kernel: Any = None) -> bool:
    """Compare the device's columns with the reference on whole layers; return True if all agree.

    A line per layer size and setting: `codes_equal` is the share of codes that are the same.
    `kernel`, a function and its name, stands in for the device's own. Plain torch is compared with
    nothing, so a device that has no kernel or does without it fails.
    """
    import torch

    from colazero.gptq import Hessian, columns, prepare
    from colazero.types import QuantizationSettings

    right = True
    for outputs, inputs in layers:
        draw = torch.Generator(device).manual_seed(0)
        mix = torch.randn(inputs, inputs, generator=draw, device=device) / inputs**0.5
        x = (torch.randn(4 * inputs, inputs, generator=draw, device=device) @ mix).half()
        weight = torch.randn(outputs, inputs, generator=draw, device=device) / 50
        hessian = Hessian(inputs, device)
        hessian.add(x)
        _, seconds = timed(partial(Hessian(inputs, device).add, x), device)
        exact = x[:, :64].double().T @ x.double()
        error = float((hessian.value()[:64] - exact).abs().max() / exact.abs().max())
        right &= error < 1e-4
        size = {"outputs": outputs, "inputs": inputs}
        speed = len(x) * inputs**2 / seconds / 1e12
        results.add(check="hessian", **size, relative_error=error, tflops=speed)
        for group, order, bits, sym in (
            (128, "act_group_aware", 4, True),
            (64, "none", 4, False),
            (-1, "desc_act", 3, True),
        ):
            settings = QuantizationSettings(
                bits, group, order == "desc_act", sym, 0.05, order == "act_group_aware"
            )
            block, name = kernel or columns.for_device(device.partition(":")[0], group)
            prepared, prepare_sec = timed(partial(prepare, hessian, settings), device)
            codes, solve_sec = codes_by(block, device, weight, prepared, settings)
            expected, _ = codes_by(columns.reference, device, weight, prepared, settings)
            equal = float((codes == expected).float().mean()) if name != "torch" else 0.0
            right &= equal == 1
            about = {"group_size": group, "order": order, "bits": bits, "sym": sym, "kernel": name}
            seconds_of = {"solve_sec": solve_sec, "prepare_sec": prepare_sec}
            results.add(check="columns", **size, **about, codes_equal=equal, **seconds_of)
    return right


def codes_by(
    block: Any, device: str, weight: Any, prepared: Any, settings: Any
) -> tuple[Any, float]:
    """Solve a layer with a column kernel; return its codes and the seconds."""
    from colazero.gptq import columns, solve

    chosen = columns.for_device
    columns.for_device = lambda *_: (block, "")  # type: ignore[assignment]
    try:
        solved, seconds = timed(partial(solve, weight, prepared, settings), device)
    finally:
        columns.for_device = chosen
    return solved.codes, seconds


class Meter:
    """Counts by stage. `read` returns the running totals; what follows a mark is its stage's."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self.stages: dict[str, dict[str, int]] = {}
        self._read, self._now, self._since = read, "", read()

    def mark(self, stage: str) -> str:
        """Begin a stage, or go on with it; return the one before."""
        totals, before = self._read(), self._now
        if before:
            counts = self.stages.setdefault(before, dict.fromkeys(totals, 0))
            for kind, total in totals.items():
                counts[kind] += total - self._since[kind]
        self._now, self._since = stage, totals
        return before


class Marked:
    """An evaluator whose methods are counted as stage `evaluate`."""

    def __init__(self, evaluator: Any, meter: Meter) -> None:
        self._evaluator, self._meter = evaluator, meter

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._evaluator, name)
        if not callable(value):
            return value

        def counted(*given: Any) -> Any:
            before = self._meter.mark("evaluate")
            try:
                return value(*given)
            finally:
                self._meter.mark(before)

        return counted


@contextmanager
def python_calls() -> Iterator[Callable[[], dict[str, int]]]:
    """Yield what reads the number of Python functions called in this thread so far."""
    calls = 0

    def profile(_frame: FrameType, event: str, _value: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield lambda: {"python_calls": calls}
    finally:
        sys.setprofile(before)


def cell(folder: Path, device: str, samples: int, seq_len: int, windows: int, meter: Meter) -> None:
    """Quantize the model in `folder`, evaluate it with KL divergence, and verify one window."""
    from colazero import models
    from colazero.blocks.probe import open_sequence
    from colazero.evaluation import through_blocks
    from colazero.quantizers.onepass import quantize
    from colazero.types import CalibrationSet, QuantizationSettings, Text, Work

    draw, model = np.random.default_rng(0), models.fetch(str(folder))
    ids = draw.integers(3, 500, size=(windows, seq_len))
    text = Text("random", ids, np.arange(windows) * seq_len)
    calibration = CalibrationSet(draw.integers(3, 500, size=(samples, seq_len), dtype="i4"), (), {})
    settings = QuantizationSettings(4, 64, False, True, 0.05, True)
    with tempfile.TemporaryDirectory() as scratch:
        meter.mark("unquantized")
        known = through_blocks.references(model, device, [text])
        evaluator: Any = Marked(through_blocks.Evaluator([text], known), meter)
        meter.mark("quantize")
        out = Path(scratch) / "out"
        quantize(Work(folder, calibration, settings, out, device, evaluator=evaluator))
        meter.mark("verify")
        one = Text("random", ids[:1], text.starts[:1])
        through_blocks.evaluate(open_sequence(out, device), [one])
        meter.mark("")


def seconds(counts: dict[str, int]) -> float:
    """Return what some counts stand for in seconds, by the rates of SECONDS."""
    return sum(number * SECONDS[kind] for kind, number in counts.items())


def count(folder: Path, samples: int, seq_len: int, windows: int) -> dict[str, dict[str, int]]:
    """Return the counts of each stage of a cell: stage → a key of SECONDS → number.

    All calibration windows must fit one micro-batch: the make-believe device knows one thread. A
    compiled loop over columns stands for Triton's there, one launch per block.
    """
    sys.path.append(str(ROOT / "tests" / "fixtures"))
    import make_believe

    from colazero.blocks.probe import open_sequence
    from colazero.gptq import columns

    def launched(*given: Any) -> None:
        traffic.operations += 1
        columns.by_numba(*(getattr(value, "numbers", value) for value in given))

    chosen = columns.for_device
    columns.for_device = lambda *_: (launched, "")  # type: ignore[assignment]
    with make_believe.machine() as traffic:
        open_sequence(folder, make_believe.DEVICE, to_quantize=True)  # tries the model once
        there = Meter(
            lambda: {
                "launches": traffic.operations,
                "syncs": traffic.syncs,
                "bytes_up": traffic.waited,
                "bytes_ahead": traffic.there - traffic.waited,
                "bytes_down": traffic.back,
            }
        )
        try:
            cell(folder, make_believe.DEVICE, samples, seq_len, windows, there)
        finally:
            columns.for_device = chosen
    open_sequence(folder, "cpu", to_quantize=True)
    with python_calls() as read:
        here = Meter(read)
        cell(folder, "cpu", samples, seq_len, windows, here)
    return {stage: counts | here.stages[stage] for stage, counts in there.stages.items()}
