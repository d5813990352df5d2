"""ZipCal: the windows with the rarest words (Monaco et al. 2026, arXiv 2603.16105).

By Zipf's law most of a text is made of few words, so windows taken as they come show the model the
same words again and again. Words are tokens here, which is what the quantized model sees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.pool import token_counts
from colazero.selection import METHODS, windows_at
from colazero.selection.grid import distinct_tokens, grid
from colazero.types import Selection, TokenPool


@METHODS.register("zipcal")
def select(pool: TokenPool, n: int, seq_len: int, _rng: np.random.Generator) -> Selection:
    """Take the windows of the highest score, highest first. The seed changes nothing."""
    starts = grid(pool, n, seq_len)
    score = scores(pool, starts, seq_len)
    best = np.argsort(-score, kind="stable")[:n]
    notes = {
        "candidates": len(starts),
        "score_highest": float(score[best[0]]),
        "score_lowest": float(score[best[-1]]),
        "score_median_of_candidates": float(np.median(score)),
    }
    return Selection(windows_at(pool, starts[best], seq_len), notes)


def scores(pool: TokenPool, starts: NDArray[np.int64], seq_len: int) -> NDArray[np.float64]:
    """Return Σ 1 / (times the token stands in the corpus) over each window's distinct tokens."""
    weights = 1.0 / np.maximum(1, token_counts(pool.tokens))
    return np.array([weights[found].sum() for found in distinct_tokens(pool, starts, seq_len)])
