"""A layer solved: nothing depends on how the work is cut, and the result is worth its cost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from layers import ORDERS, correlated, hessian, layer_error, settings, weights

from colazero.gptq import Hessian, Solved, columns, prepare, solve
from colazero.types import QuantizationSettings


def solved(
    w: torch.Tensor, x: torch.Tensor, wanted: QuantizationSettings
) -> tuple[Solved, torch.Tensor]:
    """Return a layer solved and the Hessian that it was solved with."""
    made = hessian(x)
    return solve(w, prepare(made, wanted), wanted), made.value()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("group", [32, 96, 192, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_shapes_and_types_are_as_promised(order: str, group: int, sym: bool) -> None:
    wanted = settings(order, group_size=group, sym=sym)
    w = weights(40, 192).bfloat16()
    before = w.clone()
    layer, _ = solved(w, correlated(256, 192), wanted)
    groups = 1 if group == -1 else 192 // group
    assert torch.equal(w, before)
    assert layer.codes.shape == (40, 192)
    assert layer.codes.dtype == torch.uint8
    assert layer.codes.max() <= 15
    assert layer.scales.shape == layer.zeros.shape == (groups, 40)
    assert layer.scales.dtype == torch.float16
    assert (layer.scales > 0).all()
    assert ((layer.zeros >= 0) & (layer.zeros <= 15)).all()
    assert not sym or (layer.zeros == 8).all()
    assert layer.g_idx.dtype == torch.int32
    assert layer.g_idx.bincount().tolist() == [192 // groups] * groups
    assert layer.kernel == "numba"
    assert layer.weight(torch.bfloat16).shape == w.shape


@pytest.mark.parametrize("group", [32, 192, -1])
@pytest.mark.parametrize("order", ORDERS)
def test_it_does_not_matter_how_rows_are_shared_out(
    group: int, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, w, wanted = correlated(512, 192), weights(150, 192), settings(order, group_size=group)
    whole, _ = solved(w, x, wanted)
    monkeypatch.setattr("colazero.gptq.solving.FEWEST", 1000)
    alone, _ = solved(w, x, wanted)
    with torch.inference_mode():
        inferred, _ = solved(w, x, wanted)
    assert torch.equal(whole.codes, alone.codes)
    assert torch.equal(whole.codes, inferred.codes)
    assert torch.equal(whole.scales, alone.scales)
    assert whole.loss == pytest.approx(alone.loss, rel=1e-5)
    rows = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    mixed, _ = solved(w[rows], x, wanted)
    assert torch.equal(mixed.codes, whole.codes[rows]), "rows are independent of each other"


def test_threads_keep_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    x, w = correlated(64, 64), weights(128, 64)
    with ThreadPoolExecutor(3) as pool:  # several callers at once, and threads begun later
        found = list(pool.map(lambda _: solved(w, x, settings())[0].codes, range(6)))
        assert set(pool.map(lambda _: torch.get_num_threads(), range(6))) == {threads}
    assert all(torch.equal(codes, found[0]) for codes in found)
    assert torch.get_num_threads() == threads


def test_the_reference_alone_solves_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, wanted = correlated(256, 96), weights(70, 96), settings("act_group_aware", sym=False)
    by_numba, _ = solved(w, x, wanted)
    monkeypatch.setattr(columns, "for_device", lambda *_: (columns.reference, "torch"))
    by_torch, _ = solved(w, x, wanted)
    assert (by_numba.kernel, by_torch.kernel) == ("numba", "torch")
    assert torch.equal(by_numba.codes, by_torch.codes)
    assert by_numba.loss == by_torch.loss


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 192, -1])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sym", [True, False])
def test_it_is_better_than_rounding(bits: int, group: int, order: str, sym: bool) -> None:
    x, w = correlated(1024, 192), weights(64, 192)
    wanted = settings(order, quant_bits=bits, group_size=group, sym=sym)
    layer, value = solved(w, x, wanted)
    rounded = solve(w, prepare(Hessian(192, "cpu"), wanted), wanted)
    assert rounded.rtn_fallback
    ours = layer_error(w, layer.weight(torch.float32), value)
    theirs = layer_error(w, rounded.weight(torch.float32), value)
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("order", ORDERS)
def test_the_loss_is_the_error_of_the_layers_output(order: str) -> None:
    x, w, wanted = correlated(512, 96), weights(48, 96), settings(order)
    layer, value = solved(w, x, wanted)
    damped = value + 0.05 * value.diagonal().mean() * torch.eye(96)
    error = layer_error(w, layer.weight(torch.float32), damped) / 512
    assert layer.loss == pytest.approx(error / 512, rel=1e-3)


@hypothesis_settings(deadline=None, max_examples=25)
@given(st.sampled_from([2, 3, 4, 8]), st.sampled_from(list(ORDERS)), st.integers(0, 2**31))
def test_weights_on_a_grid_stay_as_they_are(bits: int, order: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    groups = 1 if order == "desc_act" else 3  # there they are made up anew
    codes = torch.randint(0, 2**bits, (24, groups, 96 // groups), generator=draw)
    codes[:, :, 0], codes[:, :, 1] = 0, 2**bits - 1  # so that the grid can be found
    scale = torch.randint(1, 9, (24, groups, 1), generator=draw) / 64
    zero = torch.randint(0, 2**bits, (24, groups, 1), generator=draw)
    w = ((codes - zero) * scale).view(24, 96)
    wanted = settings(order, quant_bits=bits, sym=False, group_size=96 // groups)
    layer, _ = solved(w, correlated(256, 96), wanted)
    assert torch.equal(layer.weight(torch.float32), w)


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e7])
def test_extreme_weights_give_finite_grids(sym: bool, size: float) -> None:
    layer, _ = solved(weights(33, 64) * size, correlated(128, 64), settings(sym=sym))
    assert torch.isfinite(layer.scales).all()
    assert (layer.scales > 0).all()
    assert torch.isfinite(layer.weight(torch.float32)).all()
    if size == 0:
        assert not layer.weight(torch.float32).any()
