"""Tokens drawn one by one. The lower bound: calibration without real text."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS
from colazero.types import Selection, TokenPool


@METHODS.register("random_tokens")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Draw each token independently from the corpus's unigram frequencies.

    The token at a uniformly drawn position of the corpus has that distribution.
    """
    return Selection([], tokens=pool.tokens[rng.integers(len(pool.tokens), size=(n, seq_len))])
