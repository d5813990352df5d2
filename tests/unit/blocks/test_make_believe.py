"""On a device of its own nothing mixes, and no more is copied than has to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from make_believe import DEVICE, machine
from safetensors.torch import load_file

from colazero.blocks.probe import open_sequence
from colazero.evaluation.perplexity import load_dense, perplexity
from colazero.evaluation.through_blocks import Evaluator, Reference, evaluate
from colazero.gptq import Hessian, prepare
from colazero.quantizers.onepass import quantize
from colazero.selection import forward
from colazero.types import CalibrationSet, Model, QuantizationSettings, Text, Work

SETTINGS = QuantizationSettings(4, 32, False, True, 0.05, True)
RNG = np.random.default_rng(0)
CALIBRATION = CalibrationSet(RNG.integers(10, 250, size=(4, 64), dtype=np.int32), [], {})
TEXT = Text("text", RNG.integers(10, 250, size=(3, 64)), np.arange(3) * 64)


def test_a_mistake_is_caught_and_bytes_are_counted() -> None:
    with machine() as traffic:
        a, b = torch.ones(3, 3, device=DEVICE), torch.ones(3, 3)
        assert (a @ b.to(DEVICE)).cpu().tolist() == [[3.0] * 3] * 3
        assert (traffic.there, traffic.back) == (36, 36)
        assert traffic.syncs == 2, "a copy each way from memory that is not pinned"
        assert float(a.sum()) == 9
        b.to(DEVICE, non_blocking=True)
        assert traffic.syncs == 3, "a number that the host reads"
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            a @ b


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt"])
def test_a_cell_copies_each_weight_once_and_one_checkpoint_back(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    original, out = request.getfixturevalue(family), tmp_path / "out"
    with machine():
        open_sequence(original, DEVICE, to_quantize=True)  # the probe is made once a model
    with machine() as traffic:
        evaluator = Evaluator([TEXT])
        quantize(Work(original, CALIBRATION, SETTINGS, out, DEVICE, evaluator=evaluator))
    weights = sum(t.nbytes for t in load_file(original / "model.safetensors").values())
    packed = load_file(out / "model.safetensors")
    written = sum(t.nbytes for name, t in packed.items() if name.split(".")[-1] in PACKED)
    # The form of a block's output is learnt from the first block; windows and masks are small.
    once_more = sum(
        t.nbytes
        for name, t in load_file(original / "model.safetensors").items()
        if ".layers.0." in name
    )
    assert weights <= traffic.there <= weights + once_more + 2**16
    assert written <= traffic.back <= written + 2**16


PACKED = ("qweight", "qzeros", "scales", "g_idx")


def test_the_host_does_not_wait_for_each_window_or_hessian(tiny_llama: Path) -> None:
    """Sums of windows stay on the device until the end, and a Hessian is looked at once."""
    waits = []
    for windows in (2, 6):
        text = Text("text", TEXT.windows[:1].repeat(windows, 0), np.arange(windows))
        with machine() as traffic:
            sequence = open_sequence(tiny_llama, DEVICE)
            known = Reference(Model("tiny", tiny_llama, str(windows)), sequence, text)
            evaluator = Evaluator([text], [known])
            evaluator.pass_all(sequence)
            before = traffic.syncs
            evaluator.finish()
        waits.append(traffic.syncs - before)
    # Per window: its ids, the reference's hidden states, and each model's look at its mask.
    assert waits[1] - waits[0] == 4 * (6 - 2)
    with machine() as traffic:
        hessian = Hessian(64, DEVICE)
        hessian.add(torch.ones(2, 32, 64, device=DEVICE))
        before = traffic.syncs
        prepare(hessian, SETTINGS)
    assert traffic.syncs - before == 3, "its checks, whether it has a factor, and its dead inputs"


def test_the_checkpoint_is_evaluated_alike_by_blocks_and_in_one_piece(
    tiny_llama: Path, tmp_path: Path
) -> None:
    with machine():
        evaluator = Evaluator([TEXT])
        quantize(
            Work(tiny_llama, CALIBRATION, SETTINGS, tmp_path / "q", DEVICE, evaluator=evaluator)
        )
        whole = perplexity(load_dense(tmp_path / "q", DEVICE), "t", TEXT.windows, TEXT.starts)
        by_blocks = evaluate(open_sequence(tmp_path / "q", DEVICE), [TEXT])[0]
    assert evaluator.perplexities[0].nll.tolist() == by_blocks.nll.tolist()
    assert by_blocks.nll == pytest.approx(whole.nll, rel=1e-5)


def test_features_that_need_a_model(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Serial:
        """A dispatch mode is of one thread, so batches run in this one."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __enter__(self) -> Serial:
            return self

        def __exit__(self, *_: Any) -> None: ...

        map = staticmethod(map)

    monkeypatch.setattr(forward, "ThreadPoolExecutor", Serial)
    rows = [RNG.integers(3, 250, size=length) for length in (20, 9, 33)]
    here = forward.forward(tiny_llama, "cpu", rows, forward.mean_nll)
    with machine():
        found = forward.forward(tiny_llama, DEVICE, rows, forward.mean_nll)
        forward.forward(tiny_llama, DEVICE, rows, forward.projected_means())
    assert found == pytest.approx(here, rel=0.02), "in bfloat16 there"
