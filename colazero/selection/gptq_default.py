"""The first N × L tokens of the corpus in order, as from a script that does not shuffle."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS, windows_at
from colazero.types import Selection, TokenPool


@METHODS.register("gptq_default")
def select(pool: TokenPool, n: int, seq_len: int, _rng: np.random.Generator) -> Selection:
    """Take the first windows. The seed changes nothing."""
    return Selection(windows_at(pool, np.arange(n) * seq_len, seq_len))
