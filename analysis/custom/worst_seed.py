"""What the unluckiest seed costs."""

from __future__ import annotations

from analysis.stats.samples import FloatArray


def worst_seed(values: FloatArray, reference: float | None) -> float | None:
    """Largest value of any seed, % above the unquantized model.

    For a perplexity, that is what somebody who quantizes once must be ready to get.
    """
    if reference is None or values.size == 0:
        return None
    return float(100 * (values.max() / reference - 1))
