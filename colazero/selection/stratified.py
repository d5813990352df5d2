"""Stratified by length: short, medium and long documents get the same share of the tokens.

Windows drawn from the token stream come mostly from long documents.
"""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS
from colazero.selection.clusters import Clusters, deal, pack, separator_ends
from colazero.types import Selection, TokenPool

STRATA = 3


@METHODS.register("stratified")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Fill a third of the budget from each tercile of document length, in random order.

    If a tercile has too few tokens, the others make up for it in equal parts.
    """
    lengths = pool.contents.stops - pool.contents.starts
    documents = np.flatnonzero(lengths)
    ranked = documents[np.argsort(lengths[documents], kind="stable")]
    strata = np.array_split(ranked, STRATA)
    sizes = separator_ends(pool) - pool.starts
    unit = seq_len if pool.laid else 1  # then whole documents, each a window
    available = [int(sizes[stratum].sum()) // unit for stratum in strata]
    shares = [unit * share for share in equal_shares(n * seq_len // unit, available)]
    spans = []
    for stratum, share in zip(strata, shares, strict=True):
        # One cluster, in which a random "distance" puts the documents into random order.
        order = rng.permutation(len(stratum)).astype(np.float64)
        if share:
            one_cluster = Clusters(np.zeros(len(stratum), dtype=np.int64), order)
            spans += deal(pool, stratum, one_cluster, share, seq_len)[0]
    used = np.unique([span.document for span in spans])
    return Selection(
        pack(spans, n, seq_len),
        {
            "stratum_tokens": shares,
            "stratum_documents": [int(np.isin(stratum, used).sum()) for stratum in strata],
            "stratum_longest": [int(lengths[stratum].max(initial=0)) for stratum in strata],
        },
    )


def equal_shares(total: int, available: list[int]) -> list[int]:
    """Divide `total` as evenly as `available` allows; the last share takes the remainder."""
    shares = np.zeros(len(available), dtype=np.int64)
    order = np.argsort(available, kind="stable")
    for position, stratum in enumerate(order):
        open_strata = len(order) - position
        shares[stratum] = min(available[stratum], (total - int(shares.sum())) // open_strata)
    shares[order[-1]] += total - int(shares.sum())
    return [int(share) for share in shares]
