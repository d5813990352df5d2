"""`windows=document`: each calibration window begins where a document begins.

Documents follow each other, in the order of the corpus, until a window is full. The last one is cut
there, and its rest is not in any window: the next window begins with the next document.
So no window begins in the middle of a conversation. llm-compressor and GPTQModel also cut a sample
at the window's length; they leave short samples short or pad them, which would give the methods
different numbers of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from colazero.corpora.chat import Conversation
from colazero.types import Selection, Span, TokenPool


@dataclass(frozen=True)
class Laid:
    """A corpus laid into windows. `pool`: a pool whose documents are the windows, for a method.

    Per window: `begins`, its first token in the corpus's pool, and `documents`, the document there.
    `lost`: tokens behind the cut, of the document that the window's end cuts. `share_lost`: share
    of the corpus's tokens that are not in any window.
    """

    pool: TokenPool
    begins: NDArray[np.int64]
    documents: NDArray[np.int64]
    lost: NDArray[np.int64]
    share_lost: float

    def in_corpus(self, selection: Selection) -> Selection:
        """Return a selection of these windows as one of the corpus, with notes of the lost tokens.

        ValueError, a defect of the method, for a window that is not one of these.
        """
        if selection.tokens is not None:
            return selection
        length = len(self.pool.tokens) // max(1, len(self.begins))
        chosen = []
        for window in selection.windows:
            first, last = window[0], window[-1]
            follow = all(a.stop == b.start for a, b in pairwise(window))
            if first.start % length or last.stop - first.start != length or not follow:
                raise ValueError(
                    f"with windows=document it must choose whole documents of the pool, not tokens "
                    f"{first.start:,} to {last.stop:,}"
                )
            chosen.append(first.start // length)
        notes = dict(selection.notes)
        if "document_clusters" in notes:
            clusters = notes["document_clusters"].items()
            notes["document_clusters"] = {str(self.documents[int(k)]): c for k, c in clusters}
        lost = self.lost[chosen]
        notes |= {"documents_cut": int((lost > 0).sum()), "tokens_cut": int(lost.sum())}
        notes["tokens_cut_share_of_corpus"] = self.share_lost
        places = zip(self.documents[chosen].tolist(), self.begins[chosen].tolist(), strict=True)
        return Selection([[Span(d, begin, begin + length)] for d, begin in places], notes)


def lay(pool: TokenPool, length: int, front: Sequence[int] = ()) -> Laid:
    """Lay a corpus's documents into windows of `length` tokens.

    front: tokens that stand before every window. Where a template writes them at the beginning of a
    conversation itself, the window begins behind them.
    """
    there = np.flatnonzero(pool.stops > pool.starts)
    begins = pool.starts[there].astype(np.int64)
    own = np.full(len(begins), bool(front))
    for offset, token in enumerate(front):
        own &= pool.tokens[np.minimum(begins + offset, len(pool.tokens) - 1)] == token
    begins = begins + len(front) * own
    taken: list[int] = []
    at = 0
    while at < len(begins) and begins[at] + length <= len(pool.tokens):
        taken.append(at)
        at = int(np.searchsorted(begins, begins[at] + length))
    firsts = np.array(taken, dtype=np.int64)
    begins, documents = begins[firsts], there[firsts]
    last = np.searchsorted(pool.starts, begins + length) - 1
    texts = [
        joined([pool.texts[i] for i in range(first, until + 1)])
        for first, until in zip(documents.tolist(), last.tolist(), strict=True)
    ]
    plain = pool.plain
    if plain is not None:  # as in `texts`, all of the document that a window's end cuts
        plain = replace(plain, starts=plain.starts[documents], stops=plain.stops[last])
    starts = np.arange(len(begins), dtype=np.int64) * length
    view = replace(
        pool,
        texts=texts,
        tokens=pool.tokens[begins[:, None] + np.arange(length)].reshape(-1),
        starts=starts,
        stops=starts + length,
        entry=pool.entry and pool.entry.with_name(f"{pool.entry.name}-document-{length}"),
        documents=None,
        laid=True,
        plain=plain,
    )
    lost = np.maximum(0, pool.stops[last] - begins - length)
    share_lost = 1 - len(view.tokens) / max(1, len(pool.tokens))
    return Laid(view, begins, documents, lost, share_lost)


def joined(texts: Sequence[str]) -> str:
    """Return the texts as one; of conversations alone, a conversation with all their messages."""
    talks = [text for text in texts if isinstance(text, Conversation)]
    if len(talks) == len(texts):
        return Conversation([m for talk in talks for m in talk.messages], talks[0].options)
    return "\n\n".join(texts)
