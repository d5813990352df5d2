"""GPTQModel's GPTQ and ours are one algorithm: on one layer and Hessian, the same codes.

GPTQModel is called with one group a block, so that its scales come from weights that all errors
have reached, and with its scales rounded to float16 when they are found, as ours are.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from layers import ORDERS, correlated, gptqmodel, hessian, layer_error, settings, weights

from colazero.gptq import prepare, solve


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Let GPTQModel's thousands of small operations be computed here, not divided among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("group", [32, 64, 128, -1])
@pytest.mark.parametrize("order", ORDERS)
def test_codes_and_errors_are_gptqmodels(bits: int, sym: bool, group: int, order: str) -> None:
    if group == -1 and order == "act_group_aware":
        pytest.skip("GPTQModel refuses")
    x, w = correlated(1024, 256, strength=0.125), weights(96, 256)
    wanted = settings(order, quant_bits=bits, sym=sym, group_size=group)
    made = hessian(x)
    ours, theirs = solve(w, prepare(made, wanted), wanted), gptqmodel(w, x, wanted)
    assert torch.equal(ours.g_idx, theirs.g_idx)
    assert (ours.codes == theirs.codes).float().mean() >= 0.999
    errors = [layer_error(w, q, made.value()) for q in (ours.weight(torch.float32), theirs.weight)]
    assert errors[0] <= 1.001 * errors[1]
    assert ours.damp == theirs.damp
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-3)
