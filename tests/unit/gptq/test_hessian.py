"""A Hessian is the sum of x xᵀ, however the inputs come."""

from __future__ import annotations

import pytest
import torch
from layers import correlated

from colazero.gptq import Hessian


@pytest.mark.parametrize("inputs", [1, 24, 256, 300, 700])
def test_it_is_the_sum_of_products(inputs: int) -> None:
    x = correlated(600, inputs)
    made = Hessian(inputs, "cpu")
    made.add(x)
    expected = x.T.double() @ x.double()
    scale = expected.diagonal().sqrt()
    difference = (made.value().double() - expected) / (scale[:, None] * scale)
    assert difference.abs().max() < 1e-6
    assert torch.equal(made.value(), made.value().T)
    assert made.tokens == 600


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_batches_of_any_shape_add_up(dtype: torch.dtype) -> None:
    x = correlated(480, 320).to(dtype)
    whole, parts = Hessian(320, "cpu"), Hessian(320, "cpu")
    whole.add(x)
    parts.add(x[:100])
    parts.value()  # looking does no harm
    parts.add(x[100:400].view(3, 100, 320))
    parts.add(x[400:].view(2, 1, 40, 320))
    parts.add(x[:0])
    assert parts.tokens == whole.tokens == 480
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(whole.value(), x.T.float() @ x.float(), rtol=1e-5, atol=1e-2)


def test_many_rows_are_converted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(500, 48).bfloat16()
    whole = Hessian(48, "cpu")
    whole.add(x)
    monkeypatch.setattr("colazero.gptq.hessian.ROWS", 64)
    parts = Hessian(48, "cpu")
    parts.add(x)
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-5, atol=1e-2)


def test_half_precision_is_multiplied_in_one_piece_where_nothing_is_converted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on CUDA, whose product of halves with a sum in float32 stands for itself here."""

    class OnCuda(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

    products = []

    def mm(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        products.append(a.shape[1])
        return a.float() @ b.float()

    x = correlated(500, 300).half()
    whole = Hessian(300, "cpu")
    whole.add(x)
    monkeypatch.setattr("colazero.gptq.hessian.ROWS", 64)
    monkeypatch.setattr(torch, "mm", mm)
    parts = Hessian(300, "cpu")
    parts.add(x.as_subclass(OnCuda))
    assert products == [500, 500], "a product per block of columns, of all rows"
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("weight", [0.0, 1.0, 4.0, 16.0])
def test_first_inputs_count_as_often_as_their_weight(weight: float) -> None:
    """As if they were scaled by its square root, which GPTQ's sum of squares then squares."""
    windows = correlated(6 * 8, 300).reshape(6, 8, 300)
    windows[:, 0] *= 3
    hessian = Hessian(300, "cpu", weight)
    for part in windows.split(4):
        hessian.add(part)
    scaled = windows.double()
    squares = scaled.square().sum((0, 2))
    scaled[:, 0] *= weight**0.5
    wanted = scaled.flatten(0, 1).T @ scaled.flatten(0, 1)
    torch.testing.assert_close(hessian.value().double(), wanted, rtol=1e-4, atol=1e-3)
    share = hessian.first_share()
    assert share is not None
    assert float(share) == pytest.approx(float(squares[0] / squares.sum()), rel=1e-4)
    assert hessian.tokens == 48


def test_without_first_inputs_their_share_is_unknown() -> None:
    hessian = Hessian(4, "cpu")
    hessian.add(torch.ones(3, 4))
    assert hessian.first_share() is None
    hessian = Hessian(4, "cpu")
    hessian.add(torch.zeros(1, 3, 4))
    assert hessian.first_share() == 0
