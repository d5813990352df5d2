"""Stratified by length: short, middling and long documents get the same share of the tokens.

Windows drawn from the stream of tokens show mostly long documents.
"""

from __future__ import annotations

import numpy as np

from colazero.selection import METHODS
from colazero.selection.clusters import one_cluster
from colazero.selection.dealing import deal, ends, pack
from colazero.types import Selection, TokenPool

STRATA = 3


@METHODS.register("stratified")
def select(pool: TokenPool, n: int, seq_len: int, rng: np.random.Generator) -> Selection:
    """Fill a third of the budget from each tercile of document length, in random order.

    What a tercile cannot give, the others do, in equal parts.
    """
    lengths = pool.stops - pool.starts
    documents = np.flatnonzero(lengths)
    ranked = documents[np.argsort(lengths[documents], kind="stable")]
    strata = np.array_split(ranked, STRATA)
    sizes = ends(pool) - pool.starts
    shares = equal_shares(n * seq_len, [int(sizes[stratum].sum()) for stratum in strata])
    spans = []
    for stratum, share in zip(strata, shares, strict=True):
        order = rng.permutation(len(stratum)).astype(np.float64)
        if share:
            spans += deal(pool, stratum, one_cluster(order), share, seq_len)[0]
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
    """Divide `total` as evenly as what is available allows; the last share takes what is left."""
    shares = np.zeros(len(available), dtype=np.int64)
    order = np.argsort(available, kind="stable")
    for position, stratum in enumerate(order):
        open_strata = len(order) - position
        shares[stratum] = min(available[stratum], (total - int(shares.sum())) // open_strata)
    shares[order[-1]] += total - int(shares.sum())
    return [int(share) for share in shares]
