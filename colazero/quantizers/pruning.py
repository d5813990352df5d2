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
    return by_blocks(work, Magnitude(work.settings))


@QUANTIZERS.register("wanda")
def wanda(work: Work) -> QuantizationReport:
    """Prune by Wanda (arXiv 2306.11695)."""
    return by_blocks(work, Wanda(work.settings))


@QUANTIZERS.register("sparsegpt")
def sparsegpt(work: Work) -> QuantizationReport:
    """Prune by SparseGPT (arXiv 2301.00774)."""
    return by_blocks(work, SparseGpt(work.settings))


class Magnitude:
    """Pruning by the weights alone; the base class of Wanda and SparseGPT."""

    quantization: Mapping[str, Any] | None = None

    def __init__(self, settings: QuantizationSettings) -> None:
        self._settings = settings

    def statistic(self, inputs: int, device: str) -> Any:
        """Return the sums of squares of the inputs."""
        from colazero.gptq.pruning import Norms

        return Norms(inputs, device)

    def prepare(self, statistic: Any) -> Any:
        """Return the statistic as it is."""
        return statistic

    def solve(self, weight: Any, prepared: Any, dtype: Any) -> Solution:
        """Prune a layer. Its weights are rounded to the dtype that they are stored in."""
        pruned, loss, damp = self.pruned(weight, prepared)
        saved = pruned.to(weight.dtype)
        row = {"loss": loss, "damp": damp, "rtn_fallback": False}
        row["sparsity"] = float((saved == 0).float().mean())
        return saved.to(dtype), {"weight": saved}, row

    def pruned(self, weight: Any, _prepared: Any) -> tuple[Any, float | None, float]:
        """Return the pruned weight, its loss if it is known, and the damp that it needed."""
        from colazero.gptq import pruning

        return pruning.magnitude(weight, self._settings), None, 0.0


class Wanda(Magnitude):
    """Pruning by |w| · ‖x‖₂."""

    def pruned(self, weight: Any, prepared: Any) -> tuple[Any, float | None, float]:
        """Return the pruned weight; see `Magnitude.pruned`."""
        from colazero.gptq import pruning

        return pruning.wanda(weight, prepared.squares, self._settings), None, 0.0


class SparseGpt(Magnitude):
    """Pruning with GPTQ's Hessian and factor."""

    def statistic(self, inputs: int, device: str) -> Any:
        """Return an empty Hessian."""
        from colazero import gptq

        return gptq.Hessian(inputs, device)

    def prepare(self, statistic: Any) -> Any:
        """Factor the Hessian."""
        from colazero.gptq import pruning

        return pruning.factor(statistic, self._settings)

    def pruned(self, weight: Any, prepared: Any) -> tuple[Any, float | None, float]:
        """Return the pruned weight; see `Magnitude.pruned`."""
        from colazero.gptq import pruning

        return *pruning.sparsegpt(weight, prepared, self._settings), prepared.damp
