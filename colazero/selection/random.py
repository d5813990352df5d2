"""Random windows: the baseline that every other method has to beat."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS, windows_at
from colazero.types import Selection, TokenPool


@METHODS.register("random")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Draw `n` windows that do not overlap; every such placement is equally likely.

    Shrink each window to one token, draw n of the places left without replacement, sort them, and
    give the windows their length back: a bijection between draws and placements.
    """
    if pool.laid:
        drawn = rng.choice(len(pool.starts), size=n, replace=False)
        return Selection(windows_at(pool, pool.starts[np.sort(drawn)], seq_len))
    places = len(pool.tokens) - n * (seq_len - 1)
    chosen = np.sort(rng.choice(places, size=n, replace=False, shuffle=False))
    return Selection(windows_at(pool, chosen + np.arange(n) * (seq_len - 1), seq_len))
