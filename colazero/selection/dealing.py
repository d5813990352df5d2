"""Documents into windows: which of them, how much of each, packed without a gap."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from colazero.errors import UserError
from colazero.selection.clusters import Clusters
from colazero.types import Span, TokenPool


def ends(pool: TokenPool) -> NDArray[np.int64]:
    """Return where each document's separator ends, [documents]: it brings it along."""
    return np.append(pool.starts[1:], pool.stops[-1:])


def deal(
    pool: TokenPool, documents: NDArray[np.int64], clusters: Clusters, tokens: int, seq_len: int
) -> tuple[list[Span], list[int]]:
    """Deal documents round by round, from each cluster its next nearest, until there are `tokens`.

    A document brings its separator along, and gives at most one window's worth of tokens, so that
    the first round reaches every cluster. If all are dealt and tokens are still missing, the rests
    of the long ones follow. Returns the spans in order, and which of `documents` they came from.
    UserError if the documents have too few tokens.
    """
    stops = ends(pool)
    labels = clusters.labels
    nearest = np.lexsort((documents, clusters.distances, labels))
    first = np.searchsorted(labels[nearest], labels[nearest], side="left")
    rounds = np.arange(len(nearest)) - first
    dealt = nearest[np.lexsort((labels[nearest], rounds))]
    spans: list[Span] = []
    used: list[int] = []
    missing = tokens
    longest = int((stops - pool.starts)[documents].max(initial=0))
    for offset in range(0, longest, seq_len):
        for i in dealt:
            document = int(documents[i])
            start = int(pool.starts[document]) + offset
            stop = min(int(stops[document]), start + seq_len, start + missing)
            if stop > start:
                spans.append(Span(document, start, stop))
                missing -= stop - start
                if offset == 0:
                    used.append(int(i))
            if missing == 0:
                return spans, used
    raise too_small(tokens, tokens - missing)


def too_small(needed: int, available: int) -> UserError:
    """Return the error for a corpus that has its tokens between its documents, not in them."""
    return UserError(
        f"corpus too small: the windows need {needed:,} tokens, the documents to choose from have "
        f"{available:,}. Ask for fewer windows, or shorter ones."
    )


def pack(spans: list[Span], n: int, seq_len: int) -> list[list[Span]]:
    """Fill `n` windows of `seq_len` tokens one after the other, dividing spans at their borders."""
    windows: list[list[Span]] = [[] for _ in range(n)]
    filled = 0
    for span in spans:
        start = span.start
        while start < span.stop:
            window, used = divmod(filled, seq_len)
            stop = min(span.stop, start + seq_len - used)
            windows[window].append(Span(span.document, start, stop))
            filled += stop - start
            start = stop
    return windows
