"""Tokens drawn one by one: the floor. What calibration on them does worse is what text is worth."""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS
from colazero.types import Selection, TokenPool


@METHODS.register("random_tokens")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Draw each token independently from the corpus's unigram frequencies.

    A token at a place of the corpus that is drawn uniformly has that distribution.
    """
    return Selection([], tokens=pool.tokens[rng.integers(len(pool.tokens), size=(n, seq_len))])
