"""The loop over columns: three implementations, one result, and the reference where one fails."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import ORDERS, correlated, hessian, settings, weights

from colazero.gptq import Prepared, Solved, columns, prepare, solve
from colazero.types import QuantizationSettings

Tensors = tuple[torch.Tensor, ...]


def block(bits: int, sym: bool, size: int, rows: int) -> Tensors:
    """Return values, weights, factor, scale and zero of a random block, all float32."""
    draw = torch.Generator().manual_seed(bits * size + rows)
    values, weights = torch.randn(2, size, rows, generator=draw)
    factor = (torch.randn(size, size, generator=draw) / 8).tril(-1) + torch.eye(size)
    return values, weights, factor, *columns.fit(values, bits, sym)


def after(kernel: columns.Block, given: Tensors, bits: int) -> Tensors:
    """Return the values, weights and codes that a kernel leaves."""
    values, weights, codes = given[0].clone(), given[1].clone(), torch.zeros_like(given[0]).byte()
    kernel(values, weights, *given[2:], codes, 2**bits - 1)
    return values, weights, codes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("size", [1, 16, 30, 64, 128])
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_numba_gives_the_reference_to_the_bit(bits: int, sym: bool, size: int, rows: int) -> None:
    given = block(bits, sym, size, rows)
    expected = after(columns.reference, given, bits)
    for ours, theirs in zip(after(columns.by_numba, given, bits), expected, strict=True):
        assert torch.equal(ours, theirs)


def in_the_interpreter(program: str, folder: Path, given: object) -> Any:
    """Run a program that makes `result` of `given` where Triton's interpreter compiles kernels.

    It must be asked for before triton is imported, so in a process of its own. In one thread: while
    a kernel runs, the interpreter replaces functions of triton.language for all threads.
    """
    pytest.importorskip("triton", reason="needs triton, as torch for CUDA does")
    torch.save(given, folder / "given")
    whole = f"""
import sys, torch
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_columns import *
from colazero.gptq import columns_triton
torch.set_num_threads(1)
given = torch.load({str(folder / "given")!r}, weights_only=False)
{program}
torch.save(result, {str(folder / "result")!r})
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", whole], env=environment, check=True)
    return torch.load(folder / "result", weights_only=False)


@pytest.mark.parametrize("layout", ["rows", "columns", "slice"])
def test_triton_gives_the_reference_to_the_bit(layout: str, tmp_path: Path) -> None:
    """Whatever the strides of the factor, which may be a slice or transposed."""
    kinds = [(bits, sym, 20, 33) for bits, sym in itertools.product([2, 3, 4, 8], [True, False])]
    kinds += [(4, True, 1, 1), (4, True, 16, 64), (3, False, 128, 70)]
    cases = [(block(*kind), kind[0]) for kind in kinds] + [(FAR, 4)]
    program = f"""
def laid(factor):
    if {layout!r} == "columns":
        return factor.T.contiguous().T
    if {layout!r} == "slice":
        return torch.nn.functional.pad(factor, (3, 2, 1, 1))[1:-1, 3:-2]
    return factor
result = [
    after(columns_triton.columns, (*tensors[:2], laid(tensors[2]), *tensors[3:]), bits)
    for tensors, bits in given
]
"""
    results = in_the_interpreter(program, tmp_path, cases)
    for case, result in zip(cases, results, strict=True):
        for ours, theirs in zip(result, after(columns.reference, *case), strict=True):
            assert torch.equal(ours, theirs)


def test_triton_refuses_columns_that_it_would_read_wrongly(tmp_path: Path) -> None:
    program = """
result = []
for which in (0, 1, 3, 4):
    wrong = [*given, given[0].byte()]
    wrong[which] = torch.stack([wrong[which]] * 2, -1)[..., 0]
    try:
        columns_triton.columns(*wrong, 15)
    except ValueError as error:
        result.append(str(error))
"""
    said = in_the_interpreter(program, tmp_path, block(4, True, 16, 40))
    assert len(said) == 4
    assert all("contiguous" in one for one in said)


SOLVED = [
    settings(order, group_size=group, sym=sym, quant_bits=bits)
    for order in ORDERS
    for group in (16, 24, -1)
    for sym in (True, False)
    for bits in (2, 3, 4, 8)
]
LARGE = [settings("act_group_aware"), settings("desc_act", group_size=-1, sym=False)]


def by(
    kernel: columns.Block, rows: int, prepared: Prepared, wanted: QuantizationSettings
) -> Solved:
    """Return a layer solved with a kernel."""
    before, columns.for_device = columns.for_device, lambda *_: (kernel, "")  # type: ignore
    try:
        return solve(weights(rows, len(prepared.order)), prepared, wanted)
    finally:
        columns.for_device = before


def test_a_layer_solved_by_triton_is_the_same_as_by_numba(tmp_path: Path) -> None:
    """From a prepared Hessian to codes, over all settings, and layers of several tiles of rows."""
    small, large = (hessian(correlated(512, inputs)) for inputs in (48, 192))
    cases = [(20, prepare(small, wanted), wanted) for wanted in SOLVED]
    cases += [(70, prepare(large, wanted), wanted) for wanted in LARGE]
    program = "result = [by(columns_triton.columns, *case) for case in given]"
    theirs = in_the_interpreter(program, tmp_path, cases)
    assert len(theirs) == 74
    for case, triton in zip(cases, theirs, strict=True):
        numba = by(columns.by_numba, *case)
        assert torch.equal(numba.codes, triton.codes), case[-1]
        assert torch.equal(numba.scales, triton.scales), case[-1]
        assert torch.equal(numba.zeros, triton.zeros), case[-1]
        assert numba.loss == triton.loss, case[-1]


