"""COLA-Zero with features that count how much each document looks like reasoning."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS, cola_zero
from colazero.types import Selection, TokenPool


@METHODS.register("cola_zero_reasoning")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Cluster on COLA-Zero's features and five surface marks of reasoning."""
    return cola_zero.on_features((*cola_zero.GROUPS, "reasoning"), pool, n, seq_len, rng)
