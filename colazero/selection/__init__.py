"""Selection methods, one file each: which windows of the corpus the quantizer gets to see.

A method is a function `(pool, n, seq_len, rng) -> Selection`, registered by name; see
`colazero.interfaces.Selector`. It returns spans of the pool's token stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colazero.interfaces import CalibrationSet, Selector, Span, TokenPool
from colazero.pool import cut, need_tokens
from colazero.registry import Registry

METHODS: Registry[Selector] = Registry("method", "colazero.selection")


def select(
    method: str, pool: TokenPool, n: int, seq_len: int, seed: int, corpus: str
) -> CalibrationSet:
    """Choose `n` windows of `seq_len` tokens with `method`.

    The seed alone decides what is random, and one thread does the arithmetic: sums over several
    come in an order, and so with bits, that depends on their number. UserError if the corpus has
    too few tokens.
    """
    from threadpoolctl import threadpool_limits

    need_tokens(len(pool.tokens), n, seq_len, corpus)
    with threadpool_limits(limits=1):
        selection = METHODS.get(method)(pool, n, seq_len, np.random.default_rng(seed))
    return cut(pool, selection, n, seq_len)


def document_at(pool: TokenPool, token: int) -> int:
    """Return the index of the document in which (or in whose separator) `token` lies."""
    return int(np.searchsorted(pool.starts, token, side="right")) - 1


def windows_at(pool: TokenPool, starts: NDArray[np.int64], seq_len: int) -> list[list[Span]]:
    """Return contiguous windows of `seq_len` tokens that begin at the tokens `starts`."""
    return [
        [Span(document_at(pool, int(start)), int(start), int(start) + seq_len)] for start in starts
    ]
