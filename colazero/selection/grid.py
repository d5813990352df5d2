"""Candidate windows: the token stream cut at multiples of the window length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from colazero.types import TokenPool


def grid(pool: TokenPool, n: int, seq_len: int) -> NDArray[np.int64]:
    """Return the starts of the windows to choose `n` from.

    A window that repeats an earlier one, or holds a special token, is left out, unless fewer than
    `n` would be left: then the check of the calibration set says what is wrong with the corpus.
    """
    starts = np.arange(len(pool.tokens) // seq_len, dtype=np.int64) * seq_len
    special = np.array(sorted(pool.forbidden), dtype=np.int32)
    seen: set[bytes] = set()
    good = []
    for start in starts:
        window = pool.tokens[start : start + seq_len]
        digest = hashlib.blake2b(window.tobytes(), digest_size=16).digest()
        if digest not in seen and not np.isin(special, window).any():
            seen.add(digest)
            good.append(start)
    return np.array(good, dtype=np.int64) if len(good) >= n else starts


def distinct_tokens(
    pool: TokenPool, starts: NDArray[np.int64], seq_len: int
) -> Iterator[NDArray[np.int32]]:
    """Yield each window's distinct tokens, sorted."""
    for start in starts:
        yield np.unique(pool.tokens[start : start + seq_len])
