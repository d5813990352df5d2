"""COLA-Zero, told besides how hard a small model finds each document."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS, cola_zero
from colazero.types import Selection, TokenPool


@METHODS.register("cola_zero_perplexity")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster on COLA-Zero's features and each document's perplexity under `proxy_model`."""
    groups = (*cola_zero.GROUPS, "perplexity")
    return cola_zero.on_features("cola_zero_perplexity", groups, pool, n, seq_len, rng)


select.uses_proxy = True  # type: ignore[attr-defined]
