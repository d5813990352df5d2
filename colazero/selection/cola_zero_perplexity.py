"""COLA-Zero with one more feature: how hard a small model finds each document."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS, cola_zero
from colazero.types import Selection, TokenPool


@METHODS.register("cola_zero_perplexity")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster on COLA-Zero's features and each document's perplexity under `proxy_model`."""
    return cola_zero.on_features((*cola_zero.GROUPS, "perplexity"), pool, n, seq_len, rng)


select.uses_proxy = True  # type: ignore[attr-defined]
