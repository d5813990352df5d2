"""ZipCal: the windows with the rarest words (Monaco et al. 2026, arXiv 2603.16105).

By Zipf's law a few words make up most of a text, so windows taken in order show the model the same
words again and again. Words are tokens here: they are what the quantized model sees.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.tokens import token_counts
from colazero.selection import METHODS, candidate_starts, windows_at
from colazero.types import Selection, TokenPool


@METHODS.register("zipcal")
def select(pool: TokenPool, n: int, seq_len: int, _rng: np.random.Generator) -> Selection:
    """Take the windows with the highest scores, highest first. The seed changes nothing."""
    starts = candidate_starts(pool, n, seq_len)
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
    """Return Σ 1 / (count of the token in the corpus) over each window's distinct tokens."""
    weights = 1.0 / np.maximum(1, token_counts(pool.tokens))
    windows = (pool.tokens[start : start + seq_len] for start in starts)
    return np.array([weights[np.unique(window)].sum() for window in windows])