def test_triton_agrees_with_the_reference_on_what_is_prepared(tmp_path: Path) -> None:
    program = (
        "result = [columns.agrees(columns_triton.columns, torch.device('cpu'), g) for g in given]"
    )
    assert all(in_the_interpreter(program, tmp_path, [-1, 32, 48]))


def test_what_is_tried_before_use_is_laid_out_as_what_is_used() -> None:
    """So that a kernel that misreads the layout of real blocks is found out."""
    seen: list[list[torch.Tensor]] = []

    def records(*given: object) -> None:
        seen.append([tensor for tensor in given if isinstance(tensor, torch.Tensor)])
        columns.reference(*given)  # type: ignore[arg-type]

    assert columns.agrees(records, torch.device("cpu"))
    tried, seen = seen, []
    shapes = {tuple(tensors[0].shape) for tensors in tried}
    assert any(size == 128 and rows > 64 for size, rows in shapes), shapes
    by(records, 70, prepare(hessian(correlated(512, 192)), LARGE[1]), LARGE[1])
    for tensors in (*tried, *seen):
        assert [tensor.is_contiguous() for tensor in tensors] == [True] * 6


FAR = (
    torch.tensor([[0.5, 1.5, -0.5, 2.5, 1e30, -1e30, 0.0, 7.5]]),
    torch.zeros(1, 8),
    torch.ones(1, 1),
    torch.ones(8),
    torch.full((8,), 8.0),
)


@pytest.mark.parametrize("kernel", [columns.reference, columns.by_numba])
def test_halves_are_rounded_to_even_and_far_values_clamped(kernel: columns.Block) -> None:
    _, _, codes = after(kernel, FAR, 4)
    assert codes.tolist() == [[8, 10, 8, 10, 15, 0, 8, 15]]


def test_the_loop_is_that_of_the_paper() -> None:
    """Frantar et al. 2023, algorithm 1: errors divided by the diagonal of U, times its rows."""
    values, weights, factor, scale, zero = (t.double() for t in block(3, False, 20, 7))
    diagonal = torch.rand(20).double() + 0.5
    upper = (factor * diagonal[:, None]).flip(0, 1)  # the paper goes from the first column on
    work, codes = values.flip(0).T.clone(), torch.zeros(7, 20)
    for i in range(20):
        codes[:, i] = (torch.round(work[:, i] / scale) + zero).clamp(0, 7)
        error = (work[:, i] - (codes[:, i] - zero) * scale) / upper[i, i]
        work[:, i:] -= error[:, None] * upper[i, i:]
    errors, changed, found = after(columns.reference, (values, weights, factor, scale, zero), 3)
    assert torch.equal(found.flip(0).T.double(), codes.double())
    torch.testing.assert_close(changed, weights - (found.double() - zero) * scale)
    first = values[-1] - (found[-1].double() - zero) * scale
    torch.testing.assert_close(errors[-1], first)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Let the choice of an implementation be made anew."""
    columns.for_device.cache_clear()
    yield
    columns.for_device.cache_clear()


@pytest.mark.usefixtures("fresh")
def test_a_cpu_gets_numba_and_an_unknown_device_the_reference_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert columns.for_device("cpu") == (columns.by_numba, "numba")
    assert not caplog.records
    assert columns.for_device("xpu") == (columns.reference, "torch")
    assert "plain torch: no kernel is for 'xpu'" in caplog.text


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("fault", ["other codes", "cannot compile", "not installed"])
def test_where_a_kernel_fails_the_reference_is_used_and_the_log_says_so(
    fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: object) -> None:
        if fault == "cannot compile":
            raise RuntimeError("ptxas is not here")
        columns.reference(*args)  # type: ignore[arg-type]
        args[5][3, 4] ^= 1  # type: ignore[index]

    kind = "cuda" if fault == "not installed" else "cpu"
    if fault == "not installed":
        monkeypatch.setitem(sys.modules, "colazero.gptq.columns_triton", None)
    else:
        monkeypatch.setattr(columns, "by_numba", wrong)
    with caplog.at_level(logging.WARNING):
        assert columns.for_device(kind) == (columns.reference, "torch")
        columns.for_device(kind)
    (record,) = caplog.records
    reason = {
        "other codes": "does not give the reference's codes",
        "cannot compile": "ptxas is not here",
        "not installed": "colazero.gptq.columns_triton",
    }
    assert reason[fault] in record.message


def test_triton_compiles_without_a_gpu_and_fuses_nothing(tmp_path: Path) -> None:
    """A product fused with a sum would round otherwise than the reference does."""
    pytest.importorskip("triton", reason="needs triton, as torch for CUDA does")
    program = f"""
import sys
import triton
from triton.backends.compiler import GPUTarget
sys.path[:0] = {sys.path!r}
from colazero.gptq import columns_triton as kernel
pointers = ("values_at", "weights_at", "factor_at", "scale_at", "zero_at")
kinds = dict.fromkeys(pointers, "*fp32") | {{"codes_at": "*u8"}}
kinds |= dict.fromkeys(("columns", "rows", "stride", "step"), "i32") | {{"top": "fp32"}}
sizes = {{"COLUMNS": 16, "ROWS": kernel.ROWS}}
kinds |= dict.fromkeys(sizes, "constexpr")
source = triton.compiler.ASTSource(kernel._columns, kinds, sizes)
made = triton.compile(source, GPUTarget("cuda", 80, 32), dict(kernel.OPTIONS))
print(made.asm["ptx"])
"""
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    assert "mul.rn.f32" in ran.stdout
    assert "div.rn.f32" in ran.stdout
    assert "fma" not in ran.stdout
