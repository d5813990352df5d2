"""Pruning by magnitude, Wanda and SparseGPT: checkpoints of plain weights, many of them zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from colazero.quantizers import QUANTIZERS
from colazero.quantizers.onepass import Solution, by_blocks
from colazero.types import QuantizationReport, QuantizationSettings, Work


@QUANTIZERS.register("magnitude")
def magnitude(work: Work) -> QuantizationReport:
    """Zero each layer's smallest weights: the control without calibration."""
    return by_blocks(work, Pruning("magnitude", work.settings))


@QUANTIZERS.register("wanda")
def wanda(work: Work) -> QuantizationReport:
    """Prune by Wanda (arXiv 2306.11695)."""
    return by_blocks(work, Pruning("wanda", work.settings))


@QUANTIZERS.register("sparsegpt")
def sparsegpt(work: Work) -> QuantizationReport:
    """Prune by SparseGPT (arXiv 2301.00774), with GPTQ's Hessian and factor."""
    return by_blocks(work, Pruning("sparsegpt", work.settings))


class Pruning:
    """Prunes layers by one of the methods above; see `onepass.Layerwise`."""

    quantization: Mapping[str, Any] | None = None

    def __init__(self, method: str, settings: QuantizationSettings) -> None:
        self._method, self._settings = method, settings

    def statistic(self, inputs: int, device: str) -> Any:
        """Return an empty Hessian, or the sums of squares of the inputs."""
        from colazero import gptq
        from colazero.gptq.pruning import Norms

        if self._method == "sparsegpt":
            return gptq.Hessian(inputs, device)
        return Norms(inputs, device)

    def prepare(self, statistic: Any) -> Any:
        """Return a factored Hessian, or the sums as they are."""
        from colazero.gptq import pruning

        if self._method == "sparsegpt":
            return pruning.factor(statistic, self._settings)
        return statistic

    def solve(self, weight: Any, prepared: Any, dtype: Any) -> Solution:
        """Prune a layer. Its weights are rounded to the dtype that they are stored in."""
        from colazero.gptq import pruning

        loss, damp = None, 0.0
        if self._method == "magnitude":
            pruned = pruning.magnitude(weight, self._settings)
        elif self._method == "wanda":
            pruned = pruning.wanda(weight, prepared.squares, self._settings)
        else:
            pruned, loss = pruning.sparsegpt(weight, prepared, self._settings)
            damp = prepared.damp
        saved = pruned.to(weight.dtype)
        row = {"loss": loss, "damp": damp, "rtn_fallback": False}
        row["sparsity"] = float((saved == 0).float().mean())
        return saved.to(dtype), {"weight": saved}, row
