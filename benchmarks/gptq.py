"""What Hessians, factors and columns of a decoder block cost: `python benchmarks/gptq.py [--json]`.

SmolLM2-135M's shapes, 8 × 512 tokens, 4 bits, group 64, act_group_aware, random numbers, on this
machine's CPU. Each stage is measured in the same run as what it replaces, and its ratio to that is
printed: the full product Xᵀ X; Cholesky, inverse and Cholesky again; and a loop over all columns
with one tensor operation a step, each column's error going to all others at once. Seconds are the
least of several, for a block of the model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from colazero.gptq import Hessian, columns, prepare, solve
from colazero.types import QuantizationSettings

HIDDEN, MLP, KEYS, TOKENS = 576, 1536, 192, 8 * 512
SETTINGS = QuantizationSettings(4, 64, False, True, 0.05, True)
LAYERS = (  # inputs, and the outputs of the layers that share them
    (HIDDEN, (HIDDEN, KEYS, KEYS)),
    (HIDDEN, (HIDDEN,)),
    (HIDDEN, (MLP, MLP)),
    (MLP, (HIDDEN,)),
)


def seconds(work: Callable[[], object], times: int = 7) -> float:
    """Return the least seconds of several runs, after one that warms up."""
    work()
    taken = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        taken.append(time.perf_counter() - begin)
    return min(taken)


def plain_factor(value: Tensor) -> Tensor:
    """Return the upper factor of the damped inverse, by way of the inverse."""
    damped = value + 0.05 * value.diagonal().mean() * torch.eye(len(value))
    return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)


def plain_columns(weight: Tensor, upper: Tensor) -> None:
    """Quantize a weight [outputs, inputs] column by column, as the paper's equations stand."""
    work, size = weight.float(), SETTINGS.group_size
    for i in range(work.shape[1]):
        if i % size == 0:
            scale, zero = columns.fit(work[:, i : i + size].T, SETTINGS.quant_bits, SETTINGS.sym)
        code = columns.nearest(work[:, i], scale, zero, 2**SETTINGS.quant_bits - 1)
        error = (work[:, i] - (code - zero) * scale) / upper[i, i]
        work[:, i:] -= error[:, None] * upper[i, i:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = dict.fromkeys(("hessian", "factor", "columns"), 0.0)
    plain = dict(found)
    for inputs, outputs in LAYERS:
        x = torch.randn(TOKENS, inputs)
        made = Hessian(inputs, "cpu")
        made.add(x)
        prepared, upper = prepare(made, SETTINGS), plain_factor(made.value())
        found["hessian"] += seconds(lambda n=inputs, x=x: Hessian(n, "cpu").add(x))
        plain["hessian"] += seconds(lambda x=x: x.T @ x)
        found["factor"] += seconds(lambda m=made: prepare(m, SETTINGS))
        plain["factor"] += seconds(lambda m=made: plain_factor(m.value()))
        for rows in outputs:
            weight = torch.randn(rows, inputs).bfloat16()
            found["columns"] += seconds(lambda w=weight, p=prepared: solve(w, p, SETTINGS))
            plain["columns"] += seconds(lambda w=weight, u=upper: plain_columns(w, u), times=2)
    ratios = {f"{stage}_ratio": found[stage] / plain[stage] for stage in found}
    figures = {f"{stage}_sec": found[stage] for stage in found} | ratios
    if options.json:
        print(json.dumps(figures))
        return
    for stage in found:
        print(f"{stage:8} {found[stage]:7.3f} s, {ratios[f'{stage}_ratio']:.2f} of plain torch")


if __name__ == "__main__":
    main()
