"""AWQ's arithmetic against plain loops in float64, its layout against GPTQModel's reader."""

from __future__ import annotations

import pytest
import torch
from layers import correlated, weights
from torch import Tensor

from colazero.gptq import dequantize
from colazero.gptq.awq import Activations, clipped, find_scales, rounded
from colazero.gptq.packing import pack_awq
from colazero.gptq.solving import to_nearest

INPUTS, TOKENS, SIZE = 96, 300, 32


def plain_rounded(weight: Tensor, size: int) -> Tensor:
    """Return a weight rounded to nearest in groups, number by number; scales are float16.

    Zero points are found in float32: of a group that is clipped on both sides they lie half way.
    """
    out = torch.empty_like(weight, dtype=torch.float64)
    for row in range(len(weight)):
        for first in range(0, weight.shape[1], size):
            group = weight[row, first : first + size].float()
            low, high = group.min().clamp(max=0), group.max().clamp(min=0)
            zero = int(torch.round(-low / ((high - low) / 15)))
            scale = float(((high - low) / 15).half())
            for column, value in enumerate(group.tolist()):
                code = min(max(round(value / scale) + zero, 0), 15)
                out[row, first + column] = (code - zero) * scale
    return out


def activations(x: Tensor) -> Activations:
    made = Activations(x.shape[1], "cpu")
    for part in x.split(70):
        made.add(part[None])
    return made


@pytest.mark.parametrize("outputs", [(24,), (16, 8)])
def test_scales_are_those_that_lose_least_of_the_layers_outputs(outputs: tuple[int, ...]) -> None:
    x = correlated(TOKENS, INPUTS)
    x[:, [5, 40]] *= 30  # what AWQ is for
    layers = [weights(n, INPUTS, seed=n) for n in outputs]
    seen = activations(x)
    scales, alpha = find_scales(layers, seen.hessian.value(), seen.magnitudes, SIZE)
    lost = []
    for step in range(20):
        tried = x.double().abs().mean(0) ** (step / 20)
        tried = tried.clamp(min=1e-4)
        tried = tried / (tried.max() * tried.min()) ** 0.5
        error = 0.0
        for weight in layers:
            after = plain_rounded(weight * tried.float(), SIZE) / tried
            error += float((x.double() @ (after - weight.double()).T).square().sum())
        lost.append((error, step / 20, tried))
    best = min(lost, key=lambda one: one[0])
    error, _, expected = next(one for one in lost if one[1] == alpha)
    assert error <= 1.001 * best[0], "of two that lose the same either will do"
    assert scales.double() == pytest.approx(expected, rel=1e-4)
    assert error < 0.9 * lost[0][0], "better than no scales"


def test_clipping_is_the_limit_that_loses_least_of_each_group() -> None:
    x, weight = correlated(TOKENS, INPUTS), weights(20, INPUTS)
    weight[3, 7] = 1.0  # one far out
    seen = activations(x)
    found = clipped(weight, seen.hessian.value(), SIZE)
    cut = 0
    for row in range(len(weight)):
        for first in range(0, INPUTS, SIZE):
            here = slice(first, first + SIZE)
            group, inputs = weight[row, here], x[:, here].double()
            tried = []
            for step in range(10):
                limit = float(group.abs().max() * (1 - step / 20))
                limited = group.clamp(-limit, limit)
                after = plain_rounded(limited[None], SIZE)[0]
                error = float((inputs @ (after - group.double())).square().sum())
                tried.append((error, limited))
            assert torch.equal(found[row, here], min(tried, key=lambda one: one[0])[1])
            cut += not torch.equal(found[row, here], group)
    assert cut > 10


@pytest.mark.parametrize("size", [32, 96])
def test_the_layout_is_what_gptqmodel_reads(size: int) -> None:
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    weight = weights(48, INPUTS) + 0.02
    layer = to_nearest(weight, size, 4, sym=False)
    assert layer.weight(torch.float32) == pytest.approx(plain_rounded(weight, size), abs=1e-6)
    assert torch.equal(layer.weight(torch.float32), rounded(weight, size))
    packed = pack_awq(layer)
    assert {n: (t.dtype, tuple(t.shape)) for n, t in packed.items()} == {
        "qweight": (torch.int32, (INPUTS, 6)),
        "qzeros": (torch.int32, (INPUTS // size, 6)),
        "scales": (torch.float16, (INPUTS // size, 48)),
    }
    ours = dequantize(**packed, bits=4, v1=False, awq=True)
    theirs = dequantize_gemm(packed["qweight"], packed["qzeros"], packed["scales"], 4, size)
    assert torch.equal(ours.half(), theirs)
    assert torch.equal(ours.T, layer.weight(torch.float32))
