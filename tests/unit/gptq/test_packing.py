"""Packed layers are to the bit what GPTQModel's own code writes and reads."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layers import ORDERS, correlated, hessian, settings, weights

from colazero.errors import UserError
from colazero.gptq import Solved, dequantize, pack, prepare, solve

IN, OUT, GROUP = 96, 64, 32
BITS = (2, 3, 4, 8)


def drawn(bits: int, order: str = "in order", outputs: int = OUT, seed: int = 0) -> Solved:
    """Return a layer of random codes and of all zero points, 0 included."""
    draw = torch.Generator().manual_seed(seed)
    g_idx = torch.arange(IN).int() // GROUP
    if order == "desc_act":
        g_idx = g_idx[torch.randperm(IN, generator=draw)]
    scales = (torch.rand(IN // GROUP, outputs, generator=draw) + 0.5).half()
    zeros = torch.randint(0, 2**bits, scales.shape, generator=draw).short()
    codes = torch.randint(0, 2**bits, (outputs, IN), generator=draw).to(torch.uint8)
    return Solved(codes, scales, zeros, g_idx, None, 0.05, "torch", False)


def by_gptqmodel(layer: Solved, bits: int, v1: bool) -> Any:
    """Return the layer as GPTQModel packs it, from its dense weight."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    outputs = len(layer.codes)
    dense = torch.nn.Linear(IN, outputs, bias=False)
    dense.weight.data = layer.weight(torch.float32)
    packed = TorchLinear(
        bits=bits,
        group_size=GROUP,
        desc_act=False,
        sym=False,
        in_features=IN,
        out_features=outputs,
        bias=False,
        register_buffers=True,
    )
    packed.pack_original(dense, layer.scales.T.float(), layer.zeros.T.float(), layer.g_idx)
    if v1:
        config = SimpleNamespace(bits=bits, pack_dtype=torch.int32, runtime_format=None)
        convert_gptq_v2_to_v1_format_module(packed, config)  # type: ignore[arg-type]
    return packed


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("order", ["in order", "desc_act"])
@pytest.mark.parametrize("outputs", [64, 68, 70])
def test_gptqmodel_packs_the_same(bits: int, order: str, outputs: int) -> None:
    if bits == 3 and outputs % 32:
        pytest.skip("GPTQModel does not either")
    layer = drawn(bits, order, outputs)
    theirs = by_gptqmodel(layer, bits, v1=True)
    for name, ours in pack(layer, bits).items():
        their = getattr(theirs, name)
        assert ours.dtype == their.dtype, name
        assert torch.equal(ours, their), name
        assert ours.is_contiguous()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("order", ["in order", "desc_act", "no g_idx"])
@pytest.mark.parametrize("v1", [True, False])
def test_what_gptqmodel_packs_is_unpacked(bits: int, order: str, v1: bool) -> None:
    layer = drawn(bits, order)
    packed = by_gptqmodel(layer, bits, v1)
    g_idx = None if order == "no g_idx" else packed.g_idx
    found = dequantize(packed.qweight, packed.qzeros, packed.scales, g_idx, bits=bits, v1=v1)
    assert found.dtype == torch.float32
    assert torch.equal(found.T, layer.weight(torch.float32))
    group = layer.g_idx.long()
    steps = layer.codes.float() - layer.zeros.float().T[:, group]
    assert torch.equal(found.T, steps * layer.scales.float().T[:, group])


@hypothesis_settings(deadline=None, max_examples=30)
@given(st.sampled_from(BITS), st.sampled_from(["in order", "desc_act"]), st.integers(0, 2**31))
def test_unpacking_undoes_packing(bits: int, order: str, seed: int) -> None:
    layer = drawn(bits, order, seed=seed)
    found = dequantize(**pack(layer, bits), bits=bits, v1=True)
    assert torch.equal(found.T, layer.weight(torch.float32))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group", [32, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_solved_weight_is_its_packed_tensors(
    bits: int, sym: bool, order: str, group: int, dtype: torch.dtype
) -> None:
    wanted = settings(order, quant_bits=bits, sym=sym, group_size=group)
    solved = solve(weights(OUT, IN), prepare(hessian(correlated(256, IN)), wanted), wanted)
    found = dequantize(**pack(solved, bits), bits=bits, v1=True).to(dtype).T
    weight = solved.weight(dtype)
    assert weight.dtype == dtype
    assert weight.is_contiguous()
    assert torch.equal(weight.view(torch.uint8), found.contiguous().view(torch.uint8))


@pytest.mark.parametrize(("bits", "inputs", "outputs"), [(4, 92, 64), (3, 48, 64), (3, 96, 40)])
def test_what_does_not_fill_words_is_refused(bits: int, inputs: int, outputs: int) -> None:
    layer = drawn(bits, outputs=outputs)
    layer = replace(layer, codes=layer.codes[:, :inputs], g_idx=layer.g_idx[:inputs])
    with pytest.raises(
        UserError, match=f"{inputs} inputs and {outputs} outputs.*quant_bits={bits}"
    ):
        pack(layer, bits)
