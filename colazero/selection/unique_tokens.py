"""Windows that add the most new tokens to those chosen before: a greedy cover of the vocabulary."""

from __future__ import annotations

import heapq

import numpy as np

from colazero.selection import METHODS, candidate_starts, windows_at
from colazero.types import Selection, TokenPool


@METHODS.register("unique_tokens")
def select(pool: TokenPool, n: int, seq_len: int, _rng: np.random.Generator) -> Selection:
    """Take, `n` times, the window with the most uncovered tokens. The seed changes nothing.

    Lazy greedy (Minoux 1978, doi 10.1007/BFb0006528): the gain of a window only falls while others
    are chosen, so its old gain is an upper bound. Only windows with the highest bound are counted
    again. Of equal windows the first in the corpus wins. When every token is covered, covering
    starts again with the windows that remain.
    """
    starts = candidate_starts(pool, n, seq_len)
    bounds = [len(np.unique(pool.tokens[start : start + seq_len])) for start in starts]
    heap = [(-bound, i) for i, bound in enumerate(bounds)]
    heapq.heapify(heap)
    covered = np.zeros(int(pool.tokens.max()) + 1, dtype=bool)
    ever_covered = covered.copy()
    chosen: list[int] = []
    covers = counted = 0
    while len(chosen) < n:
        _, i = heapq.heappop(heap)
        window = pool.tokens[starts[i] : starts[i] + seq_len]
        new = np.unique(window[~covered[window]])
        counted += 1
        if heap and (-len(new), i) > heap[0]:
            heapq.heappush(heap, (-len(new), i))
        elif not len(new):
            covers += 1
            covered[:] = False
            heap = [(-bounds[j], j) for _, j in [*heap, (0, i)]]
            heapq.heapify(heap)
        else:
            covered[new] = True
            ever_covered[new] = True
            chosen.append(i)
    notes = {
        "candidates": len(starts),
        "tokens_covered": int(ever_covered.sum()),
        "covers_completed": covers,
        "gains_counted": counted,
    }
    return Selection(windows_at(pool, starts[chosen], seq_len), notes)
