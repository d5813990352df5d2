"""The loop over columns: three implementations, one result, and the reference where one fails."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from colazero.gptq import columns, columns_numba, grid

Tensors = tuple[torch.Tensor, ...]


def block(bits: int, sym: bool, size: int, rows: int) -> Tensors:
    """Return values, weights, factor, scale and zero of a random block, all float32."""
    draw = torch.Generator().manual_seed(bits * size + rows)
    values, weights = torch.randn(2, size, rows, generator=draw)
    factor = (torch.randn(size, size, generator=draw) / 8).tril(-1) + torch.eye(size)
    return values, weights, factor, *grid.fit(values, bits, sym)


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
    for ours, theirs in zip(after(columns_numba.columns, given, bits), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_triton_gives_the_reference_to_the_bit(tmp_path: Path) -> None:
    """In Triton's interpreter, which must be asked for before triton is imported."""
    pytest.importorskip("triton", reason="needs triton, as torch for CUDA does")
    kinds = [(bits, sym, 20, 33) for bits, sym in itertools.product([2, 3, 4, 8], [True, False])]
    kinds += [(4, True, 1, 1), (4, True, 16, 64), (3, False, 128, 5)]
    cases = [(block(*kind), kind[0]) for kind in kinds] + [(FAR, 4)]
    torch.save(cases, tmp_path / "cases")
    program = f"""
import sys, torch
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
from test_columns import after
from colazero.gptq.columns_triton import columns
cases = torch.load({str(tmp_path / "cases")!r})
torch.save([after(columns, *case) for case in cases], {str(tmp_path / "results")!r})
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    results = torch.load(tmp_path / "results")
    for case, result in zip(cases, results, strict=True):
        for ours, theirs in zip(result, after(columns.reference, *case), strict=True):
            assert torch.equal(ours, theirs)


FAR = (
    torch.tensor([[0.5, 1.5, -0.5, 2.5, 1e30, -1e30, 0.0, 7.5]]),
    torch.zeros(1, 8),
    torch.ones(1, 1),
    torch.ones(8),
    torch.full((8,), 8.0),
)


@pytest.mark.parametrize("kernel", [columns.reference, columns_numba.columns])
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
    assert columns.for_device("cpu") == (columns_numba.columns, "numba")
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

    if fault == "not installed":
        monkeypatch.setitem(sys.modules, "colazero.gptq.columns_numba", None)
    else:
        monkeypatch.setattr(columns_numba, "columns", wrong)
    with caplog.at_level(logging.WARNING):
        assert columns.for_device("cpu") == (columns.reference, "torch")
        columns.for_device("cpu")
    (record,) = caplog.records
    reason = {
        "other codes": "does not give the reference's codes",
        "cannot compile": "ptxas is not here",
        "not installed": "colazero.gptq.columns_numba",
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
kinds |= dict.fromkeys(("columns", "rows", "stride"), "i32") | {{"top": "fp32"}}
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
