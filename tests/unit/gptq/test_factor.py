"""A prepared Hessian: order, damp and factor, held against the textbook in float64."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from layers import ORDERS, SETTINGS, correlated, hessian, settings, weights

from colazero.gptq import Hessian, Prepared, prepare, solve


def damped(value: torch.Tensor, damp: float) -> torch.Tensor:
    """Return H + damp · mean diag(H) · I in float64."""
    value = value.double()
    return value + damp * value.diagonal().mean() * torch.eye(len(value)).double()


@pytest.mark.parametrize("inputs", [64, 192, 512])
@pytest.mark.parametrize("group", [32, 64, 192, -1])
@pytest.mark.parametrize("order", ORDERS)
def test_the_factor_is_that_of_the_inverse(inputs: int, group: int, order: str) -> None:
    if group > 0 and inputs % group:
        pytest.skip("the group does not divide")
    made = hessian(correlated(1024, inputs))
    prepared = prepare(made, settings(order, group_size=group))
    assert prepared.factor is not None
    assert prepared.pivots is not None
    value = damped(made.value() / made.tokens, 0.05)[prepared.order][:, prepared.order]
    # The upper factor U of the inverse, columns from the first solved on, read from its end.
    upper = torch.linalg.cholesky(torch.linalg.inv(value.flip(0, 1)), upper=True).flip(0, 1)
    torch.testing.assert_close(prepared.pivots.double(), 1 / upper.diagonal(), rtol=1e-5, atol=0)
    lower = torch.linalg.inv(upper)
    blocks = [block for group in prepared.blocks() for block in group]
    for (low, high), corner in zip(blocks, prepared.corners, strict=True):
        square = upper[low:high, low:high] / upper.diagonal()[low:high, None]
        torch.testing.assert_close(corner.double(), square, rtol=0, atol=1e-5)
        assert corner.is_contiguous(), "kernels index it by hand"
        below = lower[high:, low:high] @ upper[low:high, low:high]
        found = prepared.factor[high:, low:high].double()
        torch.testing.assert_close(found, below, rtol=0, atol=1e-5)


@pytest.mark.parametrize("group", [16, 48, 128, 192, 256, -1])
def test_blocks_are_what_groups_are_made_of(group: int) -> None:
    prepared = prepare(hessian(correlated(64, 768)), settings(group_size=group))
    size = 768 if group == -1 else group
    blocks = prepared.blocks()
    assert len(blocks) == 768 // size
    columns = [i for block in blocks for low, high in block for i in reversed(range(low, high))]
    assert columns == list(range(767, -1, -1)), "each column once, from the last to the first"
    assert all(high - low <= 128 for of_group in blocks for low, high in of_group)
    assert all(of_group[0][1] - of_group[-1][0] == size for of_group in blocks)


def test_columns_are_solved_in_the_order_asked_for() -> None:
    x = correlated(256, 96)
    made = hessian(x)
    diagonal = made.value().diagonal()

    def first_to_last(prepared: Prepared) -> list[int]:
        return prepared.order.flip(0).tolist()

    assert first_to_last(prepare(made, settings())) == list(range(96))
    by_size = first_to_last(prepare(made, settings("desc_act")))
    assert by_size == torch.argsort(diagonal, descending=True).tolist()
    aware = prepare(made, settings("act_group_aware"))
    largest = diagonal.view(3, 32).amax(1)
    assert aware.groups.tolist() == torch.argsort(largest, descending=True).tolist()
    for place, group in enumerate(aware.groups.tolist()):
        inputs = first_to_last(aware)[32 * place : 32 * place + 32]
        assert set(inputs) == set(range(32 * group, 32 * group + 32)), "groups stay together"
        assert diagonal[inputs].tolist() == sorted(diagonal[inputs].tolist(), reverse=True)


def test_one_group_is_ordered_alike_either_way() -> None:
    made = hessian(correlated(256, 96))
    aware = prepare(made, settings("act_group_aware", group_size=-1))
    assert torch.equal(aware.order, prepare(made, settings("desc_act", group_size=-1)).order)


def test_damp_is_raised_where_cholesky_fails() -> None:
    one = torch.full((64, 64), 100.0)  # rank one
    prepared = prepare(hessian(one), replace(SETTINGS, damp_percent=1e-12))
    assert prepared.factor is not None
    assert prepared.damp == pytest.approx(0.01)
    assert torch.isfinite(prepared.factor).all()
    assert prepare(hessian(correlated(512, 64)), SETTINGS).damp == SETTINGS.damp_percent


@pytest.mark.parametrize("order", ORDERS)
def test_dead_inputs_change_nothing_for_the_others(order: str) -> None:
    x, w = correlated(512, 64), weights(24, 64)
    dead = [3, 17, 40, 63]
    x[:, dead] = 0
    wanted = settings(order, group_size=-1)
    solved = solve(w, prepare(hessian(x), wanted), wanted)
    assert not solved.rtn_fallback
    assert not solved.weight(torch.float32)[:, dead].any(), "their weights become zero"
    w[:, dead] = 0
    live = [i for i in range(64) if i not in dead]
    alone = solve(w[:, live], prepare(hessian(x[:, live]), wanted), wanted)
    assert torch.equal(alone.codes, solved.codes[:, live])


@pytest.mark.parametrize("order", ORDERS)
def test_codes_do_not_depend_on_the_scale_of_inputs(order: str) -> None:
    x, w = correlated(512, 64), weights(24, 64)
    x[:, 5] = 0
    solved = [solve(w, prepare(hessian(x * by), settings(order)), settings(order)) for by in (1, 8)]
    assert torch.equal(solved[0].codes, solved[1].codes)
    assert torch.equal(solved[0].scales, solved[1].scales)


@pytest.mark.parametrize("what", ["no tokens", "all zero", "infinite"])
def test_where_inputs_say_nothing_weights_are_rounded(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = Hessian(64, "cpu")
    if what == "all zero":
        made.add(torch.zeros(10, 64))
    elif what == "infinite":
        made.add(torch.full((10, 64), torch.inf))
    wanted = settings("desc_act")
    with caplog.at_level(logging.WARNING):
        prepared = prepare(made, wanted)
    assert "rounded to nearest" in caplog.text
    w = weights(40, 64)
    solved = solve(w, prepared, wanted)
    assert solved.rtn_fallback
    assert solved.loss is None
    assert solved.damp == 0
    assert solved.g_idx.tolist() == [i // 32 for i in range(64)]
    step = solved.scales.float()[solved.g_idx.long()].T
    error = (w - solved.weight(torch.float32)).abs()
    assert (error <= step * 0.501).sum() >= w.numel() - 40 * 2, "but for the largest of a group"
    assert (error <= step * 1.001).all()
    assert prepare(hessian(correlated(5, 64)), wanted).factor is not None, "few, but enough"
