"""A method's choice → the calibration set that the quantizer gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from colazero.calibration.check import refuse_unusable
from colazero.corpora.pool import need_tokens
from colazero.errors import UserError
from colazero.selection import find, one_thread
from colazero.types import CalibrationSet, Selection, Span, TokenPool

ORDER = 1
"""The spawn key of the generator, of those that a run's seed gives, that orders windows."""


def select(
    method: str, pool: TokenPool, n: int, seq_len: int, seed: int, corpus: str
) -> CalibrationSet:
    """Choose `n` windows of `seq_len` tokens with `method`.

    The seed alone decides what is random, and one thread does the arithmetic. UserError if the
    corpus has too few tokens, or a method of the user's own, `module:function`, is defective.
    """
    need_tokens(len(pool.tokens), n, seq_len, corpus)
    chosen = find(method)
    with one_thread():
        selection = chosen(pool, n, seq_len, np.random.default_rng(seed))
    try:
        return cut(pool, selection, n, seq_len)
    except ValueError as error:
        if ":" not in method:
            raise
        raise UserError(f"method {method!r} is defective: {error}") from error


def cut(pool: TokenPool, selection: Selection, n: int, seq_len: int) -> CalibrationSet:
    """Cut the windows a method chose out of the pool.

    ValueError, a defect of the method and not of its user, unless there are exactly `n` windows
    of exactly `seq_len` tokens, no two from the same place. UserError for a special token in one,
    or if two places hold the same.
    """
    if not isinstance(selection, Selection):
        raise ValueError(f"a method returns a Selection, this one a {type(selection).__name__}")
    windows: Sequence[NDArray[np.int32]]
    chosen: Sequence[Sequence[Span]]
    if selection.tokens is not None:
        windows, chosen = list(selection.tokens), [()] * len(selection.tokens)
    else:
        chosen = selection.windows
        windows = [
            np.concatenate([pool.tokens[s.start : s.stop] for s in spans]) for spans in chosen
        ]
    if len(windows) != n or any(len(window) != seq_len for window in windows):
        lengths = sorted({len(window) for window in windows})
        raise ValueError(
            f"asked for {n} × {seq_len} tokens, got {len(windows)} windows of {lengths}"
        )
    if selection.tokens is None:
        refuse_chosen_twice(selection)
    stacked = np.stack(windows).astype(np.int32)
    refuse_unusable(stacked, pool.forbidden)
    return CalibrationSet(stacked, chosen, dict(selection.notes))


def refuse_chosen_twice(selection: Selection) -> None:
    """Raise ValueError if a method chose one place twice: its own fault, not the corpus's."""
    places = Counter(tuple((s.start, s.stop) for s in spans) for spans in selection.windows)
    place, count = places.most_common(1)[0]
    if count > 1:
        raise ValueError(
            f"the method chose one window {count} times, tokens {place[0][0]:,} to "
            f"{place[-1][1]:,} of the corpus: each may be chosen once"
        )


def ordered(calibration: CalibrationSet, seed: int, replicate: int) -> CalibrationSet:
    """Return the set with its windows in the order of this number that the seed draws."""
    source = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(ORDER, replicate)))
    order = source.permutation(len(calibration.windows))
    spans = [calibration.spans[i] for i in order]
    return replace(calibration, windows=calibration.windows[order], spans=spans)


def pieces(calibration: CalibrationSet, pool: TokenPool) -> list[list[int]]:
    """Return what of the corpus the set holds: [document, first, stop) in a document's tokens.

    Documents are numbered as in the corpus, so that sets from different draws of it compare.
    """
    found = []
    for span in sorted(
        (span for spans in calibration.spans for span in spans), key=lambda span: span.start
    ):
        first = int(np.searchsorted(pool.stops, span.start, side="right"))
        behind = int(np.searchsorted(pool.starts, span.stop, side="left"))
        for at in range(first, behind):
            begin, end = int(pool.starts[at]), int(pool.stops[at])
            number = at if pool.documents is None else int(pool.documents[at])
            if begin < end:
                found.append([number, max(span.start, begin) - begin, min(span.stop, end) - begin])
    return found
