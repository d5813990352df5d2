"""Pruning of a layer: held against the published loops in float64, entry by entry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layers import SETTINGS, correlated, hessian, layer_error, weights

from colazero.gptq import Hessian
from colazero.gptq.awq import Activations
from colazero.gptq.pruning import Norms, factor, magnitude, sparsegpt, wanda
from colazero.types import QuantizationSettings

OUTPUTS, INPUTS, TOKENS = 24, 288, 512
"""More inputs than two blocks of 128 have, and not a multiple of them."""
CASES = [("none", 0.5), ("none", 0.3), ("none", 0.75), ("2:4", 0.5)]


def wanted(pattern: str, sparsity: float) -> QuantizationSettings:
    return replace(SETTINGS, pattern=pattern, sparsity=sparsity)


def plain_zeros(metric: torch.Tensor, pattern: str, sparsity: float) -> torch.Tensor:
    """Return the mask of the lowest entries in each row, or of two in each four, by loops."""
    mask = torch.zeros_like(metric, dtype=torch.bool)
    width = 4 if pattern == "2:4" else metric.shape[1]
    for row in range(len(metric)):
        for first in range(0, metric.shape[1], width):
            entries = sorted(range(first, first + width), key=lambda c: (float(metric[row, c]), c))
            for column in entries[: int(sparsity * width)]:
                mask[row, column] = True
    return mask


def plain_sparsegpt(
    weight: torch.Tensor, value: torch.Tensor, pattern: str, sparsity: float
) -> torch.Tensor:
    """Return SparseGPT's weight by the algorithm of its paper, in float64."""
    w, h = weight.double().clone(), value.double().clone()
    dead = h.diagonal() == 0
    mean = h.diagonal().sum() / (~dead).sum()
    h.diagonal()[dead] = mean
    w[:, dead] = 0
    h += SETTINGS.damp_percent * mean * torch.eye(len(h), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    for start in range(0, len(h), 128):
        stop = min(start + 128, len(h))
        metric = w[:, start:stop] ** 2 / upper.diagonal()[start:stop] ** 2
        lowest = metric.flatten().sort().indices[: int(sparsity * metric.numel())]
        zeros = torch.zeros_like(metric, dtype=torch.bool)
        zeros.view(-1)[lowest] = True
        for column in range(start, stop):
            if pattern == "2:4" and column % 4 == 0:
                now = slice(column, column + 4)
                four = w[:, now] ** 2 / upper.diagonal()[now] ** 2
                zeros[:, column - start : column - start + 4] = plain_zeros(four, "2:4", 0.5)
            error = torch.where(zeros[:, column - start], w[:, column], 0)
            w[:, column] -= error
            scaled = error / upper[column, column]
            w[:, column + 1 :] -= scaled[:, None] * upper[column, column + 1 :]
    return w


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_wanda_is_the_plain_loop(pattern: str, sparsity: float) -> None:
    w, x = weights(OUTPUTS, INPUTS), correlated(TOKENS, INPUTS)
    norms = Norms(INPUTS, "cpu")
    for part in x.bfloat16().float().split(100):
        norms.add(part.reshape(1, *part.shape))
    metric = w.double().abs() * x.bfloat16().double().norm(dim=0)
    pruned = wanda(w, norms.squares, wanted(pattern, sparsity))
    assert torch.equal(pruned, w.masked_fill(plain_zeros(metric, pattern, sparsity), 0))
    assert norms.tokens == TOKENS


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_magnitude_zeroes_the_smallest_of_a_layer(pattern: str, sparsity: float) -> None:
    w = weights(OUTPUTS, INPUTS)
    pruned = magnitude(w, wanted(pattern, sparsity))
    whole = w if pattern == "2:4" else w.reshape(1, -1)
    zeros = plain_zeros(whole.double().abs(), pattern, sparsity).view_as(w)
    assert torch.equal(pruned, w.masked_fill(zeros, 0))


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_sparsegpt_is_the_papers_algorithm(pattern: str, sparsity: float, dead: bool) -> None:
    w, x = weights(OUTPUTS, INPUTS), correlated(TOKENS, INPUTS)
    if dead:
        x[:, [3, 150, 287]] = 0
    settings, made = wanted(pattern, sparsity), hessian(x)
    found, loss = sparsegpt(w, factor(made, settings), settings)
    expected = plain_sparsegpt(w, made.value(), pattern, sparsity)
    assert torch.equal(found == 0, expected == 0)
    assert found.double() == pytest.approx(expected, abs=1e-5)
    damped = made.value().double()
    mean = damped.diagonal()[damped.diagonal() > 0].mean()
    damped.diagonal()[damped.diagonal() == 0] = mean
    damped.diagonal().add_(SETTINGS.damp_percent * mean)
    if not dead:
        assert loss == pytest.approx(layer_error(w, found, damped) / TOKENS, rel=1e-3)


@pytest.mark.parametrize(("pattern", "sparsity"), CASES)
def test_the_layers_error_falls_from_magnitude_over_wanda_to_sparsegpt(
    pattern: str, sparsity: float
) -> None:
    w, x = weights(128, INPUTS), correlated(TOKENS, INPUTS)
    settings, made = wanted(pattern, sparsity), hessian(x)
    norms = Norms(INPUTS, "cpu")
    norms.add(x)
    value = made.value().clone()
    errors = [
        layer_error(w, magnitude(w, settings), value),
        layer_error(w, wanda(w, norms.squares, settings), value),
        layer_error(w, sparsegpt(w, factor(made, settings), settings)[0], value),
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.8 * errors[1]


@pytest.mark.parametrize("kind", [Norms, Activations, Hessian])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_statistic_leaves_the_inputs_as_they_are(kind: type[Any], dtype: torch.dtype) -> None:
    x = correlated(8, INPUTS).to(dtype)
    before = x.clone()
    kind(INPUTS, "cpu").add(x)
    assert torch.equal(x, before)


def test_a_layer_that_nothing_reached_is_pruned_by_magnitude() -> None:
    w, settings = weights(OUTPUTS, INPUTS), wanted("none", 0.5)
    found, loss = sparsegpt(w, factor(hessian(torch.zeros(8, INPUTS)), settings), settings)
    assert loss is None
    assert torch.equal(found, magnitude(w, settings))
