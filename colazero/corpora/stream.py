"""The tokens of a text that is too long for one call: encoded in pieces that overlap.

The tokens of two texts differ from those of the joined text: a tokenizer may put a space in front
of each text (Llama 2), or merge characters across the border. So pieces of the joined text overlap,
and are joined where both have the same tokens for a while.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PIECE = 2**15
"""Characters by which one piece begins after another."""
CONTEXT = 512
"""Characters on each side of a seam that both pieces contain."""
SAME = 16
"""Tokens on each side of a seam that must be equal in both pieces."""
BATCH = 64
"""Pieces encoded at a time, on all cores, to bound memory."""


class Tokens(NamedTuple):
    """Token ids, int32 [tokens], and the character of the whole text at which each begins."""

    ids: NDArray[np.int32]
    at: NDArray[np.int64]

    def part(self, cut: slice) -> Tokens:
        """Return a slice of the tokens."""
        return Tokens(self.ids[cut], self.at[cut])


class _Piece(NamedTuple):
    begin: int
    text: str


def stream(documents: Iterable[str], separator: str, tokenizer: Any) -> Iterator[Tokens]:
    """Yield the tokens of `separator.join(documents)`, some at a time, without special tokens.

    `tokenizer` is one of the library `tokenizers`; its settings are changed.
    """
    tokenizer.post_processor = None  # it would trim the offsets of tokens
    held: tuple[_Piece, Tokens] | None = None
    pieces = _pieces(documents, separator)
    while group := list(islice(pieces, BATCH)):
        for piece, tokens in zip(group, _encoded(group, tokenizer), strict=True):
            if held is None:
                held = piece, tokens
                continue
            before, left = held
            if seam := _seam(left, tokens, piece.begin):
                yield left.part(slice(seam[0]))
                held = piece, tokens.part(slice(seam[1], None))
            else:  # a text without borders, such as one repeated character
                whole = _Piece(before.begin, before.text + piece.text[2 * CONTEXT :])
                (again,) = _encoded([whole], tokenizer)
                held = whole, again.part(slice(int(np.searchsorted(again.at, left.at[0])), None))
    if held is not None:
        yield held[1]


def _pieces(documents: Iterable[str], separator: str) -> Iterator[_Piece]:
    """Cut the joined text into pieces; each shares 2 × CONTEXT characters with the next one."""
    text, begin, size = "", 0, PIECE + 2 * CONTEXT
    for part in chain.from_iterable((separator * (n > 0), d) for n, d in enumerate(documents)):
        text += part
        at = 0
        while len(text) - at > size:
            yield _Piece(begin + at, text[at : at + size])
            at += PIECE
        text, begin = text[at:] if at else text, begin + at
    if text:
        yield _Piece(begin, text)


def _encoded(pieces: Sequence[_Piece], tokenizer: Any) -> list[Tokens]:
    found = tokenizer.encode_batch([piece.text for piece in pieces], add_special_tokens=False)
    result = []
    for piece, encoding in zip(pieces, found, strict=True):
        ids = np.array(encoding.ids, dtype=np.int32)
        at = np.fromiter((start for start, _ in encoding.offsets), np.int64, len(ids))
        result.append(Tokens(ids, np.maximum.accumulate(at) + piece.begin))
    return result


def _seam(left: Tokens, right: Tokens, begin: int) -> tuple[int, int] | None:
    """Return how many tokens of `left` to keep and of `right` to drop; None if they disagree."""
    for middle in (begin + CONTEXT, begin + CONTEXT * 3 // 4, begin + CONTEXT * 5 // 4):
        i, j = (int(np.searchsorted(tokens.at, middle)) for tokens in (left, right))
        if min(i, j) < SAME or min(len(left.ids) - i, len(right.ids) - j) < SAME:
            continue
        a = left.part(slice(i - SAME, i + SAME))
        b = right.part(slice(j - SAME, j + SAME))
        if np.array_equal(a.ids, b.ids) and np.array_equal(a.at, b.at):
            return i, j
    return None
