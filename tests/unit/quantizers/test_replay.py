"""What is remembered is what would have been computed, whatever happens to the operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from colazero.quantizers.on_cpu.replay import Remembered


class Counted(torch.overrides.TorchFunctionMode):
    """Counts the products that are really computed; to be entered before Remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.products = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.products += func in (F.linear, F.scaled_dot_product_attention)
        return func(*args, **(kwargs or {}))


def test_the_same_product_is_computed_once() -> None:
    x, w, b = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
    expected = F.linear(x, w, b)
    with Counted() as counted, Remembered():
        assert torch.equal(F.linear(x, w, b), expected)
        assert torch.equal(F.linear(x.clone(), w.clone(), b.clone()), expected)
        assert torch.equal(F.linear(x, w, bias=b), expected)
    assert counted.products == 2, "once for each way of calling"


@pytest.mark.parametrize("changed", ["input", "weight", "bias", "dtype"])
def test_another_product_is_computed(changed: str) -> None:
    operands = {"input": torch.randn(3, 8), "weight": torch.randn(4, 8), "bias": torch.randn(4)}
    with Remembered():
        first = F.linear(**operands)
        if changed == "dtype":
            operands = {name: value.double() for name, value in operands.items()}
        else:
            operands[changed].view(-1)[-1] += 1  # in place: the tensor is the same object
        second = F.linear(**operands)
    assert torch.equal(second, F.linear(**operands))
    assert first.dtype != second.dtype or not torch.equal(first, second)


def test_writing_into_a_result_spoils_nothing() -> None:
    x, w = torch.randn(3, 8), torch.randn(4, 8)
    with Remembered():
        for _ in range(3):
            result = F.linear(x, w)
            assert torch.equal(result, x @ w.T)
            result.zero_()


def test_attention_is_remembered_with_its_settings() -> None:
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    attention = F.scaled_dot_product_attention
    whole, causal = attention(q, k, v), attention(q, k, v, is_causal=True)
    with Counted() as counted, Remembered():
        for _ in range(2):
            assert torch.equal(attention(q, k, v), whole)
            assert torch.equal(attention(q, k, v, is_causal=True), causal)
    assert counted.products == 2


def test_the_oldest_is_dropped_when_there_is_no_room() -> None:
    w, inputs = torch.randn(4, 8), torch.randn(5, 3, 8)
    one = (3 * 8 + 4 * 8 + 3 * 4) * 4
    with Counted() as counted, Remembered(budget=2 * one):
        for x in (*inputs, inputs[4], inputs[3], inputs[0]):
            assert torch.equal(F.linear(x, w), x @ w.T)
    assert counted.products == 6


@pytest.mark.parametrize("columns", [7, 256, 300, 600])
def test_a_gram_matrix_is_the_product(columns: int) -> None:
    x = torch.randn(40, columns, dtype=torch.float64)
    other = torch.randn(40, columns, dtype=torch.float64)
    expected, apart = torch.matmul(x.T, x), torch.matmul(x.T, other)
    with Remembered():
        gram = torch.matmul(x.T, x)
        assert torch.equal(torch.matmul(x.T, other), apart)
    torch.testing.assert_close(gram, expected, rtol=1e-12, atol=1e-12)
